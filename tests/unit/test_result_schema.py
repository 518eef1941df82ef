"""docs/result.schema.json: it is that of the code, and real results are what it says."""

import json

import jsonschema
import numpy as np
import pytest

from helpers.synthetic import Made, edit, make_run
from scripts.gen_schema import TARGET, render
from tracekit.diagnose.result import Data, Result, Sample, Scoring, Weights
from tracekit.diagnose.skipped import Skipped
from tracekit.diagnose.verdict import judge

SCHEMA = json.loads(TARGET.read_text(encoding="utf-8"))
DATA = Data(
    16,
    768,
    1,
    7,
    [Skipped("missing tokens", None, 2), Skipped("sampling parameter", "bad_words", 1)],
    Sample(60.0, 99, 5000),
    True,
)
TAKEN = [Weights(0, "/a", "trace"), Weights(1, "/b", "claim", label="step-1"), Weights(2, "/a", "same", same_as=0)]
SCORING = Scoring("tiny", "bfloat16", "float32", "cpu", "packed", "bfloat16", 2.5, 4096, 61.0, 3 << 30, TAKEN)


def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


def result_of(run, **how) -> dict:
    verdict = judge(run, **how).verdict
    return json.loads(json.dumps(Result.of("0.1.0", SCORING, DATA, verdict).to_dict()))


def test_the_committed_schema_is_that_of_the_code():
    assert TARGET.read_text(encoding="utf-8") == render(), "run: python scripts/gen_schema.py"


def test_every_field_is_described():
    objects = [SCHEMA, *SCHEMA["$defs"].values()]
    bare = [name for object_ in objects for name, field in object_["properties"].items() if "description" not in field]
    assert not bare


@pytest.mark.parametrize(
    "made",
    [
        Made(num_rollouts=4),
        Made(recorded="raw"),
        Made(temperature=1.0, top_p=1.0),
        Made(shift=0.8),
        Made(engine_eps=0.4),
    ],
)
def test_results_are_what_the_schema_says(made):
    facts = result_of(make_run(made))
    validator().validate(facts)
    assert Result.from_dict(facts).to_dict() == facts


def test_findings_are_in_the_schema_too():
    run = edit(
        make_run(Made()), lambda v: np.where(np.arange(v.size) == 0, np.nan, np.where(np.arange(v.size) == 1, 1, v))
    )
    facts = result_of(run)
    assert "above zero" in {finding["code"] for finding in facts["verdict"]["findings"]}
    assert "not finite" in {unknown["code"] for unknown in facts["verdict"]["withheld"]}
    validator().validate(facts)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema_version", 9),
        ("verdict.layer", "inference_path"),
        ("verdict.cause", "The engine recorded raw logprobs."),
        ("verdict.before.ratio_mean", "1.0"),
        ("verdict.findings", ["a sentence"]),
        ("verdict.more", 1),
        ("data.skipped_requests", {"requests with missing token rows": 1}),
        ("scoring.weights", [{"version": 0}]),
    ],
)
def test_what_is_none_is_refused(path, value):
    facts = result_of(make_run(Made(num_rollouts=4)))
    inner = facts
    *above, last = path.split(".")
    for name in above:
        inner = inner[name]
    inner[last] = value
    with pytest.raises(jsonschema.ValidationError):
        validator().validate(facts)
