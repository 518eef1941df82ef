"""Fingerprints of weights: which change moves which hash, and what cannot be read says so."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from tracekit.recorder.vllm.fingerprint import SAMPLE, count_changed, fingerprints

AS_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.int64, torch.bool]


def module(**tensors: torch.Tensor) -> nn.Module:
    made = nn.Module()
    for name, tensor in tensors.items():
        made.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    return made


def hashes(model: nn.Module) -> dict[str, int | None]:
    return {name: digest for name, _, _, digest in fingerprints(model)}


def filled(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    numbers = torch.arange(torch.Size(shape).numel()) % 97
    return (numbers.to(dtype) if dtype != torch.bool else numbers % 3 == 0).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_sampled_element_changes_exactly_its_tensor_and_back(dtype: torch.dtype) -> None:
    model = module(a=filled((96, 576), dtype), b=filled((96, 576), dtype), c=filled((3,), dtype))
    before = hashes(model)
    assert None not in before.values() and before["a"] == before["b"] != before["c"]
    bits = model.b.data.view(-1)[:1].view(AS_INTEGERS[dtype.itemsize])
    bits ^= 1
    changed = hashes(model)
    assert changed["b"] != before["b"] and {**changed, "b": before["b"]} == before
    bits ^= 1
    assert hashes(model) == before


def test_the_sample_covers_the_columns_of_a_matrix_and_stays_small() -> None:
    moved = set()
    matrix = filled((512, 1024))
    before = hashes(module(w=matrix))
    step = 512 * 1024 // SAMPLE | 1
    for i in range(0, 512 * 1024, step):
        matrix.view(-1)[i] += 1
        after = hashes(module(w=matrix))
        assert after != before, i
        moved.add(i % 1024)
        before = after
    assert len(moved) == 64
    matrix.view(-1)[step - 1] += 1
    assert hashes(module(w=matrix)) == before


def test_equal_weights_have_equal_hashes_in_another_process() -> None:
    program = (
        "import torch; from torch import nn; from tracekit.recorder.vllm.fingerprint import fingerprints\n"
        "m = nn.Module(); m.w = nn.Parameter((torch.arange(96 * 576) % 97).reshape(96, 576).bfloat16())\n"
        "print(fingerprints(m)[0][3])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == hashes(module(w=filled((96, 576), torch.bfloat16)))["w"]


def test_tied_weights_are_one_tensor() -> None:
    model = module(embed=filled((64, 8)))
    model.head = nn.Module()
    model.head.weight = model.embed
    assert list(hashes(model)) == ["embed"]


def test_a_transposed_weight_is_read_where_it_lies() -> None:
    stored = filled((200, 300), torch.float8_e4m3fn)
    assert hashes(module(w=stored.t())) == hashes(module(w=stored))
    (found,) = fingerprints(module(w=stored.t()))
    assert found[1:3] == ("float8_e4m3fn", (300, 200))


@pytest.mark.parametrize("shape", [(40, 50), (7,), (6, 5, 4)])
def test_a_window_into_a_larger_tensor_is_read_without_what_lies_between(shape: tuple[int, ...]) -> None:
    whole = filled(tuple(2 * n for n in shape))
    window = whole[tuple(slice(None, None, 2) for _ in shape)]
    before = hashes(module(w=window))
    whole[tuple(slice(1, None, 2) for _ in shape)] += 1
    assert hashes(module(w=window)) == before
    window += 1
    assert hashes(module(w=window)) != before


def test_what_cannot_be_read_has_no_hash() -> None:
    freed = torch.ones(4, 4)
    freed.untyped_storage().resize_(0)
    model = module(packed=torch.empty(0), meta=torch.empty(4, 4, device="meta"), freed=freed, norm=torch.ones(4))
    found = hashes(model)
    assert {name for name, digest in found.items() if digest is None} == {"packed", "meta", "freed"}


def test_scalars_and_buffers() -> None:
    model = module(scale=torch.tensor(2.0))
    model.register_buffer("rotary", torch.ones(3))
    (found,) = fingerprints(model)
    assert found[:3] == ("scale", "float32", ()) and found[3] is not None


def tensors(**by_name: int | None) -> dict[tuple[int, str], tuple[str, tuple[int, ...], int | None]]:
    return {(0, name): ("float32", (2,), digest) for name, digest in by_name.items()}


def test_what_counts_as_changed() -> None:
    before = tensors(a=1, b=2)
    assert count_changed(before, tensors(a=1, b=2)) == 0
    assert count_changed(before, tensors(a=1, b=3)) == 1
    assert count_changed(before, tensors(a=1, c=2)) == 2
    assert count_changed(before, {**before, (0, "a"): ("bfloat16", (2,), 1)}) == 1
    assert count_changed(before, None) is None and count_changed(None, before) is None


def test_unreadable_tensors_are_never_taken_for_unchanged() -> None:
    assert count_changed(tensors(a=1, packed=None), tensors(a=1, packed=None)) is None
    assert count_changed(tensors(a=1, packed=None), tensors(a=2, packed=None)) == 1
    assert count_changed(tensors(a=1), tensors(a=None)) is None
