"""What a report is made from: plain data, gathered from artifacts by gather.py and drawn by page.py.

Legend: T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef

LabelKind = Literal["hard", "soft", "online"]
KINDS: tuple[LabelKind, ...] = get_args(LabelKind)
TRAINING_CLIPS = "training clips"
"""The key of `ReportData.dataset_summary` from which the summary takes the share of the clips that was kept."""


class Setting(NamedTuple):
    """All that a row and its Random have in common."""

    recipe: str
    ipc: int | None
    kb: float | None
    student: str
    training: str
    teacher: str


class Named(Parameters):
    """What a row is of: by this it is named, paired with its Random, and told from others of its name.

    Attributes:
        ipc: distilled clips a class; None for all of them, as `full` has, and where the budget is one of bytes.
        kb: the budget in kilobytes (1,000 bytes) a class, where it is one.
        training: how its students' training differs from that of other rows, in words; the variant ends with it.
        network: what the method itself used, front included; empty where it used none.
        teacher: the network whose labels the students learn, front included; empty where no teacher gives them.
        by: the network, else the teacher, where a row before of the same name and student had another.
    """

    method: str
    variant: str
    recipe: str
    labels: LabelKind
    ipc: int | None
    kb: float | None = None
    student: str
    training: str = ""
    network: str = ""
    teacher: str = ""
    by: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Named:
        """The same of a row in a report's JSON."""
        return Named.model_validate({name: row[name] for name in Named.model_fields if name in row})

    @property
    def name(self) -> str:
        return f"{self.method} {self.variant}".strip() + self.told

    @property
    def is_random(self) -> bool:
        """Whether it is what rows of its budget are measured against: Random, or random clips coded to a budget."""
        name = self.method, self.set_variant
        return name == ("random", "") or (name == ("coded", "random") and self.kb is not None)

    @property
    def whole(self) -> bool:
        """Whether it keeps all clips."""
        return self.ipc is None and self.kb is None

    @property
    def setting(self) -> Setting:
        """Rows are compared with the Random of the same."""
        return Setting(self.recipe, self.ipc, self.kb, self.student, self.training, self.teacher)

    @property
    def set_variant(self) -> str:
        """The variant without how students were trained."""
        return self.variant.removesuffix(self.training).strip()

    @property
    def maker(self) -> tuple[str, str, str]:
        """What made its set."""
        return self.method, self.set_variant, self.network

    @property
    def told(self) -> str:
        """What its name ends with where another row has the same: `, by NETWORK` or `, labelled by NETWORK`."""
        made = "by" if self.by == self.network else "labelled by"
        return f", {made} {self.by}" if self.by else ""


class RowPlan(Named):
    """Where a row's numbers are: a score a seed, the distilled set a seed, and everything that was made for each."""

    scores: tuple[ArtifactRef, ...]
    sets: tuple[ArtifactRef, ...]
    makers: tuple[tuple[ArtifactRef, ...], ...]
    protocol: str = "vidistill"
    began_with: str = ""

    @property
    def set_name(self) -> str:
        return f"{self.method} {self.set_variant}".strip()

    @property
    def mixed(self) -> bool:
        """Whether its recipe changes the clips of its sets."""
        return "+" in self.recipe and self.labels != "online"

    @property
    def budget(self) -> str:
        """`, ipc 5`, `, kb 10`, or nothing."""
        return f", ipc {self.ipc}" if self.ipc else f", kb {self.kb:g}" if self.kb else ""


class FailedRow(Named):
    """A row that could not be made, and why in a sentence."""

    error: str


class Row(Named):
    """One method at one budget on one student: shares in [0, 1], means and deviations over seeds.

    Attributes:
        bytes: stored size of the set, with its soft labels or, for online ones, the teacher's weights.
        bytes_coded: the same with its clips as coded video, where those were scored.
        seconds: time to make the set. peak_memory_bytes: of the stage's own process.
        flops: of the student's whole training. student_seconds: that it took, its test included; 0 where none trained.
        artifact: the key of the distilled set.
        per_class: mean accuracy of each class. top1: one value a seed.
        difference_mean: paired over seeds against Random of the same setting.
        difference_error: the standard error of that difference.
        difference_interval: half of its 95 % t interval.
        settled: whether that interval leaves out zero, of three seeds or more.
        front: what the student sees first; it stands in the student's name as well, unless it is `rgb`.
        collapsed: seeds whose student calls nearly everything one class.
        mark: what the reader must know of this row, such as that few videos gave a crop.
    """

    dataset: str
    split: str
    protocol: str
    top1_mean: float
    top1_std: float
    top5_mean: float
    auc_mean: float
    f1_mean: float
    bytes: int
    seconds: float
    peak_memory_bytes: int
    flops: int
    seeds: int
    artifact: str
    per_class: list[float]
    top1: list[float]
    difference_mean: float | None = None
    difference_error: float | None = None
    difference_interval: float | None = None
    settled: bool = False
    collapsed: tuple[int, ...] = ()
    mark: str = ""
    front: str = "rgb"
    bytes_coded: int | None = None
    student_seconds: float = 0.0


