"""``tracekit doctor`` on weight versions: their order, labels and fingerprints."""

import numpy as np

from helpers.doctored import append, asking, found, put, report_of
from helpers.factories import make_weights


def test_versions_begin_in_their_order(tmp_path):
    tables = asking()
    tables["weights"] = make_weights(4, 2)
    assert ("version-order", None, 2) in found(report_of(tmp_path, tables))


def labelled(tables, version, label="step-120"):
    append(tables, "weights", weight_version=version, engine_step=5, method="mark", arguments="{}", label=label)


def test_a_label_is_no_change(tmp_path):
    tables = asking()
    for version in (0, 1, 1, 2):
        labelled(tables, version)
    assert report_of(tmp_path, tables).exit_code == 0
    labelled(tables, 3)
    (tmp_path / "other").mkdir()
    assert found(report_of(tmp_path / "other", tables)) == {("label-of-no-version", None, 5)}


def fingerprinted(**changes):
    """Three versions of two tensors of two workers: one moves, then none does, then one cannot be read."""
    tables = asking()
    tables["weights"] = make_weights(4, 8, 9, num_changed=np.ma.masked_array([1, 0, 0], mask=[0, 0, 1], dtype="u4"))
    hashes = np.ma.array([[1, 2, 3, 4], [1, 2, 9, 4], [1, 2, 9, 4], [1, 2, 9, 4]], dtype="u8").ravel()
    hashes[-1] = np.ma.masked
    tables["fingerprints"] = {
        "weight_version": np.arange(16, dtype="u4") // 4,
        "rank": np.arange(16, dtype="u4") // 2 % 2,
        "tensor": ["norm", "embed"] * 8,
        "dtype": ["bfloat16"] * 16,
        "shape": [[8], [4, 2]] * 8,
        "hash": hashes,
    }
    for column, (row, value) in changes.items():
        tables["fingerprints"][column][row] = value
    return tables


def test_num_changed_is_what_the_fingerprints_say(tmp_path):
    assert report_of(tmp_path, fingerprinted()).violations == []
    wrong = {
        "hash": ((4, 7), {4, 8}),  # another tensor moves in version 1, and back in version 2
        "tensor": ((8, "gone"), {8, 9}),
        "dtype": ((8, "float32"), {8, 9}),
        "shape": ((8, [9]), {8, 9}),
        "rank": ((4, 7), {4, 8}),
    }
    for column, (change, steps) in wrong.items():
        (tmp_path / column).mkdir()
        report = report_of(tmp_path / column, fingerprinted(**{column: change}))
        assert found(report) == {("num-changed", None, step) for step in steps}, column


def test_an_adapters_version_has_no_fingerprints_and_the_next_compares_to_the_one_before(tmp_path):
    tables = fingerprinted()
    tables["weights"]["lora"][1] = "adapter"
    assert {check for check, *_ in found(report_of(tmp_path, tables))} == {"num-changed", "fingerprint-of-no-version"}
    put(tables, "weights", 1, num_changed=np.ma.masked)
    kept = np.r_[0:8, 12:16]
    tables["fingerprints"] = {
        name: [values[i] for i in kept] if isinstance(values, list) else values[kept]
        for name, values in tables["fingerprints"].items()
    }
    (tmp_path / "without").mkdir()
    assert report_of(tmp_path / "without", tables).violations == []


def test_fingerprints_are_of_announced_versions_once_each_and_of_what_was_loaded(tmp_path):
    twice = fingerprinted()
    append(twice, "fingerprints", weight_version=1, tensor="norm", dtype="bfloat16", shape=[8], hash=1)
    assert ("fingerprint-twice", None, None) in found(report_of(tmp_path, twice))
    (tmp_path / "later").mkdir()
    later = fingerprinted()
    later["fingerprints"]["weight_version"] += 1
    kinds = {check for check, *_ in found(report_of(tmp_path / "later", later))}
    assert {"fingerprint-of-no-version", "fingerprint-baseline"} <= kinds
