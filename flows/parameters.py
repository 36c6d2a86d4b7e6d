"""What a flow is asked for: frozen models that the Prefect UI shows as a form."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, WithJsonSchema, model_validator

from vidistill.flows.wording import refusal
from vidistill.models import FRONT_NAMES, fronted, known
from vidistill.storage.errors import RequestError
from vidistill.storage.files import expanded
from vidistill.storage.parameters import Parameters
from vidistill.tasks.coded.keep import Coding
from vidistill.tasks.generate.pool import PoolParameters
from vidistill.tasks.learning.evaluate import Protocol, StudentParameters
from vidistill.tasks.learning.relabel import MixParameters
from vidistill.tasks.learning.saliency import SaliencyParameters
from vidistill.tasks.learning.teacher import TeacherParameters
from vidistill.tasks.videos.decode import DecodeParameters
from vidistill.tasks.videos.layouts import IndexParameters
from vidistill.tasks.videos.sprites import SpritesParameters

Model = TypeVar("Model", bound=BaseModel)
SPRITES = "sprites"
FRONTS = ("auto", *FRONT_NAMES)
MOST_SEEDS = 1000
"""No mean needs more, and a million, which a slip may ask for, would be planned for minutes."""


def _front(name: str) -> str:
    if name not in FRONTS and ".py:" not in name:
        raise ValueError(f"it is one of {', '.join(FRONTS)}, or FILE.py:FUNCTION")
    return name


Front = Annotated[
    str,
    AfterValidator(_front),
    WithJsonSchema({"anyOf": [{"enum": list(FRONTS), "type": "string"}, {"type": "string"}]}),
]
"""An enumeration in the form of the Prefect UI, where a file of one's own can be written too."""
PRESETS = Path(__file__).resolve().parent.parent / "deployments" / "presets"


Instances = Annotated[int, Field(ge=1)]
Kilobytes = Annotated[float, Field(gt=0)]


class Cell(Parameters):
    """One method in a table, with what differs from its defaults. Ablations are cells with a variant's name."""

    method: str = Field(description="A name of the registry, `full`, or FILE.py:CLASS.")
    variant: str = Field("", description="The variant's name in the table.")
    options: dict[str, Any] = Field(default_factory=dict, description="The method's parameters that differ.")
    recipes: tuple[str, ...] | None = Field(None, description="Recipes to score it by; its own where none are given.")
    ipc: tuple[Instances, ...] | None = Field(None, description="Budgets; the experiment's where none are given.")
    kb: tuple[Kilobytes, ...] | None = Field(None, description="Budgets in kilobytes, of methods that take them.")
    store: Annotated[Coding | None, BeforeValidator(lambda given: {} if given == "coded" else given)] = Field(
        None, description="coded, or a quantiser: the method's clips are kept and scored as compressed video."
    )
    students: tuple[str, ...] | None = Field(None, description="Students; the experiment's where none are given.")
    seeds: int | None = Field(
        None, ge=1, le=MOST_SEEDS, description="Number of seeds; the experiment's where it is not given."
    )
    student: dict[str, Any] = Field(
        default_factory=dict,
        exclude_if=lambda changes: not changes,
        description="How its students are trained where that differs: {least_steps: 100, optimiser: {lr: 0.1}}.",
    )


class DataRequest(Parameters):
    """A data set, its clips, its teacher, and the generated clips that a pool of it has."""

    data: str = Field(description="A folder of videos, a CSV file, or `sprites`, the set that vidistill renders.")
    index: IndexParameters = IndexParameters()
    decode: DecodeParameters = DecodeParameters()
    teacher: TeacherParameters = TeacherParameters()
    front: Front = Field(
        "auto",
        description="What networks see first: rgb, centred (the clip minus its mean over time), rgb+difference; auto "
        "tries each with a small network on a fifth of the training split; FILE.py:FUNCTION is one of yours.",
    )
    sprites: SpritesParameters = SpritesParameters()
    pool: PoolParameters = PoolParameters()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        return completed(cls, given) if isinstance(given, dict) else given


class PoolRequest(DataRequest):
    """A pool of generated clips of one data set."""


