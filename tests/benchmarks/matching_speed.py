"""Speed and memory of an iteration of DM, MTT, DM+VDSD and FRePo against a plain transcription of the published loops.

    python tests/benchmarks/matching_speed.py                              # 8×56², ten classes, one instance each
    python tests/benchmarks/matching_speed.py --frames 16 --size 112 --ipc 5 --methods mtt
    python tests/benchmarks/matching_speed.py --device cuda --frames 16 --size 112 --classes 50
    python tests/benchmarks/matching_speed.py --methods mtt --convolutions # their share of a plain iteration's CPU time

"Plain" is what the published code does: fp32, contiguous clips, a Python loop over the classes, for MTT all N steps
unrolled in one graph and for FRePo the graph of the whole set. "Ours" is the method's own loss on the same network
(MiniC3D); both hold their clips in memory; `reuse` is ours with a network of DM used five times. All sides are measured
in one run, each in a process of its own, in turns. Memory is the peak of an iteration above what the process holds
between two (resident on a CPU; on a GPU, all that is allocated).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import zarr
from torch import Tensor, nn

from vidistill.models import build, compute
from vidistill.storage.clips import TABLE, Clips, ClipTable, ClipVideo, create_clip_array
from vidistill.storage.measuring import Cost
from vidistill.storage.store import Manifest, Store
from vidistill.tasks.learning.experts import TRAJECTORY, flat
from vidistill.tasks.learning.pixels import pixel_range
from vidistill.tasks.learning.training import Device
from vidistill.tasks.match import core, dm, frepo, mtt, sets, vdsd
from vidistill.tasks.methods import Material

MEAN, STD = (0.5, 0.5, 0.5), (0.29, 0.29, 0.29)
METHODS = ["dm", "mtt", "dm_vdsd", "frepo"]
NETWORK, REUSE = "minic3d", 5
MEMORIES = 2  # images, and maps of motion, an instance of VDSD
Step = Callable[[int], float]


@dataclass(frozen=True)
class Case:
    """One side of one comparison."""

    method: str
    side: str
    options: argparse.Namespace


class Plain(nn.Module):
    """MiniC3D's layers in the order in which the papers list them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def embed(self, x: Tensor) -> Tensor:
        for conv, pool in zip(self.network.convs, self.network.pools, strict=True):
            x = F.max_pool3d(F.relu(nn.Conv3d.forward(conv, x)), pool)
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool3d(self.embed(x), self.network.time_pool, stride=1)
        return self.network.head(self.network.dropout(x)).flatten(2).max(dim=2).values


