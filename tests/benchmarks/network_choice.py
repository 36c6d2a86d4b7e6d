"""How the small network was chosen: one thing is changed at a time, four fifths of the training split are trained on.

The fifth that is held out is what scores; the test split is not looked at.

    python tests/benchmarks/network_choice.py DIR --split 1           # a folder of videos; 8×56×56, two seeds
    python tests/benchmarks/network_choice.py sprites --front rgb     # the embedded set
    python tests/benchmarks/network_choice.py DIR --only widths,front # some of the groups alone

Prints a Markdown table: top-1 of each variant with its spread over the seeds, clips a second of CPU time of one thread,
augmentation included, and weights for these classes. Decoded clips are kept in --store and found again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vidistill.flows.execution import data_runtime, find_videos
from vidistill.flows.parameters import SPRITES, DataRequest
from vidistill.models import compute
from vidistill.models.fronts import FRONTS, difference
from vidistill.models.r2plus1d import R2Plus1DSmall
from vidistill.storage.clips import Clips
from vidistill.storage.opening import default_location, open_store
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.evaluate import StudentParameters
from vidistill.tasks.learning.training import Device
from vidistill.tasks.learning.trial import trained_on_four_fifths
from vidistill.tasks.stage import Runtime, run_job
from vidistill.tasks.videos.decode import DecodeParameters, block_jobs, clips_job
from vidistill.tasks.videos.index import index_job
from vidistill.tasks.videos.layouts import IndexParameters
from vidistill.tasks.videos.sprites_stage import sprites_job

Front = tuple[Callable[[Tensor], Tensor], int]
"""What a network sees first, and the channels of that."""


def at_two_distances(x_BCTHW: Tensor) -> Tensor:
    """Differences to the next frame, and to the one after that."""
    far_BCTHW = x_BCTHW[:, :, 2:] - x_BCTHW[:, :, :-2]
    return torch.cat(
        [difference(x_BCTHW), torch.cat([far_BCTHW, far_BCTHW[:, :, -1:].expand(-1, -1, 2, -1, -1)], 2)], 1
    )


def minus_median(x_BCTHW: Tensor) -> Tensor:
    return x_BCTHW - x_BCTHW.median(2, keepdim=True).values


SEEN: dict[str, Front] = {
    "rgb": (lambda x_BCTHW: x_BCTHW, 3), **FRONTS, "difference": (difference, 3),
    "two distances": (at_two_distances, 6), "minus median": (minus_median, 3),
}  # fmt: skip


class Seen(nn.Module):
    """A body behind each of these fronts; the logits of several are added."""

    def __init__(self, fronts: Sequence[str], classes: int, body: dict[str, Any]) -> None:
        super().__init__()
        self._fronts = [SEEN[name][0] for name in fronts]
        self.bodies = nn.ModuleList(R2Plus1DSmall(classes, SEEN[name][1], **body) for name in fronts)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        logits = [body(front(x_BCTHW)) for front, body in zip(self._fronts, self.bodies, strict=True)]
        return torch.stack(logits).sum(0)


@dataclass(frozen=True)
class Variant:
    """What is changed; `fronts` empty for the one that was asked for."""

    group: str
    name: str
    body: dict[str, Any] = field(default_factory=dict)
    fronts: tuple[str, ...] = ()


VARIANTS = [
    Variant("", "as it is"),
    Variant("widths", "widths 16, 32, 64", {"widths": (16, 32, 64)}),
    Variant("widths", "widths 32, 64, 128", {"widths": (32, 64, 128)}),
    Variant("blocks", "two blocks: 24, 96", {"widths": (24, 96)}),
    Variant("blocks", "four blocks: 24, 48, 48, 96", {"widths": (24, 48, 48, 96)}),
    *(
        Variant("stem", f"stem {kernel}×{kernel}, stride {stride}", {"stem": (kernel, stride)})
        for stride in (2, 4) for kernel in (3, 5, 7) if (kernel, stride) != (7, 4)
    ),
    Variant("time", "no convolution over time", {"time_kernel": 1}),
    Variant("time", "five frames of time", {"time_kernel": 5}),
    Variant("dropout", "dropout 0.3", {"dropout": 0.3}),
    *(Variant("front", name, fronts=(name,)) for name in SEEN),
    Variant("front", "two streams: rgb and centred", fronts=("rgb", "centred")),
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    """Top-1 a seed, clips a second, weights."""

    top1: list[float]
    speed: float
    weights: int


def main(arguments: Sequence[str] | None = None) -> None:
    asked = _asked(arguments)
    torch.set_num_threads(1)
    compute.keep_freed_memory()
    clips = _clips(asked).preload()
    cpu = torch.device("cpu")
    device = Device(cpu, compute.resolve_precision("auto", cpu), 1)
    student = StudentParameters(epochs=asked.epochs, least_steps=asked.least_steps)
    print(
        f"{asked.data}, {len(clips)} clips of {len(clips.classes)} classes, {asked.seeds} seeds, {device.precision}\n"
    )
    print("| variant | top-1 % | clips/s | weights |\n|---|---|---|---|")
    for variant in VARIANTS:
        if variant.group in ("", *asked.only):
            made = tried(variant, clips, student, device, asked.seeds, asked.front)
            spread = f" ± {100 * np.std(made.top1, ddof=1):.1f}" if asked.seeds > 1 else ""
            shown = f"{100 * np.mean(made.top1):.1f}{spread} | {made.speed:.0f} | {made.weights:,} |"
            print(f"| {variant.name} | {shown}", flush=True)


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder of videos, or sprites")
    groups = list(dict.fromkeys(variant.group for variant in VARIANTS if variant.group))
    parser.add_argument("--only", type=lambda value: value.split(","), default=groups, help=", ".join(groups))
    parser.add_argument("--front", default="centred", choices=list(SEEN))
    parser.add_argument("--split", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--least-steps", type=int, default=300)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--interval", type=int, default=8)
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--store", default=default_location())
    return parser.parse_args(arguments)


def _clips(asked: argparse.Namespace) -> Clips:
    decode = DecodeParameters(frames=asked.frames, interval=asked.interval, size=asked.size, views=asked.views)
    index = IndexParameters() if asked.data == SPRITES else IndexParameters(split=asked.split)
    request, runtime = DataRequest(data=asked.data, decode=decode, index=index), Runtime(store=asked.store, threads=1)
    return Clips(open_store(asked.store), training_clips(request, runtime))


def training_clips(request: DataRequest, runtime: Runtime) -> ArtifactRef:
    """The training split's clips, rendered and decoded where the store has them not."""
    if request.data == SPRITES:
        run_job(sprites_job(request.sprites), runtime)
    runtime = data_runtime(request, runtime)
    table = find_videos(request, runtime)
    blocks, indexed = block_jobs(table, request.decode, "train"), index_job(table, request.index)
    joined = clips_job(indexed.ref, request.decode, "train", blocks)
    for job in (indexed, *blocks, joined):
        run_job(job, runtime)
    return joined.ref


def tried(variant: Variant, clips: Clips, student: StudentParameters, device: Device, seeds: int, front: str) -> Result:
    top1, clips_trained, seconds, weights = [], 0, 0.0, 0
    for number in range(seeds):
        seed = training.role_seed(number, streams.TRIAL_WEIGHTS)
        with training.seeded(seed):
            network = Seen(variant.fronts or (front,), len(clips.classes), variant.body)
        begin = time.process_time()
        found = trained_on_four_fifths(network, clips, student, seed, device)
        seconds += time.process_time() - begin
        batch = min(student.optimiser.batch_size, found.clips)
        clips_trained += student.steps(found.clips) * batch
        top1.append(found.top1)
        weights = sum(weight.numel() for weight in network.parameters())
    return Result(top1, clips_trained / seconds, weights)


if __name__ == "__main__":
    main()