class Experiment(DataRequest):
    """Methods × budgets × students × seeds on one data set: one table."""

    cells: tuple[Cell, ...] = Field(min_length=1, description="The table's methods.")
    ipc: tuple[Instances, ...] = Field((1,), min_length=1, description="Instances (clips) a class.")
    kb: tuple[Kilobytes, ...] = Field(
        (), description="Kilobytes (1,000 bytes) a class, all that is kept included: budgets of `coded`."
    )
    students: tuple[str, ...] = Field(
        ("r2plus1d_small",),
        min_length=1,
        description="Networks trained on distilled sets; `rgb:minic3d_bn` names a front of its own, FILE.py:CLASS or "
        "torchvision:r3d_18 a network of yours or of torchvision.",
    )
    seeds: int = Field(
        5, ge=1, le=MOST_SEEDS, description="Seeds 0 … n−1; each draws the selection, the distillation, the student."
    )
    temperature: float = Field(1.0, gt=0, description="Of the teacher's outputs in soft and online recipes.")
    mix: MixParameters = MixParameters()
    saliency: SaliencyParameters = Field(
        SaliencyParameters(), description="S3's Eq. 6–8, of TSGF's mask and of its guided VideoMix alike."
    )
    student: StudentParameters = StudentParameters()
    protocol: Protocol = Field(
        "vidistill",
        description="vdsd: the common benchmark's training and test, with its habits, beside papers' numbers.",
    )

    def with_students(self, named: Callable[[str], str]) -> Self:
        """The same with another name for each student, those of cells too."""
        students = tuple(map(named, self.students))
        cells = tuple(
            cell.model_copy(update={"students": tuple(map(named, cell.students))}) if cell.students else cell
            for cell in self.cells
        )
        return self.model_copy(update={"students": students, "cells": cells})


def name_of(data: str) -> str:
    """What a data set is called: `sprites`, or as its folder or file is."""
    path = expanded(data)
    return path.name if path.name not in {"", ".."} else path.resolve().name


def load_preset(name: str) -> dict[str, Any]:
    """A preset by path, or by the name of one that is shipped.

    Raises:
        RequestError: it does not exist or is not a YAML mapping.
    """
    path = expanded(name)
    if not path.is_file():
        path = PRESETS / f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))
        raise RequestError(f"There is no preset {name!r}: give a YAML file, or one of {shipped}.")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"The preset {path} is not valid YAML: {error}") from error
    if not isinstance(found, dict):
        raise RequestError(f"The preset {path} must be a mapping of parameters, such as `ipc: [1, 5]`.")
    return found


def override(plain: dict[str, Any], settings: list[str], model: type[DataRequest] = Experiment) -> dict[str, Any]:
    """Apply `key=value` settings, dotted for what is nested (`teacher.epochs=20`); values are YAML.

    `method.store=coded` keeps that method's clips as compressed video (`method.store.crf=40` more finely);
    `method.option=value` reaches the options of every cell of that method (`tsgf.iterations=50`); FILE.py:CLASS goes by
    the class's name in lower case.

    Raises:
        RequestError: a setting without `=`.
    """
    for setting in settings:
        put(plain, *set_to(setting, "teacher.epochs=20"), model)
    return plain


def set_to(setting: str, example: str) -> tuple[str, Any]:
    """The name and the value, which is YAML, of `name=value`."""
    name, equals, value = setting.partition("=")
    if not equals:
        raise RequestError(f"--set {setting!r} has no '=': write --set key=value, e.g. --set {example}.")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RequestError(f"--set {setting!r}: {value!r} is not a YAML value, such as 3, [1, 5] or text.") from error


def put(plain: dict[str, Any], name: str, value: Any, model: type[DataRequest] = Experiment) -> None:
    """Set one of them.

    Raises:
        RequestError: there is no such parameter.
    """
    path = name.split(".")
    if path[0] not in model.model_fields:
        cells = [cell for cell in _cells(plain) if cell["method"].rpartition(":")[2].lower() == path[0]]
        if not cells or len(path) < 2:
            known = ", ".join(model.model_fields)
            said = f"--set knows no parameter {name!r}"
            if "cells" in model.model_fields:
                said += f", and {path[0]!r} is no method of this run"
                known += ", or a method and its option"
            raise RequestError(f"{said}: choose one of {known}.")
        for cell in cells:
            cell["options"] = copy.deepcopy(cell.get("options") or {})  # an *alias is the anchor's own object
            put_nested(cell if path[1] == "store" else cell["options"], path[1:], value)
    else:
        put_nested(plain, path, value)


