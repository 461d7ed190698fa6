// The facts in words: the header, the tables, and the details of what is selected.
// Names and texts of the mesh are strangers': they are only ever set as text.

const SEGMENT_COLUMNS = [
  "Segment", "Leader", "Leads for", "Address", "Endpoint", "Handshake", "Received", "Sent", "Seen", "Nodes",
];
const PEER_COLUMNS = [
  "Peer", "State", "Allowed IPs", "Endpoint", "Handshake", "Received", "Sent",
];
const NODE_COLUMNS = ["Node", "Internal IPs", "Pod subnets", "Endpoint", "Seen"];

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function drawSign(state) {
  const sign = draw("svg", {class: `sign mark ${state}`, viewBox: "-8 -8 16 16", "aria-hidden": "true"});
  sign.append(...markShapes(state, 5.5));
  return sign;
}

function showHeader(view, now) {
  const {agent} = view;
  setText(byId("who"), agent ? `as node ${agent.node} sees it` : "");
  const health = byId("health");
  health.className = agent && agent.ready ? "good" : "bad";
  const since = agent && agent.since ? ` for ${describeAge(now - agent.since)}` : "";
  setText(health, `${agent && agent.ready ? "✓ ready" : "✕ not ready"}${since}`);
  setText(byId("mesh"), describeMesh(view));
  const reasons = agent ? agent.reasons.map((text) => `not ready: ${text}`) : [];
  showLines(byId("alarms"), reasons);
  byId("alarms").hidden = reasons.length === 0;
  const complaints = listComplaints(view, now);
  showLines(byId("complaints"), complaints);
  byId("complaints-part").hidden = complaints.length === 0;
  byId("peers-part").hidden = view.peers.length === 0;
  document.title = `${agent && agent.ready ? "✓" : "✕"} Kilo${agent ? ` ${agent.node}` : ""}`;
}

function showLines(list, lines) {
  while (list.children.length > lines.length) list.lastChild.remove();
  while (list.children.length < lines.length) list.append(make("li", {}));
  lines.forEach((line, index) => setText(list.children[index], line));
}

// What each sign means, and how many there are of it.
function showLegend(view, now) {
  const counts = {};
  const states = [
    ...view.segments.map((one) => judgeSegment(one, view, now)),
    ...view.peers.map((one) => judgePeer(one, now)),
    ...view.absent.map(() => "out"),
  ];
  for (const state of states) counts[state] = (counts[state] || 0) + 1;
  const legend = byId("legend");
  if (legend.children.length === 0) fillLegend(legend);
  for (const entry of legend.querySelectorAll("[data-state]")) {
    const {state} = entry.dataset;
    entry.hidden = !counts[state];
    setText(entry.lastChild, state === "own" ? STATES.own : `${STATES[state]}: ${counts[state]}`);
  }
}

function fillLegend(legend) {
  for (const state of Object.keys(STATES)) {
    legend.append(make("li", {"data-state": state}, drawSign(state), make("span", {})));
  }
  const segment = draw("svg", {class: "sign", viewBox: "-8 -8 16 16", "aria-hidden": "true"});
  segment.append(draw("circle", {class: "bubble", r: 7}), draw("circle", {class: "spot", r: 2.5}));
  const peer = draw("svg", {class: "sign mark unknown", viewBox: "-8 -8 16 16", "aria-hidden": "true"});
  peer.append(draw("path", {class: "ring", d: diamond(6.5)}));
  legend.append(
    make("li", {}, segment, "segment, its leader in the middle"), make("li", {}, peer, "peer"),
  );
}

function showTables(view, now) {
  fillTable(byId("segments"), SEGMENT_COLUMNS, view.segments.map((one) => ({
    key: `segment ${one.name}`, state: judgeSegment(one, view, now), cells: segmentCells(one, now),
  })));
  fillTable(byId("peers"), PEER_COLUMNS, view.peers.map((one) => ({
    key: `peer ${one.name}`, state: judgePeer(one, now), cells: peerCells(one, now),
  })));
}

function segmentCells(segment, now) {
  const leader = findLeader(segment);
  return [
    segment.name,
    segment.leader,
    describeSpan(segment.leaderSince, now),
    segment.wireguardIPs.join(", "),
    findEndpoint(segment.tunnel, leader.endpoint),
    ...describeTraffic(segment.tunnel, now),
    describeTime(leader.lastSeen, now),
    String(segment.nodes.length),
  ];
}

function peerCells(peer, now) {
  const state = peer.ready ? "ready" : "left out";
  return [
    peer.name,
    peer.ready && peer.remarks.length ? "ready, partly refused" : state,
    peer.allowedIPs.join(", ") || "-",
    findEndpoint(peer.tunnel, peer.endpoint),
    ...describeTraffic(peer.tunnel, now),
  ];
}

// Rows stay the same elements as long as what they show is there, and only what changed is set.
function fillTable(table, columns, rows) {
  if (!table.tBodies.length) {
    const heading = make("tr", {}, ...columns.map((name) => make("th", {scope: "col"}, name)));
    table.append(make("thead", {}, heading), make("tbody", {}));
  }
  const body = table.tBodies[0];
  const known = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  rows.forEach((wanted, index) => {
    const row = known.get(wanted.key) || makeRow(wanted, columns);
    known.delete(wanted.key);
    if (body.rows[index] !== row) body.insertBefore(row, body.rows[index] || null);
    fillRow(row, wanted);
  });
  for (const row of known.values()) row.remove();
}

