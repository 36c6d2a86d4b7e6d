"""Two classes of tiny clips and networks of a few hundred weights, so that a method can be written out beside itself.

References compute in float64 and use nothing of the project but its draws (`generator`, `streams`), which are part of
what a seed means; what is compared is the uint8 clips of a set that `distil` returned.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import save_file
from torch import Tensor, nn

from vidistill.models.autoencoder import FrameAutoencoder, to_frames
from vidistill.storage.clips import TABLE, Clips, ClipTable, ClipVideo, create_clip_array
from vidistill.storage.pool import create_latent_array
from vidistill.storage.store import ArtifactRef, Manifest, Store
from vidistill.tasks.learning import streams
from vidistill.tasks.learning.teacher import TeacherParameters
from vidistill.tasks.learning.training import Device, generator
from vidistill.tasks.methods import Material

FRAMES, SIZE, CLASSES, VIEWS = 4, 8, ("walk", "run"), 2
CPU = Device(torch.device("cpu"), "fp32", 1)
LABELS = (0, 1, 0, 0, 1, 1)
MEAN, STD = (0.45, 0.5, 0.55), (0.25, 0.2, 0.3)


def double(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


class TinyNet(nn.Module):
    """A convolution, tanh (no kinks), means of 2×2×2, and a linear head; in the style of the project's networks."""

    def __init__(self, frames: int = FRAMES, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * max(1, frames // 2) * (SIZE // 2) ** 2, classes)

    def embed(self, x_BCTHW: Tensor) -> Tensor:
        maps = torch.tanh(self.conv(x_BCTHW))
        return nn.functional.avg_pool3d(maps, [min(2, side) for side in maps.shape[2:]]).flatten(1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.head(self.embed(x_BCTHW))


class TinyTeacher(nn.Module):
    """Two layers of batch norm whose statistics are not those of the clips, and dropout, which rests with it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4)
        self.conv2, self.norm2 = nn.Conv3d(4, 4, 3, padding=1), nn.BatchNorm3d(4)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(4, len(CLASSES))
        for norm in (self.norm1, self.norm2):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias, std=0.3)
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 2)

    def embed(self, x_BCTHW: Tensor) -> Tensor:
        maps = torch.tanh(self.norm1(self.conv1(x_BCTHW)))
        return torch.tanh(self.norm2(self.conv2(maps))).mean((2, 3, 4))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.head(self.dropout(self.embed(x_BCTHW)))


def tiny_teacher(seed: int = 0) -> TinyTeacher:
    torch.manual_seed(seed)
    return TinyTeacher().eval().requires_grad_(False)


def tiny_clips(folder: Path, *, flips: bool = True, labels: tuple[int, ...] = LABELS, seed: int = 0) -> Clips:
    """Smooth random clips with two views each, in a real store."""
    store, random = Store(folder), np.random.default_rng(seed)
    block = Manifest(kind="block", key="b", version=1, parameters={}, inputs={})
    shape_NTHWC = (len(labels) * VIEWS, FRAMES, SIZE, SIZE, 3)
    coarse = torch.from_numpy(random.uniform(20, 235, (len(labels) * VIEWS, 3, FRAMES, 3, 3)))
    smooth = nn.functional.interpolate(coarse, size=(FRAMES, SIZE, SIZE), mode="trilinear", align_corners=True)
    with store.writing(block) as attempt:
        create_clip_array(attempt.folder, shape_NTHWC)[:] = smooth.permute(0, 2, 3, 4, 1).round().byte().numpy()
    videos = tuple(
        ClipVideo(path=f"{CLASSES[label]}/{row}.avi", label=label, group=None, duration_seconds=None, block=0,
                  row=VIEWS * row)
        for row, label in enumerate(labels)
    )  # fmt: skip
    table = ClipTable(classes=CLASSES, flips=flips, views=VIEWS, mean=MEAN, std=STD, videos=videos, rejected=())
    whole = Manifest(kind="clips", key="c", version=1, parameters={}, inputs={"blocks": [block.ref]})
    with store.writing(whole) as attempt:
        (attempt.folder / TABLE).write_text(table.model_dump_json())
    return Clips(store, whole.ref)


def tiny_autoencoder(clips: Clips, steps: int) -> FrameAutoencoder:
    """Two pixels a latent, trained on all frames of these clips."""
    torch.manual_seed(0)
    network, frames_XCHW = FrameAutoencoder(4, 8, 2), to_frames(torch.from_numpy(clips.read(range(len(clips)))))
    adam = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = nn.functional.l1_loss(network.decode(network.encode(frames_XCHW)), frames_XCHW)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return network.eval()


def kept_autoencoder(store: Store, network: FrameAutoencoder) -> ArtifactRef:
    """An autoencoder of the clips `c` as its stage keeps it."""

    def write(folder: Path) -> None:
        save_file(network.state_dict(), folder / "weights.safetensors")
        (folder / "autoencoder.json").write_text(json.dumps({"shift": [0.0] * 4, "scale": [1.0] * 4}))

    inputs = {"clips": [ArtifactRef(kind="clips", key="c")]}
    return put(store, "autoencoder", "a", write, {"width": 8, "factor": 2}, inputs)


def tiny_pool(store: Store, clips_NTHWC: np.ndarray, codec: ArtifactRef | None = None) -> ArtifactRef:
    """A pool of these clips, half of them of each class, with random latents."""
    count, random = len(clips_NTHWC), np.random.default_rng(6)
    shape_NCTHW = (count, 4, 2, 3, 3)

    def clips(folder: Path) -> None:
        create_clip_array(folder, clips_NTHWC.shape)[:] = clips_NTHWC

    def latents(folder: Path) -> None:
        create_latent_array(folder, shape_NCTHW)[:] = random.normal(size=shape_NCTHW)

    block, part = put(store, "block", "pool", clips, {}), put(store, "pool-part", "p", latents, {})
    of_class = count // len(CLASSES)
    videos = tuple(
        ClipVideo(path=f"pool/{row // of_class}/{row % of_class}", label=row // of_class, group=None,
                  duration_seconds=None, block=0, row=row)
        for row in range(count)
    )  # fmt: skip
    table = ClipTable(classes=CLASSES, flips=False, views=1, mean=MEAN, std=STD, videos=videos, rejected=())
    inputs = {"blocks": [block], "latents": [part]} | ({"autoencoder": [codec]} if codec else {})
    whole = Manifest(kind="pool", key="p", version=1, parameters={}, inputs=inputs)
    with store.writing(whole) as attempt:
        (attempt.folder / TABLE).write_text(table.model_dump_json())
    return whole.ref


@dataclass
class Tiny:
    """The clips, and the material that a method gets of them."""

    clips: Clips
    folders: dict[str, list[Path]] = field(default_factory=dict)

    def material(self, ipc: int = 1, seed: int = 0, labels: tuple[int, ...] = (0, 1), **changes: Any) -> Material:
        given: dict[str, Any] = {
            "clips": self.clips, "ipc": ipc, "seed": seed, "labels": labels, "device": CPU, "teacher": tiny_teacher,
            "inputs": lambda name: self.folders.get(name, []), "progress": lambda *_: None,
        }  # fmt: skip
        return Material(**given | changes)

    def x(self, row: int, view: int = 0) -> Tensor:
        """A clip, normalised: float64 (3, T, H, W)."""
        clip_THWC = self.clips.read([row], view)[0].astype(np.float64)
        return torch.from_numpy((clip_THWC / 255 - MEAN) / STD).permute(3, 0, 1, 2).contiguous()

    def experts(self, folder: Path, trajectories_ESP: np.ndarray) -> None:
        """Trajectories as the experts' stage keeps them, one artifact an expert."""
        self.folders["experts"] = []
        for number, trajectory_SP in enumerate(trajectories_ESP):
            place = folder / f"expert {number}"
            zarr.create_array(place, name="trajectory", data=trajectory_SP[None].astype(np.float32))
            self.folders["experts"].append(place)


def networks(monkeypatch: pytest.MonkeyPatch, made: Callable[[], nn.Module] = TinyNet) -> None:
    """Every network that is built by name is a tiny one, drawn from the same seed."""
    monkeypatch.setattr("vidistill.models.build", lambda _name, **_shape: made())


def pixels(x_NCTHW: Tensor) -> np.ndarray:
    """What a set keeps of normalised clips, before it is rounded: float64 NTHWC in levels of 0…255."""
    mean, std = torch.tensor(MEAN, dtype=torch.float64), torch.tensor(STD, dtype=torch.float64)
    return ((x_NCTHW.permute(0, 2, 3, 4, 1) * std + mean) * 255).clamp(0, 255).numpy()


def in_range(x_NCTHW: Tensor) -> Tensor:
    """Clips kept between black and white."""
    mean, std = (torch.tensor(value, dtype=torch.float64)[:, None, None, None] for value in (MEAN, STD))
    return x_NCTHW.clamp(-mean / std, (1 - mean) / std)


def same_change(
    made_NTHWC: np.ndarray, start_NTHWC: np.ndarray, expected_NTHWC: np.ndarray, slack: float = 0.0
) -> None:
    """A set was moved as the reference was: levels that differ by rounding alone, and a change that is no accident.

    Clips that are made of stored ones were rounded twice, which `slack` levels allow for.
    """
    moved = expected_NTHWC - start_NTHWC
    assert np.abs(moved).mean() > 1, "the reference itself hardly moves: raise its rate"
    off = np.abs(made_NTHWC.astype(np.float64) - expected_NTHWC)
    elsewhere = np.mean(off > 0.51 + slack)
    assert elsewhere < 0.005, f"{elsewhere:.1%} of the pixels are elsewhere"
    assert off.mean() < 0.26 + slack / 2 + 0.02 * np.abs(moved).mean()


def put(
    store: Store, kind: str, key: str, write: Callable[[Path], Any], parameters: dict[str, Any],
    inputs: dict[str, list[ArtifactRef]] | None = None,
) -> ArtifactRef:  # fmt: skip
    """An artifact that no stage made."""
    manifest = Manifest(kind=kind, key=key, version=1, parameters=parameters, inputs=inputs or {})
    with store.writing(manifest) as attempt:
        write(attempt.folder)
    return manifest.ref


def kept_teacher(store: Store, teacher: nn.Module) -> ArtifactRef:
    """A teacher as its stage keeps it."""
    return put(
        store, "teacher", "t", lambda folder: save_file(teacher.state_dict(), folder / "weights.safetensors"),
        TeacherParameters(precision="fp32").model_dump(mode="json"),
    )  # fmt: skip


def videomix_by_loops(x_BCTHW: Tensor, s_BT: np.ndarray, quantile: float, probability: float, *seed: int) -> Tensor:
    """S3 §3.3: in each mixed clip a box of another's, at the same place in every frame with s ≤ ε."""
    random = generator(*seed, streams.MIX)
    clips, _, frames, height, width = x_BCTHW.shape
    order = random.permutation(clips)
    partner = {int(order[i]): int(order[i - 1]) for i in range(clips)}
    mixed = x_BCTHW.clone()
    for b in np.flatnonzero(random.random(clips) < probability):
        side = np.sqrt(1 - random.beta(1.0, 1.0))
        y, x = random.integers(height), random.integers(width)
        half_y, half_x = int(height * side) // 2, int(width * side) // 2
        for t in range(frames):
            if s_BT[b, t] <= np.quantile(s_BT[b], quantile):
                for row in range(max(0, y - half_y), min(height, y + half_y)):
                    for column in range(max(0, x - half_x), min(width, x + half_x)):
                        mixed[b, :, t, row, column] = x_BCTHW[partner[int(b)], :, t, row, column]
    return mixed


def saliency_by_loops(x: np.ndarray, k: int = 2, weights: str = "triangular") -> np.ndarray:
    """Eq. 6 and 7 of S3, frame by frame: (B, T)."""
    frames = x.shape[2]
    s = np.zeros((x.shape[0], frames))
    alpha = [1 if weights == "uniform" else k + 1 - j for j in range(k + 1)]
    for b in range(x.shape[0]):
        d = difference_by_loops(x[b])
        for i in range(frames):
            there = [j for j in range(k + 1) if i - j >= 0]
            s[b, i] = sum(alpha[j] * d[i - j] for j in there) / sum(alpha[j] for j in there)
    return s


def difference_by_loops(x_CTHW: np.ndarray) -> list[float]:
    """Eq. 6: the mean change to the frames beside it, of which there is but one at the ends."""
    frames = x_CTHW.shape[1]
    return [
        float(np.mean([np.mean(np.abs(x_CTHW[:, j] - x_CTHW[:, i])) for j in (i - 1, i + 1) if 0 <= j < frames]))
        for i in range(frames)
    ]
