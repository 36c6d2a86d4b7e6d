"""An exported set as a data set of torch, for a training loop of one's own.

Legend: N clips, C colours, T frames, H height, W width, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.utils.data
from numpy.typing import NDArray
from torch import Tensor

from vidistill.storage.distilled import DistilledSet
from vidistill.storage.exported import read_facts


class Dataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """The clips of a folder that `vidistill export` wrote, normalised, each with its target.

    An item is (`x_CTHW`, target): float32, and the class as an int64 scalar or, where labels are soft, the teacher's
    probabilities, float32 (K,). `torch.nn.functional.cross_entropy` takes both. Of a clip with variants each call gives
    one, drawn by torch's generator.

    Args:
        folder: the exported folder.
        labels: `hard` or `soft`; by default as the set was scored. Online rows are `hard` here: `facts["teacher"]`
            names the network, how many of it its answer is the mean of, and the file of its weights.

    Attributes:
        facts: all of `export.json`.
        classes: names; a label is an index into them.

    Raises:
        ArtifactNotFound: it is no exported folder.
        ArtifactDamaged: what it holds is not what was written.
        ValueError: soft labels are asked for, and the set has none.
    """

    def __init__(self, folder: str | Path, labels: Literal["hard", "soft"] | None = None) -> None:
        self.facts: dict[str, Any] = read_facts(Path(folder))
        made = DistilledSet.load(Path(folder))
        self.classes = made.classes
        others = [] if made.others_VNTHWC is None else list(made.others_VNTHWC)
        self._clips_VNTHWC = np.stack([made.clips_NTHWC, *others])
        self._targets = torch.from_numpy(made.labels_N)
        if labels not in (None, "hard", "soft"):
            raise ValueError(f"labels is {labels!r}: take 'hard' or 'soft', or leave it out.")
        if (labels or self.facts["labels"]) == "soft":
            if made.logits_NK is None:
                raise ValueError(f"{folder} has no soft labels: take labels='hard'.")
            self._targets = (torch.from_numpy(made.logits_NK) / self.facts["temperature"]).softmax(1)

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        variant = int(torch.randint(len(self._clips_VNTHWC), ())) if len(self._clips_VNTHWC) > 1 else 0
        return self.normalised(self._clips_VNTHWC[variant, index]), self._targets[index]

    def normalised(self, clip_THWC: NDArray[np.uint8]) -> Tensor:
        """A clip (T, H, W, 3), RGB in 0…255, as a student takes it, `x_CTHW`; test clips too."""
        mean_C, std_C = torch.tensor(self.facts["mean"]), torch.tensor(self.facts["std"])
        return ((torch.from_numpy(clip_THWC) / 255 - mean_C) / std_C).permute(3, 0, 1, 2)
