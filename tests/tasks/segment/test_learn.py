"""MS-TCN's loss and training, and what a student's score is made of."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from resuming import killed_and_resumed
from safetensors.torch import load_file
from segments import DIMENSIONS, TEST, TRAIN, write_layout

from vidistill.models.tcn import MSTCN, DilatedResidual
from vidistill.storage.errors import RequestError
from vidistill.storage.store import Store
from vidistill.tasks.learning.loop import CURVE, Curve
from vidistill.tasks.learning.training import Device
from vidistill.tasks.segment import learn, score
from vidistill.tasks.segment.condense import relabel_job, segment_set_job
from vidistill.tasks.segment.layout import survey_sequences
from vidistill.tasks.segment.learn import TCNParameters, frame_losses, segment_teacher_job
from vidistill.tasks.segment.metrics import score_videos
from vidistill.tasks.segment.score import SegmentScoreTable, predicted, segment_score_job, shown_video
from vidistill.tasks.segment.sequences import Sequences, sequences_job
from vidistill.tasks.segment.sets import ARRAYS, SegmentSet
from vidistill.tasks.segment.tsgf import SegmentTSGFParameters
from vidistill.tasks.stage import Job, Runtime, run_job

CPU = Device(torch.device("cpu"), "fp32", 1)
TCN = TCNParameters(stages=2, layers=2, width=4, epochs=3, lr=0.01)


class Bench:
    def __init__(self, folder: Path, sample_rate: int = 1) -> None:
        root = write_layout(folder / "salads")
        self.runtime = Runtime(store=str(folder / "store"), data=str(root), device="cpu", threads=1)
        self.read = self.run(sequences_job(1, sample_rate, survey_sequences(root, 1)))
        self.teacher = segment_teacher_job(self.read, TCN)
        self.store = Store(folder / "store")
        self.sequences = Sequences(self.store, self.read)

    def run(self, job: Job):
        return run_job(job, self.runtime)[0]

    def scored(self, job: Job) -> SegmentScoreTable:
        return SegmentScoreTable.model_validate_json((self.store.folder(self.run(job)) / score.SCORE).read_text())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("learning")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return Bench(folder)


def test_the_loss_is_that_of_the_paper() -> None:
    """Σ over stages of cross-entropy + λ·min(Δ², 16), means over frames and classes, by loops."""
    random = np.random.default_rng(0)
    logits_SKT = random.normal(size=(2, 3, 5)) * 4
    targets_TK = random.dirichlet([1, 1, 1], size=5)
    expected, truncated = 0.0, 0
    for s in range(2):
        log = [[logits_SKT[s, k, t] - math.log(sum(math.exp(z) for z in logits_SKT[s, :, t])) for k in range(3)]
               for t in range(5)]  # fmt: skip
        expected -= sum(targets_TK[t, k] * log[t][k] for t in range(5) for k in range(3)) / 5
        changes = [(log[t][k] - log[t - 1][k]) ** 2 for t in range(1, 5) for k in range(3)]
        truncated += sum(change > 16 for change in changes)
        expected += 0.15 * sum(min(change, 16.0) for change in changes) / len(changes)
    assert truncated
    found = frame_losses(torch.from_numpy(logits_SKT), torch.from_numpy(targets_TK), 0.15)
    assert float(found) == pytest.approx(expected, rel=1e-10)


def test_smoothing_pulls_a_frame_towards_the_one_before_and_not_back() -> None:
    logits_SKT = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]], requires_grad=True)
    uniform = torch.full((2, 2), 0.5)
    with_it, without = (
        torch.autograd.grad(frame_losses(logits_SKT, uniform, smoothing), logits_SKT)[0] for smoothing in (1.0, 0.0)
    )
    assert (with_it - without)[0, :, 0].abs().max() == 0
    assert (with_it - without)[0, :, 1].abs().max() > 0.01


def test_one_frame_has_no_change() -> None:
    assert float(frame_losses(torch.zeros(1, 2, 1), torch.tensor([[1.0, 0.0]]), 0.15)) == pytest.approx(math.log(2))


def test_a_stage_sees_as_far_as_its_dilations_reach() -> None:
    """Three layers of dilation 1, 2 and 4 see seven frames to either side."""
    torch.manual_seed(0)
    network = MSTCN(3, 2, stages=1, layers=3, width=8).eval()
    x_BDT = torch.randn(1, 3, 31)
    changed = x_BDT.clone()
    changed[:, :, 15] += 5
    moved = (network(changed) - network(x_BDT))[0, 0].abs().amax(0)
    assert moved.nonzero().flatten().tolist() == list(range(8, 23))


def test_the_network_is_of_the_published_size() -> None:
    """50Salads: 2,048 features, 19 classes, four stages of ten layers; as MS-TCN's repository builds it."""
    layer = 64 * 64 * 3 + 64 + 64 * 64 + 64
    stage = lambda channels: channels * 64 + 64 + 10 * layer + 64 * 19 + 19  # noqa: E731
    network = MSTCN(2048, 19, stages=4, layers=10, width=64)
    assert sum(weight.numel() for weight in network.parameters()) == stage(2048) + 3 * stage(19)
    layers = [module for module in network.modules() if isinstance(module, DilatedResidual)]
    assert [one.dilated.dilation[0] for one in layers[:10]] == [2**number for number in range(10)]
    assert not any(isinstance(module, torch.nn.BatchNorm1d) for module in network.modules())


