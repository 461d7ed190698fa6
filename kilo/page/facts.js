// What /status tells, judged and put into words. Nothing here touches the page.
// Times are Unix seconds, 0 for never.

// WireGuard's Reject-After-Time: no session outlives its handshake by more than this.
const SESSION_SECONDS = @SESSION_SECONDS@;
// A node that was silent for so long will hardly come back.
const LEFT_SECONDS = 86400;

// What is known of a segment, seen from this node. Colour is never the only sign: each has a mark
// and a kind of line of its own.
const STATES = {
  own: "this node",
  fresh: `handshake in the last ${SESSION_SECONDS / 60} minutes`,
  old: "older handshake, nobody uses the tunnel",
  never: "no handshake yet",
  unknown: "no tunnel from here",
  out: "not in the mesh",
};

// What cannot be seen, or turns around what follows it, is written out: one name must not pass for
// another. For JSON.parse.
function reveal(_key, value) {
  if (typeof value !== "string") return value;
  return value.replace(/[\p{Cc}\p{Cf}]/gu, (found) =>
    `\\u${found.codePointAt(0).toString(16).padStart(4, "0")}`);
}

function judgeTunnel(tunnel, now) {
  if (tunnel === null) return "unknown";
  if (tunnel.latestHandshake === 0) return "never";
  return now - tunnel.latestHandshake < SESSION_SECONDS ? "fresh" : "old";
}

function judgeSegment(segment, view, now) {
  return leadsItself(segment, view) ? "own" : judgeTunnel(segment.tunnel, now);
}

function judgePeer(peer, now) {
  return peer.ready ? judgeTunnel(peer.tunnel, now) : "out";
}

function leadsItself(segment, view) {
  return view.agent !== null && segment.leader === view.agent.node;
}

function findLeader(segment) {
  return segment.nodes.find((node) => node.name === segment.leader);
}

function findOwnSegment(view) {
  const own = view.agent && view.agent.node;
  return view.segments.find((one) => one.nodes.some((node) => node.name === own)) || null;
}

// "location:north" -> "north": in the picture a segment's kind shows in its size.
function shortenName(name) {
  return name.replace(/^(location|node):/, "") || name;
}

function describeAge(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "m"]]) {
    if (whole >= 2 * size) return `${Math.floor(whole / size)}${unit}`;
  }
  return `${whole}s`;
}

function describeTime(when, now) {
  return when ? `${describeAge(now - when)} ago` : "never";
}

// Since when something is so; 0: nobody has seen it become so.
function describeSpan(since, now) {
  return since ? describeAge(now - since) : "-";
}

function describeBytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let size = number, unit = 0;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return unit === 0 ? `${number} B` : `${size.toFixed(1)} ${units[unit]}`;
}

function describeTraffic(tunnel, now) {
  if (tunnel === null) return ["-", "-", "-"];
  return [
    describeTime(tunnel.latestHandshake, now),
    describeBytes(tunnel.receivedBytes),
    describeBytes(tunnel.sentBytes),
  ];
}

function findEndpoint(tunnel, declared) {
  return (tunnel && tunnel.endpoint) || declared || "-";
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function describeMesh(view) {
  const nodes = view.segments.reduce((sum, one) => sum + one.nodes.length, 0);
  const peers = view.peers.filter((one) => one.ready).length;
  const sizes = [
    count(view.segments.length, "segment"), count(nodes, "node"), count(peers, "peer"),
  ];
  return `${view.mesh.granularity} · ${view.mesh.subnets.join(", ")} · ${sizes.join(", ")}`;
}

function listComplaints(view, now) {
  return [
    ...view.absent.map((one) => describeAbsence(one, now)),
    ...view.refusals.map((text) => `refused: ${text}`),
    ...view.problems.map((text) => `left out: ${text}`),
    ...view.doubts.map((text) => `in doubt: ${text}`),
    ...(view.agent ? listAgentComplaints(view.agent, now) : []),
  ];
}

function describeAbsence(node, now) {
  if (node.lastSeen === 0 || now - node.lastSeen < LEFT_SECONDS) {
    return `not in the mesh: node ${node.name}: ${node.reason}`;
  }
  const hint = `if it is gone for good: kgctl delete node ${node.name}`;
  return `left over: node ${node.name}: last seen ${describeTime(node.lastSeen, now)}; ${hint}`;
}

function listAgentComplaints(agent, now) {
  return [
    ...agent.warnings.map((text) => `warning: ${text}`),
    ...(agent.failures || []).filter((text) => !agent.reasons.includes(text))
      .map((text) => `failed: ${text}`),
    ...(agent.repairs || []).map((one) =>
      `put back ${describeTime(one.at, now)}, for somebody had undone it: ${one.change}`),
  ];
}

// Everything by which somebody may look for it, in lower case.
function listWords(item) {
  const parts = item.nodes
    ? [item.name, item.wireguardIPs, item.allowedIPs, ...item.nodes.map(listNodeWords)]
    : listNodeWords(item);
  if (item.tunnel) parts.push(item.tunnel.endpoint);
  return parts.flat(3).join("\n").toLowerCase();
}

function listNodeWords(node) {
  return [
    node.name, node.publicKey || "", node.endpoint || "", node.allowedIPs || [],
    node.internalIPs || [], node.podSubnets || [],
  ];
}
