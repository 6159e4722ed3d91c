"use strict";

/* A viewer of point clouds without a graphics card: points are splatted into a depth buffer, then edges are darkened
   by the depth around them (Boucheny 2009, eye-dome lighting). The frame is that of the data with its up axis upward. */

const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const canvas = element("canvas");
const context = canvas.getContext("2d");
const AXES = {  // right-handed with their signs, the upward one last
  x: [1, 2, 0], y: [2, 0, 1], z: [0, 1, 2], camera_y_up: [2, 0, 1], camera_y_down: [2, 0, 1],
};
const SIGNS = { camera_y_up: [-1, 1, 1], camera_y_down: [-1, 1, -1] };
const RAMP = [[52, 58, 120], [38, 120, 160], [60, 170, 120], [190, 200, 80], [245, 225, 140]];
const FAR = 1e9;
const MOST_PIXELS = 1.6e6;
const MOST_RADIUS = 14;
const SPARSE = 1.8;  // so many times the size of its bulk a cloud has, and yet is shown as a whole

const chosen = { subject: 0, stage: 0, coloring: "", hidden: new Set(data.hidden) };
const start = { yaw: 35 * Math.PI / 180, pitch: 24 * Math.PI / 180, distance: 3, target: [0, 0, 0] };
const isAlone = document.body.classList.contains("bare");  // else the page scrolls, and other keys are its own
const dark = window.matchMedia("(prefers-color-scheme: dark)");
let camera = { ...start };
let isAsked = false;
let screen = null;

/* --- clouds ------------------------------------------------------------------------------------------------------ */

function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

function shortsOf(text) {  // little-endian, whatever the machine is
  const view = new DataView(bytesOf(text).buffer);
  return Uint16Array.from({ length: view.byteLength / 2 }, (_, i) => view.getUint16(2 * i, true));
}

function decoded(cloud, up) {  // coordinates in the data's unit, axes turned so that the last one is up
  if (cloud.decoded) return cloud.decoded;
  const steps = shortsOf(cloud.points);
  const points = new Float64Array(steps.length);
  const signs = SIGNS[up] || [1, 1, 1];
  for (let i = 0; i < steps.length; i += 3) {
    for (let k = 0; k < 3; k++) {
      const axis = AXES[up][k];
      points[i + k] = signs[k] * (cloud.low[axis] + steps[i + axis] / 65535 * cloud.span[axis]);
    }
  }
  cloud.decoded = points;
  return points;
}

function jointsOf(skeleton, up) {  // in the same axes as the points
  const signs = SIGNS[up] || [1, 1, 1];
  return skeleton.joints.map((joint) => AXES[up].map((axis, k) => signs[k] * joint[axis]));
}

function frameOf(cloud, up) {  // the middle and half the diagonal of the box around a stage, and its heights
  if (!cloud.frame) {
    const points = decoded(cloud, up);
    const joints = cloud.skeletons.flatMap((each) => jointsOf(each, up).flat());
    const hasObjects = cloud.skeletons.some((each) => !each.hasDots);
    cloud.frame = boxOf([points, joints]);
    const most = joints.length && !hasObjects ? cloud.frame : boxOf([bulkOf(points), joints]);
    if (hasObjects || cloud.frame.radius > SPARSE * most.radius) {  // a few far points, as of a LiDAR, would leave the rest a dot
      Object.assign(cloud.frame, { middle: most.middle, radius: most.radius });
    }
  }
  return cloud.frame;
}

function bulkOf(points) {  // two corners of the box that holds 98 % of the points along each axis
  const count = points.length / 3, corners = [[], []];
  for (let k = 0; k < 3; k++) {
    const along = Float64Array.from({ length: count }, (_, i) => points[3 * i + k]).sort();
    corners[0].push(along[Math.floor(0.01 * (count - 1))]);
    corners[1].push(along[Math.ceil(0.99 * (count - 1))]);
  }
  return count ? corners.flat() : [];
}

