"""Which weight versions share their weights."""

from pathlib import Path

import pytest

from tracekit.diagnose.result import Weights
from tracekit.errors import UsageError
from tracekit.replay.claims import Claim
from tracekit.replay.folders import choose_weights, needed_claims
from tracekit.replay.versions import neighbours, same_weights


def row(version, num_changed=None, *, engine=0, lora=None, label=None):
    return {"engine": engine, "weight_version": version, "num_changed": num_changed, "lora": lora, "label": label}


def test_versions_without_a_change_or_of_an_adapter_go_back_to_the_oldest():
    rows = [row(1, 3), row(2, 0), row(3, lora="a"), row(4, None), row(5, 0), row(5, label="step-5")]
    assert same_weights(rows, {(0, v) for v in range(6)}) == {2: 1, 3: 1, 5: 4}


def test_a_label_alone_says_nothing_of_the_weights():
    assert same_weights([row(1, 4), row(1, 0, label="same")], {(0, 1)}) == {}


def test_all_engines_that_have_a_version_must_agree():
    rows = [row(1, 0), row(1, 2, engine=1), row(2, 0), row(3, 0), row(3, 0, engine=1)]
    assert same_weights(rows, {(0, 1), (1, 1), (0, 2), (0, 3), (1, 3)}) == {2: 1, 3: 1}
    # the row of an engine that ran on the version is lost
    assert same_weights([row(1, 0)], {(0, 1), (1, 1)}) == {}


def test_what_was_given_comes_before_fingerprints_and_these_before_labels(tmp_path):
    folders = {name: tmp_path / name for name in ("model", "one", "four", "label")}
    for folder in folders.values():
        folder.mkdir()
    oldest = {1: 0, 3: 2, 5: 4}
    claims = {v: Claim("step", str(folders["label"])) for v in (1, 2, 3, 5)}
    weights: dict[int, str | Path] = {5: folders["four"]}
    needed = needed_claims(claims, weights, oldest)
    assert list(needed) == [2]
    found = choose_weights([0, 1, 2, 3, 4, 5], oldest, {0: folders["model"], **weights}, needed, [])
    names = {taken.version: Path(taken.folder).name for taken in found}
    assert names == {0: "model", 1: "model", 2: "label", 3: "label", 4: "four", 5: "four"}
    assert [taken.source for taken in found] == ["given", "same", "claim", "same", "same", "given"]
    assert [taken.same_as for taken in found] == [None, 0, None, 2, 5, None]
    assert found[2].label == "step"
    given = {0: folders["model"], 1: folders["one"]}
    assert choose_weights([1], oldest, given, {}, []) == [Weights(1, str(folders["one"]), "given")]


def test_without_a_given_model_it_is_the_one_folder_that_the_trace_names(tmp_path):
    named = str(tmp_path)
    assert choose_weights([0], {}, {}, {}, [named]) == [Weights(0, named, "trace")]
    # version 1 has the weights of version 0, which sampled nothing itself
    assert choose_weights([1], {1: 0}, {}, {}, [named]) == [
        Weights(0, named, "trace"),
        Weights(1, named, "same", same_as=0),
    ]
    assert choose_weights([1], {}, {1: tmp_path}, {}, []) == [Weights(1, named, "given")]
    with pytest.raises(UsageError, match=r"different models \(a, b\)"):
        choose_weights([0], {}, {}, {}, ["a", "b"])
    with pytest.raises(UsageError, match="does not name its engine's model"):
        choose_weights([0], {}, {}, {}, [])
    with pytest.raises(UsageError, match="org/model, which is not a folder on this machine"):
        choose_weights([0], {}, {}, {}, ["org/model"])


def test_the_neighbours_of_a_version_are_those_of_other_weights():
    # 1 and 2 have the weights of 0, and 4 goes back to them
    oldest = {0: 0, 1: 0, 2: 0, 3: 3, 4: 0, 5: 5}
    assert neighbours(oldest, -1) == ((0, 3), (3, 0), (5, 0))
    assert neighbours(oldest, +1) == ((0, 3), (3, 0))
    assert neighbours({0: 0, 1: 0}, -1) == neighbours({2: 2}, 1) == ()
