"""The sprites: the files, the boxes, and that only the order of the frames tells the class.

Legend: B clips of a batch, N clips of a set, T frames, H height, W width, C channels, K classes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from vidistill.tasks.videos import sprites
from vidistill.tasks.videos.sprites import CLASSES, SpritesParameters, attribute_paths, render_sprites

SMALL = SpritesParameters(train_per_class=2, test_per_class=1)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sprites")
    render_sprites(root, SMALL)
    return root


def decode(path: Path) -> np.ndarray:
    """All frames of a video: uint8 (T, H, W, 3)."""
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def bytes_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_class_has_its_clips_in_both_splits(rendered: Path) -> None:
    folders = Counter(path.parent.relative_to(rendered).as_posix() for path in rendered.rglob("*.mp4"))
    assert folders == {f"train/{name}": 2 for name in CLASSES} | {f"test/{name}": 1 for name in CLASSES}


def test_no_group_spans_the_split(rendered: Path) -> None:
    groups = {"train": set(), "test": set()}
    for path in rendered.rglob("*.mp4"):
        name, group = re.fullmatch(r"(.+)_(scene\d{4})", path.stem).groups()
        assert name == path.parent.name
        groups[path.parent.parent.name].add(group)
    assert groups == {"train": {"scene0001", "scene0002"}, "test": {"scene0003"}}


def test_same_parameters_give_the_same_bytes_and_another_seed_others(rendered: Path, tmp_path: Path) -> None:
    render_sprites(tmp_path / "again", SMALL)
    render_sprites(tmp_path / "other", SMALL.model_copy(update={"seed": 1}))
    first, again, other = bytes_of(rendered), bytes_of(tmp_path / "again"), bytes_of(tmp_path / "other")
    assert again == first
    assert other.keys() == first.keys()
    assert not any(other[name] == first[name] for name in first)


def test_videos_are_h264_of_the_size_and_length_asked_for(tmp_path: Path) -> None:
    import av

    render_sprites(tmp_path, SpritesParameters(size=48, frames=12, train_per_class=1, test_per_class=1))
    for path in tmp_path.rglob("*.mp4"):
        assert decode(path).shape == (12, 48, 48, 3)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.average_rate == sprites.FRAMES_PER_SECOND


def test_progress_counts_every_video(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    render_sprites(tmp_path, SpritesParameters(size=16, frames=2, train_per_class=1, test_per_class=1),
                   lambda done, total: calls.append((done, total)))  # fmt: skip
    assert calls == [(done, 16) for done in range(1, 17)]


def test_boxes_are_tight_around_the_target(rendered: Path) -> None:
    """The target is warm (red − blue is large), the rest is grey or cold; chroma is coded at half the resolution."""
    annotations = json.loads((rendered / "boxes.json").read_text(encoding="utf-8"))
    assert annotations.keys() == {path.relative_to(rendered).as_posix() for path in rendered.rglob("*.mp4")}
    assert {entry["shape"] for entry in annotations.values()} <= set(sprites.SHAPES)
    for name, entry in annotations.items():
        frames_THWC = decode(rendered / name).astype(int)
        warm_THW = frames_THWC[..., 0] - frames_THWC[..., 2] > 70
        assert len(entry["boxes"]) == len(frames_THWC)
        for warm_HW, (x0, y0, x1, y1) in zip(warm_THW, entry["boxes"], strict=True):
            rows, columns = np.nonzero(warm_HW)
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose([x0, y0, x1, y1], found, atol=3, err_msg=name)


@pytest.mark.parametrize("name", CLASSES)
def test_one_attribute_is_swept_and_the_others_visit_the_same_values(name: str) -> None:
    swept, direction = sprites.SWEEPS[name]
    paths = attribute_paths(name, 32, np.random.default_rng(0))
    for attribute, values_T in paths.items():
        np.testing.assert_array_equal(np.sort(values_T), np.linspace(-1, 1, 32, dtype=np.float32))
        steps = np.sign(np.diff(values_T))
        if attribute == swept:
            assert (steps == direction).all()
        else:
            assert 8 <= (steps > 0).sum() <= 23


def test_classes_of_a_group_share_the_scene_and_nothing_else() -> None:
    clips = {name: frames for name, frames, _, _ in sprites.render_clips(SMALL)}
    means = {group: [frames.mean() for name, frames in clips.items() if group in name] for group in ("e0001", "e0002")}
    assert all(len(values) == len(CLASSES) == len(set(values)) for values in means.values())
    shapes = {(name[-8:-4], shape) for name, _, _, shape in sprites.render_clips(SMALL)}
    assert len(shapes) == 3


@dataclass(frozen=True)
class Clips:
    """8 of the 32 frames, at 56×56, normalised by the training split: x_NCTHW and y_N for each split."""

    x: dict[str, object]
    y: dict[str, object]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    import torch
    import torch.nn.functional as F

    root = tmp_path_factory.mktemp("hardness")
    render_sprites(root, SpritesParameters())
    x, y = {}, {}
    for split in ("train", "test"):
        paths = sorted((root / split).rglob("*.mp4"))
        frames_NTCHW = torch.from_numpy(np.stack([decode(path)[2::4] for path in paths])).permute(0, 1, 4, 2, 3).float()
        small = F.interpolate(frames_NTCHW.flatten(0, 1), size=(56, 56), mode="bilinear", antialias=True)
        x[split] = small.unflatten(0, frames_NTCHW.shape[:2]).transpose(1, 2)
        y[split] = torch.tensor([CLASSES.index(path.parent.name) for path in paths])
    mean, std = (f(x["train"], dim=(0, 2, 3, 4), keepdim=True) for f in (torch.mean, torch.std))
    return Clips({split: (x_NCTHW - mean) / std for split, x_NCTHW in x.items()}, y)


def shuffled(x_BCTHW, rng: np.random.Generator):
    import torch

    return torch.stack([x_CTHW[:, rng.permutation(x_CTHW.shape[1])] for x_CTHW in x_BCTHW])


def single(x_BCTHW, rng: np.random.Generator):
    import torch

    t = x_BCTHW.shape[2]
    return torch.stack([x_CTHW[:, [rng.integers(t)]].expand(-1, t, -1, -1) for x_CTHW in x_BCTHW])


def score(
    clips: Clips, rows: Sequence[int], steps: int, batch: int, lr: float, seed: int, view: Callable | None
) -> float:
    """Test accuracy of a MiniC3D-BN trained on some training clips, both seen through `view`."""
    import torch
    from torch.nn.functional import cross_entropy

    from vidistill import models
    from vidistill.models import compute

    cpu = torch.device("cpu")
    precision = compute.resolve_precision("auto", cpu)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = models.build("minic3d_bn", classes=len(CLASSES), frames=8, size=56)
    network = network.to(memory_format=torch.channels_last_3d)
    sgd = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(sgd, lr, total_steps=steps, pct_start=0.2)

    def logits(x_BCTHW):
        x_BCTHW = x_BCTHW if view is None else view(x_BCTHW, rng)
        with compute.autocast(cpu, precision):
            return network(x_BCTHW.contiguous(memory_format=torch.channels_last_3d)).float()

    for _ in range(steps):
        chosen = torch.from_numpy(rng.permutation(rows)[:batch])
        loss = cross_entropy(logits(clips.x["train"][chosen]), clips.y["train"][chosen])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        predicted = torch.cat([logits(x_BCTHW).argmax(1) for x_BCTHW in clips.x["test"].split(32)])
    return float((predicted == clips.y["test"]).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("view", "least", "most"), [(None, 0.9, 1.0), (shuffled, 0.0, 0.25), (single, 0.0, 0.25)],
    ids=["full", "shuffled", "single"],
)  # fmt: skip
def test_only_the_order_of_the_frames_tells_the_class(
    clips: Clips, view: Callable | None, least: float, most: float
) -> None:
    rows = range(len(clips.y["train"]))
    accuracy = score(clips, rows, steps=240, batch=16, lr=0.02, seed=0, view=view)
    print(f"accuracy {accuracy:.3f}")
    assert least <= accuracy <= most


@pytest.mark.slow
def test_one_random_clip_a_class_teaches_something_but_not_all(clips: Clips) -> None:
    labels_N = clips.y["train"].numpy()
    accuracies = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rows = [int(rng.choice(np.flatnonzero(labels_N == label))) for label in range(len(CLASSES))]
        accuracies.append(score(clips, rows, steps=60, batch=8, lr=0.005, seed=seed, view=None))
    print(f"accuracies {np.round(accuracies, 3).tolist()}")
    assert 0.25 <= np.mean(accuracies) <= 0.60