class Curve(Parameters):
    """One training: a student's, by a name such as `tsgf soft, ipc 1, minic3d_bn` (method, variant, then `setting`), or
    that of a set, by a name such as `dm, ipc 1`; `alpha` is the student's learning rate that a set learned, if any.
    """

    name: str
    setting: str = Field("", exclude_if=lambda setting: not setting)
    seed: int
    steps: list[int]
    loss: list[float]
    alpha: list[float] | None = Field(None, exclude_if=lambda alpha: alpha is None)


class LineageEntry(Parameters):
    """One artifact that this report rests on; `inputs` names the keys of others."""

    kind: str
    key: str
    parameters: dict[str, Any]
    inputs: dict[str, list[str]]
    seconds: float
    bytes: int
    created: str


@dataclass
class Saliency:
    """TSGF's frame saliency s, its threshold ε and the gradient mask M of one clip."""

    method: str
    class_name: str
    s_T: list[float]
    epsilon: float
    mask_T: list[float]


@dataclass
class Confusion:
    """Test clips of each class (rows) by the class that a row's students named (columns), summed over its seeds."""

    heading: str
    counts_KK: list[list[int]]


@dataclass
class ClipPair:
    """Real and distilled clips of one class, each uint8 (T, H, W, 3); `distilled` by method or `method/variant`."""

    class_name: str
    real: list[NDArray[np.uint8]]
    distilled: dict[str, list[NDArray[np.uint8]]]


@dataclass
class CropShown:
    """One video of OptDistill, from the boxes in its first frame to its crop; all uint8."""

    video: str
    class_name: str
    score: float
    first_HWC: NDArray[np.uint8]
    track_THWC: NDArray[np.uint8]
    crop_THWC: NDArray[np.uint8]


@dataclass
class CropSet:
    """OptDistill's set of one variant and budget: what became of the videos, some of them, and its mosaics by class."""

    method: str
    ipc: int
    counts: dict[str, int]
    detector: dict[str, float]
    shown: list[CropShown]
    mosaics: list[tuple[str, NDArray[np.uint8]]]


@dataclass
class NeighbourShown:
    """A generated clip, number `number` of its class, and its nearest training clip; both uint8 (T, H, W, 3).

    Attributes:
        correlation: of their thumbnails.
    """

    class_name: str
    number: int
    nearest_class: str
    correlation: float
    made_THWC: NDArray[np.uint8]
    real_THWC: NDArray[np.uint8]


@dataclass
class PoolShown:
    """A pool of generated clips that rows were chosen from.

    Attributes:
        facts: how it was made, in words. warnings: what the reader must know of it.
        steps, loss: of the generator's training.
        sheet: the first clips of each class, uint8 (N, T, H, W, 3); of `classes_left_out` more there is none.
        quality: `accuracy fvd fvd_real nearest_median nearest_real copied control`; empty where it was not measured.
        accuracy_by_class: share of each class's clips whose class the teacher names.
        neighbours: generated clips beside their nearest training clips, by heading.
    """

    key: str
    facts: dict[str, str]
    warnings: list[str]
    steps: list[int]
    loss: list[float]
    sheet: list[tuple[str, NDArray[np.uint8]]]
    classes_left_out: int = 0
    quality: dict[str, float] = field(default_factory=dict)
    accuracy_by_class: dict[str, float] = field(default_factory=dict)
    neighbours: dict[str, list[NeighbourShown]] = field(default_factory=dict)


@dataclass
class ReportData:
    """All that a report shows; `largest` is the share of the test clips that are of their largest class."""

    title: str
    created: str
    dataset_summary: dict[str, str | int]
    classes: list[str]
    rows: list[Row]
    curves: list[Curve] = field(default_factory=list)
    losses: list[Curve] = field(default_factory=list)
    pairs: list[ClipPair] = field(default_factory=list)
    saliency: list[Saliency] = field(default_factory=list)
    crops: list[CropSet] = field(default_factory=list)
    searches: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pools: list[PoolShown] = field(default_factory=list)
    lineage: list[LineageEntry] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    failed: list[FailedRow] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    command: str = ""
    notes: list[str] = field(default_factory=list)
    largest: float = 0.0