function boxOf(parts) {
  const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
  for (const points of parts) {
    for (let i = 0; i < points.length; i++) {
      low[i % 3] = Math.min(low[i % 3], points[i]);
      high[i % 3] = Math.max(high[i % 3], points[i]);
    }
  }
  if (low[0] === Infinity) return { middle: [0, 0, 0], radius: 1, low: 0, high: 1 };
  const middle = low.map((value, k) => (value + high[k]) / 2);
  return { middle, radius: Math.hypot(...low.map((v, k) => high[k] - v)) / 2 || 1, low: low[2], high: high[2] };
}

const packed = (r, g, b) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;

function rampAt(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const stop = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[stop].map((low, k) => Math.round(low + (RAMP[stop + 1][k] - low) * (place - stop)));
}

function colorsOf(coloring, points, frame) {  // a packed colour for each point, 0 where its class is hidden
  const colors = new Uint32Array(points.length / 3);
  if (coloring.kind === "classes") {
    coloring.codes = coloring.codes || shortsOf(coloring.values);
    const table = coloring.classes.map((each) => packed(...each.color));
    for (let i = 0; i < colors.length; i++) colors[i] = table[coloring.codes[i]];
  } else if (coloring.kind === "colors") {
    coloring.codes = coloring.codes || bytesOf(coloring.values);
    const { codes } = coloring;
    for (let i = 0; i < colors.length; i++) colors[i] = packed(codes[3 * i], codes[3 * i + 1], codes[3 * i + 2]);
  } else {
    const height = frame.high - frame.low || 1;
    for (let i = 0; i < colors.length; i++) colors[i] = packed(...rampAt((points[3 * i + 2] - frame.low) / height));
  }
  return colors;
}

function hide(colors, current, colorings) {  // by the colouring that is shown, else by the first that has the class
  const ofClasses = [current, ...colorings].filter((each) => each.kind === "classes");
  for (const name of chosen.hidden) {
    const coloring = ofClasses.find((each) => each.classes.some((row) => row.name === name));
    if (!coloring) continue;
    coloring.codes = coloring.codes || shortsOf(coloring.values);
    const code = coloring.classes.findIndex((row) => row.name === name);
    for (let i = 0; i < colors.length; i++) if (coloring.codes[i] === code) colors[i] = 0;
  }
}

function hiding(shell, eye, middle) {  // those walls, the ceiling or the floor whose outer side the eye is on
  const away = Math.hypot(eye[0] - middle[0], eye[1] - middle[1]);
  return {
    walls: shell.walls.filter(([x, y, limit]) => x * eye[0] + y * eye[1] - limit > shell.facing * away),
    ceiling: shell.ceiling !== null && eye[2] > shell.ceiling, floor: eye[2] < shell.floor,
  };
}

function leftOut(points, shell, between) {  // 1 for each point of these; where a wall meets the floor, it is the floor's
  const isOut = new Uint8Array(points.length / 3);
  for (let i = 0, n = 0; i < isOut.length; i++, n += 3) {
    const x = points[n], y = points[n + 1], z = points[n + 2];
    if (z < shell.floor) isOut[i] = between.floor;
    else isOut[i] = (between.ceiling && z > shell.ceiling) || between.walls.some(([u, v, limit]) => u * x + v * y > limit);
  }
  return isOut;
}

/* --- drawing ----------------------------------------------------------------------------------------------------- */

function resized() {
  const width = canvas.clientWidth || 1, height = canvas.clientHeight || 1;
  const scale = Math.min(window.devicePixelRatio || 1, Math.sqrt(MOST_PIXELS / (width * height)));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const image = context.createImageData(canvas.width, canvas.height);
  screen = {
    image, scale, pixels: new Uint32Array(image.data.buffer), depth: new Float32Array(canvas.width * canvas.height),
  };
  draw();  // at once: a canvas that changes its size is empty
}

const focalOf = (width, height) => 1.35 * Math.min(width, height);

