"""Score: how sure a video network is of a crop (S2, §5.1, step 3), or how well it knows its class (§4.3).

Legend: T frames, H height, W width, K classes of the network. `clip_THWC` is uint8 RGB.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from vidistill.models.regions import resize
from vidistill.storage.clips import Clips
from vidistill.storage.errors import RequestError
from vidistill.tasks.learning import training
from vidistill.tasks.learning.kinetics import named, r3d_state
from vidistill.tasks.learning.training import Device

if TYPE_CHECKING:
    from torch import nn

TEACHER = "teacher"
Kind = Literal["confidence", "loss"]
ADVICE = f"give optdistill.scorer the path of R3D-18's weights, KINETICS400_V1, or {TEACHER!r}"
KINETICS_SIDE = 112  # what R3D-18 was trained on


@dataclass(frozen=True)
class Scorer:
    """A network and its classes, with the size of the clips that it was trained on and their pixels' mean and std."""

    network: nn.Module
    size_HW: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]
    classes: tuple[str, ...]
    device: Device

    def log_probabilities(self, clip_THWC: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Of a clip, (K,)."""
        x_BCTHW = training.to_input(resize(clip_THWC[None], *self.size_HW), self.mean, self.std, self.device)
        logits_NK = training.predict(self.network, iter([x_BCTHW]), self.device)
        return np.asarray(logits_NK[0].double().log_softmax(0).numpy())


def teacher_scorer(network: nn.Module, clips: Clips, device: Device) -> Scorer:
    """The data set's own teacher."""
    _, height, width, _ = clips.shape_THWC
    return Scorer(network, (height, width), clips.table.mean, clips.table.std, clips.classes, device)


def kinetics_scorer(weights: str, classes: tuple[str, ...], device: Device) -> Scorer:
    """R3D-18 of torchvision, by the name of its weights (`KINETICS400_V1`) or a file of them.

    Raises:
        RequestError: they are of neither Kinetics-400 nor as many classes as these.
    """
    from torchvision.models.video import R3D_18_Weights, r3d_18

    state = r3d_state(weights, ADVICE)
    outputs, known = len(state["fc.bias"]), R3D_18_Weights.KINETICS400_V1
    own = tuple(known.meta["categories"]) if outputs == len(known.meta["categories"]) else classes
    if outputs != len(own):
        raise RequestError(
            f"The weights {weights} tell {outputs} classes apart, and the data have {len(classes)}: "
            "give weights of Kinetics-400 or of the data's classes."
        )
    with training.seeded(0):  # its weights are loaded, and those that others draw meanwhile are their seeds'
        network = r3d_18(num_classes=outputs)
    network.load_state_dict(state)
    seen = known.transforms()
    size_HW = (KINETICS_SIDE, KINETICS_SIDE)
    return Scorer(training.settled(network, device), size_HW, seen.mean, seen.std, own, device)


def place_of(class_name: str, classes: tuple[str, ...]) -> int | None:
    """The class of this name, whatever its case and spaces: UCF101's PlayingViolin is Kinetics' `playing violin`."""
    for plain in (str, lambda name: re.sub(r"[\W_]", "", name.lower())):
        names = list(map(plain, classes))
        if plain(class_name) in names:
            return names.index(plain(class_name))
    return None


def score(log_probabilities_K: NDArray[np.float64], kind: Kind, place: int | None) -> float:
    """`confidence`: the highest probability. `loss`: −ℓ, the log-probability of the true class."""
    if kind == "loss":
        assert place is not None
        return float(log_probabilities_K[place])
    return math.exp(float(log_probabilities_K.max()))


def checked_name(scorer: str, kind: Kind, classes: Sequence[str]) -> str:
    """The name that torchvision has for a scorer's weights, before anything is made for them.

    Raises:
        RequestError: there is no such name, or see `checked_place`.
    """
    name, _ = named(scorer, ADVICE)
    if kind == "loss":
        from torchvision.models.video import R3D_18_Weights

        for class_name in classes:
            checked_place(class_name, tuple(R3D_18_Weights[name].meta["categories"]), kind)
    return name


def checked_place(class_name: str, classes: tuple[str, ...], kind: Kind) -> int | None:
    """Where the scorer has this class among its own; `loss` cannot do without.

    Raises:
        RequestError: the score is the loss on a class that the network does not know.
    """
    place = place_of(class_name, classes)
    if place is None and kind == "loss":
        raise RequestError(
            f"The scorer does not know the class {class_name!r}, so its loss cannot be the score: "
            "set optdistill.score=confidence, or optdistill.scorer=teacher."
        )
    return place
