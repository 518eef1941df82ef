"""The words of a module that is off."""

from __future__ import annotations

from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.verdict import Verdict
from tracekit.report.causes.saying import Saying, always


def _module(found: Explanation, verdict: Verdict) -> str:
    numbers = found.numbers
    if "fitted" in numbers:
        return (
            f"Attention gives other outputs on recorded inputs in all layers: with {numbers['fitted']:,.0f} as base "
            f"of the rotary embedding in place of {numbers['base']:,.0f}, {numbers['left']:.1%} of that is left."
        )
    if "excess" not in numbers:
        return (
            f"The modules {'; '.join(found.names)} give other outputs on their recorded inputs than their weights do: "
            "their kernel differs, in all layers."
        )
    others = int(numbers["num_suspects"]) - 1
    beside = f", beside {', '.join(found.names[1:])}" + ("…" if others >= len(found.names) else "") if others else ""
    text = (
        f"Module {found.names[0]} gives another output on its recorded input than its weights do, "
        f"{numbers['excess']:.3g} times what modules of its kind show{beside}."
    )
    if "behind" in numbers:
        text += (
            f" With the engine's state put in before its layer {numbers['before']:.2g} nats of the mismatch are left, "
            f"behind it {numbers['behind']:.2g}."
        )
    return text


MODULE_WORDS: dict[Code, Saying] = {
    "module": Saying(
        _module,
        always("compare this module's weights, quantization and kernel in the engine with the checkpoint"),
        "a module",
        proof="proved by its recorded input",
    ),
}
