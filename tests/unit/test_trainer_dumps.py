"""Each framework's dump is told by its content and read to the same values; the rest is refused in a sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from helpers.dumps import ROWS, WRITERS, Trained, completions, random_sequences, slime
from tracekit.errors import TrainerDumpError, UsageError
from tracekit.trainer.load import FORMATS, read_dump

SEQUENCES = random_sequences()
# the last token of one is not trained on
SEQUENCES[2].mask[-1] = 0


def completion_of(values: np.ndarray, sequence: Trained) -> list[float]:
    return values[len(sequence.prompt) :].tolist()


@pytest.mark.parametrize("name", WRITERS)
def test_a_frameworks_dump_is_known_by_what_is_in_it(tmp_path: Path, name: str) -> None:
    dump = read_dump(WRITERS[name](tmp_path / "x", SEQUENCES))
    assert dump.format == name
    found = {tuple(s.token_ids): s for s in sorted(dump.samples, key=lambda s: s.tells)}
    for sequence in SEQUENCES:
        one = found[tuple(sequence.ids)]
        trained = [bool(m) for m in sequence.mask]
        assert one.mask is not None
        assert one.mask.tolist() == [False] * len(sequence.prompt) + trained
        for mine, own in ((one.old_logprob, sequence.old), (one.rollout_logprob, sequence.rollout)):
            got = completion_of(mine, sequence)
            assert [g for g, t in zip(got, trained, strict=True) if t] == pytest.approx(
                [v for v, t in zip(own, trained, strict=True) if t], abs=1e-6
            )
        assert not np.isfinite(one.rollout_logprob[: len(sequence.prompt)]).any()
        assert completion_of(one.advantage, sequence)[0] == sequence.advantage
        assert completion_of(one.entropy, sequence)[0] == 1.5
        assert one.step in (3, None)


def test_the_first_value_of_a_token_export_is_of_the_packing_boundary_and_is_left_out(tmp_path: Path) -> None:
    for one in read_dump(WRITERS["prime-rl token export"](tmp_path, SEQUENCES)).samples:
        assert np.isnan(one.old_logprob[0]) and one.old_logprob[1] == -1.0


def test_every_format_has_a_writer_in_the_tests() -> None:
    assert {form.name for form in FORMATS} == {*WRITERS, "record --completions"}


def test_the_clients_view_holds_the_engines_values_and_none_of_the_trainers(tmp_path: Path) -> None:
    dump = read_dump(completions(tmp_path, SEQUENCES))
    assert dump.format == "record --completions" and len(dump.samples) == len(SEQUENCES)
    for one, sequence in zip(dump.samples, SEQUENCES, strict=True):
        assert completion_of(one.rollout_logprob, sequence) == sequence.rollout
        assert not np.isfinite(one.old_logprob).any() and one.mask is None


@pytest.mark.parametrize("write", ROWS)
def test_rows_are_read_compressed_or_not(tmp_path: Path, write: Any) -> None:
    for one, sequence in zip(read_dump(write(tmp_path, SEQUENCES)).samples, SEQUENCES, strict=True):
        assert (one.token_ids.tolist(), one.num_prompt, one.step) == (sequence.ids, len(sequence.prompt), 3)
        assert completion_of(one.old_logprob, sequence) == sequence.old


def test_a_mapping_names_what_is_called_otherwise(tmp_path: Path) -> None:
    rows = [{"ids": s.ids, "answer": s.completion, "logps": s.old, "v": 4} for s in SEQUENCES]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    names = {"token_ids": "ids", "completion_ids": "answer", "old_logprob": "logps", "version": "v"}
    dump = read_dump(tmp_path / "t.parquet", names)
    for one, sequence in zip(dump.samples, SEQUENCES, strict=True):
        assert one.num_prompt == len(sequence.prompt)
        assert completion_of(one.old_logprob, sequence) == sequence.old
        assert set(one.version) == {4.0}


def test_the_texts_that_trl_and_verl_log_are_read_as_texts(tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_pylist([{"step": 2, "prompt": "Hi", "completion": " there", "advantage": 0.25}]),
        tmp_path / "a.parquet",
    )
    (tmp_path / "2.jsonl").write_text(json.dumps({"input": "Hi", "output": " there", "score": 1.0, "step": 2}) + "\n")
    for name, advantage in (("a.parquet", 0.25), ("2.jsonl", float("nan"))):
        dump = read_dump(tmp_path / name)
        (text,) = dump.texts
        assert (dump.format, dump.samples, text.prompt, text.completion, text.step) == ("texts", [], "Hi", " there", 2)
        assert text.advantage == pytest.approx(advantage, nan_ok=True)


class Own:
    """An object of a framework's."""


