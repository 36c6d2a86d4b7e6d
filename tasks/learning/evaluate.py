"""Evaluate: train a student on a distilled set (or on all clips) and score it on the real test split.

The last step is scored, never the best; one centre clip a test video, no flips (design of the honest protocol).
Shapes: B clips a batch, N clips, K classes; `x_BCTHW` is normalised.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.relabel import GuidedMix, videomix
from vidistill.tasks.learning.teacher import RealBatches, load_teacher
from vidistill.tasks.learning.training import Device, Draw, OptimiserParameters, Order, Precision
from vidistill.tasks.methods import Recipe
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from torch import Tensor, nn

SCORE = "score.json"
NETWORK_OPTIMISERS = {
    "c3d": OptimiserParameters(lr=0.001, batch_size=16, warmup_share=0.1),
    "video_swin_t": OptimiserParameters(lr=0.01, batch_size=16),
}
"""Measured on the validation fifth of sprites (8×56×56, Random, IPC 5, 100 steps, two seeds). C3D, which has no
normalisation: 82.8 % at this rate; in its first steps at 0.003 its loss rises fourfold, at 0.01 tenfold and more. Video
Swin-T stays at chance (12.5 %) at every rate tried, 14.8 to 17.2 %: SGD at 0.01 and 0.03, AdamW at 3e-4 and 1e-3."""


class StudentParameters(Parameters):
    """How every student is trained, whatever the method (VDSD's optimiser, methods §1.4; a stated number of steps)."""

    steps: int = Field(300, ge=1, description="SGD steps on a distilled set.")
    full_steps: int = Field(1000, ge=1, description="SGD steps on all of the training clips.")
    optimiser: OptimiserParameters = OptimiserParameters(lr=0.01, batch_size=32)
    full_optimiser: OptimiserParameters = OptimiserParameters(lr=0.02, batch_size=16, warmup_share=0.05)
    crop_scale: float = Field(1.0, gt=0, le=1, description="Smallest area share of the random crops; 1 is no crops.")
    precision: Precision = "auto"
    networks: dict[str, OptimiserParameters] = Field(
        NETWORK_OPTIMISERS,
        exclude_if=lambda found: not found,
        description="Instead of both optimisers, for students of these names.",
    )

    def of(self, network: str) -> StudentParameters:
        """How a student of this network is trained: `networks` is settled and gone, so that it is in no score's key."""
        own = self.networks.get(network)
        chosen = {} if own is None else {"optimiser": own, "full_optimiser": own}
        return self.model_copy(update={**chosen, "networks": {}})


class EvaluateParameters(Parameters):
    network: str
    student: StudentParameters
    recipe: Recipe
    seed: int


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
    network: str, student: StudentParameters, recipe: Recipe, seed: int, inputs: dict[str, ArtifactRef], label: str
) -> Job:
    """Inputs: `train` and `test` clips; `distilled`, or nothing for all clips; `teacher` where labels are online."""
    parameters = EvaluateParameters(network=network, student=student.of(network), recipe=recipe, seed=seed)
    return evaluate(parameters, inputs, label=label)


@stage("score", version=1, threads="one")
def evaluate(work: Work) -> None:
    parameters = EvaluateParameters.model_validate(work.job.parameters)
    student, full = parameters.student, not work.refs("distilled")
    device = Device.of(work, student.precision)
    train_clips, test_clips = Clips(work.store, work.ref("train")), Clips(work.store, work.ref("test"))
    network = training.build_network(
        parameters.network, len(train_clips.classes), train_clips.shape_THWC, parameters.seed
    )
    optimiser, steps = (student.full_optimiser, student.full_steps) if full else (student.optimiser, student.steps)
    draw, clips, size = _draws(work, parameters, optimiser, train_clips, device)
    curve = training.train(network, draw, steps, optimiser, device, seed=parameters.seed, work=work)
    logits_NK = predict_test(network, test_clips, device)
    facts = score(logits_NK, test_clips.labels_N)
    cost = 3 * flops_a_clip(network, train_clips.shape_THWC) * steps * min(optimiser.batch_size, clips)
    made = Score(
        **facts, steps=tuple(curve.steps), loss=tuple(curve.loss), flops=cost, training_bytes=size, clips=clips
    )
    (work.folder / SCORE).write_text(made.model_dump_json())
    work.record(seeds=[parameters.seed], counts={"clips": clips, "test": len(test_clips)}, **device.facts())


def _draws(
    work: Work, parameters: EvaluateParameters, optimiser: OptimiserParameters, clips: Clips, device: Device
) -> tuple[Draw, int, int]:
    """The batches, how many clips they come from, and the bytes that are kept to train from them."""
    if not work.refs("distilled"):
        order = Order(len(clips), optimiser.batch_size, parameters.seed)
        blocks = work.store.manifest(work.ref("train")).inputs["blocks"]
        size = sum(work.store.manifest(block).bytes for block in blocks)
        return RealBatches(clips.preload(), order, device, parameters.student.crop_scale), len(clips), size
    distilled = DistilledSet.load(work.input("distilled"))
    size = DistilledSet.training_bytes(work.input("distilled"))
    teacher = None
    if parameters.recipe.labels == "online":
        teacher = load_teacher(work.store, work.ref("teacher"), clips, device)
        size += work.store.manifest(work.ref("teacher")).bytes
    order = Order(len(distilled), optimiser.batch_size, parameters.seed)
    draw = DistilledBatches(distilled, clips, parameters.recipe, order, device, teacher, parameters.student.crop_scale)
    return draw, len(distilled), size


