"""Bfloat16 linears on a CPU, in both arithmetics whatever this machine would choose."""

from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.tiny_models import write_model
from tracekit.scoring import arithmetic
from tracekit.scoring.arithmetic import NATIVE, THROUGH_FLOAT32, settle_arithmetic
from tracekit.scoring.attention import CURRENT, NAME, NAME_THROUGH_FLOAT32, Pack, Placed, Rule, packed_attention
from tracekit.scoring.scorer import Scorer


def body_of(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(576, 700, bias=True), nn.Linear(700, 576, bias=False)).to(dtype)


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30])
def test_products_through_float32_are_bfloat16_up_to_the_order_of_sums(
    kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "_KEPT_BYTES", kept_bytes)
    native, through = body_of(), body_of()
    assert settle_arithmetic(native, NATIVE) == NATIVE
    assert settle_arithmetic(through, THROUGH_FLOAT32) == THROUGH_FLOAT32
    assert type(native[0]) is nn.Linear
    assert type(through[0]) is not nn.Linear
    hidden = torch.randn(256, 576, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.inference_mode():
        ours, theirs = through[0](hidden), native[0](hidden)
        exact = (hidden.double() @ native[0].weight.double().T + native[0].bias.double()).bfloat16()
    assert ours.dtype == torch.bfloat16
    assert (ours == theirs).double().mean() >= 0.999
    assert (ours == exact).double().mean() >= 0.999


def test_the_choice_is_made_once_per_shape_and_leans_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    arithmetic._faster.cache_clear()
    seconds = {True: 1.0, False: 1.2}  # of torch's own linear, and of float32
    monkeypatch.setattr(arithmetic, "_seconds", lambda module, hidden: seconds[type(module) is nn.Linear])
    assert settle_arithmetic(body_of()) == THROUGH_FLOAT32
    seconds[True] = 0.1
    assert settle_arithmetic(body_of()) == THROUGH_FLOAT32, "the same run has to go on as it began"
    arithmetic._faster.cache_clear()
    assert settle_arithmetic(body_of()) == NATIVE
    arithmetic._faster.cache_clear()


def test_a_body_without_bfloat16_linears_has_nothing_to_choose() -> None:
    assert settle_arithmetic(body_of(torch.float32), THROUGH_FLOAT32) == "float32"
    with pytest.raises(ValueError, match="unknown arithmetic"):
        settle_arithmetic(body_of(), "tf32")


def test_a_scorer_says_and_takes_its_arithmetic(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "llama", "llama")
    for chosen in (NATIVE, THROUGH_FLOAT32):
        assert Scorer.load(folder, device="cpu", arithmetic=chosen).arithmetic == chosen
    assert Scorer.load(folder, device="cpu").arithmetic in (NATIVE, THROUGH_FLOAT32)
    assert Scorer.load(folder, device="cpu", dtype="float32", arithmetic=NATIVE).arithmetic == "float32"


def test_attention_goes_the_way_of_the_linears(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "llama", "llama")
    for chosen, name in ((NATIVE, NAME), (THROUGH_FLOAT32, NAME_THROUGH_FLOAT32)):
        scorer = Scorer.load(folder, device="cpu", arithmetic=chosen)
        assert scorer.packing == "packed"
        assert scorer.model.body.config._attn_implementation == name


def attend_packed(*, through_float32: bool, dtype: torch.dtype) -> tuple[torch.Tensor, Pack]:
    """A prefix and two pieces over it; the prefix's keys and values are kept."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 90, 16, generator=generator).bfloat16().to(dtype) for heads in (4, 2, 2))
    prefix = slice(0, 40)
    pieces = [Placed(slice(40, 60), 40, (prefix,)), Placed(slice(60, 90), 40, (prefix,))]
    pack = Pack([Placed(prefix, 0, ()), *pieces], {0: prefix})
    token = CURRENT.set(pack)
    try:
        rule = Rule(lambda *_: None, is_causal=True)
        with torch.inference_mode():
            return packed_attention(nn.Identity(), query, key, value, rule, through_float32=through_float32)[0], pack
    finally:
        CURRENT.reset(token)


def test_attention_through_float32_is_exact_up_to_one_rounding_and_keeps_kv_as_it_is() -> None:
    exact = attend_packed(through_float32=False, dtype=torch.float64)[0].bfloat16()
    ours, pack = attend_packed(through_float32=True, dtype=torch.bfloat16)
    native, _ = attend_packed(through_float32=False, dtype=torch.bfloat16)
    assert ours.dtype == torch.bfloat16
    assert (ours == exact).double().mean() >= 0.999
    assert (native == exact).double().mean() < 0.999, "torch's kernel rounds in between: this test tells the two apart"
    (keys, values), *_ = pack.kept[0]
    assert keys.dtype == values.dtype == torch.bfloat16
