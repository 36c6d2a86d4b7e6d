from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from sklearn.metrics import f1_score, roc_auc_score

from vidistill.models import compute
from vidistill.storage.clips import TABLE
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.store import ArtifactRef, Manifest, Store
from vidistill.tasks.coded.method import CodedParameters
from vidistill.tasks.coded.search import SearchParameters
from vidistill.tasks.learning import benchmark, streams
from vidistill.tasks.learning import evaluate as evaluate_module
from vidistill.tasks.learning.evaluate import (
    Protocol,
    Score,
    StudentParameters,
    evaluate_job,
    load_score,
    score,
    soft_targets,
)
from vidistill.tasks.learning.optimisers import OptimiserParameters
from vidistill.tasks.learning.teacher import TeacherParameters, teacher_job
from vidistill.tasks.learning.training import generator, role_seed
from vidistill.tasks.learning.views import cutmix
from vidistill.tasks.methods import HARD, Recipe
from vidistill.tasks.stage import Runtime, run_job
from vidistill.tasks.videos.index import INDEX, IndexTable
from vidistill.tasks.videos.scan import Video


def test_scores_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels_N = random.integers(0, 7, 200)
    logits_NK = torch.from_numpy(random.normal(size=(200, 7)) + 1.5 * np.eye(7)[labels_N]).float()
    found = score(logits_NK, labels_N)
    guesses_N, probabilities_NK = logits_NK.argmax(1).numpy(), logits_NK.softmax(1).double().numpy()
    probabilities_NK /= probabilities_NK.sum(1, keepdims=True)
    ranks_N = (logits_NK.numpy() > logits_NK.numpy()[np.arange(200), labels_N][:, None]).sum(1)
    assert found["top1"] == pytest.approx((guesses_N == labels_N).mean())
    assert found["top5"] == pytest.approx((ranks_N < 5).mean())
    assert found["f1"] == pytest.approx(f1_score(labels_N, guesses_N, average="macro"), abs=1e-6)
    assert found["auc"] == pytest.approx(roc_auc_score(labels_N, probabilities_NK, multi_class="ovr"), abs=1e-4)
    expected = [(guesses_N[labels_N == k] == k).mean() for k in range(7)]
    assert found["per_class"] == pytest.approx(expected)


def test_a_class_without_clips_counts_in_no_area_under_the_curve() -> None:
    """Of the four pairs of a clip of a class and one of another, class 0 and class 2 order three rightly."""
    logits_NK = torch.tensor([[2.0, 0.0, 1.0], [2.0, 0.0, 0.0], [0.0, 0.0, 2.0], [2.0, 0.0, 0.5]])
    assert score(logits_NK, np.array([0, 0, 2, 2]))["auc"] == pytest.approx(3 / 4)


def test_two_classes_have_a_top_5_of_one() -> None:
    assert score(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))["top5"] == 1.0


def test_temperature_softens_without_moving_the_winner() -> None:
    logits_BK = torch.tensor([[4.0, 0.0, 0.0]])
    assert soft_targets(logits_BK, 4.0)[0].tolist() == pytest.approx([0.576, 0.212, 0.212], abs=1e-3)
    assert soft_targets(logits_BK, 1.0)[0, 0] > 0.96


def student_of(network: str, student: StudentParameters) -> dict[str, object]:
    clips = ArtifactRef(kind="clips", key="a")
    job = evaluate_job(network, student, HARD, 0, {"train": clips, "test": clips}, "score")
    return dict(job.parameters["student"])


def test_a_network_has_its_own_optimiser_and_no_other_student_is_touched_by_it() -> None:
    plain = student_of("minic3d_bn", StudentParameters())
    assert "networks" not in plain
    assert plain == student_of("minic3d_bn", StudentParameters(networks={"c3d": OptimiserParameters(lr=1.0)}))
    own = OptimiserParameters(method="adamw", lr=1e-3)
    asked = student_of("video_swin_t", StudentParameters(networks={"video_swin_t": own}))
    assert asked["optimiser"] == own.model_dump(mode="json")
    assert student_of("centred:video_swin_t", StudentParameters())["optimiser"]["method"] == "adamw"


