// The picture: lines, places and labels as SVG, and how it is moved about.

const SVG = "http://www.w3.org/2000/svg";
// More lines than this between other segments would be a grey disc.
const FULL_MESH_SEGMENTS = 14;
const TOUCH_RADIUS = 16;
const LABEL_LENGTH = 22;
const MARGIN = 0.06;
const LABEL_HEIGHT = 15;

const picture = byId("picture");
const drawn = {places: [], marks: new Map(), lines: new Map(), shape: "", selected: ""};
const eye = {scale: 1, x: 0, y: 0, moved: false};

function byId(id) {
  return document.getElementById(id);
}

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Draws what changed: all of it if anybody came or went, else the states alone.
function showPicture(view, now) {
  const shape = JSON.stringify([
    view.agent && view.agent.node,
    view.segments.map((one) => [one.name, one.leader, one.nodes.map((node) => node.name)]),
    view.peers.map((one) => one.name),
    view.absent.map((one) => one.name),
  ]);
  if (shape !== drawn.shape) {
    drawn.shape = shape;
    redraw(view);
  } else {
    refreshItems(view);
  }
  paintStates(view, now);
  byId("picture-summary").textContent = describeMesh(view);
}

function redraw(view) {
  drawn.places = layOut(view, chooseStretch());
  drawLines(view);
  drawn.marks = new Map(drawn.places.map((one) => [one.key, drawPlace(one, view)]));
  byId("places").replaceChildren(...drawn.marks.values());
  markSelected(drawn.selected);
  if (!eye.moved) fitAll();
}

// The same places with what is known of them now.
function refreshItems(view) {
  const segments = new Map(view.segments.map((one) => [one.name, one]));
  const peers = new Map(view.peers.map((one) => [one.name, one]));
  for (const one of drawn.places) {
    if (one.kind === "segment") one.item = segments.get(one.item.name);
    if (one.kind === "peer") one.item = peers.get(one.item.name);
    if (one.kind === "absent") one.item = {nodes: view.absent};
  }
}

// A wide window has room beside the rings, a phone above and below.
function chooseStretch() {
  const ratio = picture.clientWidth / Math.max(1, picture.clientHeight);
  return {x: clamp(ratio, 1, 1.5), y: clamp(1 / ratio, 1, 1.3)};
}

function clamp(value, least, most) {
  return Math.min(most, Math.max(least, value));
}

function drawPlace(one, view) {
  const group = draw("g", {class: `place ${one.kind}`, transform: `translate(${one.x} ${one.y})`});
  if (one.kind !== "peer") group.append(draw("circle", {class: "bubble", r: one.radius}));
  const own = view.agent && view.agent.node;
  one.spots.forEach((spot, index) => {
    const isOwn = spot.node.name === own;
    if ((index && !isOwn) || one.kind === "absent") group.append(drawSpot(spot, one.kind));
    if (index && isOwn) group.append(drawMark("own", spot, 5));
  });
  group.append(draw("title", {}));
  return group;
}

function drawSpot(spot, kind) {
  if (kind === "absent") return drawMark("out", spot, 4);
  return draw("circle", {class: "spot", r: 3.2, cx: spot.x, cy: spot.y});
}

function drawMark(state, at, size) {
  const mark = draw("g", {class: `mark ${state}`, transform: `translate(${at.x} ${at.y})`});
  mark.append(...markShapes(state, size));
  return mark;
}

// The sign of a state in shapes alone.
function markShapes(state, size) {
  const ring = () => draw("circle", {class: "ring", r: size});
  switch (state) {
    case "own": return [draw("path", {class: "full", d: star(size * 1.3)})];
    case "fresh": return [draw("circle", {class: "full", r: size})];
    case "old": return [ring(), draw("path", {class: "full", d: `M0 ${-size}A${size} ${size} 0 0 0 0 ${size}z`})];
    case "never": return [draw("circle", {class: "blank", r: size}), draw("path", {class: "ring", d: cross(size * 0.8, 0, 0)})];
    case "out": return [draw("path", {class: "ring", d: `M0 ${-size}V${size * 0.25}M0 ${size * 0.85}V${size}`})];
    default: return [ring()];
  }
}

function cross(size, x, y) {
  return `M${x - size} ${y - size}L${x + size} ${y + size}M${x - size} ${y + size}L${x + size} ${y - size}`;
}

function diamond(size) {
  return `M0 ${-size}L${size} 0 0 ${size} ${-size} 0z`;
}

function star(size) {
  const corners = Array.from({length: 10}, (_, index) => {
    const radius = index % 2 ? size * 0.45 : size, angle = (index * Math.PI) / 5 - Math.PI / 2;
    return `${(radius * Math.cos(angle)).toFixed(2)} ${(radius * Math.sin(angle)).toFixed(2)}`;
  });
  return `M${corners.join("L")}z`;
}

function drawLines(view) {
  const segments = drawn.places.filter((one) => one.kind === "segment");
  const own = segments.find((one) => leadsItself(one.item, view));
  const elements = [];
  if (segments.length <= FULL_MESH_SEGMENTS) {
    segments.forEach((one, index) => {
      for (const other of segments.slice(index + 1)) {
        if (one !== own && other !== own) elements.push(join(one, other, "line other"));
      }
    });
  }
  drawn.lines = new Map();
  const ends = own ? drawn.places.filter((one) => one !== own && one.kind !== "absent") : [];
  for (const end of ends) drawn.lines.set(end.key, join(own, end, "line"));
  byId("lines").setAttribute("class", ends.length > 40 ? "many" : "");
  byId("lines").replaceChildren(...elements, ...drawn.lines.values());
}

function join(one, other, kind) {
  return draw("line", {class: kind, x1: one.x, y1: one.y, x2: other.x, y2: other.y});
}

