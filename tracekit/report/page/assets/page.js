// Starts every run of the page; a picture that cannot be drawn must not take the others with it.
(async () => {
  document.body.classList.add("scripted");
  const all = [];
  for (const root of document.querySelectorAll(".run")) {
    const run = await loadRun(root);
    const charts = drawCharts(run), strips = drawStrips(run);
    const timeline = drawTimeline(run, (rollout, token) => { strips.open(rollout, token); run.$("strips").scrollIntoView({ behavior: "smooth" }); });
    run.clip.oninput = () => { charts.sayClip(); strips.again(); };
    all.push(run.refresh, charts.again, timeline.again, strips.again);
  }
  const again = () => all.forEach((draw) => draw());
  let timer;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(again, 150); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  document.body.dataset.ready = "yes";
})();
