"""The rows of a table: what an experiment asks for, and Random beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vidistill.flows.parameters import (
    Cell,
    DataRequest,
    Experiment,
    checked,
    fronted_networks,
    merged,
    networks_of,
    placeless,
)
from vidistill.models import FRONT_NAMES, NETWORKS, known, parted, too_small
from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters, in_words
from vidistill.tasks.distil import blaming
from vidistill.tasks.learning import benchmark
from vidistill.tasks.learning.evaluate import StudentParameters
from vidistill.tasks.learning.saliency import SaliencyParameters
from vidistill.tasks.methods import HARD, REGISTRY, STORED, MethodSource, Recipe, find_method, recipe_named
from vidistill.tasks.videos.index import IndexTable

FULL, RANDOM = "full", "random"
CODING = ("even", "preset")
TWO_CELLS = "Two cells that differ are both called {!r}: give one a variant's name."
TWO_WEIGHTS = "Students of two cells would begin with other weights, and both be called {!r}: rename a file."
TWO_CODINGS = (
    "The cells of coded differ in even or preset, and random clips coded have one row beside them: say how those are "
    "coded by a cell {method: coded, variant: random, options: {pick: random, search: null}}."
)


@dataclass(frozen=True)
class Row:
    """One row of the table: a method's variant at a budget, under a recipe, for a student.

    Attributes:
        companion: nobody asked for it: it is Random, beside a row that somebody asked for.
        kb: its budget in kilobytes a class, instead of `ipc`.
        taught: how its student is trained.
    """

    source: MethodSource | None
    cell: Cell
    recipe: Recipe
    ipc: int | None
    student: str
    seeds: int
    taught: StudentParameters
    companion: bool = False
    kb: float | None = None

    @property
    def of_pool(self) -> bool:
        """Whether its clips are chosen from the pool."""
        return self.source is not None and "pool" in self.source.method.needs

    @property
    def training(self) -> str:
        """How its student's training differs from the experiment's, in words; nothing where it does not."""
        return in_words(placeless(self.cell.student))

    @property
    def variant(self) -> str:
        """What it is called in the table, beside its method."""
        return " ".join(filter(None, [self.cell.variant, self.training]))


def rows_of(experiment: Experiment) -> list[Row]:
    """The rows that are asked for, and Random once for each recipe, budget and student of theirs.

    Raises:
        RequestError: an unknown method, student, recipe or option, or two cells of one name.
    """
    rows: dict[tuple[object, ...], Row] = {}
    for body in experiment.student.networks:
        if not known(body):
            raise RequestError(f"student.networks.{body} is no network: there are {', '.join(NETWORKS)}.")
    _check_rates(experiment)
    for cell in experiment.cells:
        for row in _rows_of_cell(experiment, cell):
            for one in [row, *_companion(row)]:
                name = (one.cell.method, one.variant, one.recipe.name, one.ipc, one.kb, one.student)
                met = rows.get(name, one)
                differ = (met.cell.options, met.cell.store) != (one.cell.options, one.cell.store)
                alike = _but_for_coding(met.cell) == _but_for_coding(one.cell)
                if differ and not (alike and met.companion != one.companion):
                    called = " ".join(filter(None, [one.cell.method, one.variant]))
                    raise RequestError(TWO_CODINGS if alike and one.companion else TWO_CELLS.format(called))
                if met.taught != one.taught:
                    raise RequestError(TWO_WEIGHTS.format(one.training))
                asked = one if met.companion else met
                companion = met.companion and one.companion
                rows[name] = replace(asked, seeds=max(met.seeds, one.seeds), companion=companion)
    if experiment.kb and not any(row.kb for row in rows.values()):
        raise RequestError("kb asks for budgets in kilobytes, and no method of this run takes them: add coded.")
    return list(rows.values())


def _but_for_coding(cell: Cell) -> tuple[dict[str, Any], object]:
    return {name: value for name, value in cell.options.items() if name not in CODING}, cell.store


def _companion(row: Row) -> list[Row]:
    """Random at the row's budget, its student trained alike: of kilobytes, random clips coded alike, not searched."""
    if row.ipc is None and row.kb is None:
        return []
    cell = Cell(method="random", student=row.cell.student)
    if row.kb is not None:
        alike = {name: row.cell.options[name] for name in CODING if name in row.cell.options}
        options = alike | {"pick": "random", "search": None}
        cell = Cell(method="coded", variant=RANDOM, options=options, student=row.cell.student)
    return [replace(row, source=find_method(cell.method), cell=cell, companion=True)]