class DistilledBatches:
    """Batches of a distilled set under a recipe, cropped, and flipped where the data set allows it."""

    def __init__(
        self, distilled: DistilledSet, clips: Clips, recipe: Recipe, order: Order, device: Device,
        teacher: nn.Module | None, crop_scale: float,
    ) -> None:  # fmt: skip
        import torch

        every_NTHWC = distilled.clips_NTHWC
        if distilled.others_VNTHWC is not None:
            every_NTHWC = np.concatenate([every_NTHWC, *distilled.others_VNTHWC])
        self._x_NCTHW = training.to_input(every_NTHWC, clips.table.mean, clips.table.std, device)
        self._recipe, self._order, self._device, self._teacher = recipe, order, device, teacher
        self._flips, self._crop_scale = clips.table.flips, crop_scale
        if recipe.labels == "soft" or (recipe.labels == "learned" and distilled.logits_NK is not None):
            logits_NK = torch.from_numpy(distilled.logits_NK).to(device.torch_device)
            self._targets_NK = soft_targets(logits_NK, recipe.temperature)
        else:
            self._targets_NK = training.one_hot(distilled.labels_N, len(clips.classes), device)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        import torch

        rows = torch.from_numpy(self._order.rows(step)).to(self._device.torch_device)
        x_BCTHW, targets_BK = self._x_NCTHW[self._variants(rows, step)], self._targets_NK[rows]
        random = training.generator(self._order.seed, step, streams.STUDENT_VIEWS)
        if self._teacher is not None and self._recipe.augmentation != "none":
            mix = GuidedMix.model_validate(self._recipe.settings)
            x_BCTHW = videomix(x_BCTHW, mix, self._recipe.augmentation, self._order.seed, step)
        x_BCTHW = training.augment(x_BCTHW, self._flips, self._crop_scale, random)
        if self._teacher is not None:
            with torch.no_grad(), self._device.autocast():
                targets_BK = soft_targets(self._teacher(x_BCTHW).float(), self._recipe.temperature)
        return x_BCTHW, targets_BK

    def _variants(self, rows_B: Tensor, step: int) -> Tensor:
        """Rows of clips: of each of these instances one of its variants, drawn at random."""
        import torch

        variants = len(self._x_NCTHW) // self._order.n
        random = training.generator(self._order.seed, step, streams.STUDENT_VARIANTS)
        drawn_B = torch.from_numpy(random.integers(variants, size=len(rows_B))).to(rows_B)
        return rows_B + self._order.n * drawn_B


def soft_targets(logits_BK: Tensor, temperature: float) -> Tensor:
    """The teacher's probabilities at a temperature."""
    return (logits_BK / temperature).softmax(dim=1)


def predict_test(network: nn.Module, clips: Clips, device: Device, batch_size: int = 32) -> Tensor:
    """Logits (N, K) of the centre clip of every video of a set."""
    table = clips.table
    batches = (
        training.to_input(clips.read(range(start, min(start + batch_size, len(clips)))), table.mean, table.std, device)
        for start in range(0, len(clips), batch_size)
    )
    return training.predict(network, batches, device)


def score(logits_NK: Tensor, labels_N: Any) -> dict[str, Any]:
    """Top-1, top-5 (top-K for fewer classes), macro AUC and macro F1 over the classes, and accuracy a class."""
    import torch
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_auroc, multiclass_f1_score

    labels = torch.as_tensor(labels_N)
    classes = logits_NK.shape[1]
    probabilities_NK = logits_NK.softmax(1)
    per_class = multiclass_accuracy(logits_NK, labels, classes, average=None)
    return {
        "top1": float(multiclass_accuracy(logits_NK, labels, classes, average="micro")),
        "top5": float(multiclass_accuracy(logits_NK, labels, classes, average="micro", top_k=min(5, classes))),
        "auc": float(multiclass_auroc(probabilities_NK, labels, classes, average="macro")),
        "f1": float(multiclass_f1_score(logits_NK, labels, classes, average="macro")),
        "per_class": tuple(per_class.tolist()),
    }


def flops_a_clip(network: nn.Module, shape_THWC: tuple[int, ...]) -> int:
    """Floating-point operations of one forward pass of one clip; training takes about three times as many."""
    from vidistill.models import compute

    frames, height, width, colours = shape_THWC
    return compute.flops(network, (1, colours, frames, height, width))


def load_score(folder: Any) -> Score:
    return Score.model_validate(json.loads((folder / SCORE).read_text()))
