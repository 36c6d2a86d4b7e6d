"""Search: at a budget of bytes neither the most clips nor the finest are best, so small students are asked.

A group-aware fifth of the training split is held out. From the rest a set is kept at each point of a grid, with as many
clips as the budget has room for, labelled as the recipe says, and students of it are scored on the fifth. By successive
halving (Jamieson and Talwalkar 2016) each round goes on with the better half of the points and gives each more
students; a student has a draw of clips and first weights of its own. The teacher that labels has seen the fifth, at all
points alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.storage.streams import WORST_CRF
from vidistill.tasks.coded.keep import Budget, Coder, Coding, Footage, as_set, in_both, kept, kept_coarser
from vidistill.tasks.coded.pick import Pick, ordered
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.embedding import EMBEDDINGS, load_embeddings
from vidistill.tasks.learning.evaluate import DistilledBatches
from vidistill.tasks.learning.relabel import teacher_logits
from vidistill.tasks.learning.rows import enough
from vidistill.tasks.learning.teacher import load_teacher
from vidistill.tasks.learning.training import Device, Order, TrainingParameters
from vidistill.tasks.learning.trial import fifths
from vidistill.tasks.learning.views import in_batches
from vidistill.tasks.methods import Recipe
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from torch import Tensor

SEARCH, SCORES = "search.json", "scores.json"


class SearchParameters(Parameters):
    """The grid, the students that try its points, and about how many steps they take in all.

    Of points that keep the same clips of the same pictures the first is tried, for what is left of the budget is spent
    alike: the finest quantiser that has room for them.
    """

    crfs: tuple[Annotated[int, Field(ge=1, le=WORST_CRF)], ...] = Field(
        (40, 46, 52, 58, 63), min_length=1, description="Quantisers, the finest first."
    )
    scales: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (1.0, 0.75), min_length=1, description="Sides of the coded pictures, as shares."
    )
    frames: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0,), min_length=1, description="Frames kept a clip, as shares: 0.5, 1, 2."
    )
    network: str = Field("r2plus1d_small", description="The student that tries a point.")
    student: TrainingParameters = Field(
        TrainingParameters(epochs=1, least_steps=200), description="How it is trained: shorter than a student."
    )
    steps: int = Field(
        6000,
        ge=1,
        description="About how many steps all students take, as many a round; a point has two students or more in the "
        "first, one or more in the others (ten points take 7,400).",
    )

    def rounds(self, points: int) -> list[tuple[int, int]]:
        """(points, students of each) a round, by halves until one would be left."""
        sizes = [math.ceil(points / 2**number) for number in range(math.ceil(math.log2(points)))]
        students = [self.steps // (len(sizes) * self.student.least_steps * size) for size in sizes]
        return [(size, max(2 - bool(done), own)) for done, (size, own) in enumerate(zip(sizes, students, strict=True))]


class TrialParameters(Parameters):
    """What a search depends on besides clips and teachers."""

    kb: float
    recipe: Recipe
    pick: Pick
    preset: int
    views: int
    view_scale: float
    together: bool = Field(False, exclude_if=lambda together: not together)
    even: bool = Field(False, exclude_if=lambda even: not even)
    search: SearchParameters


class Point(Parameters):
    """A point of the grid: what it keeps, how many students tried it, and the mean of their top-1.

    Attributes:
        crf: the quantiser that says how many clips have room.
        coarsest: the coarsest one that keeps as many of the clips that were searched; of all clips it may keep more.
        clips, bytes: of the first student's set.
    """

    crf: int
    coarsest: int
    scale: float
    frames: float
    clips: int
    bytes: int
    students: int = 0
    top1: float = 0.0

    def scored(self, top1: float) -> Point:
        """After one more student."""
        mean = (self.top1 * self.students + top1) / (self.students + 1)
        return self.model_copy(update={"students": self.students + 1, "top1": mean})


class Found(Parameters):
    """The points that were tried, and the one that is taken."""

    points: tuple[Point, ...]
    best: Point


def search_job(inputs: dict[str, list[ArtifactRef]], parameters: TrialParameters) -> Job:
    """Inputs: `clips`; a `teacher` where labels or the pick need one; its `embeddings` where the pick reads features;
    `dense` clips where a share of frames needs them.
    """
    return search(parameters, inputs, label=f"search coded {parameters.recipe.name} kb {parameters.kb:g}")


def load_search(folder: Path) -> Found:
    return Found.model_validate_json((folder / SEARCH).read_bytes())


def best(points: Sequence[Point], held: int) -> Point:
    """Of the points that most students tried the best; of those that lead by less than one of the held-out clips that
    of most clips.
    """
    last = [point for point in points if point.students == max(point.students for point in points)]
    ahead = max(point.top1 for point in last)
    tied = [point for point in last if point.top1 > ahead - 1 / held]
    return max(tied, key=lambda point: (point.clips, point.top1))


class Trials:
    """Sets of four fifths of the clips, and their students."""

    def __init__(self, work: Work, parameters: TrialParameters) -> None:
        self.parameters, self.asked = parameters, parameters.search
        self.clips = Clips(work.store, work.ref("clips")).preload()
        self.device = Device.of(work, self.asked.student.precision)
        self.teacher = cache(lambda: load_teacher(work.store, work.ref("teacher"), self.clips, self.device))
        fit_N, self.held_N = fifths(self.clips.table.videos, self.clips.classes)
        dense = dense_clips(work)
        there_N = in_both(self.clips, dense, fit_N)
        by_class = [
            enough(self.clips, label, 1, there_N[self.clips.labels_N[there_N] == label])
            for label in range(len(self.clips.classes))
        ]
        embeddings = cache(lambda: load_embeddings(work.store.folder(work.ref(EMBEDDINGS))))
        drawn = cache(lambda seed: [
            ordered(parameters.pick, self.clips, rows_N, seed, self.teacher, embeddings, self.device)
            for rows_N in by_class
        ])  # fmt: skip
        self.orders = drawn if parameters.pick == "random" else lambda _seed: drawn(0)
        self.soft = parameters.recipe.labels == "soft"
        self.budget = Budget(parameters.kb, 1, len(self.clips.classes), parameters.views, self.soft)
        self.coders = {
            (scale, frames): Coder(
                Footage(self.clips, frames, dense),
                Coding(preset=parameters.preset, scale=scale, even=parameters.even),
                together=parameters.together,
            )
            for frames in self.asked.frames
            for scale in self.asked.scales
        }

    def points(self) -> list[Point]:
        """The grid, without points at which nothing fits or which keep as many clips as one before them.

        Raises:
            RequestError: nothing fits anywhere; says what the last of them takes.
        """
        found: dict[tuple[float, float, int], Point] = {}
        problem: RequestError | None = None
        for (scale, frames), crf in product(self.coders, self.asked.crfs):
            try:
                made = kept(self.coders[scale, frames], self.orders(0), crf, self.budget)
            except RequestError as error:
                problem = error
                continue
            clips = len(made.rows_N)
            size = self.budget.size(made.stream, clips)
            point = Point(crf=crf, coarsest=crf, scale=scale, frames=frames, clips=clips, bytes=size)
            first = found.setdefault((scale, frames, clips), point)
            found[scale, frames, clips] = first.model_copy(update={"coarsest": crf})
        if not found and problem is not None:
            raise problem
        return list(found.values())

    def score(self, point: Point, seed: int) -> float:
        """Top-1 of one student on every stored view of the held-out clips."""
        made = self._set(point, seed)
        own, recipe = self.asked.student, self.parameters.recipe
        weights = training.role_seed(seed, streams.TRIAL_WEIGHTS)
        network = training.build_network(self.asked.network, len(made.classes), self.clips.shape_THWC, weights)
        order = Order(len(made), own.optimiser.batch_size, weights)
        draw = DistilledBatches(made, self.clips.table, recipe, order, self.device, None, own)
        training.train(
            network, draw, own.steps(order.n), own.optimiser, self.device, seed=weights, average=own.average,
            temperature=recipe.temperature if self.soft else 1.0,
        )  # fmt: skip
        logits_NK = training.predict(network, every_view(self.clips, self.held_N, self.device), self.device)
        labels_N = np.tile(self.clips.labels_N[self.held_N], self.clips.table.views)
        return float((logits_NK.argmax(1).numpy() == labels_N).mean())

    def _set(self, point: Point, seed: int) -> DistilledSet:
        """That the point keeps of the clips that this seed draws, which may take more bytes than those of the first."""
        found = kept_coarser(self.coders[point.scale, point.frames], self.orders(seed), point.crf, self.budget)
        made = as_set(self.clips, found, self.parameters.views, self.parameters.view_scale, seed)
        if not self.soft:
            return made
        return made.with_logits(teacher_logits(self.teacher(), made, self.clips, self.device))


def every_view(clips: Clips, rows_N: NDArray[np.int64], device: Device) -> Iterator[Tensor]:
    """All of these rows at their first stored view, then at their second, as normalised batches."""

    def seen(view: int) -> Iterator[Tensor]:
        return in_batches(lambda part: clips.read(rows_N[part], view), len(rows_N), clips.table, device)

    for view in range(clips.table.views):
        yield from seen(view)


def dense_clips(work: Work) -> Clips | None:
    """The clips of more frames, where a share of frames needs them."""
    return Clips(work.store, work.ref("dense")) if work.refs("dense") else None


@stage("coded-search", version=4, threads="one")
def search(work: Work) -> None:
    trials = Trials(work, TrialParameters.model_validate(work.job.parameters))
    points = trials.points()
    rounds = trials.asked.rounds(len(points))
    checkpoint = work.last_checkpoint()
    known: list[float] = [] if checkpoint is None else json.loads((checkpoint[1] / SCORES).read_text())
    total, done = sum(size * students for size, students in rounds), 0
    for size, students in rounds:
        points.sort(key=lambda point: (-point.students, -point.top1))  # stable: of equal ones the first goes on
        for place, _ in product(range(size), range(students)):
            if done == len(known):
                known.append(trials.score(points[place], points[place].students))
                work.checkpoint(done + 1, partial(_write, known))
            points[place] = points[place].scored(known[done])
            done += 1
            work.progress(done, total, f"{len(points)} points")
    found = Found(points=tuple(points), best=best(points, len(trials.held_N)))
    (work.folder / SEARCH).write_text(found.model_dump_json(indent=1), encoding="utf-8")
    seeds = list(range(max(point.students for point in points)))
    work.record(seeds=seeds, counts={"points": len(points), "held out": len(trials.held_N)}, **trials.device.facts())


def _write(scores: list[float], folder: Path) -> None:
    (folder / SCORES).write_text(json.dumps(scores))