def _cells(plain: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells that are such; others are named when the whole is checked."""
    given = plain.get("cells")
    found = given if isinstance(given, list) else []
    return [cell for cell in found if isinstance(cell, dict) and isinstance(cell.get("method"), str)]


def put_nested(plain: dict[str, Any], path: list[str], value: Any) -> None:
    """Set what a dotted name means in nested mappings."""
    for number, name in enumerate(path[:-1]):
        plain = plain.setdefault(name, {})
        if not isinstance(plain, dict):
            raise RequestError(f"{'.'.join(path)} cannot be set: {'.'.join(path[: number + 1])} is {plain!r}.")
    plain[path[-1]] = value


def merged(plain: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """With the changes, which may be as deep as it is."""
    deep = {name: merged(plain[name], value) for name, value in changes.items()
            if isinstance(value, dict) and isinstance(plain.get(name), dict)}  # fmt: skip
    return plain | changes | deep


def stated(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without what says nothing: None, and groups of nothing else."""
    parts = {name: stated(value) or None if isinstance(value, dict) else value for name, value in options.items()}
    return {name: value for name, value in parts.items() if value is not None}


def placeless(student: dict[str, Any]) -> dict[str, Any]:
    """With the names of weights alone: where their files lie changes no result."""
    if not isinstance(weights := student.get("pretrained"), dict):
        return student
    return student | {"pretrained": {body: Path(str(place)).name for body, place in weights.items()}}


def checked(model: type[Model], plain: dict[str, Any], where: str) -> Model:
    """Validate, turning pydantic's list into one sentence.

    Raises:
        RequestError: naming the parameter, what it got and what it takes.
    """
    try:
        made = model.model_validate(completed(model, plain))
        json.dumps(made.model_dump(mode="json"), allow_nan=False)
    except ValidationError as error:
        raise RequestError(refusal(error, model, where)) from error
    except RequestError:
        raise
    except ValueError as error:
        if "JSON compliant" not in str(error):
            raise RequestError(f"{where} has a value that no JSON holds: {error}.") from error
        raise RequestError(f"{where} has a number that is infinite, or none (.inf, .nan): give one.") from error
    return made


def completed(model: type[BaseModel], plain: dict[str, Any]) -> dict[str, Any]:
    """With the rest of every part that is given in part: that of the model's default, not of the part's class."""
    return plain | _parts(plain, {name: field.default for name, field in model.model_fields.items()})


def _parts(plain: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, default in defaults.items():
        given = plain.get(name)
        if isinstance(default, BaseModel) and isinstance(given, dict):
            made[name] = default.model_dump(mode="json") | given | _parts(given, dict(default))
        elif name == "networks" and "optimiser" in defaults and isinstance(given, dict) and given:
            # students: what is said of one network keeps the rates of the others
            usual = made.get("optimiser", defaults["optimiser"].model_dump(mode="json"))
            known = {body: optimiser.model_dump(mode="json") for body, optimiser in default.items()}
            changed = {body: known.get(body, usual) | own for body, own in given.items() if isinstance(own, dict)}
            made[name] = known | given | changed
    return made


def networks_of(model: BaseModel) -> Iterator[tuple[str, str]]:
    """Every parameter called `network` in a model and its parts: (where it is, what it names)."""
    for name, value in model:
        if isinstance(value, BaseModel):
            yield from ((f"{name}.{below}", network) for below, network in networks_of(value))
        elif name == "network" and value:
            yield name, str(value)


def fronted_networks(model: Model, front: str) -> Model:
    """The same parameters, every field `network` in them with this front."""
    changed = {
        name: fronted_networks(value, front) if isinstance(value, BaseModel) else fronted(value, front)
        for name, value in model
        if isinstance(value, BaseModel) or (name == "network" and known(str(value)))
    }
    return model.model_copy(update=changed)
