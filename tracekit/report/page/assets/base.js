"use strict";
// What all pictures share. Everything that comes from a trace enters the document as text, never as markup.
const BEYOND = 1, FORCED = 2, NOT_FINITE = 4, SENTINEL = 8;
const KINDS = { recorded: Float32Array, replayed: Float32Array, sigma: Float32Array, flags: Uint8Array, batch: Int32Array, num_cached: Int32Array, cached_version: Int32Array };

const make = (tag, props = {}, ...inner) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) key in node ? (node[key] = value) : node.setAttribute(key, value);
  node.append(...inner);
  return node;
};
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const number = (x, digits = 5) => (Number.isFinite(x) ? x.toFixed(digits).replace("-", "−") : String(x));
const short = (x) => (x === 0 ? "0" : Math.abs(x) < 1e-3 || Math.abs(x) >= 1e5 ? x.toExponential(1).replace("-", "−") : String(+x.toPrecision(3)).replace("-", "−"));
// how much larger letters are here than the 16 pixels that pictures are measured for
const unit = () => parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

const unpack = async (text, kind) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new kind(await new Response(stream).arrayBuffer());
};

// One replay of the page: its data, its columns by token, and what is summed up by rollout.
const loadRun = async (root) => {
  const name = root.dataset.name;
  const $ = (id) => document.getElementById(name + id);
  const data = JSON.parse($("data").textContent);
  const names = Object.keys(data.columns);
  const arrays = await Promise.all(names.map((key) => unpack(data.columns[key], KINDS[key] || Uint32Array)));
  const column = Object.fromEntries(names.map((key, i) => [key, arrays[i]]));
  const size = column.token_id.length;
  const d = Float64Array.from({ length: size }, (_, i) => column.replayed[i] - column.recorded[i]);
  let first = 0;
  data.rollouts.forEach((rollout, index) => {
    Object.assign(rollout, { index, first, beyond: 0, worst: 0, sum: 0, finite: 0, onset: -1 });
    for (let i = first; i < first + rollout.count; i++) {
      if (column.flags[i] & BEYOND) { rollout.beyond++; if (rollout.onset < 0) rollout.onset = i - first; }
      if (Number.isFinite(d[i]) && !(column.flags[i] & SENTINEL)) { rollout.finite++; rollout.sum += Math.abs(d[i]); rollout.worst = Math.max(rollout.worst, Math.abs(d[i])); }
    }
    first += rollout.count;
  });
  const clip = $("clip");
  clip.value = data.epsilon;
  const isClipped = (i) => { const ratio = Math.exp(d[i]), e = +clip.value; return ratio < 1 - e || ratio > 1 + e; };
  const shades = [];
  const refresh = () => shades.splice(0, 2, css("--less"), css("--more"));
  refresh();
  const colour = (i) => {
    const x = Math.max(-1, Math.min(1, d[i] / data.scale));
    return `rgb(${shades[x < 0 ? 0 : 1]} / ${(0.06 + 0.84 * Math.abs(x)).toFixed(3)})`;
  };
  return { root, $, data, column, size, d, clip, isClipped, colour, refresh };
};
