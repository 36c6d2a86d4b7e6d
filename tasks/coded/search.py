"""Search: at a budget of bytes neither the most clips nor the finest are best, so a small student is asked.

A group-aware fifth of the training split is held out; from the rest a set is kept at each quantiser and picture size,
each with as many clips as the budget has room for, and the one whose student scores best on the fifth is taken.
"""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.coded.keep import Budget, Coding, as_set, kept
from vidistill.tasks.coded.pick import Pick, centre_clips, ordered
from vidistill.tasks.learning import training
from vidistill.tasks.learning.evaluate import DistilledBatches
from vidistill.tasks.learning.relabel import mean_logits
from vidistill.tasks.learning.teacher import load_teacher
from vidistill.tasks.learning.training import Device, Order, TrainingParameters
from vidistill.tasks.learning.trial import fifths
from vidistill.tasks.methods import Recipe
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from torch import nn

GRID = "search.json"


class SearchParameters(Parameters):
    """The grid, and the student that tries its points. A point whose quantiser is coarser than one that already keeps
    every clip is left out.
    """

    crfs: tuple[int, ...] = Field((40, 46, 52, 58, 63), min_length=1, description="Quantisers, the finest first.")
    scales: tuple[float, ...] = Field((1.0, 0.75), min_length=1, description="Sides of the coded pictures, as shares.")
    network: str = Field("r2plus1d_small", description="The student that tries a point.")
    student: TrainingParameters = Field(
        TrainingParameters(epochs=20, least_steps=200), description="How it is trained: shorter than a student."
    )


class TrialParameters(Parameters):
    """What a search depends on besides clips and teachers."""

    kb: float
    recipe: Recipe
    pick: Pick
    preset: int
    views: int
    view_scale: float
    search: SearchParameters


class Point(Parameters):
    """A point of the grid: what it keeps, and what its student scores."""

    crf: int
    scale: float
    clips: int
    bytes: int
    top1: float


def search_job(clips: ArtifactRef, teachers: list[ArtifactRef], parameters: TrialParameters) -> Job:
    label = f"search coded {parameters.recipe.name} kb {parameters.kb:g}"
    return search(parameters, {"clips": [clips], "teacher": teachers}, label=label)


def load_grid(folder: Path) -> list[Point]:
    return [Point.model_validate(point) for point in json.loads((folder / GRID).read_text())]


def best(grid: list[Point]) -> Point:
    """The point of the highest score; of equal ones the first, which is the finest."""
    return max(grid, key=lambda point: point.top1)


@stage("coded-search", version=2, threads="one")
def search(work: Work) -> None:
    parameters = TrialParameters.model_validate(work.job.parameters)
    asked, clips = parameters.search, Clips(work.store, work.ref("clips"))
    device = Device.of(work, asked.student.precision)

    @cache
    def teachers() -> list[nn.Module]:
        return [load_teacher(work.store, ref, clips, device) for ref in work.refs("teacher")]

    fit_rows, held_rows = fifths(clips.table.videos, clips.classes)
    by_class = [fit_rows[clips.labels_N[fit_rows] == label] for label in range(len(clips.classes))]
    orders = [ordered(parameters.pick, clips, rows, 0, lambda: teachers()[0], device) for rows in by_class]
    codings = [Coding(crf=crf, preset=parameters.preset, scale=scale) for scale in asked.scales for crf in asked.crfs]
    soft = parameters.recipe.labels == "soft"
    budget = Budget(parameters.kb, 1, len(clips.classes), parameters.views, soft)
    found = work.last_checkpoint()
    done, grid = (0, []) if found is None else (found[0], load_grid(found[1]))
    for number, coding in enumerate(codings[done:], done + 1):
        point = _tried(clips, orders, coding, budget, parameters, held_rows, teachers if soft else list, device, grid)
        grid += [] if point is None else [point]
        work.progress(number, len(codings), f"{len(grid)} points")
        work.checkpoint(number, partial(_write, grid))
    if not grid:
        kept(clips, orders, min(codings, key=lambda coding: (-coding.crf, coding.scale)), budget)  # says what would fit
    _write(grid, work.folder)
    work.record(seeds=[0], counts={"points": len(grid), "held out": len(held_rows)}, **device.facts())


def _write(grid: list[Point], folder: Path) -> None:
    (folder / GRID).write_text(json.dumps([point.model_dump() for point in grid], indent=1))


def _tried(
    clips: Clips, orders: list[NDArray[np.int64]], coding: Coding, budget: Budget, parameters: TrialParameters,
    held_rows: NDArray[np.int64], teachers: Any, device: Device, grid: list[Point],
) -> Point | None:  # fmt: skip
    """What a student scores at this point; None where not a clip fits, or a finer quantiser already keeps all clips."""
    everything = sum(map(len, orders))
    if any(point.scale == coding.scale and point.clips == everything for point in grid):
        return None
    try:
        found = kept(clips, orders, coding, budget)
    except RequestError:
        return None
    made = as_set(clips, found, parameters.views, parameters.view_scale, seed=0)
    if asked := teachers():
        made = made.with_logits(mean_logits(asked, made, clips, device))
    top1 = _score(made, clips, held_rows, parameters, device)
    return Point(
        crf=coding.crf, scale=coding.scale, clips=len(found.rows_N), bytes=budget.size(found.stream), top1=top1
    )


def _score(
    made: DistilledSet, clips: Clips, held_rows: NDArray[np.int64], parameters: TrialParameters, device: Device
) -> float:
    """Top-1 on the held-out rows of a student that was trained on the set."""
    asked, student = parameters.search, parameters.search.student
    network = training.build_network(asked.network, len(clips.classes), clips.shape_THWC, seed=0)
    order = Order(len(made), student.optimiser.batch_size, seed=0)
    draw = DistilledBatches(made, clips.table, parameters.recipe, order, device, None, student)
    temperature = parameters.recipe.temperature if parameters.recipe.labels == "soft" else 1.0
    training.train(
        network, draw, student.steps(order.n), student.optimiser, device, seed=0, average=student.average,
        temperature=temperature,
    )  # fmt: skip
    logits_NK = training.predict(network, centre_clips(clips, held_rows, device), device)
    return float((logits_NK.argmax(1).numpy() == clips.labels_N[held_rows]).mean())