// A row that has a state can be selected.
function makeRow({key, state}, columns) {
  const cells = columns.map((name) => make("td", {"data-label": name}));
  if (state) cells[0].append(make("button", {type: "button", class: "name"}, make("bdi", {})));
  const row = make("tr", {}, ...cells);
  row.dataset.key = key;
  return row;
}

function fillRow(row, {state, cells}) {
  const button = row.cells[0].querySelector("button");
  cells.forEach((text, index) => {
    setText(index === 0 && button ? button.querySelector("bdi") : row.cells[index], text);
  });
  if (button && row.dataset.state !== state) {
    row.dataset.state = state;
    button.querySelector("svg")?.remove();
    button.prepend(drawSign(state));
    button.title = STATES[state];
  }
}

// Shows the rows that the words are found in; the keys of those, or null if nothing is searched.
function filterTables(view, text) {
  const wanted = text.trim().toLowerCase();
  const items = [
    ...view.segments.map((one) => [`segment ${one.name}`, one]),
    ...view.peers.map((one) => [`peer ${one.name}`, one]),
  ];
  const found = items.filter(([, item]) => !wanted || listWords(item).includes(wanted));
  const keys = new Set(found.map(([key]) => key));
  for (const row of document.querySelectorAll("#segments tbody tr, #peers tbody tr")) {
    row.hidden = !keys.has(row.dataset.key);
  }
  setText(byId("found"), wanted ? `${found.length} of ${items.length}` : "");
  return wanted ? keys : null;
}

// The details of what is selected; of this node where nothing is.
function showDetails(view, key, now) {
  const details = byId("details");
  const segment = view.segments.find((one) => `segment ${one.name}` === key);
  const peer = view.peers.find((one) => `peer ${one.name}` === key);
  const shown = segment ? describeSegment(segment, view, now)
    : peer ? describePeer(peer, now) : describeAgent(view);
  const nodes = segment ? segment.nodes : [];
  setText(ensure(details, "h2"), shown.title);
  const lead = ensure(details, "p");
  lead.className = shown.state || "";
  setText(lead, shown.lead);
  fillList(ensure(details, "dl"), shown.facts.filter(([, text]) => text));
  const table = ensure(details, "table");
  table.hidden = nodes.length === 0;
  fillTable(table, NODE_COLUMNS, nodes.map((node) => ({key: node.name, cells: nodeCells(node, segment, now)})));
}

function ensure(parent, tag) {
  return parent.querySelector(tag) || parent.appendChild(make(tag, {}));
}

function fillList(list, facts) {
  while (list.children.length > 2 * facts.length) list.lastChild.remove();
  while (list.children.length < 2 * facts.length) list.append(make("dt", {}), make("dd", {}));
  facts.forEach(([name, text], index) => {
    setText(list.children[2 * index], name);
    setText(list.children[2 * index + 1], text);
  });
}

function describeSegment(segment, view, now) {
  const [handshake, received, sent] = describeTraffic(segment.tunnel, now);
  const state = judgeSegment(segment, view, now);
  return {
    title: segment.name,
    state,
    lead: STATES[state],
    facts: [
      ["Leader", segment.leader],
      ["Leads for", describeSpan(segment.leaderSince, now)],
      ["Address", segment.wireguardIPs.join(", ")],
      ["Endpoint", findEndpoint(segment.tunnel, findLeader(segment).endpoint)],
      ["Handshake", handshake],
      ["Received", received],
      ["Sent", sent],
      ["Allowed IPs", segment.allowedIPs.join(", ")],
      ["Leader's key", findLeader(segment).publicKey],
    ],
  };
}

function describePeer(peer, now) {
  const [handshake, received, sent] = describeTraffic(peer.tunnel, now);
  const state = judgePeer(peer, now);
  return {
    title: `Peer ${peer.name}`,
    state,
    lead: STATES[state],
    facts: [
      ["Allowed IPs", peer.allowedIPs.join(", ")],
      ["Endpoint", findEndpoint(peer.tunnel, peer.endpoint)],
      ["Handshake", handshake],
      ["Received", received],
      ["Sent", sent],
      ["Remarks", peer.remarks.join("\n")],
      ["Key", peer.publicKey],
    ],
  };
}

function describeAgent(view) {
  const {agent, mesh} = view;
  const own = findOwnSegment(view);
  return {
    title: agent ? `Node ${agent.node}` : "No agent",
    lead: describeRole(view, own),
    facts: [
      ["Segment", own ? own.name : ""],
      ["Interface", agent ? describeInterface(agent) : ""],
      ["Version", agent ? agent.version : ""],
      ["Granularity", mesh.granularity],
      ["Encapsulation", mesh.encapsulation],
      ["Port", String(mesh.port)],
      ["MTU", mesh.mtu === null ? "each finds its own" : String(mesh.mtu)],
      ["Service CIDRs", mesh.serviceCIDRs.join(", ")],
    ],
  };
}

function describeInterface(agent) {
  return agent.mtu ? `${agent.interface}, mtu ${agent.mtu}` : agent.interface;
}

function describeRole(view, own) {
  if (!own) return "It takes no part in the mesh.";
  if (leadsItself(own, view)) return "It leads its segment. Select a segment or a peer for more.";
  return `It has no tunnels: ${own.leader} leads its segment, and knows of the handshakes.`;
}

function nodeCells(node, segment, now) {
  return [
    node.name === segment.leader ? `${node.name} (leader)` : node.name,
    node.internalIPs.join(", ") || "-",
    node.podSubnets.join(", ") || "-",
    node.endpoint || "-",
    describeTime(node.lastSeen, now),
  ];
}