function viewOf() {  // directions to the right, upward and towards the viewer
  const { yaw, pitch } = camera;
  const towards = [Math.cos(pitch) * Math.cos(yaw), Math.cos(pitch) * Math.sin(yaw), Math.sin(pitch)];
  const right = [-Math.sin(yaw), Math.cos(yaw), 0];
  const upward = [
    towards[1] * right[2] - towards[2] * right[1],
    towards[2] * right[0] - towards[0] * right[2],
    towards[0] * right[1] - towards[1] * right[0],
  ];
  return [right, upward, towards];
}

function ballOf(radius) {  // of the pixels of a ball: where they lie, how light they are, how far they come forward
  const ball = [];
  for (let y = -radius; y <= radius; y++) {
    for (let x = -radius; x <= radius; x++) {
      if (x * x + y * y > (radius + 0.3) ** 2) continue;
      const [nx, ny] = [x / (radius + 0.5), -y / (radius + 0.5)];
      const nz = Math.sqrt(1 - nx * nx - ny * ny);
      const facing = Math.max(0, (-0.45 * nx + 0.65 * ny + 0.62 * nz) / Math.hypot(0.45, 0.65, 0.62));
      ball.push({ x, y, light: radius < 2 ? 1 : Math.min(1.15, 0.66 + 0.5 * facing), rise: nz });
    }
  }
  return ball;
}

const BALLS = Array.from({ length: MOST_RADIUS + 1 }, (_, radius) => ballOf(radius));

function splat(points, colors, frame, isOut) {
  const { width, height } = canvas, { pixels, depth } = screen;
  const [r, u, t] = viewOf();
  const [cx, cy, cz] = frame.middle.map((value, k) => value + camera.target[k] * frame.radius);
  const focal = focalOf(width, height), inverse = 1 / frame.radius;
  const size = Number(element("size").value) * Math.min(0.03, 1.3 / Math.sqrt(points.length / 3 + 1));
  for (let i = 0, n = 0; i < colors.length; i++, n += 3) {
    const color = colors[i];
    if (color === 0 || (isOut && isOut[i])) continue;
    const x = (points[n] - cx) * inverse, y = (points[n + 1] - cy) * inverse, z = (points[n + 2] - cz) * inverse;
    const away = camera.distance - (t[0] * x + t[1] * y + t[2] * z);
    if (away < 0.02) continue;
    const near = focal / away;
    const column = Math.round(width / 2 + near * (r[0] * x + r[1] * y + r[2] * z));
    const row = Math.round(height / 2 - near * (u[0] * x + u[1] * y + u[2] * z));
    const radius = Math.min(Math.round(size * near), MOST_RADIUS);
    if (column < -radius || column >= width + radius || row < -radius || row >= height + radius) continue;
    for (const part of BALLS[radius]) {
      const h = column + part.x, v = row + part.y;
      if (h < 0 || h >= width || v < 0 || v >= height) continue;
      const at = v * width + h, far = away - size * part.rise;
      if (far < depth[at]) { depth[at] = far; pixels[at] = part.light === 1 ? color : lit(color, part.light, 0); }
    }
  }
}

function drawSkeletons(cloud, up, frame) {  // over everything: joints lie below the surface that a camera sees
  const { width, height } = canvas, [r, u, t] = viewOf(), focal = focalOf(width, height);
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  for (const skeleton of cloud.skeletons) {
    if (chosen.hidden.has(skeleton.name)) continue;
    const thick = Math.max(1, Math.round((skeleton.hasDots ? 1.5 : 0.7) * screen.scale));
    const color = packed(...skeleton.color);
    const places = jointsOf(skeleton, up).map((joint) => {
      const point = joint.map((value, k) => (value - frame.middle[k]) / frame.radius - camera.target[k]);
      const away = camera.distance - dot(t, point);
      return away < 0.02 ? null : [width / 2 + focal / away * dot(r, point), height / 2 - focal / away * dot(u, point)];
    });
    for (const [from, to] of skeleton.bones) {
      if (!places[from] || !places[to]) continue;
      const [dx, dy] = [places[to][0] - places[from][0], places[to][1] - places[from][1]];
      const count = Math.min(Math.ceil(Math.hypot(dx, dy)), 4 * (width + height)) || 1;
      for (let i = 0; i <= count; i++) stamp(places[from][0] + dx * i / count, places[from][1] + dy * i / count, thick, color);
    }
    if (skeleton.hasDots) for (const place of places) if (place) stamp(...place, 2 * thick, color);
  }
}