def test_a_later_stage_sees_probabilities() -> None:
    torch.manual_seed(0)
    network = MSTCN(3, 2, stages=2, layers=1, width=4).eval()
    x_BDT = torch.randn(1, 3, 6)
    first, second = network(x_BDT)
    assert torch.allclose(second, network.stages[1](first.softmax(1)))


def test_every_video_is_seen_once_an_epoch_in_an_order_of_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def video(number: int):
        seen.append(number)
        return learn.real_video(bench.sequences, number)

    network = learn.build(TCN, DIMENSIONS, 3, 0, norm=False)
    curve = learn.train(network, video, 3, TCN, CPU, 5)
    assert isinstance(curve, Curve)
    assert [Counter(seen[first : first + 3]) for first in (0, 3, 6)] == [Counter(range(3))] * 3
    assert len({tuple(seen[first : first + 3]) for first in (0, 3, 6)}) > 1


def test_the_teacher_has_statistics_and_learns(bench: Bench) -> None:
    folder = bench.store.folder(bench.run(bench.teacher))
    weights = load_file(folder / learn.WEIGHTS)
    assert weights["stages.0.1.norm.running_mean"].abs().max() > 0
    loss = json.loads((folder / CURVE).read_text())["loss"]
    assert loss[-1] < loss[0]


