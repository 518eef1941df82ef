"""The page of a replay in a real browser, opened from a file: what it shows is what the result says."""

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from helpers.replays import replay_of
from helpers.synthetic import Made, make_run
from tracekit.replay.output import SCHEMA, Replay
from tracekit.report.page.render import to_html
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
        path.write_text(to_html(replay.result, tokens or columns(replay), texts), encoding="utf-8")
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
    page = show(replays["shift"], viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    light = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, paper)]
    assert (light[0] < light[1]) == (scheme == "light")
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)


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
