"""Evaluate: train a student on a distilled set (or on all clips) and score it on the real test split.

The last step is scored, never the best; one centre clip a test video, no flips (design of the honest protocol).
Shapes: B clips a batch, N clips, K classes; `x_BCTHW` is normalised.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.models import parted
from vidistill.storage.clips import Clips, ClipTable
from vidistill.storage.distilled import VARIANTS, DistilledSet
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import benchmark, kinetics, streams, training
from vidistill.tasks.learning.optimisers import NETWORK_OPTIMISERS, OptimiserParameters
from vidistill.tasks.learning.relabel import GuidedMix, videomix
from vidistill.tasks.learning.teacher import load_teacher
from vidistill.tasks.learning.training import Device, Draw, Order, TrainingParameters
from vidistill.tasks.learning.views import RealBatches, centre_clips, cutmix, smoothed, view
from vidistill.tasks.learning.weights import unchanged
from vidistill.tasks.methods import STORED, Recipe
from vidistill.tasks.stage import Job, Work, stage
from vidistill.tasks.videos.index import load_index

if TYPE_CHECKING:
    from torch import Tensor, nn

SCORE, CONFUSION = "score.json", "confusion.npy"
Protocol = Literal["vidistill", "vdsd"]


class StudentParameters(TrainingParameters):
    """How every student is trained, whatever the method and the budget."""

    networks: dict[str, OptimiserParameters] = Field(
        NETWORK_OPTIMISERS,
        exclude_if=lambda found: not found,
        description="Instead of the optimiser, for students of these bodies.",
    )

    learnt_lr: bool = Field(
        False, exclude_if=lambda learnt: not learnt,
        description="Sets that learned a learning rate (MTT, its VDSD, SFVD) are trained on at it, as published.",
    )  # fmt: skip
    pretrained: dict[Literal["r3d_18"], str] = Field(
        {},
        exclude_if=lambda found: not found,
        description="Weights that students of these bodies begin with: kinetics400, fetched by torchvision, or a file.",
    )

    def of(self, network: str) -> StudentParameters:
        """How a student of this network is trained: what is said of others is gone, so that it is in no score's key."""
        body = parted(network)[1]
        update = {"optimiser": self.networks.get(body, self.optimiser), "networks": {}}
        weights = {name: place for name, place in self.pretrained.items() if name == body}
        return self.model_copy(update=update | {"pretrained": weights})


class EvaluateParameters(Parameters):
    network: str
    student: StudentParameters
    recipe: Recipe
    seed: int
    protocol: Protocol = Field("vidistill", exclude_if=lambda protocol: protocol == "vidistill")


class Score(Parameters):
    """One student's scores on the test split, all in 0–1."""

    top1: float
    top5: float
    auc: float
    f1: float
    per_class: tuple[float, ...]
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    flops: int
    training_bytes: int
    clips: int


def evaluate_job(
    network: str, student: StudentParameters, recipe: Recipe, seed: int, inputs: dict[str, ArtifactRef], label: str,
    protocol: Protocol = "vidistill",
) -> Job:  # fmt: skip
    """Inputs: `train` and `test` clips; `distilled`, or `index` for all clips; `teacher` where labels are online."""
    own = student.of(network)
    if protocol == benchmark.NAME:
        own = StudentParameters(**benchmark.STUDENT.model_dump() | {"precision": own.precision}, networks={})
    begun = {body: kinetics.named(weights) for body, weights in own.pretrained.items()}
    own = own.model_copy(update={"pretrained": {body: name for body, (name, _) in begun.items()}})
    parameters = EvaluateParameters(network=network, student=own, recipe=recipe, seed=seed, protocol=protocol)
    places = {name: place for _, found in begun.values() for name, place in found.items()}
    return evaluate(parameters, inputs, label=label).model_copy(update={"places": places})