def noise_clips(folder: Path, options: argparse.Namespace) -> Clips:
    """A clip array of noise, as the stages would make it."""
    count, store = options.classes * options.clips, Store(folder)
    shape_NTHWC = (count, options.frames, options.size, options.size, 3)
    block = Manifest(kind="block", key="noise", version=1, parameters={}, inputs={})
    with store.writing(block) as attempt:
        array, random = create_clip_array(attempt.folder, shape_NTHWC), np.random.default_rng(0)
        for row in range(count):
            array[row] = random.integers(0, 256, shape_NTHWC[1:], dtype=np.uint8)
    videos = tuple(
        ClipVideo(path=f"{row}.avi", label=row // options.clips, group=None, duration_seconds=None, block=0, row=row)
        for row in range(count)
    )
    names = tuple(f"class {label}" for label in range(options.classes))
    table = ClipTable(classes=names, flips=False, views=1, mean=MEAN, std=STD, videos=videos, rejected=())
    whole = Manifest(kind="clips", key="noise", version=1, parameters={}, inputs={"blocks": [block.ref]})
    with store.writing(whole) as attempt:
        (attempt.folder / TABLE).write_text(table.model_dump_json())
    return Clips(store, whole.ref)


def noise_expert(folder: Path, options: argparse.Namespace) -> Path:
    """A trajectory of two snapshots that lie near each other."""
    folder.mkdir()
    start_P = flat(fresh(options))
    step_P = 0.001 * np.random.default_rng(0).standard_normal(len(start_P), dtype=np.float32)
    array = zarr.create_array(
        folder, name=TRAJECTORY, shape=(1, 2, len(start_P)), chunks=(1, 1, len(start_P)), dtype="float32"
    )
    array[0] = np.stack([start_P, start_P + step_P])
    return folder


def fresh(options: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    return build(NETWORK, classes=options.classes, frames=options.frames, size=options.size)


def ours(case: Case, clips: Clips, expert: Path, device: Device) -> Step:
    options = case.options
    labels = tuple(range(options.classes))
    material = Material(clips, options.ipc, 0, labels, device, lambda: None, lambda _: [expert], lambda *_: None)
    start = sets.start_clips(material, "real")
    learnt = {"clips": core.leaf(start.x_NCTHW)}
    reuse = REUSE if case.side == "reuse" else 1
    if case.method == "dm":
        parameters = dm.DMParameters(network=NETWORK, batch_real=options.clips, reuse=reuse)
        loss = dm.dm_loss(material, start.labels_N, core.pixels, parameters)
    elif case.method == "dm_vdsd":
        memories = vdsd.DMVDSDParameters(network=NETWORK, batch_real=options.clips, memories=MEMORIES, reuse=reuse)
        images_NCHW = start.x_NCTHW[:, :, 0].repeat_interleave(MEMORIES, dim=0)
        learnt = {
            name: tensor for name, tensor in vdsd.begin(material, memories, images_NCHW).items() if name != "images"
        }
        memory = vdsd.Memory(images_NCHW, MEMORIES, *pixel_range(clips, device))
        loss = dm.dm_loss(material, start.labels_N, memory, memories)
    elif case.method == "frepo":
        regression = frepo.FRePoParameters(network=NETWORK, pool=1, batch_real=options.clips * options.classes)
        labels_NK = frepo.initial_labels(start.labels_N, options.classes, material)
        learnt["labels"] = core.leaf(labels_NK)
        loss = frepo.frepo_loss(material, core.pixels, regression, frepo.Pool(material, regression))
    else:
        learnt["lr"] = core.leaf(torch.tensor(0.01, device=device.torch_device))
        parameters = mtt.MTTParameters(expert={"network": NETWORK}, syn_steps=options.steps, max_start_epoch=1)
        loss = mtt.mtt_loss(material, start.labels_N, core.pixels, parameters)

    def step(iteration: int) -> float:
        value, _ = loss(iteration, learnt)
        return float(value)

    return step


def plain(case: Case, clips: Clips, expert: Path, device: Device) -> Step:
    options, place = case.options, device.torch_device
    every_NCTHW = (torch.from_numpy(clips.read(range(len(clips)))).permute(0, 4, 1, 2, 3).float() / 255 - 0.5) / 0.29
    every_NCTHW = every_NCTHW.contiguous()
    rows = [row for label in range(options.classes) for row in clips.rows_of(label)[: options.ipc]]
    x = every_NCTHW[rows].to(place).requires_grad_(True)
    labels = torch.tensor(clips.labels_N[rows], device=place)
    if case.method == "dm":
        return plain_dm(lambda first, last: x[first:last], [x], every_NCTHW, options, place)
    if case.method == "dm_vdsd":
        return plain_vdsd(x.detach()[:, :, 0], every_NCTHW, options, place)
    if case.method == "frepo":
        return plain_frepo(x, labels, every_NCTHW, torch.tensor(clips.labels_N, device=place), options, place)
    return plain_mtt(x, labels, expert, options, place)


def plain_vdsd(
    first_NCHW: Tensor, every_NCTHW: Tensor, options: argparse.Namespace, place: torch.device
) -> Step:  # fmt: skip
    """Its clips are made one class at a time, from random pairs of an image and a map of motion."""
    images_NCHW = first_NCHW.repeat_interleave(MEMORIES, dim=0)
    motion_N1THW = torch.randn(len(images_NCHW), 1, options.frames, options.size, options.size, device=place)
    motion_N1THW.requires_grad_(True)
    hallucinator = nn.Conv3d(4, 3, 3, padding=1).to(place)

    def clips_of(first: int, last: int) -> Tensor:
        image_B, motion_B = torch.arange(first, last) * MEMORIES + torch.randint(MEMORIES, (2, last - first))
        still_BCTHW = images_NCHW[image_B, :, None].expand(-1, -1, options.frames, -1, -1)
        return hallucinator(torch.cat([still_BCTHW, motion_N1THW[motion_B]], dim=1))

    return plain_dm(clips_of, [motion_N1THW, *hallucinator.parameters()], every_NCTHW, options, place)


def plain_dm(
    clips_of: Callable[[int, int], Tensor], learnt: list[Tensor], every_NCTHW: Tensor, options: argparse.Namespace,
    place: torch.device,
) -> Step:  # fmt: skip
    def step(_iteration: int) -> float:
        network = Plain(fresh(options)).to(place).requires_grad_(False)
        loss = torch.zeros((), device=place)
        for label in range(options.classes):
            rows = torch.randperm(options.clips) + label * options.clips
            real = network.embed(every_NCTHW[rows].to(place)).detach().flatten(1)
            synthetic = network.embed(clips_of(label * options.ipc, (label + 1) * options.ipc)).flatten(1)
            loss = loss + (real.mean(0) - synthetic.mean(0)).square().sum()
        torch.autograd.grad(loss, learnt)
        return float(loss.detach())

    return step


def plain_frepo(
    x: Tensor, labels: Tensor, every_NCTHW: Tensor, owners: Tensor, options: argparse.Namespace, place: torch.device
) -> Step:  # fmt: skip
    """A step of the network on the set, features of the real batch, and the regression in one graph."""
    network, classes = Plain(fresh(options)).to(place), options.classes
    adam = torch.optim.Adam(network.parameters(), lr=1e-4)
    y = ((F.one_hot(labels, classes) - 1 / classes) / (classes / 10) ** 0.5).requires_grad_(True)
    wanted = F.one_hot(owners, classes).double() - 1 / classes

    def step(_iteration: int) -> float:
        adam.zero_grad()
        (network(x.detach()) - y.detach()).square().mean().backward()
        adam.step()
        with torch.no_grad():
            parts = every_NCTHW.split(options.clips)
            real = torch.cat([network.embed(part.to(place)).flatten(1) for part in parts]).double()
        support = network.embed(x).flatten(1).double()
        kernel = support @ support.T
        ridge = 1e-6 * kernel.trace() / len(kernel) * torch.eye(len(kernel), dtype=kernel.dtype, device=place)
        predicted = real @ support.T @ torch.linalg.solve(kernel + ridge, y.double())
        top = y.topk(2, dim=1).values
        loss = (predicted - wanted).square().sum(1).mean() - (top[:, 0] - top[:, 1]).clamp(max=1 / classes).mean()
        torch.autograd.grad(loss, [x, y])
        return float(loss.detach())

    return step


def plain_mtt(x: Tensor, labels: Tensor, expert: Path, options: argparse.Namespace, place: torch.device) -> Step:
    network = Plain(fresh(options)).to(place)
    shapes = {name: weight.shape for name, weight in network.named_parameters()}
    start, target = (torch.from_numpy(row).to(place) for row in zarr.open_array(expert, path=TRAJECTORY, mode="r")[0])
    lr = torch.tensor(0.01, device=place, requires_grad=True)

    def named(theta_P: Tensor) -> dict[str, Tensor]:
        parts = theta_P.split([shape.numel() for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def step(_iteration: int) -> float:
        theta_P = start.clone().requires_grad_(True)
        for _ in range(options.steps):
            loss = F.cross_entropy(torch.func.functional_call(network, named(theta_P), (x,)), labels)
            theta_P = theta_P - lr * torch.autograd.grad(loss, theta_P, create_graph=True)[0]
        distance = (theta_P - target).square().sum() / (start - target).square().sum()
        torch.autograd.grad(distance, [x, lr])
        return float(distance.detach())

    return step


def at_rest() -> int:
    """Resident bytes of this process, once the allocator has given back what it can."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    with Cost() as now:
        pass
    return now.peak_memory_bytes


def measure(case: Case) -> tuple[float, int, float]:
    """(mean seconds an iteration, peak bytes, the last loss); the iterations before `REUSE` are not measured."""
    options = case.options
    torch.set_num_threads(options.threads)
    place = compute.resolve_device(options.device)
    fp32 = case.side == "plain" or case.method == "mtt"  # both as by default
    precision = "fp32" if fp32 else compute.resolve_precision(options.precision, place)
    device = Device(place, precision, options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        clips = noise_clips(Path(folder) / "store", options)
        expert = noise_expert(Path(folder) / "expert", options)
        step = (plain if case.side == "plain" else ours)(case, clips, expert, device)
        loss, seconds = [step(iteration) for iteration in range(REUSE if case.side == "reuse" else 1)][-1], []
        rest = at_rest()
        with Cost() as cost:
            for iteration in range(options.iterations):
                begin = clock()
                loss = step(REUSE + iteration)  # a float: the device has finished
                seconds.append(clock() - begin)
    peak = torch.cuda.max_memory_allocated() if place.type == "cuda" else cost.peak_memory_bytes - rest
    return statistics.mean(seconds), peak, loss


def convolutions(case: Case) -> float:
    """The share of convolutions, and of their gradients, in the CPU time of the operations of one iteration."""
    options = case.options
    torch.set_num_threads(options.threads)
    device = Device(compute.resolve_device("cpu"), "fp32", options.threads)
    with tempfile.TemporaryDirectory() as folder:
        clips = noise_clips(Path(folder) / "store", options)
        step = plain(case, clips, noise_expert(Path(folder) / "expert", options), device)
        step(0)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step(1)
    every = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return sum(time for name, time in every.items() if "conv" in name) / sum(every.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="An iteration against the published loops.")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--clips", type=int, default=32, help="real clips a class, all in each batch of DM")
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10, help="of MTT's student")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of the process instead of the wall's")
    parser.add_argument("--convolutions", action="store_true", help="only their share of a plain iteration")
    options = parser.parse_args()
    if options.convolutions:
        for method in options.methods:
            share = convolutions(Case(method, "plain", options))
            print(f"{method}: {share:.0%} of the CPU time of a plain iteration are convolutions")
        return
    for method in options.methods:
        found: dict[str, tuple[float, int, float]] = {}
        sides = ("plain", "ours", "reuse") if method.startswith("dm") else ("plain", "ours")
        for side in sides * options.rounds:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                once = pool.apply(measure, (Case(method, side, options),))
            found[side] = min(once, found.get(side, once))
        for side, (seconds, peak, loss) in found.items():
            faster, leaner = found["plain"][0] / seconds, found["plain"][1] / max(peak, 1)
            print(
                f"{method:7s} {options.frames}×{options.size}² {options.classes}×{options.ipc} {side:6s}"
                f" {seconds:8.3f} s  ×{faster:.2f}   {peak / 2**20:8.0f} MiB  ÷{leaner:.2f}   loss {loss:.5g}",
                flush=True,
            )


if __name__ == "__main__":
    main()
