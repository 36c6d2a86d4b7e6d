"""How a network's weights are stepped: an optimiser, its rate over the steps, and which suits which body."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from vidistill.storage.parameters import Parameters


class OptimiserParameters(Parameters):
    """SGD with momentum, as in VDSD (methods §1.4); cosine decay to zero unless `schedule` says otherwise."""

    method: Literal["sgd", "adamw"] = Field(
        "sgd", exclude_if=lambda method: method == "sgd", description="adamw: torch's betas, and no momentum."
    )
    lr: float = Field(0.01, gt=0, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    batch_size: int = Field(64, ge=1, description="Clips a step; the whole set where it is smaller.")
    warmup_share: float = Field(0.0, ge=0, lt=1, description="Share of the steps over which the rate rises from 0.")
    schedule: Literal["cosine", "vdsd"] = Field(
        "cosine", description="vdsd: a tenth of the rate after 252 of 501 passes, as VDSD's students have."
    )
    clip_norm: float | None = Field(
        None, gt=0, exclude_if=lambda norm: norm is None, description="Gradients are scaled down to this norm."
    )

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of a step, a function of nothing but the step."""
        warmup = self.warmup_share * steps
        if step < warmup:
            return self.lr * (step + 1) / (warmup + 1)
        if self.schedule == "vdsd":
            return self.lr if 501 * step < 252 * steps else self.lr / 10
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


NETWORK_OPTIMISERS = {
    **dict.fromkeys(("minic3d", "cnn_gru", "cnn_lstm"), OptimiserParameters(lr=0.01, batch_size=32, warmup_share=0.05)),
    "c3d": OptimiserParameters(lr=0.001, batch_size=16, warmup_share=0.1),
    "video_swin_t": OptimiserParameters(
        method="adamw", lr=5e-4, weight_decay=0.05, batch_size=32, warmup_share=0.2, clip_norm=1.0
    ),
}
"""For bodies that the common rate does not suit. Without normalisation a rate of 0.05 diverges; C3D, measured on the
validation fifth of sprites (8×56×56, RGB, Random, IPC 5, 100 steps, two seeds), had 82.8 % at 0.001, and in its first
steps its loss rose fourfold at 0.003 and tenfold at 0.01. Video Swin-T is published with AdamW."""