@stage("score", version=2, threads="one")
def evaluate(work: Work) -> None:
    parameters = EvaluateParameters.model_validate(work.job.parameters)
    facts = DistilledSet.facts_of(work.input("distilled")) if work.refs("distilled") else {}
    student = at_its_rate(parameters.student, facts)
    device = Device.of(work, student.precision)
    clips, test_clips = Clips(work.store, work.ref("train")), Clips(work.store, work.ref("test"))
    seed = training.role_seed(parameters.seed, streams.STUDENT_WEIGHTS)
    network = training.build_network(parameters.network, len(clips.classes), clips.shape_THWC, seed)
    for weights in student.pretrained.values():
        kinetics.begin(network, unchanged(work.job.places.get(weights, weights), weights), clips.table)
    batches = _batches(work, parameters, clips, seed, device)
    draw, steps = batches.draw, student.steps(batches.order.n // facts.get(VARIANTS, 1))
    if parameters.protocol == benchmark.NAME:
        draw = benchmark.standardising(draw)
    soft = parameters.recipe.kind != "hard"
    curve = training.train(
        network, draw, steps, student.optimiser, device, seed=seed, work=work, average=student.average,
        temperature=parameters.recipe.temperature if soft else 1.0,
    )  # fmt: skip
    if parameters.protocol == benchmark.NAME:
        logits_NK, labels_N = benchmark.predict(network, test_clips, seed, device)
    else:
        logits_NK, labels_N = predict_test(network, test_clips, device), test_clips.labels_N
    flops = 3 * flops_a_clip(network, clips.shape_THWC) + batches.teacher_flops
    made = Score(
        **score(logits_NK, labels_N), steps=tuple(curve.steps), loss=tuple(curve.loss),
        flops=flops * batches.order.clips_until(steps), training_bytes=batches.bytes, clips=batches.order.n,
    )  # fmt: skip
    write_score(work, made, logits_NK, labels_N)
    work.record(seeds=[parameters.seed], counts={"clips": made.clips, "test": len(test_clips)}, **device.facts())


def at_its_rate(student: StudentParameters, facts: dict[str, Any]) -> StudentParameters:
    """The student at the learning rate of SGD that its set learned, where that is asked for and its facts have one."""
    if not student.learnt_lr or "lr" not in facts or student.optimiser.method != "sgd":
        return student
    return student.model_copy(update={"optimiser": student.optimiser.model_copy(update={"lr": facts["lr"]})})


def load_confusion(folder: Path) -> NDArray[np.int32] | None:
    """What was called what: (K, K) counts, a row a true class; None of scores from before it was kept."""
    return np.load(folder / CONFUSION) if (folder / CONFUSION).is_file() else None


def write_score(work: Work, made: Score, logits_NK: Tensor, labels_N: Any) -> None:
    """The score, and what was called what: (K, K) counts, a row a true class."""
    confusion_KK = np.zeros((logits_NK.shape[1],) * 2, dtype=np.int32)
    np.add.at(confusion_KK, (labels_N, logits_NK.argmax(1).numpy()), 1)
    np.save(work.folder / CONFUSION, confusion_KK)
    (work.folder / SCORE).write_text(made.model_dump_json(), encoding="utf-8")


@dataclass(frozen=True)
class Batches:
    """What a student learns from.

    Attributes:
        draw: the batches.
        order: over the clips that they come from.
        bytes: all that is kept to train from.
        teacher_flops: of the teacher's answer for one clip, where it is asked at every step.
    """

    draw: Draw
    order: Order
    bytes: int
    teacher_flops: int = 0


def _batches(work: Work, parameters: EvaluateParameters, clips: Clips, seed: int, device: Device) -> Batches:
    student, recipe = parameters.student, parameters.recipe
    if not work.refs("distilled"):
        order = Order(len(clips), student.optimiser.batch_size, seed)
        real = RealBatches(clips.preload(), order, device, student, streams.STUDENT_VIEWS)
        kept = load_index(work.store, work.ref("index")).of_split("train")
        return Batches(real, order, sum(video.bytes for video in kept))
    distilled = DistilledSet.load(work.input("distilled"))
    order = Order(len(distilled), student.optimiser.batch_size, seed)
    size = DistilledSet.training_bytes(work.input("distilled"), logits=recipe.labels in STORED)
    teacher = None
    if recipe.labels == "online":
        teacher = load_teacher(work.store, work.ref("teacher"), clips, device)
        size += work.store.manifest(work.ref("teacher")).bytes
    flips = clips.table.flips and parameters.protocol != benchmark.NAME
    table = clips.table.model_copy(update={"flips": flips})
    draw = DistilledBatches(distilled, table, recipe, order, device, teacher, student)
    asked = 0 if teacher is None else flops_a_clip(teacher, clips.shape_THWC)
    return Batches(draw, order, size, asked)


class DistilledBatches:
    """Batches of a distilled set under a recipe, cropped, and flipped where the data set allows it."""

    def __init__(
        self, distilled: DistilledSet, table: ClipTable, recipe: Recipe, order: Order, device: Device,
        teacher: nn.Module | None, student: TrainingParameters,
    ) -> None:  # fmt: skip
        import torch

        every_NTHWC = distilled.clips_NTHWC
        if distilled.others_VNTHWC is not None:
            every_NTHWC = np.concatenate([every_NTHWC, *distilled.others_VNTHWC])
        self._clips_NTHWC = torch.from_numpy(every_NTHWC).to(device.torch_device)
        self._mean, self._std = table.mean, table.std
        self._recipe, self._order, self._device, self._teacher = recipe, order, device, teacher
        self._flips, self._student = table.flips, student
        if recipe.labels == "soft" or (recipe.labels == "learned" and distilled.logits_NK is not None):
            logits_NK = torch.from_numpy(distilled.logits_NK).to(device.torch_device)
            self._targets_NK = soft_targets(logits_NK, recipe.temperature)
        else:
            hard_NK = training.one_hot(distilled.labels_N, len(table.classes), device)
            self._targets_NK = smoothed(hard_NK, student.label_smoothing)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        import torch

        from vidistill.models import compute

        rows = torch.from_numpy(self._order.rows(step)).to(self._device.torch_device)
        clips_BTHWC, targets_BK = self._clips_NTHWC[self._variants(rows, step)], self._targets_NK[rows]
        x_BCTHW = compute.normalise(clips_BTHWC, self._mean, self._std)
        random = training.generator(self._order.seed, step, streams.STUDENT_VIEWS)
        if self._teacher is not None and self._recipe.augmentation != "none":
            mix = GuidedMix.model_validate(self._recipe.settings)
            x_BCTHW = videomix(x_BCTHW, mix, self._recipe.augmentation, self._order.seed, step)
        x_BCTHW = view(x_BCTHW, self._student, self._flips, random)
        if self._teacher is not None:
            with torch.no_grad(), self._device.autocast():
                targets_BK = soft_targets(self._teacher(x_BCTHW).float(), self._recipe.temperature)
        return cutmix(x_BCTHW, targets_BK, self._student.cutmix, random)

    def _variants(self, rows_B: Tensor, step: int) -> Tensor:
        """Rows of clips: of each of these instances one of its variants, drawn at random."""
        import torch

        variants = len(self._clips_NTHWC) // self._order.n
        random = training.generator(self._order.seed, step, streams.STUDENT_VARIANTS)
        drawn_B = torch.from_numpy(random.integers(variants, size=len(rows_B))).to(rows_B)
        return rows_B + self._order.n * drawn_B


def soft_targets(logits_BK: Tensor, temperature: float) -> Tensor:
    """The teacher's probabilities at a temperature."""
    return (logits_BK / temperature).softmax(dim=1)


def predict_test(network: nn.Module, clips: Clips, device: Device, seen: ClipTable | None = None) -> Tensor:
    """Logits (N, K) of the centre clip of every video of a set, normalised as `seen` says or as the set itself."""
    return training.predict(network, centre_clips(clips, range(len(clips)), device, seen), device)


def score(logits_NK: Tensor, labels_N: Any) -> dict[str, Any]:
    """Top-1, top-5 (top-K for fewer classes), macro AUC and macro F1 over the classes, and accuracy a class.

    AUC is the mean over the classes that there are clips of; the accuracy of another is 0.
    """
    import torch
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_auroc, multiclass_f1_score

    labels = torch.as_tensor(labels_N)
    classes = logits_NK.shape[1]
    probabilities_NK = logits_NK.softmax(1)
    per_class = multiclass_accuracy(logits_NK, labels, classes, average=None)
    auc = multiclass_auroc(probabilities_NK, labels, classes, average=None)
    return {
        "top1": float(multiclass_accuracy(logits_NK, labels, classes, average="micro")),
        "top5": float(multiclass_accuracy(logits_NK, labels, classes, average="micro", top_k=min(5, classes))),
        "auc": float(auc[torch.bincount(labels, minlength=classes) > 0].mean()),
        "f1": float(multiclass_f1_score(logits_NK, labels, classes, average="macro")),
        "per_class": tuple(per_class.tolist()),
    }


def flops_a_clip(network: nn.Module, shape_THWC: tuple[int, ...]) -> int:
    """Floating-point operations of one forward pass of one clip; training takes about three times as many."""
    from vidistill.models import compute

    frames, height, width, colours = shape_THWC
    return compute.flops(network, (1, colours, frames, height, width))


def load_score(folder: Any) -> Score:
    return Score.model_validate_json((folder / SCORE).read_bytes())
