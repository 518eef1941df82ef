"""``tracekit check`` over results that the real diagnosis made."""

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from helpers.replays import write
from helpers.synthetic import Made
from tracekit.cli.main import main
from tracekit.diagnose.gate import check, parse_predicate
from tracekit.errors import UsageError


@pytest.fixture(scope="module")
def replays(tmp_path_factory) -> Path:
    """A folder with a clean replay, one of raw values, and the clean one of a trace that lost data."""
    folder = tmp_path_factory.mktemp("replays")
    found = {
        "clean": write(folder / "clean.arrow"),
        "raw": write(folder / "raw.arrow", Made(recorded="raw")),
        "lost": write(folder / "lost.arrow", num_lost_rows=5, lost=True),
    }
    for name, replay in found.items():
        (folder / f"{name}.json").write_text(json.dumps(replay.result.to_dict()))
    return folder


@pytest.fixture
def tracekit(capsys):
    def run(*args):
        with pytest.raises(SystemExit) as done:
            main(["check", *map(str, args)])
        out, err = capsys.readouterr()
        return done.value.code, out, err

    return run


@pytest.mark.parametrize("form", ["arrow", "json"])
def test_without_a_rule_the_layer_decides(replays, tracekit, form):
    assert tracekit(replays / f"clean.{form}")[:2] == (
        0,
        "ok   layer!=none  (verdict.layer is none)\n1 rule, 0 fired, 0 could not be told\n",
    )
    code, out, _ = tracekit(replays / f"raw.{form}")
    assert code == 4 and out.startswith("FAIL layer!=none  (verdict.layer is semantic)")


def test_rules_compare_the_numbers_of_the_result(replays, tracekit):
    facts = json.loads((replays / "raw.json").read_text())
    before, after = (facts["verdict"][when]["mismatch_kl"] for when in ("before", "after"))
    assert after < before / 10
    middle = (before + after) / 2
    rules = [f"mismatch_kl>{middle}", f"after.mismatch_kl>{middle}", "data.num_tokens < 768"]
    code, out, _ = tracekit(replays / "raw.arrow", "--json", *(word for r in rules for word in ("--fail-on", r)))
    assert code == 4
    assert [(r["state"], r["value"]) for r in json.loads(out)["rules"]] == [
        ("fires", before),
        ("holds", after),
        ("holds", 768),
    ]
    code, out, _ = tracekit(replays / "raw.arrow", "--fail-on", "verdict.semantic.kind == raw")
    assert code == 4 and "verdict.semantic.kind is raw" in out


def test_a_number_that_is_not_known_is_not_a_pass(replays, tracekit):
    facts = json.loads((replays / "clean.json").read_text())
    facts["verdict"]["before"]["ess"] = None
    path = replays / "unknown.json"
    path.write_text(json.dumps(facts))
    assert tracekit(path, "--fail-on", "ess<0.5")[:2] == (
        1,
        "?    ess<0.5  (verdict.before.ess is not known)\n1 rule, 0 fired, 1 could not be told\n",
    )
    assert tracekit(path, "--fail-on", "ess<0.5", "--fail-on", "ratio_mean>0")[0] == 4  # what fires, fires


def test_lost_data_is_told_where_nothing_fires(replays, tracekit):
    code, out, _ = tracekit(replays / "lost.arrow")
    assert code == 3 and "data was lost" in out
    assert tracekit(replays / "lost.arrow", "--fail-on", "data.num_lost_rows>4")[0] == 4


