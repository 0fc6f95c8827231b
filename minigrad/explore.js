"use strict";
const data = /*numbers*/ null;

const NAMES = {C: "channels and filters", G: "groups", K: "kernel", S: "stride", P: "padding", D: "dilation"};
const state = {C: 4, G: 2, K: 3, S: 1, P: 1, D: 1, o: 1, oh: 2, ow: 3, pixel: null};
const $ = id => document.getElementById(id);
const key = s => ["C", "G", "K", "S", "P", "D"].map(k => s[k]).join(",");
const layer = () => data.layers[key(state)];
const num = v => String(v).replace("-", "−");
const big = v => v >= 1e9 ? (v / 1e9).toFixed(2) + " G" : v >= 1e6 ? (v / 1e6).toFixed(1) + " M" : v.toLocaleString("en");
const SIZE = data.image[0].length, KERNEL = data.weights[0][0].length;

/* The arithmetic of the page: where a tap lies, what a pixel and a weight are. sum() is compared with minigrad's y. */
const groupOf = channel => Math.floor(channel / (state.C / state.G));
const channelsOf = group => Array.from({length: state.C / state.G}, (_, i) => group * state.C / state.G + i);
const tap = (o, k) => o * state.S + k * state.D - state.P;
const pixel = (c, h, w) => h >= 0 && h < SIZE && w >= 0 && w < SIZE ? data.image[c][h][w] : 0;
const weight = (o, c, kh, kw) => data.weights[o][c][kh + (KERNEL - state.K) / 2][kw + (KERNEL - state.K) / 2];
const output = (o, oh, ow) => { const [OH, OW] = layer().size; return layer().y[(o * OH + oh) * OW + ow]; };
function partial(o, c, oh, ow) {
  let sum = 0;
  for (let kh = 0; kh < state.K; kh++) for (let kw = 0; kw < state.K; kw++) sum += weight(o, c, kh, kw) * pixel(c, tap(oh, kh), tap(ow, kw));
  return sum;
}
const sum = (o, oh, ow) => channelsOf(groupOf(o)).reduce((total, c) => total + partial(o, c, oh, ow), 0);
/* The positions along one axis whose window has pixel h. */
const positions = (h, size) => Array.from({length: size}, (_, o) => o).filter(o => Array.from({length: state.K}, (_, k) => tap(o, k)).includes(h));

/* Colour: a group's hue for positive values, grey for negative ones, stronger for larger. */
const tint = (group, value, most) => `color-mix(in srgb, ${value < 0 ? "var(--minus)" : `var(--h${group})`} ${Math.round(8 + 62 * Math.min(Math.abs(value) / most, 1))}%, var(--zero))`;
const shade = (group, value, most) => value ? tint(group, value, most) : "var(--zero)";
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/* The setting stands in the address, so that it can be bookmarked: #C=8,G=4. */
function recall() {
  for (const [, k, v] of location.hash.matchAll(/(\w+)=(\d+)/g)) if (k in state) state[k] = +v;
  if (!layer()) Object.assign(state, {C: 4, G: 2, K: 3, S: 1, P: 1, D: 1});
}
function remember() {
  history.replaceState(null, "", "#" + Object.keys(NAMES).map(k => `${k}=${state[k]}`).join(","));
}
function controls() {
  for (const [k, values] of Object.entries(data.choices)) {
    const options = make("div", {className: "options"});
    for (const v of values) {
      const input = make("input", {type: "radio", name: k, value: v});
      input.addEventListener("change", () => choose(k, v));
      options.append(make("label", {}, input, make("span", {textContent: k === "K" ? `${v}×${v}` : v})));
    }
    $("controls").append(make("fieldset", {}, make("legend", {textContent: NAMES[k]}), options));
  }
}
function choose(k, v) {
  state[k] = v;
  if (k === "C") state.G = Math.min(state.G, v);
  if (!layer()) state.D = 1;
  build();
  remember();
}
function clamp() {
  const [OH, OW] = layer().size;
  state.o = Math.min(state.o, state.C - 1); state.oh = Math.min(state.oh, OH - 1); state.ow = Math.min(state.ow, OW - 1);
}