def test_a_teacher_and_a_search_s_student_have_the_rate_of_their_bodies_too() -> None:
    """Without normalisation the common one diverges."""
    clips = ArtifactRef(kind="clips", key="a")

    def rate(**asked: Any) -> float:
        return float(teacher_job(clips, TeacherParameters(**asked)).parameters["optimiser"]["lr"])

    assert rate() == rate(network="rgb:minic3d_bn") == 0.05
    assert rate(network="centred:minic3d") == 0.01
    assert rate(network="minic3d", optimiser=OptimiserParameters(lr=0.2)) == 0.2
    for network, lr in (("r2plus1d_small", 0.05), ("c3d", 0.001)):
        grid = CodedParameters(search=SearchParameters(network=network)).grid
        assert grid is not None
        assert grid.student.optimiser.lr == lr


# --- a student on tiny clips, written out ------------------------------------------------------------------------

STEPS, RATE = 8, 0.3
STUDENT = StudentParameters(
    epochs=1, least_steps=STEPS, precision="fp32", optimiser=OptimiserParameters(lr=RATE, batch_size=4), crop_scale=1.0,
    label_smoothing=0.0,
)  # fmt: skip
SEED = role_seed(9, streams.STUDENT_WEIGHTS)
"""What a student of seed 9 draws from."""
Batch = Callable[[list[int], int], tuple[torch.Tensor, torch.Tensor]]


def trained_by_hand(batch: Batch, rows: int, temperature: float = 1.0) -> tuple[list[float], list[torch.nn.Module]]:
    """SGD with momentum, decay and a cosine on −Σ target·log p; the loss of each step, and the student after each."""
    torch.manual_seed(SEED)
    student = tiny.TinyNet().double()
    weights, velocity = list(student.parameters()), [0.0] * 4
    losses, students = [], []
    for step in range(STEPS):
        epoch, place = divmod(step, 2)
        order = generator(SEED, epoch, streams.EPOCH_ORDER).permutation(rows)
        x_BCTHW, targets_BK = batch(np.array_split(order, 2)[place].tolist(), step)
        log_BK = (student(x_BCTHW) / temperature).log_softmax(1)
        loss = -(targets_BK * log_BK).sum(1).mean() * temperature**2
        gradients = torch.autograd.grad(loss, weights)
        rate = RATE * (1 + math.cos(math.pi * step / STEPS)) / 2
        for i, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            velocity[i] = 0.9 * velocity[i] + gradient + 5e-4 * weight.detach()
            weight.data -= rate * velocity[i]
        losses.append(loss.item())
        students.append(copy.deepcopy(student))
    return losses, students


def splits(folder: Path) -> tuple[tiny.Tiny, tiny.Tiny]:
    """A training and a test split, the latter in a store of its own."""
    return tiny.Tiny(tiny.tiny_clips(folder)), tiny.Tiny(tiny.tiny_clips(folder / "test", seed=2))


def scored(
    folder: Path, recipe: Recipe, inputs: dict[str, ArtifactRef], test: tiny.Tiny, student: StudentParameters = STUDENT,
    protocol: Protocol = "vidistill",
) -> Score:  # fmt: skip
    """The score of a student; the clips of `folder/test` are its test split."""
    store, source = Store(folder), folder / "test" / "block" / "b" / "clips"
    block = tiny.put(store, "block", "test", lambda place: shutil.copytree(source, place / "clips"), {})
    manifest = Manifest(kind="clips", key="test", version=1, parameters={}, inputs={"blocks": [block]})
    with store.writing(manifest) as attempt:
        (attempt.folder / TABLE).write_text(test.clips.table.model_dump_json())
    given = {"train": ArtifactRef(kind="clips", key="c"), "test": manifest.ref} | inputs
    job = evaluate_job("any", student, recipe, 9, given, "score", protocol)
    run_job(job, Runtime(store=str(folder), threads=1))
    return load_score(store.folder(job.ref))


