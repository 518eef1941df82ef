// The page's pictures. Everything that comes from a trace enters the document as text, never as markup.
"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  document.body.classList.add("scripted");
  const BEYOND = 1, FORCED = 2, NOT_FINITE = 4;
  const KINDS = { recorded: Float32Array, replayed: Float32Array, sigma: Float32Array, flags: Uint8Array };
  const make = (tag, props = {}, ...inner) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(props)) key in node ? (node[key] = value) : node.setAttribute(key, value);
    node.append(...inner);
    return node;
  };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const number = (x, digits = 5) => (Number.isFinite(x) ? x.toFixed(digits) : String(x));

  const unpack = async (text, kind) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new kind(await new Response(stream).arrayBuffer());
  };
  const names = Object.keys(data.columns);
  const arrays = await Promise.all(names.map((name) => unpack(data.columns[name], KINDS[name] || Uint32Array)));
  const column = Object.fromEntries(names.map((name, i) => [name, arrays[i]]));
  const size = column.token_id.length;
  const d = Float64Array.from({ length: size }, (_, i) => column.replayed[i] - column.recorded[i]);
  let first = 0;
  for (const rollout of data.rollouts) {
    Object.assign(rollout, { first, beyond: 0, worst: 0, sum: 0, finite: 0, onset: -1 });
    for (let i = first; i < first + rollout.count; i++) {
      if (column.flags[i] & BEYOND) { rollout.beyond++; if (rollout.onset < 0) rollout.onset = i - first; }
      if (Number.isFinite(d[i])) { rollout.finite++; rollout.sum += Math.abs(d[i]); rollout.worst = Math.max(rollout.worst, Math.abs(d[i])); }
    }
    first += rollout.count;
  }

  // ---- clip range
  const clip = document.getElementById("clip"), clipSays = document.getElementById("clip-says");
  const isClipped = (i) => { const ratio = Math.exp(d[i]), e = +clip.value; return ratio < 1 - e || ratio > 1 + e; };
  const sayClip = () => {
    let hit = 0, of = 0;
    for (let i = 0; i < size; i++) if (Number.isFinite(d[i])) { of++; if (isClipped(i)) hit++; }
    document.getElementById("clip-value").textContent = (+clip.value).toFixed(2);
    clipSays.textContent = `${hit.toLocaleString("en")} of ${of.toLocaleString("en")} tokens in this page would be clipped (${of ? ((100 * hit) / of).toFixed(2) : 0} %)`;
  };
  clip.value = data.epsilon;

  // ---- charts
  const charts = [];
  const place = (name) => document.querySelector(`[data-chart="${name}"]`);
  const width = (node) => Math.max(node.parentElement.clientWidth, 240);
  const axes = (x, y, format) => [
    { label: x, stroke: css("--ink"), grid: { stroke: css("--rule"), width: 0.5 }, ticks: { stroke: css("--rule") }, ...(format ? { values: (_, all) => all.map(format) } : {}) },
    { label: y, stroke: css("--ink"), grid: { stroke: css("--rule"), width: 0.5 }, ticks: { stroke: css("--rule") }, size: 64 },
  ];
  const draw = (name, build) => {
    const node = place(name);
    const again = () => {
      node.replaceChildren();
      node._plot = build(node, { width: width(node), height: 260, legend: { show: false }, cursor: { drag: { x: true, y: false } } });
    };
    again();
    charts.push(again);
    return again;
  };
  const bars = uPlot.paths.bars({ size: [1, Infinity], gap: 1 });
  draw("histogram", (node, base) => {
    const { edges, counts } = data.histogram;
    const middle = counts.map((_, i) => (edges[i] + edges[i + 1]) / 2);
    return new uPlot({
      ...base, scales: { x: { time: false, range: [edges[0], edges[edges.length - 1]] } },
      axes: axes("ratio e^d (log scale)", "tokens", (v) => Math.exp(v).toPrecision(3)),
      series: [{}, { stroke: css("--blue"), fill: css("--blue"), paths: bars, points: { show: false } }],
    }, [middle, counts], node);
  });
  draw("scatter", (node, base) => {
    const { recorded, replayed, num_beyond } = data.scatter;
    const order = recorded.map((_, i) => i).sort((a, b) => recorded[a] - recorded[b]);
    const isHit = (i) => i >= recorded.length - num_beyond;
    const ends = recorded.concat(replayed), low = Math.min(...ends, -1), points = (color) => ({ show: true, size: 4, fill: color, stroke: color, width: 0 });
    return new uPlot({
      ...base, scales: { x: { time: false, range: [low, 0] }, y: { range: [low, 0] } },
      axes: axes("recorded logprob (nats)", "replayed logprob"),
      series: [{},
        { paths: () => null, points: points(css("--blue")) }, { paths: () => null, points: points(css("--mark")) },
        { stroke: css("--faint"), width: 1, points: { show: false }, spanGaps: true }],
    }, [order.map((i) => recorded[i]), order.map((i) => (isHit(i) ? null : replayed[i])), order.map((i) => (isHit(i) ? replayed[i] : null)), order.map((i) => recorded[i])], node);
  });
  const by = document.getElementById("along-by");
  const drawAlong = draw("along", (node, base) => {
    const { name, rows } = data.along[+by.value];
    return new uPlot({
      ...base, scales: { x: { time: false } }, legend: { show: true }, axes: axes(name, "nats"),
      series: [{ label: name }, { label: "mean |d|", stroke: css("--blue"), width: 2, points: { show: true } }, { label: "95 % of |d|", stroke: css("--mark"), width: 1, dash: [5, 3] }],
    }, [rows.map((r) => (r[0] + r[1]) / 2), rows.map((r) => r[4]), rows.map((r) => r[5])], node);
  });
  by.onchange = drawAlong;

  // ---- rollouts and their tokens
  const box = document.getElementById("tokens");
  box.hidden = false;
  const list = make("div", { className: "list", tabIndex: 0, ariaLabel: "Rollouts; arrow keys choose one" });
  const strip = make("div", { className: "strip", tabIndex: 0, ariaLabel: "Tokens of the rollout; arrow keys move" });
  strip.setAttribute("role", "application");
  const says = make("div", { className: "says" });
  says.setAttribute("aria-live", "polite");
  const filter = make("input", { type: "search", placeholder: "request, engine:1, beyond", ariaLabel: "Filter rollouts" });
  const count = make("span");
  const title = make("h3");
  const step = (by) => make("button", { type: "button", textContent: by < 0 ? "← rollout" : "rollout →", onclick: () => move(by) });
  const toOnset = make("button", { type: "button", textContent: "to the onset", onclick: () => here && here.onset >= 0 && show(here.onset) });
  const scale = make("p", { textContent: `Colour: blue where the trainer gives less than the engine, orange where more; full at |d| = ${data.scale.toPrecision(3)} nats (99 % of tokens). Framed: beyond noise. Underlined: clipped. Hatched: no finite value.` });
  box.append(make("div", { className: "tools" }, make("label", {}, "Filter ", filter), count, step(-1), step(1), toOnset), list, title, strip, says, scale);

  const HEADS = [["rollout", (r) => r.index], ["engine", (r) => r.engine], ["request", (r) => r.request], ["tokens", (r) => r.count], ["beyond noise", (r) => r.beyond], ["onset", (r) => (r.onset < 0 ? Infinity : r.onset)], ["mean |d|", (r) => (r.finite ? r.sum / r.finite : 0)], ["max |d|", (r) => r.worst]];
  data.rollouts.forEach((rollout, index) => (rollout.index = index));
  let sorted = [4, -1], shown = [], here = null, at = 0;
  const PAGE = 500, WINDOW = 2000;
  const matches = (r, words) => words.every((word) => {
    if (word === "beyond") return r.beyond > 0;
    const [key, value] = word.includes(":") ? word.split(":") : ["request", word];
    return String(r[key]) === value;
  });
  const fill = () => {
    const words = filter.value.trim().split(/\s+/).filter(Boolean), key = HEADS[sorted[0]][1];
    shown = data.rollouts.filter((r) => matches(r, words)).sort((a, b) => (key(a) - key(b)) * sorted[1] || b.worst - a.worst || a.index - b.index);
    count.textContent = `${shown.length.toLocaleString("en")} of ${data.rollouts.length.toLocaleString("en")} rollouts` + (shown.length > PAGE ? `, the first ${PAGE} listed` : "");
    const head = make("tr", {}, ...HEADS.map(([name], i) => {
      const th = make("th", { scope: "col" }, make("button", { type: "button", textContent: name + (sorted[0] === i ? (sorted[1] < 0 ? " ↓" : " ↑") : ""), onclick: () => { sorted = [i, sorted[0] === i ? -sorted[1] : -1]; fill(); } }));
      th.setAttribute("aria-sort", sorted[0] === i ? (sorted[1] < 0 ? "descending" : "ascending") : "none");
      return th;
    }));
    const body = shown.slice(0, PAGE).map((r) => {
      const values = [r.index, r.engine, r.request, r.count, r.beyond, r.onset < 0 ? "–" : r.onset, number(r.finite ? r.sum / r.finite : NaN), number(r.worst)];
      const row = make("tr", { onclick: () => open(r) }, ...values.map((v) => make("td", { textContent: v })));
      row.dataset.rollout = r.index;
      row.setAttribute("aria-selected", String(r === here));
      return row;
    });
    list.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  };
  const label = (i) => { const id = column.token_id[i]; return data.texts[id] ?? String(id); };
  const colour = (i) => {
    const x = Math.max(-1, Math.min(1, d[i] / data.scale));
    return `hsl(${x < 0 ? css("--low") : css("--high")} 85% 50% / ${(0.75 * Math.abs(x)).toFixed(3)})`;
  };
  const open = (rollout, index) => {
    here = rollout;
    at = Math.min(index ?? Math.max(rollout.onset, 0), rollout.count - 1);
    for (const row of list.querySelectorAll("tbody tr")) row.setAttribute("aria-selected", String(+row.dataset.rollout === rollout.index));
    render();
    show(at);
  };
  const render = () => {
    const from = Math.max(0, Math.min(at - WINDOW / 2, here.count - WINDOW)), to = Math.min(here.count, from + WINDOW);
    title.textContent = `Request ${here.request} of engine ${here.engine}` + (to - from < here.count ? `, output tokens ${from} to ${to - 1} of ${here.count}` : "");
    strip._from = from;
    strip.replaceChildren(...Array.from({ length: to - from }, (_, k) => {
      const i = here.first + from + k, flags = column.flags[i];
      const span = make("span", { textContent: label(i).replaceAll("\\u000a", "⏎") || " " });
      if (flags & NOT_FINITE) span.classList.add("none"); else span.style.background = colour(i);
      if (flags & BEYOND) span.classList.add("beyond");
      if (from + k === here.onset) span.classList.add("onset");
      if (isClipped(i)) span.classList.add("clipped");
      span.onmouseenter = () => tell(from + k);
      span.onclick = () => show(from + k);
      return span;
    }));
  };
  const show = (index) => {
    at = index;
    if (at < strip._from || at >= strip._from + strip.children.length) render();
    strip.querySelector(".here")?.classList.remove("here");
    const span = strip.children[at - strip._from];
    if (!span) return;
    span.classList.add("here");
    tell(at);
    history.replaceState(null, "", `#engine=${here.engine}&request=${here.request}&token=${at}`);
  };
  const tell = (index) => {
    const i = here.first + index, flags = column.flags[i];
    const facts = { token: label(i), id: column.token_id[i], "output token": index, position: here.start + index, recorded: number(column.recorded[i], 6), [`replayed (${data.semantic})`]: number(column.replayed[i], 6), d: number(d[i], 6), ratio: number(Math.exp(d[i]), 4), "noise (sigma)": number(column.sigma[i], 6), "weight version": column.weight_version[i], "engine step": column.engine_step[i], "tokens in that step": column.batch[i], "": [flags & BEYOND && "beyond noise", flags & FORCED && "forced", flags & NOT_FINITE && "not finite", isClipped(i) && "clipped"].filter(Boolean).join(", ") };
    says.replaceChildren(make("dl", {}, ...Object.entries(facts).map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value })))));
  };
  const move = (by) => { const i = shown.indexOf(here); const next = shown[i + by]; if (next) open(next); };
  strip.onkeydown = (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, PageDown: 50, PageUp: -50, Home: -Infinity, End: Infinity };
    if (!here || !(event.key in steps)) return;
    event.preventDefault();
    show(Math.max(0, Math.min(here.count - 1, at + steps[event.key])));
  };
  list.onkeydown = (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") { event.preventDefault(); move(event.key === "ArrowDown" ? 1 : -1); }
  };
  filter.oninput = fill;
  clip.oninput = () => { sayClip(); if (here) { render(); show(at); } };
  fill();
  sayClip();
  const wanted = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const linked = data.rollouts.find((r) => String(r.engine) === wanted.engine && String(r.request) === wanted.request);
  if (linked) open(linked, Math.max(0, +wanted.token || 0)); else if (shown.length) open(shown[0]);
  let timer;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(() => charts.forEach((again) => again()), 150); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { charts.forEach((again) => again()); if (here) render(); });
  document.body.dataset.ready = "yes";
})();