let cells = {}, kernels = [];
function map(id, channel, title, size, draw) {
  const [rows, cols] = size, group = groupOf(channel), grid = make("div", {className: "cells"});
  grid.style.gridTemplateColumns = `repeat(${cols}, minmax(0, 1fr))`;
  const heading = make("h3"), dot = make("i");
  dot.style.background = `var(--h${group})`;
  heading.append(dot, title);
  heading.setAttribute("aria-hidden", "true");
  for (let r = 0; r < rows; r++) {
    const line = make("div", {className: "row"});
    line.setAttribute("role", "row");
    for (let c = 0; c < cols; c++) {
      const cell = draw(r, c);
      if (cell.id) { cell.setAttribute("role", "gridcell"); cells[cell.id] = cell; }
      else { cell.setAttribute("aria-hidden", "true"); cells[`${id}-${channel}-${r}-${c}`] = cell; }
      line.append(cell);
    }
    grid.append(line);
  }
  const whole = make("div", {className: "map"}, heading, grid);
  whole.setAttribute("role", "rowgroup");
  whole.setAttribute("aria-label", title);
  whole.dataset.channel = channel;
  return whole;
}
function build() {
  clamp();
  state.pixel = null;
  for (const input of document.querySelectorAll(".options input")) {
    const k = input.name, v = +input.value, trial = {...state, [k]: v};
    input.checked = state[k] === v;
    if (k === "C") trial.G = Math.min(trial.G, v);
    // A larger kernel may take the dilation back to 1 (see choose); everything else has to fit as it is.
    input.disabled = !data.layers[key(trial)] && !(k === "K" && data.layers[key({...trial, D: 1})]);
  }
  cells = {};
  const {C, G, K, S, P, D} = state, [OH, OW] = layer().size, n = C / G;
  $("about").textContent = `${SIZE}×${SIZE} pixels and ${C} channels, ${C} filters, in ${G} group${G > 1 ? "s" : ""}`;
  for (const id of ["image", "output"]) $(id).replaceChildren();
  const full = SIZE + 2 * P;
  for (let c = 0; c < C; c++) {
    $("image").append(map("pad", c, `channel ${c}`, [full, full], (r, q) => {
      const h = r - P, w = q - P, inside = h >= 0 && h < SIZE && w >= 0 && w < SIZE;
      const cell = make("div", {textContent: inside ? data.image[c][h][w] : 0, className: inside ? "c" : "c pad"});
      if (inside) {
        cell.id = `x-${c}-${h}-${w}`;
        cell.style.background = shade(groupOf(c), data.image[c][h][w], 9);
        cell.setAttribute("aria-label", `channel ${c}, row ${h}, column ${w}: ${data.image[c][h][w]}`);
      }
      return cell;
    }));
    $("output").append(map("y", c, `filter ${c}`, [OH, OW], (oh, ow) => {
      const y = output(c, oh, ow), cell = make("div", {textContent: num(y), className: "c", id: `y-${c}-${oh}-${ow}`});
      cell.style.background = shade(groupOf(c), y, 60);
      cell.setAttribute("aria-label", `filter ${c}, row ${oh}, column ${ow}: ${y}`);
      return cell;
    }));
  }
  kernels = [];
  $("weights").replaceChildren();
  $("weights").style.gridTemplateColumns = `14px repeat(${C}, minmax(0, 1fr))`;
  $("weights").append(make("div"));
  for (let c = 0; c < C; c++) $("weights").append(make("div", {className: "axis", textContent: c}));
  for (let o = 0; o < C; o++) {
    $("weights").append(make("div", {className: "axis", textContent: o}));
    for (let c = 0; c < C; c++) {
      const kernel = make("div", {className: groupOf(o) === groupOf(c) ? "kernel" : "kernel none"});
      kernel.style.gridTemplateColumns = `repeat(${K}, minmax(0, 1fr))`;
      if (groupOf(o) === groupOf(c)) {
        for (let kh = 0; kh < K; kh++) for (let kw = 0; kw < K; kw++) {
          const w = weight(o, c, kh, kw), cell = make("div", {textContent: num(w)});
          cell.style.background = shade(groupOf(o), w, 2);
          kernel.append(cell);
        }
      }
      kernels.push({o, c, element: kernel});
      $("weights").append(kernel);
    }
  }
  $("n-image").textContent = P ? `${C} channels, with a border of ${P} zero${P > 1 ? "s" : ""} around each` : `${C} channels`;
  $("n-weights").textContent = `${layer().parameters.toLocaleString("en")} numbers, ${C * n} of ${C * C} kernels: a row is a filter, a column a channel`;
  $("weights").setAttribute("aria-label", `Table of kernels: ${C} filters by ${C} channels; filter o sees the ${n} channel${n > 1 ? "s" : ""} of its group only`);
  $("n-output").textContent = `${OH}×${OW}: (${SIZE} + 2·${P} − ${D}·(${K} − 1) − 1) ÷ ${S} + 1, rounded down`;
  $("n-product").innerHTML = `${G > 1 ? `${G} products, one per group: ` : ""}<span class="code">(${n}, ${n * K * K}) @ (${n * K * K}, ${OH * OW}) = (${n}, ${OH * OW})</span>. A column holds what one output sees, a row what one tap meets${G > 1 ? "; groups cut the columns into slabs and leave the numbers as they are" : ""}.`;
  costs();
  fit();
  show();
  reveal("output", state.o);
}