function judgePlace(one, view, now) {
  if (one.kind === "absent") return "out";
  return one.kind === "peer" ? judgePeer(one.item, now) : judgeSegment(one.item, view, now);
}

function paintStates(view, now) {
  for (const one of drawn.places) {
    const group = drawn.marks.get(one.key);
    const state = judgePlace(one, view, now);
    setText(group.querySelector("title"), `${nameOf(one)}: ${STATES[state]}`);
    if (group.dataset.state === state) continue;
    group.dataset.state = state;
    if (one.kind !== "absent") paintMark(one, group, state);
    const line = drawn.lines.get(one.key);
    if (line) line.setAttribute("class", `line ${one.kind} ${state}`);
  }
  placeLabels();
}

function paintMark(one, group, state) {
  group.querySelector(".main")?.remove();
  const main = draw("g", {class: `mark main ${state}`});
  if (one.kind === "peer") {
    main.append(draw("path", {class: "blank", d: diamond(one.radius)}));
  }
  main.append(...markShapes(state, one.kind === "peer" ? 4.2 : LEADER_RADIUS));
  group.append(main);
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function nameOf(one) {
  if (one.kind === "absent") return `${count(one.item.nodes.length, "node")} away`;
  return one.kind === "peer" ? `peer ${one.item.name}` : `${one.item.name}, leader ${one.item.leader}`;
}

// Labels are as large at every scale, and left out where they would cover something.

function placeLabels() {
  const taken = drawn.places.map((one) => ({...toScreen(one.x, one.y), radius: one.radius * eye.scale, one}));
  const labels = [];
  const first = (item) => Number(item.one.key === drawn.selected) * 2 + Number(item.one === drawn.places[0]);
  const wanted = [...taken].sort((a, b) => first(b) - first(a) || b.radius - a.radius);
  const boxes = [];
  for (const item of wanted) {
    if (item.x < 0 || item.y < 0 || item.x > picture.clientWidth || item.y > picture.clientHeight) continue;
    const text = labelOf(item.one), candidates = labelBoxes(item, text);
    const box = candidates.find((one) => !isCovered(one, taken, boxes))
      || (item.one.key === drawn.selected ? candidates[0] : null);
    if (!box) continue;
    boxes.push(box);
    labels.push(draw("text", {class: `label ${item.one.kind}`, x: item.x, y: box.top + 11}, text));
  }
  byId("labels").replaceChildren(...labels);
}

// Where it may stand: below, within at the lower edge, or above, where it must not be taken for that
// of another place farther up.
function labelBoxes({x, y, radius, one}, text) {
  const half = text.length * 3.6 + 3;
  const box = (top, clear) =>
    ({left: x - half, right: x + half, top, bottom: top + LABEL_HEIGHT, clear: top - clear, one});
  const boxes = [box(y + radius + 2, 2)];
  if (radius > 1.2 * LABEL_HEIGHT) boxes.push(box(y + radius - LABEL_HEIGHT + 3, 0));
  return [...boxes, box(y - radius - LABEL_HEIGHT - 1, LABEL_HEIGHT)];
}

function labelOf(one) {
  const name = one.kind === "absent" ? nameOf(one) : shortenName(one.item.name);
  return name.length > LABEL_LENGTH ? `${name.slice(0, LABEL_LENGTH - 1)}…` : name;
}

function isCovered(box, circles, boxes) {
  return boxes.some((other) =>
    box.left < other.right && box.right > other.left && box.top < other.bottom && box.bottom > other.top)
    || circles.some((circle) => circle.one !== box.one && Math.hypot(
      circle.x - clamp(circle.x, box.left, box.right),
      circle.y - clamp(circle.y, box.clear, box.bottom)) < circle.radius);
}

// Moving about.

function toScreen(x, y) {
  return {x: x * eye.scale + eye.x, y: y * eye.scale + eye.y};
}

function moveEye() {
  byId("world").setAttribute("transform", `translate(${eye.x} ${eye.y}) scale(${eye.scale})`);
  placeLabels();
}

function fitAll() {
  const {left, right, top, bottom} = findBounds(drawn.places);
  const width = picture.clientWidth, height = picture.clientHeight, used = 1 - 2 * MARGIN;
  const fitting = Math.min((width * used) / (right - left), (height * used) / (bottom - top));
  eye.scale = clamp(fitting, 0.05, 2);
  eye.x = width / 2 - ((left + right) / 2) * eye.scale;
  eye.y = height / 2 - ((top + bottom) / 2) * eye.scale;
  eye.moved = false;
  moveEye();
}

function zoom(factor, x = picture.clientWidth / 2, y = picture.clientHeight / 2) {
  const scale = clamp(eye.scale * factor, 0.05, 8);
  eye.x = x - (x - eye.x) * (scale / eye.scale);
  eye.y = y - (y - eye.y) * (scale / eye.scale);
  eye.scale = scale;
  eye.moved = true;
  moveEye();
}

// What is meant by a tap there: a finger is broader than a mark.
function findPlace(x, y) {
  const near = drawn.places.map((one) => {
    const at = toScreen(one.x, one.y);
    return {one, beyond: Math.hypot(at.x - x, at.y - y) - one.radius * eye.scale};
  }).filter((item) => item.beyond <= TOUCH_RADIUS);
  return near.length ? near.reduce((a, b) => (b.beyond < a.beyond ? b : a)).one : null;
}

function markSelected(key) {
  drawn.selected = key;
  for (const [other, group] of drawn.marks) group.classList.toggle("selected", other === key);
  placeLabels();
}

// Fades what a search does not find; null: nothing is searched for.
function fadeOthers(keys) {
  for (const [key, group] of drawn.marks) group.classList.toggle("faded", keys !== null && !keys.has(key));
}
