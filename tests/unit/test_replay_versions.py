"""Which weight versions share their weights."""

from pathlib import Path

from tracekit.replay.claims import Claim
from tracekit.replay.folders import choose_folders, needed_claims
from tracekit.replay.versions import same_weights


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
    found = choose_folders([0, 1, 2, 3, 4, 5], oldest, folders["model"], weights, needed)
    names = {version: folder.name for version, folder in found.items()}
    assert names == {0: "model", 1: "model", 2: "label", 3: "label", 4: "four", 5: "four"}
    assert choose_folders([1], oldest, folders["model"], {1: folders["one"]}, {}) == {1: folders["one"]}
