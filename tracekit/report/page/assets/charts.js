// Histogram, scatter, and d along a quantity, with uPlot. Returns what draws them again.
const drawCharts = ({ root, $, data, column, size, d, clip, isClipped }) => {
  const again = [];
  let font, scale;
  const measure = () => { scale = Math.max(unit(), 1); font = `${Math.round(12 * scale)}px system-ui, sans-serif`; };
  measure();
  const axis = (label, more = {}) => ({ label, font, labelFont: font, labelSize: 16 * scale, labelGap: 0, size: 34 * scale, stroke: css("--faint"), grid: { stroke: css("--rule"), width: 1 }, ticks: { stroke: css("--rule"), width: 1, size: 4 }, ...more });
  const draw = (name, build) => {
    const node = root.querySelector(`[data-chart="${name}"]`);
    const place = () => {
      measure();
      node.replaceChildren();
      build(node, { width: Math.max(node.clientWidth || node.parentElement.clientWidth, 240), height: Math.round(260 * scale), legend: { show: false }, cursor: { drag: { x: true, y: false } } });
    };
    place();
    again.push(place);
    return place;
  };
  const bars = uPlot.paths.bars({ size: [1, Infinity], gap: 1 });
  const NICE = [0.01, 0.02, 0.05, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100];
  const ticks = (low, high) => {
    const far = high - low, all = NICE.map(Math.log).filter((x) => x >= low && x <= high);
    let last = -Infinity;
    const apart = all.filter((x) => { const keep = x - last > far / 9 || x === 0; if (keep) last = x; return keep; });
    return apart.length > 2 ? apart : [-0.8, -0.4, 0, 0.4, 0.8].map((x) => x * high);
  };
  let plot = null;
  const limits = (u) => {
    const e = +clip.value, { left, top, width, height } = u.bbox;
    u.ctx.save();
    u.ctx.strokeStyle = css("--mark");
    u.ctx.setLineDash([6, 4]);
    u.ctx.lineWidth = 1.5;
    for (const ratio of [1 - e, 1 + e]) {
      const x = ratio > 0 ? u.valToPos(Math.log(ratio), "x", true) : -1;
      if (x >= left && x <= left + width) { u.ctx.beginPath(); u.ctx.moveTo(x, top); u.ctx.lineTo(x, top + height); u.ctx.stroke(); }
    }
    u.ctx.restore();
  };
  draw("histogram", (node, base) => {
    const { edges, counts, before } = data.histogram, low = edges[0], high = edges[edges.length - 1];
    const middle = counts.map((_, i) => (edges[i] + edges[i + 1]) / 2);
    const format = (v) => { const r = Math.exp(v); return high < 0.02 ? (1 + v).toFixed(high < 2e-4 ? 6 : 4) : String(+r.toPrecision(3)); };
    const series = [{}];
    if (before.length) series.push({ stroke: css("--faint"), fill: css("--before"), width: 1, paths: bars, points: { show: false } });
    series.push({ stroke: css("--blue"), fill: css("--fill"), width: 1, paths: bars, points: { show: false } });
    plot = new uPlot({
      ...base, scales: { x: { time: false, range: [low, high] } }, hooks: { draw: [limits] },
      axes: [axis("ratio e^d, log scale", { splits: () => ticks(low, high), values: (_, all) => all.map(format) }), axis("tokens", { size: 56 * scale })],
      series,
    }, before.length ? [middle, before, counts] : [middle, counts], node);
  });
  draw("scatter", (node, base) => {
    const { recorded, replayed, num_beyond, low } = data.scatter;
    const order = recorded.map((_, i) => i).sort((a, b) => recorded[a] - recorded[b]);
    const isHit = (i) => i >= recorded.length - num_beyond;
    const points = (color, size) => ({ show: true, size, fill: color, stroke: color, width: 0 });
    new uPlot({
      ...base, scales: { x: { time: false, range: [low, 0] }, y: { range: [low, 0] } },
      axes: [axis("recorded, nats"), axis("replayed, nats", { size: 56 * scale })],
      series: [{}, { stroke: css("--faint"), width: 1, points: { show: false }, spanGaps: true },
        { paths: () => null, points: points(css("--blue"), 4) }, { paths: () => null, points: points(css("--mark"), 5) }],
    }, [order.map((i) => recorded[i]), order.map((i) => recorded[i]), order.map((i) => (isHit(i) ? null : replayed[i])), order.map((i) => (isHit(i) ? replayed[i] : null))], node);
  });
  const by = $("along-by");
  by.onchange = draw("along", (node, base) => {
    const one = data.along[+by.value];
    if (!one) return;
    const series = [{ label: one.name }, { label: "mean |d|", stroke: css("--blue"), width: 2, points: { show: true, size: 6 } }, { label: "95 % of |d|", stroke: css("--mark"), width: 1.5, dash: [6, 4], points: { show: false } }];
    const values = [one.rows.map((r) => (r[0] + r[1]) / 2), one.rows.map((r) => r[4]), one.rows.map((r) => r[5])];
    if (data.after) { series.push({ label: "mean |d| before", stroke: css("--faint"), width: 1.5, points: { show: false } }); values.push(one.rows.map((r) => r[7])); }
    new uPlot({ ...base, scales: { x: { time: false } }, legend: { show: true }, axes: [axis(one.name), axis("nats", { size: 64 * scale, values: (_, all) => all.map(short) })], series }, values, node);
  });
  const sayClip = () => {
    let hit = 0, of = 0;
    for (let i = 0; i < size; i++) if (Number.isFinite(d[i])) { of++; if (isClipped(i)) hit++; }
    $("clip-value").textContent = (+clip.value).toFixed(2);
    $("clip-says").textContent = `${hit.toLocaleString("en")} of ${of.toLocaleString("en")} tokens in this page would be clipped (${of ? ((100 * hit) / of).toFixed(2) : 0} %)${data.after ? `, read as ${data.after}` : ""}`;
    if (plot) plot.redraw(false);
  };
  sayClip();
  return { again: () => again.forEach((place) => place()), sayClip };
};
