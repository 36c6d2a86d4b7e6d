"""How fast each network trains here beside MiniC3D-BN, in one run: clips a second of CPU time of one thread.

    python tests/benchmarks/network_speed.py                       # 8×56×56, batches of 32, in turn, three times
    python tests/benchmarks/network_speed.py --frames 16 --size 112 --batch 8

A step is forward and backward in the precision that `auto` picks; the best of the turns counts.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import nn

from vidistill.models import build, compute

NAMES = ("minic3d_bn", "r2plus1d_small", "centred:r2plus1d_small", "rgb+difference:r2plus1d_small", "r2plus1d_small_in")
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def network(name: str, frames: int, size: int) -> nn.Module:
    made = build(name, classes=10, frames=frames, size=size).train()
    for weight in made.parameters():
        weight.data = weight.data.to(memory_format=FORMATS.get(weight.dim(), torch.preserve_format))
    return made


def seconds(model: nn.Module, x_BCTHW: torch.Tensor, labels_B: torch.Tensor, precision: str) -> float:
    begin = time.process_time()
    with compute.autocast(x_BCTHW.device, precision):
        logits_BK = model(x_BCTHW)
    F.cross_entropy(logits_BK.float(), labels_B).backward()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    compute.keep_freed_memory()
    precision = compute.resolve_precision("auto", torch.device("cpu"))
    x_BCTHW = torch.randn(asked.batch, asked.frames, asked.size, asked.size, 3).permute(0, 4, 1, 2, 3)
    labels_B = torch.randint(10, (asked.batch,))
    models = {name: network(name, asked.frames, asked.size) for name in NAMES}
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(asked.turns):
        for name, model in models.items():
            taken[name].append(seconds(model, x_BCTHW, labels_B, precision))
    speeds = {name: asked.batch / min(times) for name, times in taken.items()}
    for name, speed in speeds.items():
        print(f"{name:30} {speed:7.1f} clips/s {speed / speeds['minic3d_bn']:5.2f}× ({precision})")


if __name__ == "__main__":
    main()