def test_a_teacher_that_is_killed_ends_with_the_same_weights(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidistill.tasks.learning.loop.SECONDS", 0.0)
    job = segment_teacher_job(bench.read, TCN.model_copy(update={"lr": 0.02}))
    whole = load_file(bench.store.folder(bench.run(job)) / learn.WEIGHTS)
    bench.store.discard(job.ref)
    assert killed_and_resumed(job, bench.runtime, at=4)[0] > 1
    again = load_file(bench.store.folder(job.ref) / learn.WEIGHTS)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def made_set(bench: Bench, method: str, *, soft: bool = False) -> SegmentSet:
    bench.run(bench.teacher)
    job = segment_set_job(bench.read, bench.teacher.ref, method, 2, 0, SegmentTSGFParameters())
    ref = bench.run(job)
    if soft:
        ref = bench.run(relabel_job(ref, bench.read, bench.teacher.ref, method))
    return SegmentSet.load(bench.store.folder(ref))


def test_a_student_sees_points_with_their_labels(bench: Bench) -> None:
    hard, soft = made_set(bench, "random"), made_set(bench, "random", soft=True)
    for video, word in enumerate(TRAIN):
        x_TD, targets_TK = shown_video(hard, bench.sequences, video)
        rows = hard.shown(video)
        expected = (hard.points_MD[rows] - bench.sequences.mean_D) / bench.sequences.std_D
        np.testing.assert_allclose(x_TD, expected, rtol=1e-4, atol=1e-5)
        assert targets_TK.argmax(1).tolist() == ["cpm".index(letter) for letter in word]
        assert targets_TK.sum() == len(word)
        assert soft.soft_MK is not None
        np.testing.assert_array_equal(shown_video(soft, bench.sequences, video)[1], soft.soft_MK[rows])


def test_a_score_is_of_all_frames_of_the_test_videos(bench: Bench) -> None:
    whole = bench.scored(segment_score_job(None, bench.read, TCN, 0, "full"))
    assert whole.test_frames == sum(map(len, TEST))
    segments = 9
    assert whole.bytes == 4 * DIMENSIONS * sum(map(len, TRAIN)) + 16 * segments
    seed = learn.training.role_seed(0, learn.streams.STUDENT_WEIGHTS)
    network = learn.build(TCN, DIMENSIONS, 3, seed, norm=False)
    learn.train(network, lambda n: learn.real_video(bench.sequences, n), 3, TCN, CPU, seed)
    found = [predicted(network.eval(), bench.sequences, row, CPU) for row in (3, 4)]
    expected = score_videos(found, [np.array(["cpm".index(letter) for letter in word]) for word in TEST])
    assert (whole.accuracy, whole.edit, *whole.f1) == pytest.approx((expected.accuracy, expected.edit, *expected.f1))


def test_a_set_costs_what_lies_on_disk(bench: Bench) -> None:
    made = made_set(bench, "mean")
    job = segment_set_job(bench.read, bench.teacher.ref, "mean", 2, 0, SegmentTSGFParameters())
    table = bench.scored(segment_score_job(job.ref, bench.read, TCN, 0, "mean"))
    kept = made.points_MD.nbytes + 4 * 4 * len(made.labels_S)
    on_disk = (bench.store.folder(job.ref) / ARRAYS).stat().st_size
    assert kept < on_disk < kept + 600  # the head of the file
    assert table.bytes == on_disk + 8 * DIMENSIONS


def test_frames_that_were_left_out_are_as_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    half = Bench(tmp_path, sample_rate=2)
    network = learn.build(TCN, DIMENSIONS, 3, 0, norm=False)
    longer = TCN.model_copy(update={"lr": 0.05, "epochs": 10})
    learn.train(network, lambda n: learn.real_video(half.sequences, n), 3, longer, CPU, 0)
    every = learn.logits_of(network.eval(), half.sequences.standardised(3), CPU).argmax(1)
    assert len(set(every.tolist())) > 1
    named_T = predicted(network, half.sequences, 3, CPU)
    assert len(named_T) == len(TEST[0])
    assert named_T.tolist() == [every[t // 2] for t in range(len(TEST[0]))]


def test_background_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    told: list[list[int]] = []
    monkeypatch.setattr(score, "score_videos", lambda found, true, background: told.append(list(background)) or
                        score_videos(found, true, background))  # fmt: skip
    one = Bench(tmp_path / "a")
    one.scored(segment_score_job(None, one.read, TCN, 0, "full"))
    monkeypatch.setattr("segments.CLASSES", ("cut", "background", "mix"))
    other = Bench(tmp_path / "b")
    other.scored(segment_score_job(None, other.read, TCN, 0, "full"))
    assert told == [[], [1]]


def test_a_teacher_needs_two_frames_of_each_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bench = Bench(tmp_path, sample_rate=1000)
    with pytest.raises(RequestError, match=r"has one frame at sample_rate=1000.*lower the rate"):
        bench.run(bench.teacher)