/* Maps stand in rows of two or four, on a telephone in a strip that a finger moves, with cells that a finger can hit.
   Numbers are written into cells only where they can be read. */
const ems = text => .64 * text.length + (text[0] === "−" ? .2 : 0); // a text's width, in letter heights of a wide font
const narrow = () => window.innerWidth <= 720;
function fit() {
  for (const id of ["image", "output"]) {
    const maps = $(id), room = maps.clientWidth - 6, first = maps.firstChild.querySelector(".cells"), cols = first.style.gridTemplateColumns.match(/\d+/)[0];
    maps.style.gridTemplateColumns = room < 600 ? "repeat(2, minmax(0, 190px))" : state.C === 2 ? "repeat(2, minmax(0, 320px))" : "repeat(4, minmax(0, 240px))";
    for (const m of maps.children) m.style.width = narrow() ? `${Math.min(room, cols * 34)}px` : "";
    const cells = [...maps.querySelectorAll(".c")], width = cells[0].getBoundingClientRect().width;
    const size = Math.min(15, width * .52, (width - 3) / Math.max(...cells.map(c => ems(c.textContent))));
    maps.classList.toggle("small", size < 8);
    maps.style.fontSize = `${size}px`;
    for (const c of maps.querySelectorAll("h3")) c.style.fontSize = ".75rem";
  }
  const kernel = kernels[0].element.getBoundingClientRect().width / state.K;
  $("weights").style.fontSize = kernel < 15 ? "0" : `${Math.min(kernel * .55, 14)}px`;
  for (const a of $("weights").querySelectorAll(".axis")) a.style.fontSize = ".6875rem";
  fitSum();
}
/* As many terms in a row as leave cells that can be read. */
function fitSum() {
  const n = state.C / state.G, room = $("sum").clientWidth, least = narrow() ? 18 : 14;
  let across = n, size = 0;
  for (; across > 0; across--) {
    size = Math.floor((room - (across === n ? 90 : 0)) / across - 50) / (2 * state.K);
    if (size >= least || across === 1) break;
  }
  $("sum").style.setProperty("--s", `${Math.floor(Math.min(size, across < n ? 20 : 26))}px`);
}
/* On a telephone: bring a group's maps into sight in the strip that the finger is not on. */
function reveal(id, channel) {
  const maps = $(id), left = maps.children[channel].offsetLeft - 3, right = left + maps.children[channel].offsetWidth;
  if (narrow() && (left < maps.scrollLeft || right > maps.scrollLeft + maps.clientWidth)) maps.scrollLeft = left;
}

