// Where everything is drawn: this node's segment in the middle, the others on rings around it, the
// largest within; then the peers, then who takes no part. Pure: the same mesh is always drawn alike.
// A place is {key, kind, x, y, radius, spots, item}; a spot is where one of its nodes is.

const GAP = 12;
const SPOT_GAP = 10;
const LEADER_RADIUS = 7;
const PEER_RADIUS = 9;
// As many on one ring still look like a circle, with room between them.
const RING_PLACES = 12;
const FIRST_RING = 120;

function layOut(view, stretch) {
  const own = findOwnSegment(view);
  const others = view.segments.filter((one) => one !== own).map(placeSegment);
  others.sort((a, b) => b.spots.length - a.spots.length || compare(a.item.name, b.item.name));
  const peers = view.peers.map((item) => place("peer", item.name, item, PEER_RADIUS));
  const absent = view.absent.length ? [placeAbsent(view.absent)] : [];
  const centre = own ? [placeSegment(own)] : [];
  let edge = centre.length ? centre[0].radius : 0;
  for (const group of ringGroups(others, peers, absent)) edge = putOnRings(group, edge);
  const places = [...centre, ...others, ...peers, ...absent];
  for (const one of places) {
    one.x *= stretch.x;
    one.y *= stretch.y;
  }
  return places;
}

// Few share one ring, which spares the picture its empty parts.
function ringGroups(others, peers, absent) {
  const all = [...others, ...peers, ...absent];
  return all.length <= RING_PLACES ? [all] : [others, [...peers, ...absent]];
}

function compare(a, b) {
  return a < b ? -1 : Number(a > b);
}

function place(kind, name, item, radius) {
  return {key: `${kind} ${name}`, kind, item, radius, x: 0, y: 0, spots: []};
}

function placeSegment(segment) {
  const nodes = [findLeader(segment), ...segment.nodes.filter((one) => one.name !== segment.leader)];
  const spots = spiral(nodes);
  return {...place("segment", segment.name, segment, reach(spots) + LEADER_RADIUS + 5), spots};
}

function placeAbsent(nodes) {
  const spots = spiral(nodes);
  return {...place("absent", "", {nodes}, reach(spots) + 10), spots};
}

// A sunflower's head: the first in the middle, the others as dense everywhere.
function spiral(nodes) {
  return nodes.map((node, index) => {
    const distance = index ? SPOT_GAP * Math.sqrt(index + 0.6) : 0;
    const angle = index * Math.PI * (3 - Math.sqrt(5));
    return {node, x: distance * Math.cos(angle), y: distance * Math.sin(angle)};
  });
}

function reach(spots) {
  return spots.length > 1 ? SPOT_GAP * Math.sqrt(spots.length - 0.4) : 0;
}

// Puts places on as many rings as it takes, beyond `edge`; the new edge. Every other ring is turned
// by half a place, so that less hides behind the one within.
function putOnRings(places, edge) {
  let rest = places, turn = 0;
  while (rest.length) {
    const widest = Math.max(...rest.slice(0, RING_PLACES).map((one) => one.radius));
    let radius = edge + GAP + widest;
    if (places.length <= RING_PLACES) radius = Math.max(radius, FIRST_RING, roomyRadius(rest));
    const ring = takeRing(rest, radius);
    spread(ring, radius, turn * (Math.PI / ring.length));
    turn = 1 - turn;
    edge = radius + Math.max(...ring.map((one) => one.radius));
    rest = rest.slice(ring.length);
  }
  return edge;
}

// On which all of them find room.
function roomyRadius(places) {
  let radius = Math.max(...places.map((one) => one.radius)) + GAP;
  while (places.reduce((sum, one) => sum + width(one, radius), 0) > 2 * Math.PI) radius *= 1.05;
  return radius;
}

// What a place takes of a ring, in radians, with the gap to the next.
function width(one, radius) {
  return 2 * Math.asin(Math.min(1, (one.radius + GAP / 2) / radius));
}

function takeRing(places, radius) {
  let taken = 0;
  const fits = places.findIndex((one) => (taken += width(one, radius)) > 2 * Math.PI);
  return fits < 0 ? places : places.slice(0, Math.max(1, fits));
}

// Whatever room is left is shared out evenly.
function spread(ring, radius, turn) {
  const widths = shareOut(ring.map((one) => width(one, radius)));
  // Two hang below the middle, so that three make a triangle.
  let angle = turn - Math.PI / 2 + (ring.length === 2 ? (2 * Math.PI) / 3 : 0);
  ring.forEach((one, index) => {
    if (index) angle += ring.length === 2 ? (2 * Math.PI) / 3 : (widths[index - 1] + widths[index]) / 2;
    one.x = radius * Math.cos(angle);
    one.y = radius * Math.sin(angle);
  });
}

// Parts of a full turn: all alike where there is room for that, else each with as much more.
function shareOut(widths) {
  const share = (2 * Math.PI) / widths.length;
  if (Math.max(...widths) <= share) return widths.map(() => share);
  const slack = share - widths.reduce((sum, one) => sum + one, 0) / widths.length;
  return widths.map((one) => one + slack);
}

// The rectangle around all of it.
function findBounds(places) {
  const bounds = {left: -60, right: 60, top: -60, bottom: 60};
  for (const one of places) {
    bounds.left = Math.min(bounds.left, one.x - one.radius);
    bounds.right = Math.max(bounds.right, one.x + one.radius);
    bounds.top = Math.min(bounds.top, one.y - one.radius);
    bounds.bottom = Math.max(bounds.bottom, one.y + one.radius);
  }
  return bounds;
}
