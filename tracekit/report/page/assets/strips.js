// Rollouts: a list that can be filtered and sorted, and the tokens of one as a coloured strip.
const drawStrips = ({ root, $, data, column, d, isClipped, colour }) => {
  const name = root.dataset.name;
  const box = $("tokens");
  box.hidden = false;
  const list = make("div", { className: "list", tabIndex: 0, ariaLabel: "Rollouts; arrow keys choose one" });
  const strip = make("div", { className: "strip", tabIndex: 0, ariaLabel: "Tokens of the rollout; arrow keys move" });
  strip.setAttribute("role", "application");
  const says = make("div", { className: "says" });
  says.setAttribute("aria-live", "polite");
  const filter = make("input", { type: "search", placeholder: "request, engine:1, beyond", ariaLabel: "Filter rollouts" });
  const total = make("span");
  const title = make("h3");
  const step = (by) => make("button", { type: "button", textContent: by < 0 ? "← rollout" : "rollout →", onclick: () => move(by) });
  const toOnset = make("button", { type: "button", textContent: "to the onset", onclick: () => here && here.onset >= 0 && show(here.onset) });
  const scale = make("p", { textContent: `Colour: blue where the trainer gives less than the engine, orange where more; full at |d| = ${data.scale.toPrecision(3)} nats (99 % of tokens are nearer, or it is noise). Framed: beyond noise. Underlined: clipped. Hatched: no finite value, or a sentinel.` });
  box.append(make("div", { className: "tools" }, make("label", {}, "Filter ", filter), total, step(-1), step(1), toOnset), list, title, strip, says, scale);

  const HEADS = [["rollout", (r) => r.index], ["engine", (r) => r.engine], ["request", (r) => r.request], ["tokens", (r) => r.count], ["beyond noise", (r) => r.beyond], ["onset", (r) => (r.onset < 0 ? Infinity : r.onset)], ["mean |d|", (r) => (r.finite ? r.sum / r.finite : 0)], ["max |d|", (r) => r.worst]];
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
    total.textContent = `${shown.length.toLocaleString("en")} of ${data.rollouts.length.toLocaleString("en")} rollouts` + (shown.length > PAGE ? `, the first ${PAGE} listed` : "");
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
      if (flags & (NOT_FINITE | SENTINEL)) span.classList.add("none"); else span.style.background = colour(i);
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
    if (!name) history.replaceState(null, "", `#engine=${here.engine}&request=${here.request}&token=${at}`);
  };
  const cached = (i) => {
    const n = column.num_cached[i], version = column.cached_version[i];
    return n < 0 ? "–" : n === 0 ? "nothing" : `${count(n, "prompt token")}${version < 0 ? "" : `, of version ${version}`}`;
  };
  const tell = (index) => {
    const i = here.first + index, flags = column.flags[i];
    const facts = { token: label(i), id: column.token_id[i], "output token": index, position: here.start + index, recorded: number(column.recorded[i], 6), [`replayed (${data.semantic})`]: number(column.replayed[i], 6), d: number(d[i], 6), ratio: number(Math.exp(d[i]), 4), "noise (sigma)": number(column.sigma[i], 6), "engine's rank": column.vocab_rank[i] || "–", "weight version": column.weight_version[i], "engine step": column.engine_step[i], "requests in that step": column.batch[i] < 0 ? "–" : column.batch[i], cached: cached(i), "": [flags & BEYOND && "beyond noise", flags & FORCED && "forced", flags & NOT_FINITE && "not finite", flags & SENTINEL && "sentinel", isClipped(i) && "clipped"].filter(Boolean).join(", ") };
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
  fill();
  const wanted = Object.fromEntries(new URLSearchParams(name ? "" : location.hash.slice(1)));
  const linked = data.rollouts.find((r) => String(r.engine) === wanted.engine && String(r.request) === wanted.request);
  if (linked) open(linked, Math.max(0, +wanted.token || 0)); else if (shown.length) open(shown[0]);
  return { open, again: () => { if (here) { render(); show(at); } } };
};
