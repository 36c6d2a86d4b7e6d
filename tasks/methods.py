"""The one signature of all distillation methods, and the registry that finds them by name or in a user's file."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError
from vidistill.storage.files import expanded
from vidistill.storage.keys import file_digest
from vidistill.storage.parameters import Parameters
from vidistill.storage.pool import Pool
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning.own import imported
from vidistill.tasks.learning.saliency import SaliencyParameters

if TYPE_CHECKING:
    from torch import nn

    from vidistill.tasks.learning.training import Device
    from vidistill.tasks.stage import Job
    from vidistill.tasks.videos.decode import DecodeParameters
    from vidistill.tasks.videos.index import IndexTable

REGISTRY: dict[str, str] = {
    "random": "vidistill.tasks.coreset.random:Random",
    "herding": "vidistill.tasks.coreset.herding:Herding",
    "k_center": "vidistill.tasks.coreset.k_center:KCenter",
    "tsgf": "vidistill.tasks.tsgf:TSGF",
    "dc": "vidistill.tasks.match.dc:DC",
    "static_dc": "vidistill.tasks.match.static_dc:StaticDC",
    "dm": "vidistill.tasks.match.dm:DM",
    "mtt": "vidistill.tasks.match.mtt:MTT",
    "frepo": "vidistill.tasks.match.frepo:FRePo",
    "dm_vdsd": "vidistill.tasks.match.vdsd:DMVDSD",
    "mtt_vdsd": "vidistill.tasks.match.vdsd:MTTVDSD",
    "frepo_vdsd": "vidistill.tasks.match.vdsd:FRePoVDSD",
    "idtd": "vidistill.tasks.match.idtd:IDTD",
    "sfvd": "vidistill.tasks.match.sfvd:SFVD",
    "sfvd_t": "vidistill.tasks.match.sfvd:SFVDT",
    "optdistill": "vidistill.tasks.crops.optdistill:OptDistill",
    "pool_random": "vidistill.tasks.select.random:PoolRandom",
    "mae_score": "vidistill.tasks.select.mae_score:MAEScore",
    "csta": "vidistill.tasks.select.csta:CSTA",
    "dm_mmd": "vidistill.tasks.select.dm_mmd:DMMMD",
    "vst_unet": "vidistill.tasks.select.vst_unet:VSTUNet",
    "tac_dt": "vidistill.tasks.select.tac_dt:TACDT",
    "coded": "vidistill.tasks.coded.method:Coded",
}
"""Methods by name. `full`, all of the training clips, is not one: it is the row that they are measured against."""

Need = Literal["teacher", "pool"]


class Recipe(Parameters):
    """How a student is trained on a distilled set: what its labels are and what is done to its clips.

    Random is scored under each recipe of a table, with the same labels and the same augmentation.

    Attributes:
        labels: `hard`; `soft`: the teacher's outputs for the stored clips, made once; `online`: the teacher is asked
            at every step; `learned`: the outputs that the method learned with its clips, `hard` where it learned none.
        augmentation: `none`; `tsgf`: guided VideoMix on the frames of low saliency (S3 §3.3); `image`: a CutMix box of
            its own for each frame (S3, Table 6). Once where labels are soft, at every step where they are online.
        temperature: of the teacher's outputs, before they become targets.
        settings: parameters of the augmentation.
    """

    labels: Literal["hard", "soft", "online", "learned"] = "hard"
    augmentation: Literal["none", "tsgf", "image"] = "none"
    temperature: float = Field(1.0, gt=0)
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """Labels and augmentation, and what differs from the default saliency: `soft+tsgf, window 4`."""
        plain = self.labels if self.augmentation == "none" else f"{self.labels}+{self.augmentation}"
        if self.augmentation != "tsgf":
            return plain
        usual = SaliencyParameters().model_dump()
        return ", ".join([plain, *(f"{name} {value}" for name, value in self.settings.get("saliency", {}).items()
                                   if value != usual[name])])  # fmt: skip

    @property
    def needs_teacher(self) -> bool:
        return self.labels in ("soft", "online")

    @property
    def kind(self) -> Literal["hard", "soft", "online"]:
        """The kind of labels, by which rows are compared; learned ones are soft."""
        return "soft" if self.labels == "learned" else self.labels


STORED = ("soft", "learned")
"""Labels that are kept with a set, as logits."""
RECIPES = ("hard", "soft", "soft+tsgf", "soft+image", "online", "online+tsgf", "online+image", "learned")
HARD = Recipe()


def recipe_named(name: str, temperature: float, settings: dict[str, Any]) -> Recipe:
    """A recipe by name, such as `soft+tsgf`; temperature and settings are left out where it has no use for them.

    Raises:
        RequestError: no recipe has this name.
    """
    if name not in RECIPES:
        raise RequestError(f"There is no recipe {name!r}: choose from {', '.join(RECIPES)}.")
    labels, _, augmentation = name.partition("+")
    facts: dict[str, Any] = {"labels": labels, "augmentation": augmentation or "none"}
    if labels in ("soft", "online"):
        facts |= {"temperature": temperature}
    if augmentation:
        facts |= {"settings": settings}
    return Recipe(**facts)


def unnamed(need: Need) -> Any:
    """Where a teacher or a pool is asked for that nobody offers.

    Raises:
        RequestError: the method does not name it among its needs.
    """
    raise RequestError(f'There is no {need}: a method that reads one has needs = ("{need}",).')


@dataclass(frozen=True)
class Given:
    """What the flow has ready when a method names the artifacts that it reads (`Method.inputs`).

    Attributes:
        index: the index of the videos.
        train: the training split's clips.
        teacher: the job that trains the teacher; not added until a method adds it.
        table: every video of the data, so that jobs over some of them are known before they run.
        decode: how the clips were made.
        root: the folder of the videos; None for sprites, which the flow renders.
        add: add a job to the flow; its artifact's reference.
        pool: add the jobs of the run's one pool of generated clips, the same whenever it is called; its reference.
        kb: the budget where it is one in kilobytes a class.
        recipe: how the set will be labelled and trained on.
        ipc, seed: those of the set, for artifacts that are made for it.
    """

    index: ArtifactRef
    train: ArtifactRef
    teacher: Job
    table: IndexTable
    decode: DecodeParameters
    root: Path | None
    add: Callable[[Job], ArtifactRef]
    pool: Callable[[], ArtifactRef] = lambda: unnamed("pool")
    kb: float | None = None
    recipe: Recipe = HARD
    ipc: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Material:
    """What a method is given.

    Attributes:
        clips: the training split; `clips.read(rows)` gives uint8 NTHWC.
        ipc: instances a class to return.
        seed: seeds every draw.
        labels: the classes to distil; all of them, unless the method works by groups.
        device: where networks run.
        teacher: the trained teacher, loaded when called; only for methods that need it.
        inputs: the folders of the artifacts that `Method.inputs` named.
        progress: call with (done, total) and, if there is something to say, a note.
        checkpoint: call with a step and a function that writes into a folder; committed before it returns.
        last_checkpoint: the step and folder of an earlier attempt's newest checkpoint.
        pool: the generated clips, checked against the data set and `ipc`; only for methods that need them.
        kb: kilobytes (1,000 bytes) a class that the set may take with all that a student needs, instead of `ipc`.
        soft: whether the set will be given a teacher's logits, which a budget in kilobytes counts.
        more_clips: other clips of the videos that `Method.inputs` named, None where it did not.
    """

    clips: Clips
    ipc: int
    seed: int
    labels: tuple[int, ...]
    device: Device
    teacher: Callable[[], nn.Module]
    inputs: Callable[[str], list[Path]]
    progress: Callable[..., None]
    checkpoint: Callable[[int, Callable[[Path], None]], None] = lambda _step, _write: None
    last_checkpoint: Callable[[], tuple[int, Path] | None] = lambda: None
    pool: Callable[[], Pool] = lambda: unnamed("pool")
    kb: float | None = None
    soft: bool = False
    more_clips: Callable[[str], Clips | None] = lambda _name: None

    def chosen(self, rows: NDArray[np.int64], **facts: Any) -> DistilledSet:
        """The set of these real clips (centre views), with their labels and sources."""
        return chosen_of(self.clips, rows, facts)


def chosen_of(clips: Clips, rows: NDArray[np.int64], facts: dict[str, Any]) -> DistilledSet:
    """The set of these rows of real or generated clips, with their labels and sources."""
    return DistilledSet(
        clips_NTHWC=clips.read(rows),
        labels_N=clips.labels_N[rows],
        classes=clips.classes,
        sources=tuple(clips.table.videos[row].path for row in rows),
        facts=facts,
    )


class Method(ABC):
    """A distillation method: subclass, name your parameters, and return a set.

    Attributes:
        version: raise it when the result of the same parameters changes.
        needs: what the flow makes first.
        recipes: names of the recipes by which its sets are scored; several give several rows.
        budgets: what it can be asked for: clips a class (`ipc`), kilobytes a class (`kb`).
        Parameters: frozen pydantic model with the published defaults, cited.
    """

    version: ClassVar[int] = 1
    needs: ClassVar[tuple[Need, ...]] = ()
    recipes: ClassVar[tuple[str, ...]] = ("hard",)
    budgets: ClassVar[tuple[Literal["ipc", "kb"], ...]] = ("ipc",)
    Parameters: ClassVar[type[Parameters]] = Parameters

    def __init__(self, parameters: Any) -> None:
        self.parameters = parameters

    def groups(self, classes: int, ipc: int) -> list[tuple[int, ...]]:  # noqa: ARG002
        """The classes of each task; one task for all of them unless a method says otherwise."""
        return [tuple(range(classes))]

    def inputs(self, given: Given) -> dict[str, list[ArtifactRef]]:
        """The artifacts that `distil` reads besides the clips, by name, each made by a job that is added here."""
        made = {"teacher": [given.add(given.teacher)]} if "teacher" in self.needs else {}
        return made | ({"pool": [given.pool()]} if "pool" in self.needs else {})

    def used(self, kb: float | None) -> Any:  # noqa: ARG002
        """The parameters that a set of this budget depends on, as its key holds them: files by name, not by place."""
        return self.parameters

    @property
    def still(self) -> bool:
        """Whether its clips stand still, so that a network that sees them `centred` sees nothing."""
        return False

    @property
    def variants(self) -> int:
        """How many variants each of its clips has, of which a student is shown one at a time."""
        return 1

    @property
    def unmixed(self) -> str:
        """Why its clips cannot be mixed once for all, as `soft+tsgf` and `soft+image` do; empty where they can."""
        return ""

    @property
    def network(self) -> str:
        """The network of its own that it matches or follows; empty where it has none, or asks the teacher alone."""
        expert = getattr(self.parameters, "expert", None)
        return getattr(self.parameters, "network", "") or getattr(expert, "network", "")

    @abstractmethod
    def distil(self, material: Material) -> DistilledSet:
        """Distil `material.ipc` clips for each class in `material.labels`."""


@dataclass(frozen=True)
class MethodSource:
    """A method's class, its short name, and the digest of its file where it is a user's."""

    name: str
    spec: str
    digest: str
    method: type[Method]


def find_method(spec: str) -> MethodSource:
    """A method by registry name or by `FILE.py:CLASS`.

    Raises:
        RequestError: no such method, file or class; says what there is.
    """
    if ".py" not in spec:
        if spec not in REGISTRY:
            known = ", ".join(["full", *REGISTRY])
            raise RequestError(f"There is no method {spec!r}: choose from {known}, or give FILE.py:CLASS.")
        module, _, name = REGISTRY[spec].partition(":")
        return MethodSource(spec, spec, "", getattr(importlib.import_module(module), name))
    file, _, name = spec.rpartition(":")
    path = expanded(file)
    if not file or not path.is_file():
        raise RequestError(f"The method {spec!r} was not found: give an existing FILE.py:CLASS, e.g. mine.py:Mine.")
    found = getattr(imported(path), name, None)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise RequestError(f"{path} has no class {name!r} that subclasses vidistill.tasks.methods.Method.")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise RequestError(f"The class {name!r} of {path} has no {missing[0]}: every method has one (README).")
    if not (isinstance(found.Parameters, type) and issubclass(found.Parameters, BaseModel)):
        raise RequestError(f"{name}.Parameters of {path} is no pydantic model: subclass Parameters (README).")
    if strange := sorted(set(found.needs) - set(get_args(Need))):
        raise RequestError(f"{name}.needs of {path} names {strange[0]!r}: there are {', '.join(get_args(Need))}.")
    return MethodSource(name.lower(), f"{path.absolute()}:{name}", file_digest(path), found)
