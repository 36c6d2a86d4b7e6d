"""How fast MiniC3D trains here, against a plain fp32 loop, in one run.

    python tests/benchmarks/training_speed.py                  # both networks, both shapes, A B A B
    python tests/benchmarks/training_speed.py --threads 1 --cpu-time     # on a busy machine: CPU seconds of one thread
    python tests/benchmarks/training_speed.py --pixels         # with the gradient of the pixels, as in matching
    python tests/benchmarks/training_speed.py --parallel       # two one-thread trainings against one with two threads

"Plain" is what one writes first: contiguous fp32 clips, ReLU before the pool, SGD one weight at a time. "Ours" is the
network in channels-last, bf16 where the CPU has it, fused SGD and freed memory kept. That last setting cannot be taken
back within a process, so each side runs in its own. Other work on the machine slows two threads far more than one.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidistill.models import build, compute

SHAPES = ((16, 112), (8, 56))
CLASSES = 10


@dataclass(frozen=True)
class Job:
    """One training: what, how, and how long."""

    network: str
    frames: int
    size: int
    side: str
    batch: int
    steps: int
    threads: int
    cpu_time: bool
    pixels: bool
    precision: compute.Precision


class Plain(nn.Module):
    """The same layers, called in the order in which the papers list them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm, pool in zip(self.model.convs, self.model.norms, self.model.pools, strict=True):
            x = F.max_pool3d(F.relu(norm(nn.Conv3d.forward(conv, x))), pool)
        if self.model.norm == "batch":
            return self.model.head(self.model.dropout(x.mean((2, 3, 4))))
        x = self.model.dropout(F.avg_pool3d(x, self.model.time_pool, stride=1))
        return self.model.head(x).flatten(2).max(dim=2).values


def stepper(job: Job) -> Callable[[], float]:
    """A training step over one fixed batch, which answers the loss."""
    torch.manual_seed(0)
    model = build(job.network, classes=CLASSES, frames=job.frames, size=job.size)
    model.dropout.p = 0.0  # the two sides' losses are compared
    clips_NTHWC = torch.randint(0, 256, (job.batch, job.frames, job.size, job.size, 3), dtype=torch.uint8)
    labels_N = torch.randint(0, CLASSES, (job.batch,))
    mean, std = (0.5, 0.5, 0.5), (0.29, 0.29, 0.29)
    device, precision = torch.device("cpu"), "fp32"
    if job.side == "plain":
        model = Plain(model)
    else:
        compute.keep_freed_memory()
        precision = compute.resolve_precision(job.precision, device)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, foreach=False, fused=job.side != "plain", weight_decay=5e-4
    )
    forward = torch.compile(model) if job.side == "compiled" else model

    def step() -> float:
        x_BCTHW = compute.normalise(clips_NTHWC, mean, std)
        if job.side == "plain":
            x_BCTHW = x_BCTHW.contiguous()
        x_BCTHW.requires_grad_(job.pixels)
        optimiser.zero_grad()
        with compute.autocast(device, precision):
            logits_BK = forward(x_BCTHW)
        loss = F.cross_entropy(logits_BK.float(), labels_N)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def train(job: Job) -> tuple[float, list[float]]:
    """(median seconds a step, losses), the first two steps not timed."""
    torch.set_num_threads(job.threads)
    clock = time.process_time if job.cpu_time else time.perf_counter
    step, seconds, losses = stepper(job), [], []
    for _ in range(job.steps + 2):
        start = clock()
        losses.append(step())
        seconds.append(clock() - start)
    return statistics.median(seconds[2:]), losses


def in_processes(jobs: list[Job]) -> list[tuple[float, list[float]]]:
    """All at once, each in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(len(jobs), maxtasksperchild=1) as pool:
        return pool.map(train, jobs, chunksize=1)


def compare(options: argparse.Namespace) -> None:
    """Plain and ours in turns, for each network and shape."""
    for network, (frames, size) in itertools.product(options.networks, SHAPES):
        seconds, losses = {}, {}
        for side in ("plain", *options.sides) * options.rounds:
            job = Job(
                network, frames, size, side, options.batch, options.steps, options.threads, options.cpu_time,
                options.pixels, options.precision,
            )  # fmt: skip
            ((took, losses[side]),) = in_processes([job])
            seconds[side] = min(took, seconds.get(side, took))
        for side, took in seconds.items():
            ratio = seconds["plain"] / took
            drift = max(abs(a - b) / abs(b) for a, b in zip(losses[side], losses["plain"], strict=True))
            verdict = "within" if drift <= options.tolerance else "OUTSIDE"
            print(
                f"{network:11s} {frames}×{size}² {side:9s} {options.batch / took:7.1f} clips/s  ×{ratio:.2f}"
                f"  last loss {losses[side][-1]:.4f}, off by at most {drift:.1e} ({verdict} {options.tolerance:g})",
                flush=True,
            )


def parallel(options: argparse.Namespace) -> None:
    """One training with two threads against two with one each, at 8×56²."""
    for network in options.networks:
        for batch in (8, 16):
            one, two = (
                Job(network, 8, 56, "ours", batch, 4 * options.steps, threads, False, False, options.precision)
                for threads in (1, 2)
            )
            rates: dict[str, list[float]] = {}
            for _ in range(options.rounds):
                for name, jobs in (
                    ("1 with 1 thread", [one]),
                    ("1 with 2 threads", [two]),
                    ("2 with 1 thread", [one, one]),
                ):
                    took = in_processes(jobs)
                    rates.setdefault(name, []).append(sum(batch / seconds for seconds, _ in took))
            for name, found in rates.items():
                print(f"{network:11s} batch {batch:2d}  {name:16s} {max(found):7.1f} clips/s together", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast MiniC3D trains here, against a plain fp32 loop.")
    parser.add_argument("--networks", nargs="+", default=["minic3d", "minic3d_bn"])
    parser.add_argument("--sides", nargs="+", default=["ours"], choices=["ours", "compiled"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tolerance", type=float, default=0.05, help="relative, of the loss after every step")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of the process instead of the wall's")
    parser.add_argument("--pixels", action="store_true", help="ask for the gradient of the clips too")
    parser.add_argument("--parallel", action="store_true", help="threads against processes")
    options = parser.parse_args()
    (parallel if options.parallel else compare)(options)


if __name__ == "__main__":
    main()
