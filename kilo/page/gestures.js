// Fingers, mouse and wheel on the picture.

const fingers = new Map();
const TAP_PIXELS = 6;
let travelled = 0;

function watchGestures(select) {
  picture.addEventListener("pointerdown", (event) => {
    if (fingers.size === 0) travelled = 0;
    fingers.set(event.pointerId, where(event));
  });
  picture.addEventListener("pointermove", follow);
  picture.addEventListener("pointerup", (event) => {
    const at = where(event), isTap = fingers.size === 1 && travelled < TAP_PIXELS;
    fingers.delete(event.pointerId);
    if (isTap && event.button === 0) select(findPlace(at.x, at.y)?.key || "");
  });
  picture.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
  picture.addEventListener("pointerleave", (event) => fingers.delete(event.pointerId));
  picture.addEventListener("dblclick", (event) => zoom(2, where(event).x, where(event).y));
  picture.addEventListener("wheel", turn, {passive: false});
  byId("closer").addEventListener("click", () => zoom(1.5));
  byId("farther").addEventListener("click", () => zoom(1 / 1.5));
  byId("whole").addEventListener("click", fitAll);
}

function where(event) {
  const box = picture.getBoundingClientRect();
  return {x: event.clientX - box.left, y: event.clientY - box.top};
}

// One finger moves the picture, two stretch it.
function follow(event) {
  const before = fingers.get(event.pointerId), after = where(event);
  if (!before) return;
  const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
  travelled += Math.hypot(after.x - before.x, after.y - before.y);
  fingers.set(event.pointerId, after);
  if (other) {
    const ratio = distance(after, other) / Math.max(1, distance(before, other));
    zoom(ratio, other.x, other.y);
  } else if (travelled >= TAP_PIXELS) {
    picture.setPointerCapture(event.pointerId);
    eye.x += after.x - before.x;
    eye.y += after.y - before.y;
    eye.moved = true;
    moveEye();
  }
}

function distance(one, other) {
  return Math.hypot(one.x - other.x, one.y - other.y);
}

// A plain wheel scrolls the page, as everywhere; a trackpad's pinch comes with ctrl.
function turn(event) {
  if (!event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 300), where(event).x, where(event).y);
}