function show() {
  const {o, oh, ow, K, S, P, D, C, G, pixel: p} = state, [OH, OW] = layer().size;
  for (const cell of document.querySelectorAll(".seen, .here")) cell.classList.remove("seen", "here");
  const group = p ? groupOf(p.c) : groupOf(o);
  for (const id of ["image", "output"]) for (const m of $(id).children) m.classList.toggle("faded", groupOf(+m.dataset.channel) !== group);
  for (const k of kernels) {
    const used = p ? k.c === p.c && groupOf(k.o) === group : k.o === o && groupOf(k.c) === group;
    k.element.classList.toggle("used", used);
    k.element.classList.toggle("faded", !used && !k.element.classList.contains("none"));
  }
  const light = (id, name) => cells[id] && cells[id].classList.add(name);
  if (p) {
    light(`x-${p.c}-${p.h}-${p.w}`, "here");
    const rows = positions(p.h, OH), cols = positions(p.w, OW);
    for (const f of channelsOf(group)) for (const r of rows) for (const q of cols) light(`y-${f}-${r}-${q}`, "seen");
    const count = rows.length * cols.length;
    $("say").innerHTML = `Pixel (${p.h}, ${p.w}) of channel ${p.c} lies in <b>${count}</b> window${count === 1 ? "" : "s"}, and ${G > 1 ? (C === G ? `filter ${p.c}, the only one of its group,` : `the ${C / G} filters of group ${group}`) : `all ${C} filters`} look${C / G === 1 ? "s" : ""} at it there. Its gradient is the sum of weight times output gradient over ${count * C / G === 1 ? "this output" : `these ${count * C / G} outputs`}: <span class="code">col2im</span> adds it up.`;
    $("sum").style.visibility = "hidden"; // and keeps its place, so that nothing moves away under the pointer
    $("image").setAttribute("aria-activedescendant", `x-${p.c}-${p.h}-${p.w}`);
  } else {
    light(`y-${o}-${oh}-${ow}`, "here");
    const seen = channelsOf(group);
    for (const c of seen) for (let kh = 0; kh < K; kh++) for (let kw = 0; kw < K; kw++) {
      const h = tap(oh, kh), w = tap(ow, kw);
      light(`x-${c}-${h}-${w}`, "seen");
      light(`pad-${c}-${h + P}-${w + P}`, "seen");
    }
    const y = output(o, oh, ow), mine = sum(o, oh, ow), last = seen[seen.length - 1];
    const which = seen.length === 1 ? `channel ${seen[0]}` : seen.length === C ? `all ${C} channels` : `channels ${seen[0]} ${seen.length === 2 ? "and" : "to"} ${last}`;
    $("say").innerHTML = `Output (${oh}, ${ow}) of filter ${o} is <b>${num(y)}</b>. Filter ${o} belongs to group ${group} and sees ${which}, ${K * K} tap${K > 1 ? "s" : ""}${seen.length > 1 ? " in each" : ""}: ${seen.length * K * K === 1 ? "its column holds one number, which meets one weight" : `its column holds ${seen.length * K * K} numbers, which meet as many weights`}.` + (mine === y ? "" : ` <b>But the page's own sum is ${num(mine)}.</b>`);
    const terms = seen.map((c, i) => {
      const grid = (value, most) => {
        const g = make("div", {className: "cells"});
        g.style.setProperty("--k", K);
        g.style.gridTemplateColumns = `repeat(${K}, minmax(0, 1fr))`;
        for (let kh = 0; kh < K; kh++) for (let kw = 0; kw < K; kw++) {
          const v = value(kh, kw), cell = make("div", {textContent: num(v), className: "c"});
          cell.style.background = shade(group, v, most);
          g.append(cell);
        }
        return g;
      };
      const part = partial(o, c, oh, ow);
      return make("div", {className: "term"}, make("span", {className: "dim", textContent: i ? "+" : ""}), grid((kh, kw) => pixel(c, tap(oh, kh), tap(ow, kw)), 9),
        make("span", {className: "dim", textContent: "·"}), grid((kh, kw) => weight(o, c, kh, kw), 2), make("span", {className: "part", textContent: `= ${num(part)}`}));
    });
    const total = make("b", {className: "total", textContent: `Σ = ${num(mine)}`});
    $("sum").replaceChildren(...terms, ...(seen.length > 1 ? [total] : []));
    $("sum").style.visibility = "";
    $("output").setAttribute("aria-activedescendant", `y-${o}-${oh}-${ow}`);
  }
  $("p-sum").classList.toggle("tall", $("p-sum").offsetHeight > .4 * window.innerHeight);
  reveal(p ? "output" : "image", channelsOf(group)[0]);
  product();
}

