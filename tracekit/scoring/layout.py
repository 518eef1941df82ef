"""How a profile of a row of raw logits lies in its columns: what torch writes and numpy reads.

A profile keeps the most likely tokens one by one and of all others the log of their summed weights at several inverse
temperatures. From it the logprob, the entropy and the kept set follow for any temperature, top-p, top-k and min-p, and
with the counts of earlier tokens for any penalty, without the model.
"""

from __future__ import annotations

NUM_TOP = 128
BETAS = (0.2, 0.35, 0.5, 0.65, 0.8, 1.0, 1.25, 1.6, 2.0, 2.6, 3.5, 5.0)
"""Inverse temperatures at which the tail is summed; in between its log is interpolated, and it is smooth."""

# columns, float32
BEST = 0  # the largest raw logit
OWN = 1  # raw logit of the recorded token minus the largest
TAIL = slice(2, 2 + len(BETAS))  # log of the sum of exp(beta (logit - largest)) over all tokens that are not among GAPS
GAPS = slice(TAIL.stop, TAIL.stop + NUM_TOP)  # logit minus the largest, descending; -inf beyond the vocabulary
IDS = slice(GAPS.stop, GAPS.stop + NUM_TOP)  # their ids, -1 beyond the vocabulary; float32 holds them up to 2^24
WIDTH = IDS.stop