function stamp(x, y, radius, color) {
  const { width, height } = canvas;
  for (const part of BALLS[Math.min(radius, MOST_RADIUS)]) {
    const h = Math.round(x) + part.x, v = Math.round(y) + part.y;
    if (h >= 0 && h < width && v >= 0 && v < height) screen.pixels[v * width + h] = color;
  }
}

function lit(color, light, haze) {  // haze: the share of the page's colour
  const add = haze * (dark.matches ? 29 : 240), keep = light * (1 - haze);
  return packed(
    Math.min(255, (color & 255) * keep + add), Math.min(255, (color >> 8 & 255) * keep + add),
    Math.min(255, (color >> 16 & 255) * keep + add),
  );
}

function shade() {  // darker where a pixel lies behind those around it; where nothing is, the page shows
  const { width, height } = canvas, { pixels, depth } = screen;
  const reach = Math.max(1, Math.round(screen.scale));
  const steps = [-reach, reach, -reach * width, reach * width];
  for (let row = 0, at = 0; row < height; row++) {
    for (let column = 0; column < width; column++, at++) {
      const here = depth[at];
      if (here === FAR) continue;
      const isRim = row < reach || row >= height - reach || column < reach || column >= width - reach;
      let behind = 0;
      if (!isRim) {
        for (const step of steps) {
          const ratio = here / depth[at + step] - 1;
          behind += depth[at + step] === FAR ? 0.015 : ratio > 0 ? Math.min(ratio, 0.06) : 0;
        }
      }
      const haze = 0.3 * Math.min(Math.max((here - camera.distance + 1) / 2, 0), 1);
      pixels[at] = lit(pixels[at], Math.max(0.45, Math.exp(-9 * behind)), haze);
    }
  }
}

function draw() {
  const subject = data.subjects[chosen.subject];
  const cloud = subject.clouds[chosen.stage];
  const points = decoded(cloud, subject.up);
  const own = frameOf(cloud, subject.up);
  const isGrid = (each) => each.unit === "voxels";  // a grid of voxels and a space in mm share no frame
  const first = subject.clouds.find((each) => isGrid(each) === isGrid(cloud));
  const frame = element("frame").checked ? frameOf(first, subject.up) : own;
  if (cloud.coloredBy !== chosen.coloring || cloud.hiddenWas !== [...chosen.hidden].join()) {
    cloud.colors = colorsOf(currentColoring(cloud), points, own);
    hide(cloud.colors, currentColoring(cloud), cloud.colorings);
    [cloud.coloredBy, cloud.hiddenWas] = [chosen.coloring, [...chosen.hidden].join()];
  }
  screen.pixels.fill(0);
  screen.depth.fill(FAR);
  splat(points, cloud.colors, frame, element("walls").checked ? outsideOf(cloud, points, frame) : null);
  shade();
  drawSkeletons(cloud, subject.up, frame);
  context.putImageData(screen.image, 0, 0);
}

function outsideOf(cloud, points, frame) {  // of a room, what is between it and the viewer; else null
  if (!cloud.shell) return null;
  const eye = viewOf()[2].map((t, k) => frame.middle[k] + (camera.target[k] + t * camera.distance) * frame.radius);
  const between = hiding(cloud.shell, eye, frame.middle);
  const key = JSON.stringify(between);
  if (cloud.between !== key) [cloud.between, cloud.isOut] = [key, leftOut(points, cloud.shell, between)];
  return cloud.isOut;
}

function redraw() {  // once, at the next frame, however often it is asked for
  if (isAsked || !screen) return;
  isAsked = true;
  requestAnimationFrame(() => { isAsked = false; draw(); });
}

/* --- choices ----------------------------------------------------------------------------------------------------- */