def test_a_verdict_that_is_withheld_in_part_is_not_a_pass(replays, tracekit, tmp_path):
    facts = json.loads((replays / "clean.json").read_text())
    (tmp_path / "withheld.json").write_text(json.dumps({**facts, "outcome": "withheld", "exit_code": 1}))
    code, out, _ = tracekit(tmp_path / "withheld.json")
    assert code == 1 and "the verdict on a part of the run is withheld" in out
    assert tracekit(tmp_path / "withheld.json", "--fail-on", "ratio_mean>0")[0] == 4
    assert tracekit(tmp_path / "withheld.json", "--fail-on", "outcome!=clean")[0] == 4


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("mismatch_kl", "not a rule like"),
        ("mismatch_kl=1", "not a rule like"),
        ("mismatch_kl>", "not a rule like"),
        ("__import__('os')>1", "not a rule like"),
        ("layer>none", "only numbers can be larger"),
        ("ratio_mean<nan", "nothing compares with NaN"),
        ("mismatch>1", "a result has no verdict.mismatch"),
        ("verdict.layer.x==1", "a result has no verdict.layer.x"),
        ("rollouts==1", "not one number or word"),
        ("layer==1", "does not compare"),
        ("layer==semantics", "verdict.layer is one of none, semantic, inference path"),
        ("outcome!=diverge", "outcome is one of clean, diverges, withheld"),
        ("num_with_onset==many", "does not compare"),
    ],
)
def test_a_wrong_rule_is_a_usage_error(replays, tracekit, rule, said):
    code, out, err = tracekit(replays / "clean.arrow", "--fail-on", rule)
    assert code == 2 and out == ""
    assert said in err and err.count("\n") == 1


def test_every_operator_is_the_one_that_it_says():
    result = {"data": {"n": 2}}
    for text, fires in (("<3", 1), ("<2", 0), ("<=2", 1), ("<=1", 0), (">1", 1), (">2", 0), (">=2", 1), (">=3", 0)):
        assert check(result, parse_predicate(f"data.n{text}")).state == ("fires" if fires else "holds"), text
    for text, fires in (("==2", 1), ("==3", 0), ("!=3", 1), ("!=2", 0)):
        assert check(result, parse_predicate(f"data.n{text}")).state == ("fires" if fires else "holds"), text
    with pytest.raises(UsageError):
        check({"data": {"n": [1]}}, parse_predicate("data.n==1"))


def test_junit_and_sarif_hold_what_fires(replays, tracekit, tmp_path):
    rules = ["--fail-on", "layer!=none", "--fail-on", "mismatch_kl<0"]
    junit, sarif = tmp_path / "check.xml", tmp_path / "check.sarif"
    assert tracekit(replays / "raw.arrow", *rules, "--junit", junit, "--sarif", sarif)[0] == 4
    root = ElementTree.parse(junit).getroot()
    assert root.attrib == {"name": "tracekit check", "tests": "2", "failures": "1", "errors": "0"}
    first, second = root.iter("testcase")
    assert first.get("name") == "layer!=none" and first.find("failure").get("message") == "verdict.layer is semantic"
    assert len(second) == 0
    (run,) = json.loads(sarif.read_text())["runs"]
    assert [r["ruleId"] for r in run["results"]] == ["layer!=none"]
    assert [r["id"] for r in run["tool"]["driver"]["rules"]] == ["layer!=none", "mismatch_kl<0"]
    code, _, err = tracekit(replays / "raw.arrow", "--junit", junit)
    assert code == 1 and "exists already" in err


def test_what_is_no_replay_is_refused(tracekit, tmp_path):
    (tmp_path / "a.json").write_text('{"schema_version": 99}')
    (tmp_path / "b.json").write_text("{no json")
    (tmp_path / "e.json").write_text(
        '{"schema_version": 2, "tracekit_version": "", "outcome": "clean", "exit_code": 0, "scoring": "x"}'
    )
    (tmp_path / "c.arrow").write_text("no Arrow file, and longer than its magic")
    (tmp_path / "deep.json").write_text('{"a": ' + "[" * 100_000)
    os.mkfifo(tmp_path / "pipe")
    said = {
        "a.json": "version 99",
        "b.json": "not the JSON",
        "c.arrow": "not an Arrow",
        "d": "read",
        "deep.json": "not the JSON",
        "pipe": "Not a regular file",
        "e.json": "one of a",
    }
    for name, sentence in said.items():
        code, out, err = tracekit(tmp_path / name)
        assert code == 1 and out == "" and sentence in err and err.count("\n") == 1, err
