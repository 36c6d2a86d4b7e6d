"""A torchvision network that is trained on an exported set by plain PyTorch and PyAV, beside `vidistill train`.

    vidistill export KEY --format coded --out set
    python tests/benchmarks/outside.py set DIR --seeds 3

SET is an exported folder, DIR a folder of test videos as class folders. Outside nothing of the project is imported:
files are decoded by PyAV, clips normalised by their own mean and deviation, and R3D-18 takes the same number of SGD
steps at the same rates. What is printed is the accuracy of both over the same seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import torch
from torch import nn
from torchvision.models.video import r3d_18

NETWORK, LR, BATCH = "torchvision:r3d_18", 0.02, 16


def frames_of(path: Path) -> np.ndarray:
    """uint8 (T, H, W, 3)."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def centre(frames_THWC: np.ndarray, count: int, interval: int, size: int) -> np.ndarray:
    """The middle of a video: `count` frames, every `interval`th, the short side scaled, the middle square cut out."""
    first = max(0, (len(frames_THWC) - (count - 1) * interval - 1) // 2)
    chosen = np.minimum(first + interval * np.arange(count), len(frames_THWC) - 1)
    x_TCHW = torch.from_numpy(frames_THWC[chosen]).permute(0, 3, 1, 2).float()
    sides = [round(side * size / min(x_TCHW.shape[2:])) for side in x_TCHW.shape[2:]]
    resized = nn.functional.interpolate(x_TCHW, size=sides, mode="bilinear", antialias=True)
    top, left = ((side - size) // 2 for side in sides)
    return resized.round().byte().permute(0, 2, 3, 1).numpy()[:, top : top + size, left : left + size]


def outside(folder: Path, test: Path, interval: int, steps: int, seed: int) -> float:
    """Top-1 on the test videos after so many steps on the exported files."""
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["class"] for row in rows})
    clips = np.stack([frames_of(folder / row["file"]) for row in rows])
    labels = torch.tensor([classes.index(row["class"]) for row in rows])
    mean, std = clips.mean((0, 1, 2, 3)), clips.std((0, 1, 2, 3))

    def network_input(clips_NTHWC: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((clips_NTHWC - mean) / std).float().permute(0, 4, 1, 2, 3)

    torch.manual_seed(seed)
    network = r3d_18(num_classes=len(classes))
    sgd = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    cosine = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    order: list[int] = []
    for _ in range(steps):
        while len(order) < BATCH:
            order += torch.randperm(len(clips)).tolist()
        batch, order = order[:BATCH], order[BATCH:]
        loss = nn.functional.cross_entropy(network(network_input(clips[batch])), labels[batch])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        cosine.step()
    network.eval()
    _, count, size, *_ = clips.shape
    right = []
    with torch.no_grad():
        for number, name in enumerate(classes):
            for path in sorted((test / name).iterdir()):
                x_BCTHW = network_input(centre(frames_of(path), count, interval, size)[None])
                right.append(int(network(x_BCTHW).argmax()) == number)
    return statistics.mean(right)


def inside(folder: Path, test: Path, steps: int, seed: int) -> float:
    """The same by `vidistill train`."""
    plain = {"crop_scale": 1, "label_smoothing": 0, "epochs": 1, "least_steps": steps, "precision": "fp32",
             "optimiser.lr": LR, "optimiser.batch_size": BATCH, "optimiser.warmup_share": 0}  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        settings = [word for name, value in plain.items() for word in ("--set", f"{name}={value}")]
        command = [str(Path(sys.executable).with_name("vidistill")), "train", str(folder), "--network", NETWORK,
                   "--test", str(test), "--labels", "hard", "--seed", str(seed), *settings, "--out", out]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return float(json.loads((Path(out) / "train.json").read_text())["top1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--interval", type=int, default=4, help="frames between two of a clip")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {"outside": [], "vidistill train": []}
    for seed in range(asked.seeds):
        found["outside"].append(outside(asked.folder, asked.test, asked.interval, asked.steps, seed))
        found["vidistill train"].append(inside(asked.folder, asked.test, asked.steps, seed))
    for name, top1 in found.items():
        spread = f" ± {100 * statistics.stdev(top1):.1f}" if len(top1) > 1 else ""
        print(f"{name:16} {100 * statistics.mean(top1):.1f}{spread} over {len(top1)} seeds")


if __name__ == "__main__":
    main()