/* The cross of a matrix product: weights at the lower left, columns at the upper right, outputs where they meet. */
let cross = null;
function product() {
  const canvas = $("product"), {C, G, K, o, oh, ow, pixel: p} = state, [OH, OW] = layer().size;
  const rows = C * K * K, n = C / G, places = OH * OW, width = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
  const gap = 26, k = Math.max(1, Math.min(9, (width * .46 - gap) / rows)), q = Math.min(24, (width - gap - rows * k - 6) / places), t = C === 8 ? 13 : 18;
  const height = rows * k + gap + C * t + 4;
  $("cross").classList.toggle("room", width > 560 && rows * k > 150);
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  const g = canvas.getContext("2d");
  g.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement), colour = name => style.getPropertyValue(name).trim();
  const x0 = 1, x1 = rows * k + gap, y0 = 1, y1 = rows * k + gap;
  cross = {x1, y1, q, t, k, places, OW};
  const group = p ? groupOf(p.c) : groupOf(o);
  const paint = (x, y, w, h, grp, value, most) => {
    g.globalAlpha = (grp === group ? 1 : .35) * (value ? .1 + .75 * Math.min(Math.abs(value) / most, 1) : .04);
    g.fillStyle = value < 0 ? colour("--minus") : colour(`--h${grp}`);
    g.fillRect(x, y, w - (w > 3 ? .6 : 0), h - (h > 3 ? .6 : 0));
  };
  for (let f = 0; f < C; f++) for (const c of channelsOf(groupOf(f))) for (let i = 0; i < K * K; i++)
    paint(x0 + (c * K * K + i) * k, y1 + f * t, k, t, groupOf(f), weight(f, c, Math.floor(i / K), i % K), 2);
  for (let c = 0; c < C; c++) for (let i = 0; i < K * K; i++) for (let j = 0; j < places; j++)
    paint(x1 + j * q, y0 + (c * K * K + i) * k, q, k, groupOf(c), pixel(c, tap(Math.floor(j / OW), Math.floor(i / K)), tap(j % OW, i % K)), 9);
  for (let f = 0; f < C; f++) for (let j = 0; j < places; j++)
    paint(x1 + j * q, y1 + f * t, q, t, groupOf(f), layer().y[f * places + j], 60);
  g.globalAlpha = 1;
  g.strokeStyle = colour("--line"); g.lineWidth = 1;
  g.strokeRect(x0, y1, rows * k, C * t); g.strokeRect(x1, y0, places * q, rows * k); g.strokeRect(x1, y1, places * q, C * t);
  g.strokeStyle = colour("--dim");
  g.beginPath();
  for (let s = 1; s < G; s++) {
    const r = s * n * K * K * k, f = s * n * t;
    g.moveTo(x1 - 5, y0 + r); g.lineTo(x1 + places * q + 4, y0 + r);
    g.moveTo(x0, y1 + f); g.lineTo(x1 + places * q + 4, y1 + f);
    g.moveTo(x0 + r, y1 - 4); g.lineTo(x0 + r, y1 + C * t);
  }
  g.stroke();
  g.strokeStyle = colour("--accent"); g.lineWidth = 2;
  const slab = n * K * K * k, top = y0 + group * slab;
  if (p) {
    g.strokeRect(x1, y0 + p.c * K * K * k, places * q, K * K * k);
  } else {
    const j = oh * OW + ow;
    g.strokeRect(x1 + j * q - 1, top, q + 1, slab);
    g.strokeRect(x0 + group * slab, y1 + o * t, slab, t);
    g.strokeRect(x1 + j * q - 1, y1 + o * t, q + 1, t);
  }
  g.fillStyle = colour("--dim"); g.font = "12px system-ui, sans-serif"; g.textBaseline = "alphabetic";
  g.textAlign = "left"; g.fillText("weights", x0, y1 - 8);
  g.textAlign = "right"; g.fillText("columns", x1 - 8, y0 + 11);
  g.textAlign = "left"; g.fillText("outputs", x1, y1 - 8);
  canvas.setAttribute("aria-label", `Matrix product: ${C} rows of weights, ${rows} rows of columns in ${G} slab${G > 1 ? "s" : ""}, ${places} columns, ${C} by ${places} outputs`);
}