def refused(path: Path, mapping: dict[str, str] | None = None) -> str:
    with pytest.raises(TrainerDumpError) as refusal:
        read_dump(path, mapping)
    return str(refusal.value).replace(str(path), "PATH")


def test_a_file_that_would_run_code_is_not_opened(tmp_path: Path) -> None:
    torch.save({"rollout_id": 0, "samples": [Own()]}, tmp_path / "d.pt")
    assert refused(tmp_path / "d.pt") == (
        "this file holds more than tensors, lists, numbers and texts, and reading it would run code from it, which "
        "tracekit does not do: save it again without objects of the framework's classes: PATH"
    )


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path: Path) -> None:
    good = json.dumps({"prompt_ids": [1], "completion_ids": [2, 3], "old_logprob": [-1.0, -2.0]})
    assert refused(tmp_path / "gone") == "there is no such dump of a trainer: PATH"
    assert (
        refused(written(tmp_path / "a", "hello"))
        == "this is neither JSON, Parquet, Arrow nor a file of torch.save: PATH"
    )
    assert refused(written(tmp_path / "b", "{")).startswith("the trainer's dump is not JSON lines (")
    assert refused(written(tmp_path / "c", "[1]")) == "record 0 of the trainer's dump is not an object: PATH"
    assert refused(written(tmp_path / "d", "[]")) == "the trainer's dump is empty: PATH"
    assert refused(written(tmp_path / "e", '{"logps": [1], "x": 2}')) == (
        "no known format of a trainer's dump has the names of e:1 (logps, x): say which is which, as in --trainer-map "
        "old_logprob=logps --trainer-map token_ids=ids: PATH"
    )
    assert refused(written(tmp_path / "g", good.replace("[-1.0, -2.0]", "[1, 2, 3, 4]"))) == (
        "g:1: old_logprob has 4 values for 2 or 3 tokens"
    )
    assert refused(written(tmp_path / "h", good.replace("[2, 3]", '["a"]'))) == (
        "h:1: token ids that are not numbers: [1, 'a']"
    )
    assert refused(written(tmp_path / "i", good), {"old_logprob": "logps"}) == (
        "no record has logps, they have completion_ids, old_logprob, prompt_ids"
    )
    assert refused(written(tmp_path / "j", "PAR1 and no more")).startswith(
        "the trainer's dump is not Parquet that can be"
    )
    assert refused(written(tmp_path / "k", b"PK\x03\x04 and no more")).startswith(
        "torch cannot read the trainer's dump ("
    )
    assert refused(written(tmp_path / "l", b"\x28\xb5\x2f\xfd and no more")).startswith(
        "the trainer's dump cannot be read ("
    )
    with pytest.raises(UsageError, match=r"--trainer-map knows token_ids, .*, not logps"):
        read_dump(tmp_path / "i", {"logps": "old_logprob"})


def test_a_folder_of_two_formats_or_of_none_is_refused(tmp_path: Path) -> None:
    slime(tmp_path / "two", SEQUENCES)
    completions(tmp_path / "two", SEQUENCES)
    assert refused(tmp_path / "two") == (
        "this dump mixes formats (record --completions, slime debug dump): give one at a time: PATH"
    )
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "README").write_text("hello")
    assert refused(tmp_path / "none") == "no file below this folder is a trainer's dump that is known here: PATH"


def test_slimes_train_and_rollout_data_of_a_sequence_are_one(tmp_path: Path) -> None:
    slime(tmp_path, [*SEQUENCES, SEQUENCES[0]])
    (tmp_path / "train_3_0.pt").rename(tmp_path / "all")
    alone = read_dump(tmp_path / "rollout_3.pt").samples
    both = read_dump(tmp_path).samples
    assert len(alone) == len(both) == len(SEQUENCES) + 1
    assert all(np.isfinite(s.old_logprob[s.num_prompt :]).all() and np.nanmax(s.version) == 0 for s in both)
    assert not any(np.isfinite(s.old_logprob).any() for s in alone)


def test_slimes_lists_may_be_tensors(tmp_path: Path) -> None:
    slime(tmp_path, SEQUENCES[:1])
    path = tmp_path / "train_3_0.pt"
    told = torch.load(path)
    told["rollout_data"] = {
        name: torch.stack(values) if isinstance(values, list) and isinstance(values[0], torch.Tensor) else values
        for name, values in told["rollout_data"].items()
    }
    assert any(isinstance(values, torch.Tensor) for values in told["rollout_data"].values())
    whole = read_dump(path).samples
    torch.save(told, path)
    for one, other in zip(read_dump(path).samples, whole, strict=True):
        assert np.array_equal(one.old_logprob, other.old_logprob, equal_nan=True)