def check(made: Score, losses: list[float], students: list[torch.nn.Module], test: tiny.Tiny) -> None:
    """The loss of every step, and the scores of the student as the last step left it."""
    assert made.steps == tuple(range(1, STEPS + 1))
    assert made.loss == pytest.approx(losses, abs=2e-4)
    x_NCTHW = torch.stack([test.x(row) for row in range(len(test.clips))])
    aucs = []
    for student in students:
        p_N = student(x_NCTHW).softmax(1)[:, 1].detach()
        aucs.append(float(roc_auc_score(test.clips.labels_N, p_N)))
    assert made.auc == pytest.approx(aucs[-1], abs=1e-6)
    assert max(aucs) > aucs[-1], "another step is better on the test split, so that taking the best would show"
    guesses_N = students[-1](x_NCTHW).argmax(1).numpy()
    assert made.top1 == pytest.approx((guesses_N == test.clips.labels_N).mean())


def mirrored(x_BCTHW: torch.Tensor, chosen_B: np.ndarray) -> torch.Tensor:
    return torch.stack([x.flip(-1) if flip else x for x, flip in zip(x_BCTHW, chosen_B, strict=True)])


def test_an_online_student_sees_the_teachers_labels_for_the_very_clips_that_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step another mix, another flip, and the resting teacher's softened answer to that."""
    given, test = splits(tmp_path)
    teacher = tiny.tiny_teacher(5)
    teacher.head.weight.mul_(20)
    monkeypatch.setattr(
        "vidistill.models.build", lambda name, **_: tiny.TinyNet() if name == "any" else tiny.TinyTeacher()
    )
    store, rows = Store(tmp_path), [0, 2, 3, 1, 4, 5]
    labelled = given.material().chosen(np.array(rows)).with_logits(np.ones((6, 2), np.float32))
    distilled = tiny.put(store, "distilled", "d", labelled.save, {})
    recipe = Recipe(labels="online", augmentation="tsgf", temperature=2.0)
    made = scored(tmp_path, recipe, {"distilled": distilled, "teacher": tiny.kept_teacher(store, teacher)}, test)
    exact = copy.deepcopy(teacher).double()

    def batch(slots: list[int], step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x_BCTHW = torch.stack([given.x(rows[slot]) for slot in slots])
        x_BCTHW = tiny.videomix_by_loops(x_BCTHW, tiny.saliency_by_loops(x_BCTHW.numpy()), 0.75, 0.5, SEED, step)
        x_BCTHW = mirrored(x_BCTHW, generator(SEED, step, streams.STUDENT_VIEWS).random(len(slots)) < 0.5)
        return x_BCTHW, (exact(x_BCTHW) / 2).softmax(1)

    check(made, *trained_by_hand(batch, 6, temperature=2.0), test)
    folder = store.folder(distilled)
    labels = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "logits" in str(path))
    assert labels > 0, "the set has stored labels, which this student does not read"
    kept = store.manifest(ArtifactRef(kind="teacher", key="t")).bytes
    assert made.training_bytes == DistilledSet.training_bytes(folder) - labels + kept
    clip = (1, 3, tiny.FRAMES, tiny.SIZE, tiny.SIZE)
    student_flops, teacher_flops = (compute.flops(network, clip) for network in (tiny.TinyNet(), tiny.tiny_teacher()))
    assert made.flops == (3 * student_flops + teacher_flops) * 3 * STEPS  # batches of three


