"""Sets of sequences: what is kept of a segment, what a network is shown of it, and TSGF beside its equations."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from resuming import killed_and_resumed
from segments import CLASSES, DIMENSIONS, TRAIN, write_layout
from tiny import saliency_by_loops
from torch import Tensor
from torch.nn.functional import conv1d

from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.learning.training import Device
from vidistill.tasks.segment.condense import chosen, herded, means, relabel_job, segment_set_job
from vidistill.tasks.segment.layout import survey_sequences
from vidistill.tasks.segment.learn import TCNParameters, load_segment_teacher, segment_teacher_job
from vidistill.tasks.segment.sequences import Sequences, sequences_job
from vidistill.tasks.segment.sets import SegmentSet, parts
from vidistill.tasks.segment.tsgf import SegmentTSGFParameters
from vidistill.tasks.stage import Job, Runtime, run_job

CPU = Device(torch.device("cpu"), "fp32", 1)
TCN = TCNParameters(stages=2, layers=2, width=4, epochs=4, lr=0.01)
SEGMENTS = (("c", 4), ("p", 6), ("m", 2), ("p", 4), ("m", 4), ("c", 6), ("m", 3), ("c", 4), ("p", 1))
NONE = np.random.default_rng(0)


class Bench:
    """The sequences of the small data set and a teacher of them, in a store."""

    def __init__(self, folder: Path) -> None:
        root = write_layout(folder / "salads")
        self.runtime = Runtime(store=str(folder / "store"), data=str(root), device="cpu", threads=1)
        self.read = run_job(sequences_job(1, 1, survey_sequences(root, 1)), self.runtime)[0]
        self.teacher = run_job(segment_teacher_job(self.read, TCN), self.runtime)[0]
        self.store = Store(folder / "store")
        self.sequences = Sequences(self.store, self.read)

    def job(self, method: str, points: int, seed: int = 0, **tsgf: object) -> Job:
        return segment_set_job(self.read, self.teacher, method, points, seed, SegmentTSGFParameters(**tsgf))

    def made(self, job: Job) -> SegmentSet:
        return SegmentSet.load(self.store.folder(run_job(job, self.runtime)[0]))

    def soft(self, made: ArtifactRef) -> SegmentSet:
        return self.made(relabel_job(made, self.read, self.teacher, "a set"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("segments")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return Bench(folder)


def frames_of(bench: Bench) -> list[np.ndarray]:
    """The frames of each segment, as they are in the files."""
    found = []
    for row, word in enumerate(TRAIN):
        changes = [0, *(t for t in range(1, len(word)) if word[t] != word[t - 1]), len(word)]
        found += [bench.sequences.features(row)[a:b] for a, b in pairwise(changes)]
    return found


def test_a_set_has_the_order_and_the_lengths_of_all_segments(bench: Bench) -> None:
    made = bench.made(bench.job("mean", 2))
    assert [("cpm"[label], frames) for label, frames in zip(made.labels_S, made.frames_S, strict=True)] == list(
        SEGMENTS
    )
    assert made.points_S.tolist() == [2, 2, 2, 2, 2, 2, 2, 2, 1]  # the last has one frame
    assert made.videos_S.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert made.names == ("rgb-train-0", "rgb-train-1", "rgb-train-2")
    assert made.points_MD.shape == (17, DIMENSIONS)
    for video, word in enumerate(TRAIN):
        assert "".join("cpm"[label] for label in made.labels(video)) == word


def test_each_point_is_shown_for_an_equal_part_of_its_segment(bench: Bench) -> None:
    made = bench.made(bench.job("mean", 2))
    assert made.shown(0).tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 5]
    assert made.shown(2).tolist() == [12, 12, 13, 14, 14, 15, 15, 16]
    assert [made.points_of(video).tolist() for video in range(3)] == [
        list(range(6)), list(range(6, 12)), list(range(12, 17))
    ]  # fmt: skip
    assert parts(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_means_are_those_of_the_parts(bench: Bench) -> None:
    for points in (1, 3):
        made, expected = bench.made(bench.job("mean", points)), []
        for frames_TD in frames_of(bench):
            p = min(points, len(frames_TD))
            expected += [
                np.mean([frame for t, frame in enumerate(frames_TD) if t * p // len(frames_TD) == part], axis=0)
                for part in range(p)
            ]
        np.testing.assert_allclose(made.points_MD, expected, rtol=1e-5)


def test_random_frames_are_of_their_segment_in_order_and_each_once(bench: Bench) -> None:
    first, again, other = (bench.made(bench.job("random", 3, seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.points_MD, again.points_MD)
    assert not np.array_equal(first.points_MD, other.points_MD)
    start = 0
    for frames_TD, count in zip(frames_of(bench), first.points_S, strict=True):
        distance_PT = np.abs(first.points_MD[start : start + count, None] - frames_TD).max(2)
        places = distance_PT.argmin(1).tolist()
        assert distance_PT.min(1).max() < 1e-5
        assert places == sorted(set(places))
        start += count


def test_herding_stays_near_the_mean_of_the_segment(bench: Bench) -> None:
    """Greedy, by trying every frame: the one that brings the mean of the chosen nearest, in standard deviations."""
    made, start = bench.made(bench.job("herding", 2)), 0
    for frames_TD, count in zip(frames_of(bench), made.points_S, strict=True):
        z_TD = (frames_TD - bench.sequences.mean_D) / bench.sequences.std_D
        chosen_rows: list[int] = []
        for _ in range(count):
            left = [t for t in range(len(z_TD)) if t not in chosen_rows]
            gap = {t: np.linalg.norm(z_TD[[*chosen_rows, t]].mean(0) - z_TD.mean(0)) for t in left}
            chosen_rows.append(min(gap, key=gap.__getitem__))
        np.testing.assert_allclose(made.points_MD[start : start + count], frames_TD[sorted(chosen_rows)], atol=1e-5)
        start += count


def test_one_frame_is_the_nearest_to_the_mean() -> None:
    frames_TD = np.array([[0.0, 0.0], [1.0, 0.1], [5.0, 5.0]], np.float32)
    assert herded(frames_TD, 1, NONE).tolist() == [frames_TD[1].tolist()]
    assert means(frames_TD, 1, NONE) == pytest.approx(frames_TD.mean(0)[None])


def test_only_what_is_drawn_is_made_for_each_seed(bench: Bench) -> None:
    same = {
        name: bench.job(name, 1, 0).ref == bench.job(name, 1, 1).ref for name in ("mean", "herding", "random", "tsgf")
    }
    assert same == {"mean": True, "herding": True, "random": False, "tsgf": False}
    assert bench.job("random", 1).ref == bench.job("random", 1, lr=0.1).ref
    assert "teacher" not in bench.job("random", 1).inputs


def test_as_many_points_as_frames_are_the_video_itself(bench: Bench) -> None:
    for pick in (means, herded):
        made = chosen(bench.sequences, 99, pick, 0)
        for video in range(3):
            np.testing.assert_allclose(made.points_MD[made.shown(video)], bench.sequences.features(video), atol=1e-5)


# --- what the teacher says ---------------------------------------------------------------------------------------


def forward(weights: dict[str, Tensor], x_DT: Tensor, gaps: list[Tensor] | None = None) -> Tensor:
    """MS-TCN of two stages of two layers at rest, from its weights: logits (K, T) of the last stage."""

    def conv(name: str, maps: Tensor, dilation: int = 0) -> Tensor:
        return conv1d(maps[None], weights[f"{name}.weight"], weights[f"{name}.bias"], padding=dilation,
                      dilation=max(dilation, 1))[0]  # fmt: skip

    seen = x_DT
    for s in range(2):
        maps = conv(f"stages.{s}.0", seen)
        for layer in (1, 2):
            name = f"stages.{s}.{layer}"
            wide = conv(f"{name}.dilated", maps, 2 ** (layer - 1))
            mean, variance, gain, bias = (
                weights[f"{name}.norm.{part}"][:, None] for part in ("running_mean", "running_var", "weight", "bias")
            )
            if gaps is not None:
                gaps.append((wide.mean(1) - mean[:, 0]).square().sum().sqrt())
                gaps.append((wide.var(1, correction=0) - variance[:, 0]).square().sum().sqrt())
            rested = (wide - mean) / (variance + 1e-5).sqrt() * gain + bias
            maps = maps + conv(f"{name}.mix", rested.clamp(min=0))
        seen = conv(f"stages.{s}.3", maps)
        if s == 0:
            seen = seen.exp() / seen.exp().sum(0)
    return seen


def weights_of(bench: Bench) -> dict[str, Tensor]:
    teacher = load_segment_teacher(bench.store, bench.teacher, bench.sequences, CPU)
    return {name: value.double() for name, value in teacher.state_dict().items()}


def test_soft_labels_are_the_mean_of_what_the_teacher_says_of_the_frames_of_a_point(bench: Bench) -> None:
    job = bench.job("random", 2)
    made, soft, weights = bench.made(job), bench.soft(job.ref), weights_of(bench)
    assert soft.soft_MK is not None
    np.testing.assert_array_equal(soft.points_MD, made.points_MD)
    for video in range(3):
        shown = made.shown(video).tolist()
        x_TD = (made.points_MD[shown] - bench.sequences.mean_D) / bench.sequences.std_D
        said_KT = forward(weights, torch.from_numpy(x_TD).T).softmax(0).numpy()
        for point in set(shown):
            expected = np.mean([said_KT[:, t] for t, own in enumerate(shown) if own == point], axis=0)
            np.testing.assert_allclose(soft.soft_MK[point], expected, atol=1e-5)
    assert soft.soft_MK.sum(1) == pytest.approx(1, abs=1e-5)


def algorithm_1(bench: Bench, start: SegmentSet, p: SegmentTSGFParameters) -> np.ndarray:
    """The points in standard deviations after `iterations` steps."""
    weights, sequences = weights_of(bench), bench.sequences
    real = np.concatenate([(sequences.features(row) - sequences.mean_D) / sequences.std_D for row in range(3)])
    low, high = torch.from_numpy(real.min(0)), torch.from_numpy(real.max(0))
    x = torch.from_numpy((start.points_MD - sequences.mean_D) / sequences.std_D)
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for k in range(p.iterations):
        leaf, total = x.clone().requires_grad_(True), torch.zeros((), dtype=torch.float64)
        for video, word in enumerate(TRAIN):
            gaps: list[Tensor] = []
            log_KT = forward(weights, leaf[start.shown(video).tolist()].T, gaps).log_softmax(0)
            ce = -torch.stack([log_KT["cpm".index(letter), t] for t, letter in enumerate(word)]).mean()
            total = total + p.alpha_ce * ce + p.r_bn * torch.stack(gaps).sum()
        (g,) = torch.autograd.grad(total, leaf)
        first, second = 0.5 * first + 0.5 * g, 0.9 * second + 0.1 * g**2
        step = first / (1 - 0.5 ** (k + 1)) / ((second / (1 - 0.9 ** (k + 1))).sqrt() + 1e-8)
        rate = p.lr * (1 + math.cos(math.pi * k / p.iterations)) / 2
        x = (x - rate * mask_by_loops(x, start, p)[:, None] * step).maximum(low).minimum(high)
    return x.numpy()


def mask_by_loops(x: Tensor, start: SegmentSet, p: SegmentTSGFParameters) -> Tensor:
    """Eq. 6–8 of each video's points, in the order of time."""
    mask = torch.ones(len(x), dtype=torch.float64)
    for video in range(3):
        own = sorted(set(start.shown(video).tolist()))
        s = saliency_by_loops(x[own].T.numpy()[None, :, :, None, None], p.saliency.window)[0]
        room = np.maximum(np.quantile(s, p.saliency.epsilon_quantile) - s, 0) / (s.max() - s.min())
        if p.mask:
            mask[own] = torch.from_numpy(room)
    return mask