def _rows_of_cell(experiment: Experiment, cell: Cell) -> list[Row]:
    students, seeds = cell.students or experiment.students, cell.seeds or experiment.seeds
    for role, name in (("teacher", experiment.teacher.network), *(("student", name) for name in students)):
        if not known(name):
            front, body = parted(name)
            asked = body if front in FRONT_NAMES else name
            raise RequestError(
                f"There is no {role} {asked!r}: choose from {', '.join(NETWORKS)}, or FRONT:NAME with a front of "
                f"{', '.join(FRONT_NAMES)}."
            )
        check_size(experiment, name)
    taught = {student: _taught(experiment, cell, student) for student in students}
    if cell.method == FULL:
        if cell.store is not None:
            raise RequestError("For all clips as compressed video ask for coded with an ipc or kb that takes them all.")
        return [Row(None, cell, HARD, None, student, seeds, taught[student]) for student in students]
    source = find_method(cell.method)
    _check_networks(experiment, cell, source)
    if cell.store is not None:
        if cell.method == "coded":
            raise RequestError("The clips of coded are compressed video already: give it crf, not store.")
        cell = cell.model_copy(update={"variant": f"{cell.variant} coded".strip()})
    saliency = experiment.saliency
    field = source.method.Parameters.model_fields.get("saliency")
    if field is not None and field.annotation is SaliencyParameters:  # one s and one ε for the mask and for VideoMix
        own = saliency.model_dump(mode="json") | cell.options.get("saliency", {})
        saliency = checked(SaliencyParameters, own, f"The saliency of {cell.method}")
        cell = cell.model_copy(update={"options": cell.options | {"saliency": own}})
    settings = experiment.mix.model_dump(mode="json") | {"saliency": saliency.model_dump(mode="json")}
    recipes = [recipe_named(name, experiment.temperature, settings) for name in cell.recipes or source.method.recipes]
    _check_mixed(cell, source, recipes)
    return [
        Row(source, cell, recipe, ipc, student, seeds, taught[student], kb=kb)
        for ipc, kb in _budgets(experiment, cell, source, recipes)
        for recipe in recipes
        for student in students
    ]


def _check_mixed(cell: Cell, source: MethodSource, recipes: list[Recipe]) -> None:
    """Make sure that a recipe keeps mixed clips of such methods alone whose clips can be mixed once for all.

    Raises:
        RequestError: one would.
    """
    mixed = [recipe for recipe in recipes if recipe.labels in STORED and recipe.augmentation != "none"]
    with blaming(source):
        why = source.method(options_of(source, cell)).unmixed if mixed else ""
    if why:
        raise RequestError(
            f"The recipe {mixed[0].name} keeps mixed clips, and of {source.name} {why}: take the recipe soft, or "
            f"online+{mixed[0].augmentation}, which mixes at every step."
        )


def _check_rates(experiment: Experiment) -> None:
    """Make sure that an optimiser which is asked for is some student's."""
    own, asked = experiment.student, [name for cell in experiment.cells for name in cell.students or ()]
    bodies = list(dict.fromkeys(parted(name)[1] for name in (*experiment.students, *asked)))
    if own.optimiser != StudentParameters().optimiser and own.networks.keys() >= set(bodies):
        raise RequestError(
            f"student.optimiser is of students without an optimiser of their own, and {', '.join(bodies)} "
            f"{'have' if len(bodies) > 1 else 'has'} one: set student.networks.{bodies[0]}.lr and the like."
        )


def options_of(source: MethodSource, cell: Cell) -> Parameters:
    """A cell's options, as its method knows them.

    Raises:
        RequestError: it does not know one, or not that value.
    """
    return checked(source.method.Parameters, cell.options, f"The method {source.name}")


def _check_networks(experiment: Experiment, cell: Cell, source: MethodSource) -> None:
    """Make sure that what a method's options call a network is one; what a user's own method calls so is its own."""
    if cell.method not in REGISTRY:
        return
    for place, network in networks_of(options_of(source, cell)):
        of_frames = source.name == "static_dc" or place.startswith("static.")  # an image network, by its own rule
        if not known(network) and not of_frames:
            raise RequestError(f"{source.name}.{place} is {network!r}: there are {', '.join(NETWORKS)}.")
        check_size(experiment, network)


def check_size(request: DataRequest, network: str) -> None:
    """Make sure that the clips are large enough for a network.

    Raises:
        RequestError: they are not.
    """
    if small := too_small(network, request.decode.frames, request.decode.size):
        raise RequestError(small)


def _taught(experiment: Experiment, cell: Cell, student: str) -> StudentParameters:
    """How this student is trained: as the experiment says, and as the cell changes it.

    Raises:
        RequestError: the cell changes what there is not, or the protocol lets nothing be changed.
    """
    taught = experiment.student
    if cell.student:
        own = taught.of(student).model_dump(mode="json") | {"networks": {}}
        taught = checked(StudentParameters, merged(own, cell.student), f"The student of {cell.method}")
    if experiment.protocol == benchmark.NAME:
        usual = StudentParameters()
        changed = [name for name, value in taught if name != "precision" and value != getattr(usual, name)]
        if cell.student or changed:
            away = f"`student` from the cell of {cell.method}" if cell.student else f"student.{changed[0]} away"
            raise RequestError(f"The protocol {benchmark.NAME} trains every student alike: take {away}.")
    front, body = parted(student)
    if front != "rgb" and body in taught.pretrained:
        raise RequestError(f"The weights of {body} are for RGB, and {student} sees another front: ask for rgb:{body}.")
    return taught