@pytest.mark.parametrize(
    "recipe", [HARD, *(Recipe(labels=labels, temperature=2.0) for labels in ("soft", "learned"))], ids=str
)
def test_a_distilled_students_targets_are_smoothed_and_mixed_and_their_bytes_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    """Of hard labels alone a share is spread; stored logits count where they are read."""
    tiny.networks(monkeypatch)
    given, test = splits(tmp_path)
    logits_NK = np.random.default_rng(4).normal(size=(6, 2)).astype(np.float32)
    set_ = given.material().chosen(np.arange(6)).with_logits(logits_NK)
    distilled = tiny.put(Store(tmp_path), "distilled", "d", set_.save, {})
    student = STUDENT.model_copy(update={"label_smoothing": 0.2, "cutmix": 1.0})
    made = scored(tmp_path, recipe, {"distilled": distilled}, test, student)
    soft = recipe.labels != "hard"
    targets_NK = torch.eye(2, dtype=torch.float64)[list(tiny.LABELS)] * 0.8 + 0.1
    if soft:
        targets_NK = (torch.from_numpy(logits_NK).double() / 2).softmax(1)

    def batch(rows: list[int], step: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = generator(SEED, step, streams.STUDENT_VIEWS)
        x_BCTHW = mirrored(torch.stack([given.x(row) for row in rows]), random.random(len(rows)) < 0.5)
        return cutmix(x_BCTHW, targets_NK[rows], 1.0, random)

    losses, _ = trained_by_hand(batch, 6, temperature=recipe.temperature if soft else 1.0)
    assert made.loss == pytest.approx(losses, abs=2e-4)
    folder = Store(tmp_path).folder(distilled)
    sizes = [DistilledSet.training_bytes(folder, logits=logits) for logits in (False, True)]
    assert sizes[0] < sizes[1]
    assert made.training_bytes == sizes[soft]


def test_what_is_scored_is_the_mean_of_the_weights_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.networks(monkeypatch)
    given, test = splits(tmp_path)
    distilled = tiny.put(Store(tmp_path), "distilled", "d", given.material().chosen(np.arange(6)).save, {})
    predict, answered = evaluate_module.predict_test, []
    monkeypatch.setattr(evaluate_module, "predict_test", lambda *of: answered.append(predict(*of)) or answered[-1])
    student = STUDENT.model_copy(update={"average": 0.9})
    made = scored(tmp_path, HARD, {"distilled": distilled}, test, student)

    def batch(rows: list[int], step: int) -> tuple[torch.Tensor, torch.Tensor]:
        flips_B = generator(SEED, step, streams.STUDENT_VIEWS).random(len(rows)) < 0.5
        return (
            mirrored(torch.stack([given.x(row) for row in rows]), flips_B),
            torch.eye(2, dtype=torch.float64)[[tiny.LABELS[row] for row in rows]],
        )

    losses, students = trained_by_hand(batch, 6)
    mean = copy.deepcopy(students[0])
    for step, later in list(enumerate(students))[1:]:
        kept = min(0.9, (step + 1) / (step + 10))
        for weight, new in zip(mean.parameters(), later.parameters(), strict=True):
            weight.data = kept * weight.data + (1 - kept) * new.data
    assert made.loss == pytest.approx(losses, abs=2e-4)
    x_NCTHW = torch.stack([test.x(row) for row in range(len(test.clips))])
    torch.testing.assert_close(answered[0].double(), mean(x_NCTHW), rtol=1e-3, atol=1e-4)
    assert (mean(x_NCTHW) - students[-1](x_NCTHW)).abs().max() > 0.01


def test_a_student_of_all_clips_sees_their_views_and_flips_and_hard_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, test = splits(tmp_path)
    tiny.networks(monkeypatch)
    video = Video(path="a.mp4", label=0, split="train", group=None, bytes=120, sha256="", width=8, height=8, frames=8,
                  duration_seconds=1, codec="h264")  # fmt: skip
    files = (video, video.model_copy(update={"path": "b.mp4", "bytes": 3}), video.model_copy(update={"split": "test"}))
    table = IndexTable(layout="folders", classes=("a", "b"), flips=True, videos=files, rejected=())
    index = tiny.put(Store(tmp_path), "index", "i", lambda f: (f / INDEX).write_text(table.model_dump_json()), {})
    made = scored(tmp_path, HARD, {"index": index}, test)
    assert made.training_bytes == 123  # of the files that all clips come from
    assert made.clips == 6

    def batch(rows: list[int], step: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = generator(SEED, step, streams.STUDENT_VIEWS)
        views = random.integers(tiny.VIEWS, size=len(rows))
        x_BCTHW = torch.stack([given.x(row, int(view)) for row, view in zip(rows, views, strict=True)])
        x_BCTHW = mirrored(x_BCTHW, random.random(len(rows)) < 0.5)
        return x_BCTHW, torch.eye(2, dtype=torch.float64)[[tiny.LABELS[row] for row in rows]]

    check(made, *trained_by_hand(batch, 6), test)


def test_the_common_benchmark_trains_and_tests_by_its_habits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out: 501 passes, the last 249 at a tenth of the rate; all clips are standardised, test clips flipped."""
    tiny.networks(monkeypatch)
    exact = benchmark.STUDENT.model_copy(update={"precision": "fp32"})
    monkeypatch.setattr(benchmark, "STUDENT", exact)
    predict, predicted = benchmark.predict, []
    monkeypatch.setattr(benchmark, "predict", lambda *given: predicted.append(predict(*given)) or predicted[-1])
    given, test = splits(tmp_path)
    kept = given.material().chosen(np.arange(6))
    distilled = tiny.put(Store(tmp_path), "distilled", "d", kept.save, {})
    made = scored(tmp_path, HARD, {"distilled": distilled}, test, protocol="vdsd")

    def seen(x_BCTHW: torch.Tensor) -> torch.Tensor:
        return (x_BCTHW - x_BCTHW.mean()) / x_BCTHW.std()

    torch.manual_seed(SEED)
    student = tiny.TinyNet().double()
    sgd = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    losses = []
    for epoch in range(501):
        if epoch == 252:
            sgd.param_groups[0]["lr"] = 0.001
        rows = generator(SEED, epoch, streams.EPOCH_ORDER).permutation(6)
        logits = student(seen(torch.stack([given.x(int(row)) for row in rows])))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([tiny.LABELS[row] for row in rows]))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    assert made.loss[:-1] == pytest.approx(np.reshape(losses[:-1], (-1, 10)).mean(1).tolist(), abs=2e-6)
    outputs = []
    for view in range(tiny.VIEWS):
        flips = generator(SEED, view, 0, streams.TEST_FLIPS).random(len(test.clips)) < 0.5
        x_NCTHW = torch.stack([test.x(row, view) for row in range(len(test.clips))])
        outputs.append(student(seen(mirrored(x_NCTHW, flips))).softmax(1).detach())
    p_NK, labels_N = torch.cat(outputs).numpy(), np.tile(test.clips.labels_N, tiny.VIEWS)
    assert made.top1 == pytest.approx((p_NK.argmax(1) == labels_N).mean())
    np.testing.assert_allclose(predicted[0][0].softmax(1), p_NK, atol=1e-4)


def test_a_student_may_train_at_the_rate_that_its_set_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set that learned none, such as Random's, is trained on as ever."""
    tiny.networks(monkeypatch)
    learnt = STUDENT.model_copy(update={"learnt_lr": True})
    slow = STUDENT.model_copy(update={"optimiser": OptimiserParameters(lr=0.07, batch_size=4)})
    losses = []
    for number, (student, facts) in enumerate(
        [(learnt, {"lr": 0.07}), (slow, {}), (learnt, {}), (STUDENT, {"lr": 0.07})]
    ):
        folder = tmp_path / str(number)
        given, test = splits(folder)
        made = given.material().chosen(np.arange(6), **facts)
        distilled = tiny.put(Store(folder), "distilled", "d", made.save, {})
        losses.append(scored(folder, HARD, {"distilled": distilled}, test, student).loss)
    at_learnt, at_slow, without, plain = losses
    assert at_learnt == at_slow != plain
    assert without == plain
    assert "learnt_lr" not in student_of("minic3d_bn", StudentParameters())