function currentColoring(cloud) {
  return cloud.colorings.find((each) => each.name === chosen.coloring) || cloud.colorings[0];
}

function made(tag, text, parent, className = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = className;
  parent.append(node);
  return node;
}

function button(text, isOn, parent, act) {
  const node = made("button", text, parent);
  node.setAttribute("aria-pressed", String(isOn));
  node.addEventListener("click", act);
  return node;
}

function choose(change) {
  Object.assign(chosen, change);
  const { clouds } = data.subjects[chosen.subject];
  chosen.stage = Math.min(chosen.stage, clouds.length - 1);
  show();
}

function showFlat(cloud) {  // the pictures of the stage, below its cloud or alone
  element("flat").hidden = !cloud.panels.length;
  const columns = Math.ceil(Math.sqrt(cloud.panels.length)) || 1;  // where pictures stand alone they fill the page
  element("flat").className = cloud.isStrips ? "strips" : "";
  element("flat").classList.toggle("alone", cloud.isFlat);
  element("panels").style.setProperty("--columns", cloud.isStrips ? 1 : columns);
  element("panels").style.setProperty("--rows", Math.ceil(cloud.panels.length / columns));
  if (element("panels").shows !== cloud) {
    element("panels").replaceChildren();
    for (const panel of cloud.panels) {
      const figure = made("figure", "", element("panels"));
      const image = made("img", "", figure);
      image.src = panel.picture;
      image.alt = panel.name;
      made("figcaption", panel.caption, figure);
    }
    element("panels").shows = cloud;
  }
}

function show() {
  const subject = data.subjects[chosen.subject];
  const cloud = subject.clouds[chosen.stage];
  element("subjects").value = String(chosen.subject);
  element("facts").textContent = subject.facts.join(", ");
  element("stages").replaceChildren();
  subject.clouds.forEach((each, i) => button(each.stage, i === chosen.stage, element("stages"), () => choose({ stage: i })));
  element("colorings").replaceChildren();
  for (const each of cloud.colorings) {
    button(each.name, each === currentColoring(cloud), element("colorings"), () => choose({ coloring: each.name }));
  }
  element("lines").replaceChildren();
  const shown = cloud.shown === cloud.total ? [] : [`${cloud.shown.toLocaleString("en")} of them shown, chosen evenly`];
  const verdict = cloud.isRight === null ? "" : cloud.isRight ? "right" : "wrong";
  [cloud.lines[0], ...shown, ...cloud.lines.slice(1)].forEach((line, i, all) => {
    made("li", line, element("lines"), i === all.length - 1 ? verdict : "");
  });
  for (const id of ["space", "colours", "controls"]) element(id).hidden = cloud.isFlat;
  element("room").hidden = !cloud.shell;
  element("kind").textContent = cloud.isFlat ? "image" : "cloud";
  showLegend(currentColoring(cloud), cloud.skeletons);
  showFlat(cloud);
  redraw();
}

function showLegend(coloring, skeletons) {
  const figures = skeletons.map((each) => ({ name: each.name, color: each.color, count: each.count }));
  const classes = [...(coloring.classes || []), ...figures];
  element("classes").hidden = !classes.length;
  element("legend").replaceChildren();
  for (const each of classes) {
    const act = (event) => (event.shiftKey ? alone(each.name, classes) : toggle(each.name));
    const row = button("", !chosen.hidden.has(each.name), made("li", "", element("legend")), act);
    made("i", "", row).style.background = `rgb(${each.color.join()})`;
    made("b", each.name, row);
    made("span", each.count.toLocaleString("en"), row);
  }
}

function toggle(name) {
  if (!chosen.hidden.delete(name)) chosen.hidden.add(name);
  show();
}

function alone(name, classes) {
  const others = classes.map((each) => each.name).filter((each) => each !== name);
  const isAlone = others.every((each) => chosen.hidden.has(each));
  for (const each of others) isAlone ? chosen.hidden.delete(each) : chosen.hidden.add(each);
  chosen.hidden.delete(name);
  show();
}