def _budgets(
    experiment: Experiment, cell: Cell, source: MethodSource, recipes: list[Recipe]
) -> list[tuple[int | None, float | None]]:
    """(ipc, kb) of a cell's rows: a method that takes kilobytes takes them where any are asked for, all others ipc.

    Raises:
        RequestError: the cell asks for kilobytes, and its method or a recipe of it cannot be held to them, or for
            clips, and its method takes kilobytes alone.
    """
    takes_kb = "kb" in source.method.budgets
    if cell.kb and not takes_kb:
        raise RequestError(f"The method {source.name} takes no budget in kilobytes: ask for ipc, or for coded.")
    kb = cell.kb or (experiment.kb if takes_kb and not cell.ipc else ())
    wrong = [recipe.name for recipe in recipes if recipe.name not in ("hard", "soft")]
    if kb and wrong:
        raise RequestError(f"A budget in kilobytes has the recipes hard and soft, not {wrong[0]}.")
    ipc = cell.ipc or (() if kb else experiment.ipc)
    if ipc and "ipc" not in source.method.budgets:
        raise RequestError(f"The method {source.name} takes a budget in kilobytes alone: ask for kb.")
    return [*((one, None) for one in ipc), *((None, one) for one in kb)]


def within_budgets(rows: list[Row], table: IndexTable, pool_clips: int) -> list[Row]:
    """The rows without those Randoms that nobody asked for and no class has the real clips for.

    A row of the pool may have more clips than the training split has videos, and then nothing real stands beside it.

    Raises:
        RequestError: a class has no test videos, or fewer training videos, or the pool fewer clips, than a row's ipc.
    """
    counts = training_videos(table)
    scarce = min(counts, key=lambda label: counts[label])
    if untested := sorted(counts.keys() - {video.label for video in table.of_split("test")}):
        raise RequestError(
            f"No test video of the class {table.classes[untested[0]]!r} is there, or can be read: `vidistill index` "
            "says why; add or mend some, or take the class away."
        )
    generated = max((row.ipc or 0 for row in rows if row.of_pool), default=0)
    if generated > pool_clips:
        raise RequestError(
            f"ipc {generated} asks for more clips than the pool will have of a class ({pool_clips}): raise "
            f"pool.clips_a_class to {generated} or more."
        )
    kept = [row for row in rows if not (row.companion and (row.ipc or 0) > counts[scarce])]
    ipc = max((row.ipc or 0 for row in kept if not row.of_pool), default=0)
    if ipc > counts[scarce]:
        raise RequestError(
            f"ipc {ipc} asks for more clips than the class {table.classes[scarce]!r} has "
            f"({counts[scarce]} training videos): ask for at most {counts[scarce]}, or add videos."
        )
    return kept


def training_videos(table: IndexTable) -> dict[int, int]:
    """How many there are of each class.

    Raises:
        RequestError: of one there is none.
    """
    counts = dict.fromkeys(range(len(table.classes)), 0)
    for video in table.of_split("train"):
        counts[video.label] += 1
    scarce = min(counts, key=lambda label: counts[label])
    if not counts[scarce]:
        raise RequestError(
            f"No training video of the class {table.classes[scarce]!r} can be read: `vidistill index` says why; mend "
            "them, or take the class away."
        )
    return counts


def without_blind(rows: list[Row], experiment: Experiment) -> tuple[list[Row], tuple[str, ...]]:
    """The rows without those whose student, or the network they match, would see nothing; a sentence for each method.

    Raises:
        RequestError: no other row is left.
    """
    found = [(row, _nothing_to_see(row, experiment)) for row in rows]
    kept, blind = [row for row, why in found if not why], [why for _, why in found if why]
    if blind and all(row.companion for row in kept):
        raise RequestError(f"{blind[0]}: choose --front rgb or --front rgb+difference, and name no network centred:….")
    return kept, tuple(dict.fromkeys(f"{why}, so it has no row here" for why in blind))


def _nothing_to_see(row: Row, experiment: Experiment) -> str:
    """Why a row's student, the network that its method matches or the teacher that labels its clips sees nothing;
    empty where all see them. Of one frame no teacher sees any, whatever it is asked for.
    """
    single, teacher = experiment.decode.frames == 1, experiment.teacher.network
    still, network, clips = single, "", "Clips of one frame"
    if row.source is not None:
        options = fronted_networks(options_of(row.source, row.cell), experiment.front)
        with blaming(row.source):
            method = row.source.method(options)
            still, network = single or method.still, method.network
        clips = clips if single else f"The clips of {row.source.name}"
    seeing = [row.student, network, *([teacher] if row.recipe.needs_teacher or single else [])]
    blind = [name for name in seeing if still and parted(name)[0] == "centred"]
    return f"{clips} stand still, and {blind[0]} sees what moves alone" if blind else ""
