"""The page of a replay in a real browser, opened from a file: what it shows is what the result says."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from helpers.replays import modules_of, replay_of, timeline_for
from helpers.synthetic import Made, make_run
from tracekit.cli.pages import shown
from tracekit.replay.output import SCHEMA, Replay
from tracekit.replay.runner import replay as trace_replay
from tracekit.report.page.render import to_html, to_html_pair
from tracekit.report.text import to_text

MADE = {
    "clean": Made(),
    "semantic": Made(recorded="raw"),
    "shift": Made(shift=0.8, shift_from=20, shift_rollouts=5),
}


def columns(replay: Replay):
    return {name: replay.tokens.column(name).to_numpy() for name in replay.tokens.column_names}


@pytest.fixture(scope="session")
def replays():
    return {name: replay_of(make_run(made)) for name, made in MADE.items()}


@pytest.fixture
def show(visit, tmp_path):
    def render(replay, texts=None, *, tokens=None, **options):
        path = tmp_path / "page.html"
        found = shown(replay, texts or {})
        path.write_text(to_html(replace(found, tokens=tokens) if tokens else found), encoding="utf-8")
        return visit(path, **options)

    return render


def number(text):
    return float(text.replace("−", "-"))


@pytest.mark.parametrize("name", MADE)
def test_the_page_shows_what_the_screen_says(show, replays, name):
    page = show(replays[name])
    first, *rest = to_text(replays[name].result).splitlines()
    assert page.inner_text("h1") == first
    shown = re.sub(r"\s+", " ", page.inner_text("body"))
    for line in rest:
        assert re.sub(r"\s+", " ", line.strip()) in shown
    assert page.title() == first
    assert page.locator(".chart canvas").count() == 3


def test_it_reads_without_scripts(show, replays):
    page = show(replays["shift"], java_script_enabled=False)
    assert page.inner_text("h1").startswith("VERDICT")
    page.click("text=Ratios as a table")
    counts = [int(text) for text in page.locator("#ratios tbody td").all_inner_texts()]
    assert 0.99 * 768 <= sum(counts) <= 768
    assert not page.locator("#clip").is_visible()


def test_the_worst_rollout_is_open_at_its_onset_and_its_numbers_are_those_of_the_file(show, replays):
    replay = replays["shift"]
    page = show(replay)
    worst = max(replay.result.verdict.rollouts, key=lambda r: r.num_beyond_noise)
    assert page.inner_text("#tokens h3") == f"Request {worst.request} of engine {worst.engine}"
    onset = worst.first_beyond_noise
    facts = dict(
        zip(page.locator(".says dt").all_inner_texts(), page.locator(".says dd").all_inner_texts(), strict=True)
    )
    assert int(facts["output token"]) == onset.output_index and int(facts["position"]) == onset.position
    assert int(facts["id"]) == onset.token_id
    assert number(facts["recorded"]) == pytest.approx(onset.recorded, abs=1e-6)
    assert number(facts["replayed (processed)"]) == pytest.approx(onset.replayed, abs=1e-5)
    assert number(facts["d"]) == pytest.approx(onset.d, abs=1e-5)
    assert number(facts["noise (sigma)"]) == pytest.approx(onset.sigma, abs=1e-5)
    assert "beyond noise" in facts[""]
    assert page.locator(".strip .beyond").count() == worst.num_beyond_noise
    assert page.locator(".strip span").count() == worst.num_tokens


def test_hover_keyboard_and_link_lead_to_a_token(show, replays, visit, tmp_path):
    page = show(replays["shift"])
    page.hover(".strip span >> nth=3")
    assert page.locator(".says dd").all_inner_texts()[2] == "3"
    page.focus(".strip")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator(".says dd").all_inner_texts()[2] == "1"
    page.keyboard.press("End")
    assert page.locator(".says dd").all_inner_texts()[2] == "47"
    before = page.inner_text("#tokens h3")
    page.focus(".list")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#tokens h3") != before
    linked = visit(tmp_path / "page.html", fragment="#engine=0&request=9&token=17")
    assert linked.inner_text("#tokens h3") == "Request 9 of engine 0"
    assert linked.locator(".says dd").all_inner_texts()[2] == "17"


def test_the_slider_counts_what_the_metrics_count(show, replays):
    page = show(replays["shift"])
    metrics = replays["shift"].result.verdict.before
    count = round(metrics.clip_rate * metrics.num_tokens)
    assert page.inner_text("#clip-says").startswith(f"{count} of {metrics.num_tokens} tokens")
    clipped = page.locator(".strip .clipped").count()
    page.evaluate(
        "() => { const c = document.getElementById('clip'); c.value = 1; c.dispatchEvent(new Event('input')); }"
    )
    assert int(page.inner_text("#clip-says").split()[0]) < count
    assert page.locator(".strip .clipped").count() <= clipped


def test_the_list_filters_and_sorts(show, replays):
    page = show(replays["shift"])
    rows = page.locator(".list tbody tr")
    assert rows.count() == 16
    page.fill("input[type=search]", "beyond")
    hit = sum(r.num_beyond_noise > 0 for r in replays["shift"].result.verdict.rollouts)
    assert rows.count() == hit and f"{hit} of 16 rollouts" in page.inner_text(".tools")
    page.fill("input[type=search]", "7")
    assert rows.count() == 1 and rows.first.locator("td").all_inner_texts()[2] == "7"
    page.fill("input[type=search]", "")
    page.click(".list th button >> text=max |d|")
    sizes = [float(row.locator("td").last.inner_text()) for row in rows.all()]
    assert sizes == sorted(sizes, reverse=True)


HOSTILE = "</script><img src=x onerror=alert(1)>\u202e\u0007\u2028\x1b[31m"


def test_hostile_text_is_inert(show, replays):
    replay = replays["semantic"]
    scoring = replace(replay.result.scoring, model=HOSTILE)
    hostile = Replay(replace(replay.result, scoring=scoring), replay.tokens)
    page = show(hostile, {int(i): HOSTILE for i in np.unique(columns(replay)["token_id"])})
    assert page.locator("img").count() == 0
    inert = "</script><img src=x onerror=alert(1)>\\u202e\\u0007\\u2028\\u001b[31m"
    assert page.locator(".strip span").first.inner_text() == inert
    assert inert in page.inner_text("#evidence")
    assert not re.search("[\u202e\u0007\u2028\x1b]", page.content())


@pytest.mark.parametrize("width", [360, 3840])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_any_screen(show, replays, width, scheme, tmp_path):
    page = show(with_timeline(replays["shift"]), viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    light = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, paper)]
    assert (light[0] < light[1]) == (scheme == "light")
    keep = Path(os.environ.get("TRACEKIT_SCREENSHOTS") or tmp_path)
    keep.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=keep / f"{scheme}-{width}.png", full_page=True)


def table_of(num_rollouts, length):
    """A token table of that many rollouts, of made-up values."""
    rng = np.random.default_rng(0)
    n = num_rollouts * length
    made = {field.name: np.zeros(n, field.type.to_pandas_dtype()) for field in SCHEMA}
    made["request"] = np.repeat(np.arange(num_rollouts, dtype="u4"), length)
    made["position"] = np.tile(np.arange(9, 9 + length, dtype="u4"), num_rollouts)
    made["rollout_logprob"] = -rng.exponential(0.7, n).astype("f4")
    made["d"] = rng.normal(0, 0.02, n)
    made["forced_logprob"] = (made["rollout_logprob"] + made["d"]).astype("f4")
    made["sigma"][:] = 0.02
    made["engine_step"] = made["position"] - 9
    return made


def test_nothing_one_token_and_a_million_are_a_page(show, replays):
    empty = pa.Table.from_batches([], schema=replays["clean"].tokens.schema)
    page = show(Replay(replays["clean"].result, empty))
    assert page.locator(".list tbody tr").count() == 0
    page = show(replays["clean"], tokens=table_of(1, 1))
    assert page.locator(".strip span").count() == 1
    made = table_of(2000, 500)
    made["beyond_noise"] = np.zeros(1_000_000, bool)
    made["beyond_noise"][500 * 1234 + 7] = True
    page = show(replays["clean"], tokens=made)
    assert "of 2,000 rollouts (200,000 of 1,000,000 tokens)" in page.inner_text("#strips")
    assert page.inner_text("#tokens h3") == "Request 1234 of engine 0"  # the worst is never left out
    assert page.locator(".says dd").all_inner_texts()[2] == "7"


def test_a_value_that_is_not_finite_is_hatched_and_in_no_scale(show):
    run = make_run(Made())
    run.rollout_logprob[5] = np.nan
    run.rollout_logprob[6] = -np.inf
    page = show(replay_of(run), fragment="#engine=0&request=0&token=5")
    assert page.locator(".strip .none").count() == 2
    assert "2 tokens without a finite value left out" in page.inner_text("#ratios")
    assert "NaN" in page.inner_text(".says")


def with_timeline(replay):
    verdict = replace(replay.result.verdict, modules=modules_of())
    return Replay(replace(replay.result, verdict=verdict), replay.tokens, timeline_for(replay, updated_at=20))


def test_the_timeline_tells_each_step_under_the_mouse_and_the_arrow_keys(show, replays):
    page = show(with_timeline(replays["shift"]))
    says = page.locator(".says-step")
    page.focus("#timeline canvas")
    page.keyboard.press("Home")
    assert says.inner_text().startswith("step 0, weight version 0: 96 prompt tokens, 0 decoded, 16 requests, 4 waiting")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert "2 preempted" in says.inner_text() and page.locator("#timeline canvas").get_attribute("aria-valuenow") == "5"
    page.keyboard.press("End")
    last = says.inner_text()
    tokens = columns(replays["shift"])
    step = int(tokens["engine_step"].max())
    mean = float(np.abs(tokens["d"][tokens["engine_step"] == step]).mean())
    assert last.startswith(f"step {step}, weight version 1") and f"mean |d| {mean:.3g}" in last
    box = page.locator("#timeline canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * (20.5 / (step + 1)), box["y"] + 60)
    assert "5 cached blocks, 5 of older weights" in says.inner_text() and "weights: version 1" in says.inner_text()
    page.mouse.click(box["x"] + box["width"] * (20.5 / (step + 1)), box["y"] + box["height"] - 30)
    assert page.locator(".says dd").all_inner_texts()[2] == "20"  # the token under the mouse is open


def test_the_timeline_and_the_modules_read_without_scripts(show, replays):
    page = show(with_timeline(replays["shift"]), java_script_enabled=False)
    assert "8 cached blocks found, 5 of them computed by older weights" in page.inner_text("#timeline")
    page.click("text=Prefix-cache hits by weight version")
    cells = page.locator("#timeline details[open] tbody tr").all_inner_texts()
    assert [cell.split() for cell in cells] == [["0", "0", "0", "3", "48"], ["0", "0", "1", "5", "80"]]
    assert page.locator("#modules .suspect").get_attribute("title") == "layers.3.self_attn: 50 times its kind"
    assert page.locator("#modules .heat thead th").count() == 6


def test_two_runs_stand_side_by_side_and_each_answers_for_itself(visit, replays, tmp_path):
    runs = {"defaults": shown(with_timeline(replays["semantic"]), {}), HOSTILE: shown(replays["clean"], {})}
    (tmp_path / "two.html").write_text(to_html_pair("Two runs", ["what differs", HOSTILE], runs), encoding="utf-8")
    page = visit(tmp_path / "two.html", viewport={"width": 1600, "height": 900})
    left, right = page.locator(".column").all()
    assert left.bounding_box()["y"] == right.bounding_box()["y"]
    assert "semantic mismatch" in left.inner_text() and "no divergence" in right.inner_text()
    page.focus("#run1-clip")
    page.keyboard.press("End")
    assert page.inner_text("#run1-clip-value") == "1.00" and page.inner_text("#run0-clip-value") == "0.20"
    assert page.locator("img").count() == 0 and page.locator(".run .strip").count() == 2


def test_a_fix_is_seen_before_and_after(show, replays):
    page = show(replays["semantic"])
    before, after = (getattr(replays["semantic"].result.verdict, name) for name in ("before", "after"))
    tiles = page.locator(".tiles div").all_inner_texts()
    assert f"{before.ratio_mean:.4f}" in tiles[0] and f"→ {after.ratio_mean:.4f} as raw" in tiles[0]
    page.click("text=Ratios as a table")
    rows = [[int(cell) for cell in row.split("\t")[1:]] for row in page.locator("#ratios tbody tr").all_inner_texts()]
    middle = len(rows) // 2
    assert sum(r[0] for r in rows[middle - 2 : middle + 2]) > 2 * sum(r[1] for r in rows[middle - 2 : middle + 2])


def test_a_sentinel_sets_no_scale(show):
    run = make_run(Made())
    run.rollout_logprob[::7] = -9999.0
    page = show(replay_of(run), fragment="#engine=0&request=0&token=7")
    assert "110 tokens with a sentinel left out" in page.inner_text("#ratios")
    page.click("text=Ratios as a table")
    assert float(page.locator("#ratios tbody th").last.inner_text().split(" to ")[1]) < 2
    assert "-9" not in page.inner_text("#scatter") and "sentinel" in page.inner_text(".says")
    assert page.locator(".strip .none").count() == 7


GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("generation", ["v0", "v1"])
def test_a_recording_of_a_real_engine_is_a_page(show, tiny_model, generation):
    replay = trace_replay(GOLDEN / generation / "trace.arrow", tiny_model, dtype="float32", device="cpu")
    page = show(replay)
    steps = replay.timeline["steps"]
    page.focus("#timeline canvas")
    page.keyboard.press("End")
    assert page.inner_text(".says-step").startswith(f"step {steps.column('engine_step')[-1].as_py()}, weight version")
    assert f"of {len(replay.result.verdict.rollouts)}" in page.inner_text(".tiles div >> nth=4").splitlines()[1]
    assert page.locator(".list tbody tr").count() == len(replay.result.verdict.rollouts)
