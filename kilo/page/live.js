// Keeps the page true: asks again every second while somebody looks, and never while nobody does.

const ASK_EVERY_MILLISECONDS = 1000;
const PATIENCE_MILLISECONDS = 10000;

const live = {view: null, tag: "", selected: "", lostAt: 0, timer: 0, clock: 0, clockAt: 0};

// The agent's clock, as it goes on between its answers.
function tellNow() {
  return live.clock + (performance.now() - live.clockAt) / 1000;
}

function setClock(response) {
  const date = Date.parse(response.headers.get("Date") || "") / 1000 || 0;
  const told = live.view ? live.view.at : 0;
  // Dates have whole seconds: what is known better stays.
  const now = Math.max(told, date);
  if (Math.abs(tellNow() - now) > 1.5) {
    live.clock = now;
    live.clockAt = performance.now();
  }
}

async function ask() {
  const headers = live.tag ? {"If-None-Match": live.tag} : {};
  const signal = AbortSignal.timeout(PATIENCE_MILLISECONDS);
  const response = await fetch("status", {headers, signal, cache: "no-store"});
  if (response.status === 200) {
    live.view = JSON.parse(await response.text(), reveal);
    live.tag = response.headers.get("ETag") || "";
  } else if (response.status !== 304) {
    throw new Error(`answers ${response.status}`);
  }
  setClock(response);
}

async function keepAsking() {
  clearTimeout(live.timer);
  if (document.hidden) return;
  try {
    await ask();
    live.lostAt = 0;
  } catch (error) {
    live.lostAt ||= Date.now();
    live.reason = error.name === "TimeoutError" ? "no answer" : error.message;
  }
  show();
  clearTimeout(live.timer);
  live.timer = setTimeout(keepAsking, ASK_EVERY_MILLISECONDS);
}

function show() {
  const line = byId("live"), isLost = live.lostAt !== 0;
  document.body.classList.toggle("lost", isLost);
  setText(line, isLost
    ? `✕ the agent is not heard since ${new Date(live.lostAt).toLocaleTimeString()} (${live.reason})`
    : "● live");
  if (!live.view) return;
  const now = tellNow();
  showHeader(live.view, now);
  showPicture(live.view, now);
  showLegend(live.view, now);
  showTables(live.view, now);
  showDetails(live.view, live.selected, now);
  search();
}

function select(key) {
  live.selected = key;
  markSelected(key);
  for (const row of document.querySelectorAll("tbody tr")) {
    row.classList.toggle("selected", key !== "" && row.dataset.key === key);
  }
  if (live.view) showDetails(live.view, key, tellNow());
}

function search() {
  if (live.view) fadeOthers(filterTables(live.view, byId("filter").value));
}

for (const table of ["segments", "peers"]) {
  byId(table).addEventListener("click", (event) => {
    const row = event.target.closest("tbody tr");
    if (!row) return;
    select(row.dataset.key);
    byId("details").scrollIntoView({block: "nearest"});
  });
}
byId("filter").addEventListener("input", search);
document.addEventListener("visibilitychange", keepAsking);
new ResizeObserver(() => {
  if (!live.view) return;
  if (!eye.moved) redraw(live.view);
  paintStates(live.view, tellNow());
}).observe(picture);
watchGestures(select);
keepAsking();
