"""Allocate: a quantiser a clip, so that within the same bytes the teacher loses least.

Legend: N clips, Q quantisers, T frames, H height, W width, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vidistill.storage import coded
from vidistill.storage.clips import Clips
from vidistill.storage.streams import WORST_CRF, Stream, decode
from vidistill.tasks.coded.keep import FINEST_CRF, Budget, Coder, Kept
from vidistill.tasks.learning import training
from vidistill.tasks.learning.training import Device
from vidistill.tasks.learning.views import in_batches

if TYPE_CHECKING:
    from torch import Tensor, nn

STEPS = (-12, -8, -4, 0, 4, 8)
PRICE, HALVINGS = 1e3, 60  # nats a byte, at which every clip is as small as it can be


def allocated(coder: Coder, found: Kept, budget: Budget, teacher: nn.Module, device: Device) -> Kept:
    """The same clips with quantisers of their own, in no more bytes than the budget, or than `found`, has.

    min Σ D_i(q_i) subject to Σ R_i(q_i) ≤ R, by Lagrange's multiplier (Shoham and Gersho 1988): each clip takes the
    quantiser of least D + λR, at the least λ at which all fit. D is what the teacher loses: KL(p ‖ p̂), p its
    probabilities for the clip and p̂ those for what is decoded. The one quantiser stays where it loses less.
    """
    rows, one = found.rows_N.tolist(), int(found.crf_N[0])
    crf_Q = sorted({min(max(one + step, FINEST_CRF), WORST_CRF) for step in STEPS} | {one})
    streams = [coder.stream(rows, crf) for crf in crf_Q]
    rate_QN = np.array([[len(clip) for clip in stream.clips] for stream in streams], dtype=float)
    loss_QN = lost(coder.footage.clips, rows, streams, teacher, device)
    limit = budget.size(found.stream, len(rows)) if budget.kb is None else budget.bytes

    def at(price: float) -> Kept:
        crf_N = np.array(crf_Q)[(loss_QN + price * rate_QN).argmin(0)]
        return Kept(found.rows_N, crf_N, coder.stream(rows, crf_N.tolist()))

    low, high = 0.0, PRICE
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if budget.size(at(middle).stream, len(rows)) <= limit else (middle, high)
    made = at(high)
    own_N = np.searchsorted(crf_Q, made.crf_N)
    better = loss_QN[own_N, np.arange(len(rows))].sum() < loss_QN[crf_Q.index(one)].sum()
    return made if better and budget.size(made.stream, len(rows)) <= limit else found


def lost(
    clips: Clips, rows: list[int], streams: list[Stream], teacher: nn.Module, device: Device
) -> NDArray[np.float64]:
    """What the teacher loses by each stream of these rows: float64 (Q, N), in nats."""

    def log_probabilities(clips_NTHWC: NDArray[np.uint8]) -> Tensor:
        batches = in_batches(clips_NTHWC.__getitem__, len(rows), clips.table, device)
        return training.predict(teacher, batches, device).double().log_softmax(1)

    real_NK, frames = log_probabilities(clips.read(rows)), clips.shape_THWC[0]
    decoded = (log_probabilities(coded.shifts(decode(stream), frames)[0]) for stream in streams)
    return np.stack([(real_NK.exp() * (real_NK - made_NK)).sum(1).numpy() for made_NK in decoded])