/* --- hands ------------------------------------------------------------------------------------------------------- */

const pointers = new Map();

function turn(dx, dy) {
  camera.yaw -= dx;
  camera.pitch = Math.min(Math.max(camera.pitch + dy, -Math.PI / 2), Math.PI / 2);
  redraw();
}

function zoom(factor) {
  camera.distance = Math.min(Math.max(camera.distance * factor, 0.05), 30);
  redraw();
}

function move(dx, dy) {  // by pixels of the page, at the depth of the middle
  const [right, upward] = viewOf();
  const unit = camera.distance / focalOf(canvas.clientWidth, canvas.clientHeight);
  camera.target = camera.target.map((value, k) => value - (right[k] * dx - upward[k] * dy) * unit);
  redraw();
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  canvas.focus();
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, moves: event.shiftKey || event.button === 2 });
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
}
canvas.addEventListener("pointermove", (event) => {
  const last = pointers.get(event.pointerId);
  if (!last) return;
  const dx = event.clientX - last.x, dy = event.clientY - last.y;
  const other = [...pointers.entries()].find(([id]) => id !== event.pointerId);
  if (other) {
    const apart = (p) => Math.hypot(p.x - other[1].x, p.y - other[1].y) || 1;
    zoom(apart(last) / apart({ x: event.clientX, y: event.clientY }));
    move(dx / 2, dy / 2);
  } else if (last.moves) move(dx, dy);
  else turn(dx * 0.008, dy * 0.008);
  Object.assign(last, { x: event.clientX, y: event.clientY });
});
canvas.addEventListener("wheel", (event) => {
  if (!isAlone && document.activeElement !== canvas) return;
  event.preventDefault();
  zoom(Math.exp(event.deltaY * 0.001));
}, { passive: false });
dark.addEventListener("change", redraw);
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
canvas.addEventListener("dblclick", () => { camera = { ...start }; redraw(); });

function next(key, count, step) {
  choose({ [key]: (chosen[key] + step + count) % count });
}

function nextColoring() {
  const { colorings } = data.subjects[chosen.subject].clouds[chosen.stage];
  const names = colorings.map((each) => each.name);
  const now = currentColoring(data.subjects[chosen.subject].clouds[chosen.stage]).name;
  choose({ coloring: names[(names.indexOf(now) + 1) % names.length] });
}

const KEYS = {
  ArrowLeft: () => turn(0.1, 0), ArrowRight: () => turn(-0.1, 0),
  ArrowUp: () => turn(0, 0.1), ArrowDown: () => turn(0, -0.1),
  "+": () => zoom(1 / 1.15), "=": () => zoom(1 / 1.15), "-": () => zoom(1.15),
  ",": () => next("subject", data.subjects.length, -1), ".": () => next("subject", data.subjects.length, 1),
  "[": () => next("stage", data.subjects[chosen.subject].clouds.length, -1),
  "]": () => next("stage", data.subjects[chosen.subject].clouds.length, 1),
  c: nextColoring,
  w: () => { element("walls").checked = !element("walls").checked; redraw(); },
  f: () => { element("frame").checked = !element("frame").checked; redraw(); },
};
(isAlone ? document : document.querySelector(".viewer")).addEventListener("keydown", (event) => {
  const isTyping = event.target instanceof HTMLSelectElement || event.target instanceof HTMLInputElement;
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});

/* --- start ------------------------------------------------------------------------------------------------------- */

if (isAlone) element("title").textContent = data.title;
data.subjects.forEach((each, i) => { made("option", each.name, element("subjects")).value = String(i); });
element("subjects").addEventListener("change", (event) => choose({ subject: Number(event.target.value) }));
element("size").addEventListener("input", () => { redraw(); });
for (const id of ["frame", "walls"]) element(id).addEventListener("change", () => { redraw(); });
const { clouds: first } = data.subjects[0];
if (first.at(-1).stage === "prediction") chosen.stage = first.length - 1;
for (const note of data.notes) made("li", note, element("notes"));
show();
new ResizeObserver(resized).observe(canvas);
