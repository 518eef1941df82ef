// The engine over its steps: lanes on one canvas that share an axis; the step under the mouse or the arrow keys is told.
const drawTimeline = (run, openToken) => {
  const { root, data, column, d, colour } = run;
  const node = root.querySelector('[data-chart="timeline"]');
  if (!node) return { again: () => {} };
  const select = root.querySelector("[data-engines]"), says = root.querySelector(".says-step");
  select.replaceChildren(...data.lanes.map((lane, i) => make("option", { value: i, textContent: lane.engine })));
  select.parentElement.hidden = data.lanes.length < 2;
  const canvas = make("canvas", { tabIndex: 0 });
  canvas.setAttribute("role", "slider");
  canvas.setAttribute("aria-label", "Engine step; arrow keys move");
  node.replaceChildren(canvas);
  const MAX_ROWS = 48;
  let big = 1, ROW = 9, TOP = 16, FOOT = 26, lane, events, rollouts, at = -1, layout = [], wide = 0, x = (step) => step;

  const choose = () => {
    lane = data.lanes[+select.value || 0];
    events = data.events.filter((e) => e.engine === lane.engine);
    const mine = data.rollouts.filter((r) => r.engine === lane.engine);
    const worst = [...mine].sort((a, b) => b.beyond - a.beyond || b.worst - a.worst).slice(0, MAX_ROWS);
    rollouts = worst.sort((a, b) => column.engine_step[a.first] - column.engine_step[b.first] || a.index - b.index);
    at = -1;
    says.textContent = "Point at a step, or move with the arrow keys.";
    again();
  };
  const again = () => {
    wide = Math.max(node.clientWidth, 240);
    big = Math.max(unit(), 1);
    [ROW, TOP, FOOT] = [9 * big, 16 * big, 26 * big];
    const lanes = [["mean |d|, nats", 64, drawD], ["tokens in the step", 72, drawTokens], ["requests", 48, drawRequests], ["KV in use", 36, drawKv]];
    if (lane.hits.some((n) => n)) lanes.push(["cached blocks found", 36, drawHits]);
    if (rollouts.length) lanes.push([rollouts.length < data.rollouts.filter((r) => r.engine === lane.engine).length ? `tokens of the ${rollouts.length} worst rollouts, by d` : "tokens of each rollout, by d", rollouts.length * ROW, drawRollouts]);
    let top = TOP;
    layout = lanes.map(([name, height, draw]) => { const box = { name, draw, top: top + 24 * big, height: draw === drawRollouts ? height : height * big }; top = box.top + box.height; return box; });
    const height = top + FOOT, scale = devicePixelRatio || 1;
    canvas.width = wide * scale;
    canvas.height = height * scale;
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${height}px`;
    const c = canvas.getContext("2d");
    c.scale(scale, scale);
    const low = lane.first[0], high = lane.last[lane.last.length - 1] + 1;
    x = (step) => ((step - low) / (high - low)) * wide;
    c.font = `${Math.round(12 * big)}px system-ui, sans-serif`;
    for (const box of layout) {
      c.fillStyle = css("--faint");
      c.fillText(box.name, 0, box.top - 6 * big);
      c.fillStyle = css("--lane");
      c.fillRect(0, box.top, wide, box.height);
      box.draw(c, box);
    }
    drawEvents(c, height);
    drawAxis(c, height, low, high);
    if (at >= 0) {
      c.fillStyle = css("--here");
      const left = x(lane.first[at]);
      c.fillRect(left, TOP, Math.max(x(lane.last[at] + 1) - left, 2), height - TOP - FOOT);
    }
  };
  const top = (c, box, text) => { c.fillStyle = css("--faint"); c.textAlign = "right"; c.fillText(text, wide, box.top - 6 * big); c.textAlign = "left"; };
  const bar = (c, i, y, height) => { const left = x(lane.first[i]), w = x(lane.last[i] + 1) - left; c.fillRect(left, y, Math.max(w - (w > 4 ? 1 : 0), 0.5), height); };
  const each = (values, largest, box, paint) => values.forEach((value, i) => value && paint(i, (value / largest) * box.height));
  const drawD = (c, box) => {
    const known = lane.d.filter((v) => v !== null).sort((a, b) => a - b), high = Math.max(known[Math.ceil(known.length * 0.99) - 1] || 0, data.quiet) || 1;
    c.fillStyle = css("--blue");
    each(lane.d, high, box, (i, h) => bar(c, i, box.top + box.height - Math.min(h, box.height), Math.max(Math.min(h, box.height), 1)));
    if (known.length) top(c, box, `${known[known.length - 1] > high ? "99 % up to" : "up to"} ${short(high)}`);
  };
  const drawTokens = (c, box) => {
    const all = lane.num_prefill.map((n, i) => n + lane.num_decode[i]), high = Math.max(...all, 1);
    each(lane.num_decode, high, box, (i, h) => { c.fillStyle = css("--decode"); bar(c, i, box.top + box.height - h, h); });
    each(lane.num_prefill, high, box, (i, h) => { c.fillStyle = css("--prefill"); bar(c, i, box.top + box.height - h - (lane.num_decode[i] / high) * box.height, h); });
    top(c, box, `up to ${high.toLocaleString("en")}`);
  };
  const drawRequests = (c, box) => {
    const high = Math.max(...lane.num_requests.map((n, i) => n + lane.num_waiting[i]), 1);
    each(lane.num_requests, high, box, (i, h) => { c.fillStyle = css("--decode"); bar(c, i, box.top + box.height - h, h); });
    each(lane.num_waiting, high, box, (i, h) => { c.fillStyle = css("--wait"); bar(c, i, box.top + box.height - h - (lane.num_requests[i] / high) * box.height, h); });
    c.fillStyle = css("--out");
    lane.num_preempted.forEach((n, i) => {
      if (!n) return;
      const middle = (x(lane.first[i]) + x(lane.last[i] + 1)) / 2;
      c.beginPath(); c.moveTo(middle - 6, box.top); c.lineTo(middle + 6, box.top); c.lineTo(middle, box.top + 10); c.fill();
    });
    top(c, box, `up to ${high.toLocaleString("en")}`);
  };
  const drawKv = (c, box) => {
    c.fillStyle = css("--kv");
    each(lane.kv_usage, 1, box, (i, h) => bar(c, i, box.top + box.height - h, h));
    top(c, box, `up to ${(100 * Math.max(...lane.kv_usage)).toFixed(0)} % of 100 %`);
  };
  const drawHits = (c, box) => {
    const high = Math.max(...lane.hits);
    each(lane.hits, high, box, (i, h) => { c.fillStyle = css("--hit"); bar(c, i, box.top + box.height - h, h); });
    each(lane.stale, high, box, (i, h) => { c.fillStyle = css("--out"); bar(c, i, box.top + box.height - h, h); });
    top(c, box, `up to ${high.toLocaleString("en")}`);
  };
  const drawRollouts = (c, box) => {
    const step = Math.max(x(lane.first[0] + 1), 1);
    rollouts.forEach((r, row) => {
      for (let i = r.first; i < r.first + r.count; i++) {
        if (column.flags[i] & (NOT_FINITE | SENTINEL)) continue;
        c.fillStyle = colour(i);
        c.fillRect(x(column.engine_step[i]), box.top + row * ROW + 1, Math.max(step - (step > 4 ? 1 : 0), 0.8), ROW - 2);
      }
    });
  };
  const drawEvents = (c, height) => {
    let free = 0;
    for (const event of events) {
      const left = x(event.engine_step), isWeights = event.kind === "weights";
      c.strokeStyle = css(isWeights ? "--ink" : "--rule");
      c.setLineDash(isWeights ? [5, 3] : [2, 3]);
      c.beginPath(); c.moveTo(left, TOP); c.lineTo(left, height - FOOT); c.stroke();
      c.setLineDash([]);
      if (!isWeights) continue;
      const text = `version ${event.weight_version}`, size = c.measureText(text).width, from = Math.min(left, wide - size);
      if (from < free) continue;
      c.fillStyle = css("--ink");
      c.fillText(text, from, 12 * big);
      free = from + size + 8;
    }
  };
  const drawAxis = (c, height, low, high) => {
    const rough = (high - low) / Math.max(Math.floor(wide / (90 * big)), 2), ten = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
    const apart = [1, 2, 5, 10].map((k) => k * ten).find((k) => k >= rough) || 1;
    c.fillStyle = css("--faint");
    for (let step = Math.ceil(low / apart) * apart; step < high; step += apart) {
      const text = step.toLocaleString("en"), place = x(step);
      if (place + c.measureText(text).width < wide - 74 * big) c.fillText(text, place, height - 8 * big);
    }
    c.textAlign = "right"; c.fillText("engine step", wide, height - 8 * big); c.textAlign = "left";
  };
  const tell = (row) => {
    const i = at, steps = lane.first[i] === lane.last[i] ? `step ${lane.first[i]}` : `steps ${lane.first[i]} to ${lane.last[i]}`;
    const parts = [`${lane.num_prefill[i]} prompt tokens`, `${lane.num_decode[i]} decoded`, count(lane.num_requests[i], "request"), `${lane.num_waiting[i]} waiting`, `KV ${(100 * lane.kv_usage[i]).toFixed(0)} %`];
    if (lane.num_chunks[i]) parts.push(count(lane.num_chunks[i], "chunk"));
    if (lane.num_preempted[i]) parts.push(`${lane.num_preempted[i]} preempted`);
    if (lane.hits[i]) parts.push(`${count(lane.hits[i], "cached block")}, ${lane.stale[i]} of older weights`);
    if (lane.d[i] !== null) parts.push(`mean |d| ${short(lane.d[i])}`);
    for (const event of events) if (event.engine_step >= lane.first[i] && event.engine_step <= lane.last[i]) parts.push(event.kind === "control" ? event.text : `${event.kind}: version ${event.weight_version} (${event.text})`);
    says.textContent = `${steps}, weight version ${lane.weight_version[i]}: ${parts.join(", ")}`;
    if (row) says.textContent += `; request ${row.request}: ` + (row.token < 0 ? "no token here" : `output token ${row.token}, d ${number(d[row.first + row.token])}`);
    canvas.setAttribute("aria-valuenow", lane.first[i]);
    canvas.setAttribute("aria-valuetext", says.textContent);
  };
  const under = (event) => {
    const box = canvas.getBoundingClientRect(), low = lane.first[0], high = lane.last[lane.last.length - 1] + 1;
    const step = low + ((event.clientX - box.left) / box.width) * (high - low), rows = layout.find((l) => l.draw === drawRollouts);
    let i = lane.last.findIndex((last) => step < last + 1);
    if (i < 0) i = lane.last.length - 1;
    const y = event.clientY - box.top, r = rows && y >= rows.top ? rollouts[Math.floor((y - rows.top) / ROW)] : null;
    let token = -1;
    if (r) for (let k = 0; k < r.count; k++) if (column.engine_step[r.first + k] === Math.floor(step)) token = k;
    return { i, row: r ? { request: r.request, first: r.first, token, rollout: r } : null };
  };
  const goto = (i, row) => { at = Math.max(0, Math.min(lane.first.length - 1, i)); again(); tell(row); };
  canvas.onmousemove = (event) => { const { i, row } = under(event); goto(i, row); };
  canvas.onclick = (event) => { const { row } = under(event); if (row && row.token >= 0) openToken(row.rollout, row.token); };
  canvas.onkeydown = (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, PageDown: 20, PageUp: -20, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    goto(at + steps[event.key]);
  };
  select.onchange = choose;
  choose();
  canvas.setAttribute("aria-valuemin", lane.first[0]);
  canvas.setAttribute("aria-valuemax", lane.last[lane.last.length - 1]);
  canvas.setAttribute("aria-valuenow", lane.first[0]);
  return { again };
};
