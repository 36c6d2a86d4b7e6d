"""`vidistill train`: a video classifier of one's own on a distilled set, scored on real test videos.

The set is a key of the store or an exported folder; nothing but it and the test videos is read. With the network, the
seed and the labels of a report's row, the student is that row's, to rounding: it takes all cores, that took one.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from vidistill.flows.housekeeping import existing, set_of
from vidistill.flows.parameters import checked, merged
from vidistill.flows.runners import WORKERS
from vidistill.models import NETWORKS, known, parted
from vidistill.storage.clips import Clips, ClipTable, in_common
from vidistill.storage.distilled import VARIANTS, DistilledSet
from vidistill.storage.errors import RequestError
from vidistill.storage.exported import EXPORT, read_facts
from vidistill.storage.files import expanded, write_out, writing_to
from vidistill.storage.leases import leased
from vidistill.storage.opening import open_store
from vidistill.storage.parameters import Parameters
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.evaluate import DistilledBatches, StudentParameters, at_its_rate, predict_test, score
from vidistill.tasks.learning.own import named
from vidistill.tasks.learning.training import Device, Order
from vidistill.tasks.methods import Recipe
from vidistill.tasks.report.origin import Origin
from vidistill.tasks.stage import Runtime, report_progress, run_job
from vidistill.tasks.videos.decode import DecodeParameters, block_jobs, clips_job
from vidistill.tasks.videos.index import index_job, survey
from vidistill.tasks.videos.layouts import IndexParameters

STUDENT, FACTS = "student.safetensors", "train.json"
log = logging.getLogger("vidistill")
Tests = tuple[Clips, np.ndarray]
"""Test clips, and their labels as the set numbers the classes."""


class TrainRequest(Parameters):
    """What is trained on what, and how; where nothing is said, as the set was scored."""

    source: str = Field(description="A set's key, or its first letters, or a folder that `vidistill export` wrote.")
    network: str = Field("", description="A network's name, torchvision:NAME or FILE.py:CLASS; the set's own student.")
    test: str = Field("", description="A folder of test videos; the set's own test clips where it is in the store.")
    index: IndexParameters = IndexParameters()
    labels: Literal["auto", "hard", "soft"] = Field("auto", description="auto: as the set was scored.")
    seed: int = 0
    student: dict[str, Any] = Field(default_factory=dict, description="What differs from how it was scored.")


@dataclass(frozen=True)
class Source:
    """A set, what is known of it, and its test clips where the store has them."""

    made: DistilledSet
    facts: dict[str, Any]
    test: Clips | None

    @property
    def table(self) -> ClipTable:
        """How clips are normalised, and whether they may be mirrored."""
        mean, std = tuple(self.facts["mean"]), tuple(self.facts["std"])
        return ClipTable(
            classes=self.made.classes, flips=self.facts["flips"], views=1, mean=mean, std=std, videos=(), rejected=()
        )


def train(request: TrainRequest, runtime: Runtime, out: Path) -> dict[str, Any]:
    """Train a network on a set, write its weights and what they score.

    Returns:
        What `train.json` holds.

    Raises:
        RequestError: there is no such set, network or test folder, the test folder has other classes, the test clips
            another shape, or the network would see nothing.
    """
    source = source_of(request.source, runtime.store)
    name, places = _network(request, source)
    if not request.test and request.index != IndexParameters():
        raise RequestError("--layout and --split are those of --test DIR: give it, or leave them out.")
    if parted(name)[0] == "centred" and all((clip == clip[:1]).all() for clip in source.made.clips_NTHWC):
        raise RequestError(f"The clips of {request.source} stand still, and {name} sees what moves alone: give a "
                           "--network without `centred:`.")  # fmt: skip
    runtime = runtime.model_copy(update={"networks": places})
    with _tests(request, source, runtime) as tests:
        facts = _trained(request, name, source, tests, runtime, out)
    write_out(out, FACTS, json.dumps(facts, indent=1, ensure_ascii=False).encode())
    return facts


def _network(request: TrainRequest, source: Source) -> tuple[str, dict[str, str]]:
    """The name and place of the network that is asked for, or of the first that the set was scored by and is known
    here.

    Raises:
        RequestError: there is no such network, or they are all of files of the user's.
    """
    scored = [*source.facts["students"], *(one["student"] for one in source.facts["scores"])]
    asked = [request.network] if request.network else scored or ["r2plus1d_small"]
    for name, places in map(named, asked):
        if known(name):
            return name, places
    if not request.network:
        raise RequestError(f"The set was scored by {asked[0]}, of a file of yours: give it by --network FILE.py:CLASS.")
    raise RequestError(
        f"There is no network {request.network!r}: choose from {', '.join(NETWORKS)}, or give torchvision:NAME or "
        "FILE.py:CLASS."
    )


def _trained(
    request: TrainRequest, name: str, source: Source, tests: Tests, runtime: Runtime, out: Path
) -> dict[str, Any]:
    """Train, write the weights, and score them."""
    if shared := in_common(source.made.sources, tests[0]):
        log.warning(
            "%d of the %d test videos are named as videos that the set is made of: a score on what a set was made "
            "of is no test. Give --test a folder of other videos.", shared, len(tests[0]),
        )  # fmt: skip
    recipe, student = _recipe(request, source), _student(request, source, name)
    device = Device.on(runtime, runtime.threads, student.precision)
    seed = training.role_seed(request.seed, streams.STUDENT_WEIGHTS)
    network = training.build_network(name, len(source.made.classes), source.made.clips_NTHWC.shape[1:], seed)
    order = Order(len(source.made), student.optimiser.batch_size, seed)
    draw = DistilledBatches(source.made, source.table, recipe, order, device, None, student)
    steps = student.steps(order.n // source.made.facts.get(VARIANTS, 1))
    curve = training.train(
        network, _told(draw, steps, name), steps, student.optimiser, device, seed=seed,
        average=student.average, temperature=recipe.temperature if recipe.labels == "soft" else 1.0,
    )  # fmt: skip
    with writing_to(out):
        _save(network, out)
    logits_NK = predict_test(network, tests[0], device, seen=source.table)
    return {
        "source": request.source, "set": source.facts.get("set"), "network": name, "weights": STUDENT,
        "labels": recipe.labels, "seed": request.seed, "steps": curve.steps, "loss": curve.loss,
        "student": student.model_dump(mode="json"), "classes": list(source.made.classes),
        "clips": len(source.made), "test_clips": len(tests[0]), "test_clips_of_the_set": shared,
        **score(logits_NK, tests[1]), **device.facts(),
    }  # fmt: skip


def source_of(name: str, location: str) -> Source:
    """The set in an exported folder, or of a key in the store."""
    folder = expanded(name)
    if (folder / EXPORT).is_file():
        facts = read_facts(folder)
        if "mean" not in facts or "students" not in facts:
            raise RequestError(f"{folder / EXPORT} is of an older vidistill: export the set again.")
        return Source(DistilledSet.load(folder), facts, None)
    if folder.is_dir():
        raise RequestError(
            f"{folder} was not written by `vidistill export` (no {EXPORT}): export a set, or give a key."
        )
    store = existing(location)
    ref = set_of(store, name)
    made, origin = DistilledSet.load(store.folder(ref)), Origin.of(store, ref)
    tests = [one.inputs["test"][0] for one in origin.scores]
    return Source(made, origin.facts(made.logits_NK is not None), Clips(store, tests[0]) if tests else None)


def _recipe(request: TrainRequest, source: Source) -> Recipe:
    labels = request.labels if request.labels != "auto" else source.facts["labels"]
    if labels == "soft" and source.made.logits_NK is None:
        raise RequestError(f"{request.source} has no soft labels: take --labels hard.")
    if labels == "online":
        log.warning("This set was scored with a teacher that is asked at every step; here it has hard labels.")
    if labels != "soft":
        return Recipe(labels="hard")
    return Recipe(labels="soft", temperature=source.facts["temperature"])


def _student(request: TrainRequest, source: Source, name: str) -> StudentParameters:
    """As this network was trained on the set, or as others were with its usual optimiser; then what was asked."""
    if request.student.get("pretrained"):
        raise RequestError("`vidistill train` begins with fresh weights: take pretrained away from the student.")
    students = source.facts["students"]
    known = dict(students.get(name) or next(iter(students.values()), {}))
    if known.get("pretrained"):
        log.warning("The students of this set began with pretrained weights, and this one begins with fresh ones.")
    known["pretrained"] = {}
    if name in students:
        known["networks"] = {}
    else:
        known.pop("optimiser", None)
    usual = checked(StudentParameters, known, "The student").of(name).model_dump(mode="json") | {"networks": {}}
    return at_its_rate(checked(StudentParameters, merged(usual, request.student), "The student"), source.made.facts)


def _told(draw: Callable[[int], Any], steps: int, label: str) -> Callable[[int], Any]:
    def batch(step: int) -> Any:
        report_progress(f"train {label}", step, steps)
        return draw(step)

    return batch


@contextmanager
def _tests(request: TrainRequest, source: Source, runtime: Runtime) -> Iterator[Tests]:
    """The test clips; those that are decoded for it are kept from `vidistill gc` while the block runs."""
    with ExitStack() as kept:
        if request.test:
            root = expanded(request.test).absolute()
            found = kept.enter_context(_decoded(root, request.index, source, runtime))
        elif source.test is not None:
            found = source.test
        else:
            raise RequestError("Which test videos? Give --test DIR, a folder of labelled videos.")
        if found.shape_THWC != (shape_THWC := source.made.clips_NTHWC.shape[1:]):
            raise RequestError(f"The test clips are {found.shape_THWC} and the set's {shape_THWC}: give --test DIR.")
        numbers = {name: label for label, name in enumerate(source.made.classes)}
        yield found, np.array([numbers[found.classes[label]] for label in found.labels_N])


@contextmanager
def _decoded(root: Path, index: IndexParameters, source: Source, runtime: Runtime) -> Iterator[Clips]:
    """The clips of a folder's test split, or of all its videos where it has class folders and no split of its own."""
    index = index.model_copy(update={"test_only": True})
    table = survey(root, index, workers=WORKERS, timeout_seconds=runtime.timeout_seconds)
    if strange := sorted(set(table.classes) - set(source.made.classes)):
        known = ", ".join(source.made.classes)
        raise RequestError(f"The class {strange[0]!r} of {root} is none of the set: {known}.")
    runtime, facts = runtime.model_copy(update={"data": str(root)}), source.facts
    decode = DecodeParameters(frames=facts["frames"], interval=facts["interval"], size=facts["size"], views=1)
    listed, blocks = index_job(table, index), block_jobs(table, decode, "test")
    clips = clips_job(listed.ref, decode, "test", blocks)
    store = open_store(runtime.store)
    with leased(store, [job.ref for job in (listed, *blocks, clips)]):
        run_job(listed, runtime)
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lambda job: run_job(job, runtime), blocks))
        run_job(clips, runtime)
        yield Clips(store, clips.ref)


def _save(network: Any, out: Path) -> None:
    """The weights, whole; what was said of others that lay there goes first."""
    out.mkdir(parents=True, exist_ok=True)
    (out / FACTS).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as unfinished:
        training.save_weights(network, Path(unfinished) / STUDENT)
        (Path(unfinished) / STUDENT).replace(out / STUDENT)
