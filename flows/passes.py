"""How many passes of a network the distillation of a set takes, method by method.

A *pass* is a network's forward and backward pass of one clip; the forward one alone is a third of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Data:
    """A set of clips: how many, how many views each has, their shape, and whether they may be mirrored."""

    clips: int
    views: int
    frames: int
    size: int
    flips: bool = False

    @property
    def pixels(self) -> int:
        return self.frames * self.size**2

    @property
    def looks(self) -> int:
        """Views of a clip, mirrored ones too."""
        return self.views * (2 if self.flips else 1)


Passes = Callable[[Mapping[str, Any], int, int, Data], float]
"""From a method's options, the clips a class, the number of classes and the training clips."""


def _nothing(options: Mapping[str, Any], ipc: int, classes: int, data: Data) -> float:  # noqa: ARG001
    return 0.0


def _features(options: Mapping[str, Any], ipc: int, classes: int, data: Data) -> float:  # noqa: ARG001
    """The teacher's features are a job of their own."""
    return data.clips / 3 if options["features"] == "random" else 0.0


def of_gradients(options: Mapping[str, Any], ipc: int, classes: int, data: Data) -> float:  # noqa: ARG001
    """A method that takes a pass of its set, or of this many real clips, an iteration."""
    return float(options.get("iterations", 0) * classes * (ipc + options.get("batch_real", 0)))


def _dm(options: Mapping[str, Any], ipc: int, classes: int, data: Data) -> float:  # noqa: ARG001
    return float(options["iterations"] * classes * (ipc + options["batch_real"] / 3 / options["reuse"]))


def _dc(options: Mapping[str, Any], ipc: int, classes: int, data: Data) -> float:  # noqa: ARG001
    """The set's gradient is differentiated, and between the outer steps the network is trained on it."""
    from vidistill.tasks.match.dc import DCParameters

    known = {name: options[name] for name in ("outer", "inner")}
    outer, inner = DCParameters(**known).loops(ipc)
    return float(
        options["iterations"] * classes * (outer * (options["batch_real"] + 3 * ipc) + (outer - 1) * inner * ipc)
    )


def _static_dc(options: Mapping[str, Any], ipc: int, classes: int, data: Data) -> float:
    """Single frames."""
    return _dc(options, ipc, classes, data) / data.frames


def _mtt(options: Mapping[str, Any], ipc: int, classes: int, data: Data) -> float:  # noqa: ARG001
    """Every step of the student is differentiated."""
    return float(
        3 * options["iterations"] * options["syn_steps"] * min(options["batch_syn"] or math.inf, ipc * classes)
    )


def _frepo(options: Mapping[str, Any], ipc: int, classes: int, data: Data) -> float:  # noqa: ARG001
    clips = ipc * classes
    return float(options["iterations"] * (options["batch_real"] / 3 + clips + min(clips, options["batch_network"])))


def _csta(options: Mapping[str, Any], ipc: int, classes: int, data: Data) -> float:  # noqa: ARG001
    """Of a head that sees embeddings alone."""
    return float(options["iterations"] / 4)


METHODS: dict[str, Passes] = {
    "random": _nothing, "coded": _nothing, "pool_random": _nothing, "vst_unet": _nothing, "optdistill": _nothing,
    "csta": _csta, "mae_score": _nothing, "dm_mmd": _nothing, "tac_dt": _nothing,
    "herding": _features, "k_center": _features,
    "dc": _dc, "static_dc": _static_dc, "dm": _dm, "idtd": _dm, "mtt": _mtt, "sfvd": _mtt, "sfvd_t": _mtt,
    "frepo": _frepo, "dm_vdsd": _dm, "mtt_vdsd": _mtt, "frepo_vdsd": _frepo,
}  # fmt: skip