function table(title, note, heads, rows) {
  const most = Math.max(...rows.map(r => r.bar)), t = make("table"), head = make("tr");
  t.append(make("caption", {}, make("b", {textContent: title}), make("span", {textContent: note})));
  for (const h of heads) head.append(make("th", {textContent: h, scope: "col"}));
  t.append(make("thead", {}, head));
  const body = make("tbody");
  for (const r of rows) {
    const line = make("tr", {className: r.now ? "now" : ""}), bar = make("div");
    bar.style.width = `${100 * r.bar / most}%`;
    for (const v of r.cells) line.append(make("td", {textContent: v}));
    line.append(make("td", {className: "bar"}, bar));
    line.lastChild.setAttribute("aria-hidden", "true");
    body.append(line);
  }
  t.append(body);
  return t;
}
function costs() {
  const own = data.choices.G.filter(G => G <= state.C).map(G => ({G, ...data.layers[key({...state, G})]}));
  const row = b => ({cells: [`${b.G} × ${b.d}d`, b.parameters.toLocaleString("en"), big(b.multiply_adds)], bar: b.parameters});
  $("costs").replaceChildren(
    table("This layer", `${state.C} channels in and out; weights and multiply-adds fall as the number of groups grows`, ["groups", "weights", "multiply-adds", ""],
      own.map(r => ({cells: [r.G, r.parameters.toLocaleString("en"), r.multiply_adds.toLocaleString("en")], bar: r.parameters, now: r.G === state.G}))),
    table("A ResNeXt block at equal width", "256 → 128 → 256 channels on 56×56 pixels: only the 3×3 gets cheaper", ["G × d", "weights", "mult-adds", ""], data.equal_width.map(row)),
    table("A ResNeXt block at equal cost", "256 → 64 … 128 → 256: the savings are spent on width (the paper’s Table 2)", ["G × d", "weights", "mult-adds", ""], data.equal_cost.map(row)));
}

/* Pointing, tapping and walking. */
function at(id) { const [kind, ...n] = id.split("-"); return [kind, ...n.map(Number)]; }
function point(event) {
  const cell = event.target.closest("[role=gridcell]");
  if (!cell) return;
  const [kind, c, i, j] = at(cell.id);
  if (kind === "y") Object.assign(state, {o: c, oh: i, ow: j, pixel: null}); else state.pixel = {c, h: i, w: j};
  show();
}
function walk(event) {
  const image = event.currentTarget.id === "image", [OH, OW] = layer().size, rows = image ? SIZE : OH, cols = image ? SIZE : OW;
  if (image && !state.pixel) state.pixel = {c: channelsOf(groupOf(state.o))[0], h: 0, w: 0};
  let [c, i, j] = image ? [state.pixel.c, state.pixel.h, state.pixel.w] : [state.o, state.oh, state.ow];
  const moves = {ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], PageUp: [-1, 0, 0], PageDown: [1, 0, 0], Home: [0, 0, -99], End: [0, 0, 99]};
  const move = moves[event.key];
  if (!move) return;
  event.preventDefault();
  const bound = (v, n) => Math.max(0, Math.min(n - 1, v));
  [c, i, j] = [bound(c + move[0], state.C), bound(i + move[1], rows), bound(j + move[2], cols)];
  if (image) state.pixel = {c, h: i, w: j}; else Object.assign(state, {o: c, oh: i, ow: j, pixel: null});
  show();
  reveal(event.currentTarget.id, c);
}
for (const id of ["image", "output"]) {
  $(id).addEventListener("pointerover", point);
  $(id).addEventListener("click", point);
  $(id).addEventListener("keydown", walk);
}
$("image").addEventListener("pointerleave", () => { state.pixel = null; show(); });
$("image").addEventListener("blur", () => { state.pixel = null; show(); });
function pointProduct(event) {
  const box = $("product").getBoundingClientRect(), j = Math.floor((event.clientX - box.left - cross.x1) / cross.q), f = Math.floor((event.clientY - box.top - cross.y1) / cross.t);
  if (j < 0 || j >= cross.places) return;
  Object.assign(state, {oh: Math.floor(j / cross.OW), ow: j % cross.OW, pixel: null});
  if (f >= 0 && f < state.C) state.o = f;
  show();
}
$("product").addEventListener("pointermove", pointProduct);
$("product").addEventListener("click", pointProduct);
window.addEventListener("resize", () => { fit(); product(); });
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", product);

/* For the tests: does the page's own arithmetic give minigrad's numbers, in every layer? */
function check() {
  const before = {...state};
  let values = 0, different = 0;
  for (const name of Object.keys(data.layers)) {
    [state.C, state.G, state.K, state.S, state.P, state.D] = name.split(",").map(Number);
    const [OH, OW] = layer().size, n = state.C / state.G;
    for (let o = 0; o < state.C; o++) for (let oh = 0; oh < OH; oh++) for (let ow = 0; ow < OW; ow++) { values++; different += sum(o, oh, ow) !== output(o, oh, ow); }
    different += layer().parameters !== state.C * n * state.K ** 2;
    different += layer().multiply_adds !== state.C * n * state.K ** 2 * OH * OW;
  }
  Object.assign(state, before);
  return {layers: Object.keys(data.layers).length, values, different};
}

recall();
controls();
build();
