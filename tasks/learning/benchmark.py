"""The common benchmark's protocol, copied with its habits from VDSD's code (arXiv 2312.00362), to stand beside papers.

A student takes 501 passes by SGD at 0.01 (momentum 0.9, decay 5e-4) in batches of 256, at a tenth of the rate after the
252nd; clips are neither cropped nor mixed. Real ones are flipped where the data set has flips (of VDSD's, UCF101 and
HMDB51), those of a set never. Every batch is standardised over all of its elements, in training and in test. Every test
video counts three times, by three clips, each flipped or not.

Others of its habits are not copied: optimisers are not made anew in the middle; students of MTT and MTT+VDSD train at
0.01 as all others do, not at the rate that was learned with their set; a set is scored once, when it is finished,
where the benchmark reports the best of several checkpoints, chosen on the test split; frames are not squeezed to
160×120 before they are cropped; clips for per-frame students are not cut by 24 pixels a side, and CNN+LSTM's hidden
state is an eighth of its features here too (all of them, uncut, would be 5 G weights at 112×112); sets of MTT+VDSD of
five clips a class train in batches of 256, not 128; and students of FRePo's sets by cross-entropy as all others do, not
by AdamW and squares for 1,000 passes. Its random starts of test clips are three evenly spread ones here; a video's one
start for training, drawn once there, is each of its stored views here, and the centre one of a clip that is chosen; the
last batch of a pass is as large as the others; and on a GPU `precision: auto` is bf16.

Shapes: B clips a batch, V views a video. `x_BCTHW` is normalised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vidistill.storage.clips import Clips
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.optimisers import OptimiserParameters
from vidistill.tasks.learning.training import Device, Draw, TrainingParameters, generator

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME, TEST_VIEWS, TEST_BATCH = "vdsd", 3, 64
STUDENT = TrainingParameters(
    epochs=501,
    least_steps=1,
    optimiser=OptimiserParameters(lr=0.01, momentum=0.9, weight_decay=5e-4, batch_size=256, schedule="vdsd"),
    crop_scale=1.0,
    cutmix=0.0,
    label_smoothing=0.0,
)


def standardised(x_BCTHW: Tensor) -> Tensor:
    """A batch with mean zero and deviation one over all of its elements."""
    return (x_BCTHW - x_BCTHW.mean()) / x_BCTHW.std()


def standardising(draw: Draw) -> Draw:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        x_BCTHW, targets_BK = draw(step)
        return standardised(x_BCTHW), targets_BK

    return batch


def predict(network: nn.Module, clips: Clips, seed: int, device: Device) -> tuple[Tensor, np.ndarray]:
    """Logits (V·N, K), view after view, and their labels."""
    table, views = clips.table, clips.table.views

    def batch(view: int, first: int) -> Tensor:
        rows_B = range(first, min(first + TEST_BATCH, len(clips)))
        x_BCTHW = training.to_input(clips.read(rows_B, view), table.mean, table.std, device)
        flips_B = generator(seed, view, first, streams.TEST_FLIPS).random(len(rows_B)) < 0.5
        return standardised(training.flip_some(x_BCTHW, flips_B) if table.flips else x_BCTHW)

    batches = (batch(view, first) for view in range(views) for first in range(0, len(clips), TEST_BATCH))
    return training.predict(network, batches, device), np.tile(clips.labels_N, views)