STEPS = {
    "as it is": {},
    "cross-entropy alone": {"r_bn": 0.0},
    "statistics alone": {"alpha_ce": 0.0},
    "no mask": {"mask": False},
    "out of the range": {"mask": False, "lr": 3.0},
}


@pytest.mark.parametrize("name", STEPS)
def test_three_steps_are_those_of_algorithm_1(bench: Bench, name: str) -> None:
    options = {"iterations": 3, "lr": 0.2, "r_bn": 0.5} | STEPS[name]
    start, made = bench.made(bench.job("random", 2, 3)), bench.made(bench.job("tsgf", 2, 3, **options))
    expected = algorithm_1(bench, start, SegmentTSGFParameters(**options))
    sequences = bench.sequences
    found, begun = ((one.points_MD - sequences.mean_D) / sequences.std_D for one in (made, start))
    assert np.abs(expected - begun).mean() > 0.05
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected - begun).max())


def test_a_distillation_that_is_killed_ends_with_the_same_set(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidistill.tasks.learning.loop.SECONDS", 0.0)
    job = bench.job("tsgf", 2, 5, iterations=6)
    whole = bench.made(job)
    bench.store.discard(job.ref)
    steps = killed_and_resumed(job, bench.runtime, at=4)
    assert steps[0] > 1
    np.testing.assert_array_equal(bench.made(job).points_MD, whole.points_MD)


def test_a_set_is_kept_as_it_is(bench: Bench, tmp_path: Path) -> None:
    made = bench.soft(bench.job("random", 2).ref)
    made.save(tmp_path)
    found = SegmentSet.load(tmp_path)
    for name in ("points_MD", "labels_S", "frames_S", "points_S", "videos_S", "soft_MK"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    assert found.names == made.names
    assert bench.sequences.classes == CLASSES