def test_a_mask_of_another_length_is_refused(tmp_path: Path) -> None:
    folder = WRITERS["prime-rl token export"](tmp_path, SEQUENCES)
    path = next(folder.rglob("*.jsonl")) if folder.is_dir() else folder
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["loss_mask"].append(True)
    path.write_text("\n".join(map(json.dumps, rows)))
    length = len(rows[0]["token_ids"])
    assert f"loss_mask has {length + 1} values for {length} tokens" in refused(folder)


def test_what_else_lies_in_a_folder_is_named(tmp_path: Path) -> None:
    slime(tmp_path, SEQUENCES)
    (tmp_path / "notes.txt").write_text("hello")
    assert read_dump(tmp_path).not_read == ["notes.txt"]


def test_annotations_without_their_traces_are_refused(tmp_path: Path) -> None:
    folder = WRITERS["prime-rl annotations"](tmp_path, SEQUENCES)
    (folder / "traces.jsonl").unlink()
    assert "this annotation has no token ids, and branch 0 of the trace trace-0, which has them, is not in" in refused(
        folder
    )


EXPORT = {"token_ids": [1, 2], "loss_mask": [False, True], "trainer_logprobs": [0, -1], "inference_logprobs": [0, -1]}
BATCH = {name: torch.tensor([[1, 1]]) for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
VERL = {"prompts": torch.tensor([[0, 1]]), "responses": torch.tensor([[3, 4]])}
NESTED = torch.nested.nested_tensor([torch.tensor([1, 2, 3]), torch.tensor([4])], layout=torch.jagged)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"rollout_data": {"tokens": [[1, 2]]}}, "slime debug dump.*response_lengths"),
        ({"rollout_id": 0, "samples": [1]}, "slime debug dump.*TypeError"),
        (EXPORT | {"loss_mask": None}, "prime-rl token export.*NoneType"),
        (EXPORT | {"step": "last"}, "prime-rl token export.*last"),
        ({"trace_id": "a", "branches": [{}]}, "prime-rl annotations.*index"),
        ({"request_id": "a", "index": 0, "prompt_token_ids": None, "token_ids": [1]}, "record --completions.*NoneType"),
        ({"token_ids": [1, 2], "step": float("nan")}, "rows.*NaN"),
        ({"token_ids": [1, 2], "old_logprob": [10**400, 1]}, "values that are not numbers"),
        ({"token_ids": [1, 2], "completion_ids": [3]}, "token_ids does not end with completion_ids"),
        ({"token_ids": [1, 2], "completion_ids": [0, 1, 2]}, "token_ids does not end with completion_ids"),
        ({"token_ids": [1.5, 2]}, "not a list of token ids"),
        ({"token_ids": NESTED}, "token ids that are not numbers"),
        ({"prompt": "a", "completion": "b", "advantage": "c"}, "texts.*could not convert"),
        (BATCH | {"completion_ids": [[1, 2], [1]]}, "completion_ids is not a tensor of two dimensions"),
        (BATCH | {"prompt_mask": torch.tensor([[1]])}, "prompt_mask is of shape"),
        (BATCH | {"tool_mask": torch.tensor([[1]])}, "tool_mask is of shape"),
        (BATCH | {"advantages": ["a"]}, "TRL batch.*could not convert"),
        (VERL | {"attention_mask": torch.tensor([[0, 1]])}, "attention_mask is of shape"),
        (VERL | {"prompts": NESTED, "attention_mask": NESTED}, "prompts is not a tensor of two dimensions"),
    ],
)
def test_a_format_by_its_names_with_other_contents_is_refused_in_a_sentence(
    tmp_path: Path, record: Any, why: str
) -> None:
    torch.save(record, tmp_path / "x")
    with pytest.raises(TrainerDumpError, match=why):
        read_dump(tmp_path / "x")


@pytest.mark.parametrize("text", ['{"token_ids": ' + "[" * 100_000, "[" * 100_000])
def test_json_that_is_nested_too_deep_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(TrainerDumpError, match="not JSON lines"):
        read_dump(tmp_path / "x")


def test_a_text_may_hold_what_unicode_takes_for_the_end_of_a_line(tmp_path: Path) -> None:
    record = {"input": "a\u2028b\u2029", "output": "c\x85d", "score": 1.0, "step": 1}
    (tmp_path / "x").write_text(json.dumps(record, ensure_ascii=False) + "\r\n", encoding="utf-8-sig", newline="")
    (only,) = read_dump(tmp_path / "x").texts
    assert (only.prompt, only.completion) == (record["input"], record["output"])
