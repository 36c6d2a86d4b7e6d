"""The split files that data sets come with, read as rows of (names a file may have, label, split).

Nothing here looks at the videos: `vidistill.tasks.videos.layouts` finds the files that the rows name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from vidistill.storage.errors import RequestError
from vidistill.tasks.videos.tables import columns, header, records, text

Split = Literal["train", "test"]
T = TypeVar("T")

# Where the lists lie, relative to the data's folder: as UCF101, HMDB51, Kinetics and Something-Something unpack.
LIST_FOLDERS: tuple[str, ...] = (
    "",
    "splits",
    "ucfTrainTestlist",
    "testTrainMulti_7030_splits",
    "test_train_splits/testTrainMulti_7030_splits",
    "annotations",
    "labels",
)
LIST_SUFFIXES = frozenset({".csv", ".json", ".parquet", ".tsv", ".txt"})
SPLIT_WORDS: dict[str, Literal["train", "test", "validation"]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "eval"), "validation"),
}
UCF101_LIST = r"trainlist0?(\d+)\.txt"
HMDB51_LIST = r".+_test_split(\d+)\.txt"
SSV2_LIST = r"(?:something-something-v2-)?(train|validation|labels)\.json"
UCF101_NAME = re.compile(r"v_.+_g\d+_c\d+")
HMDB51_NAME = re.compile(r"(?P<source>.+)_[hulf]_(?:nm|cm)_np\d+_(?:fr|ba|le|ri)_(?:goo|med|bad)_\d+")
NUMBERED_NAME = re.compile(r"(.+?)(?:\s+(\d+))?")


@dataclass(frozen=True)
class Row:
    """One line of a list: the names that its file may have, best first, and the side it stands on (None: neither).

    `group` is what it was cut from, where the list tells.
    """

    names: tuple[str, ...]
    label: str
    split: Split | None
    where: str
    group: str | None = None


@dataclass(frozen=True)
class Lists:
    """What a data set's lists say.

    `classes` is the order that the data set gives them, empty where it is the sorted one. `exact`: names are whole
    paths; otherwise more folders may stand before a name and its extension may differ. `flips`: of a data set where a
    mirrored clip keeps its class. `unused` says why a row has no split. `drawn`: they tell no split.
    """

    rows: tuple[Row, ...]
    flips: bool
    classes: tuple[str, ...] = ()
    exact: bool = False
    unused: str = ""
    drawn: bool = False


def by_folder(root: Path, qualifies: Callable[[Path], bool]) -> Iterator[list[Path]]:
    """The lists that qualify, links to nothing too, sorted by name, of every folder of `LIST_FOLDERS` that has any."""
    for folder in LIST_FOLDERS:
        files = (path for path in (root / folder).glob("[!.]*") if path.suffix.lower() in LIST_SUFFIXES)
        if found := sorted(path for path in files if not os.path.isdir(path) and qualifies(path)):
            yield found


def find_lists(root: Path, qualifies: Callable[[Path], bool]) -> list[Path]:
    """The lists that qualify of the first folder that has any: others beside them, and in folders before, hide none."""
    return next(by_folder(root, qualifies), [])


def named(pattern: str) -> Callable[[Path], bool]:
    return lambda path: re.fullmatch(pattern, path.name) is not None


def read_ucf101(root: Path, split: int) -> Lists:
    """`trainlist0N.txt` and `testlist0N.txt`; the class order is `classInd.txt`'s (else the sorted one)."""
    _require_split(UCF101_LIST, split, "ucf101", root)
    rows: list[Row] = []
    sides: tuple[Split, ...] = ("train", "test")
    for side in sides:
        paths = find_lists(root, named(rf"{side}list0?{split}\.txt"))
        if not paths:
            raise RequestError(
                f"split {split} of {root} has no {side}list{split:02d}.txt beside its list of training videos"
            )
        rows += [Row((name,), _parent(name, where), side, where) for name, _, where in _numbered_names(paths[0])]
    return Lists(tuple(rows), flips=True, classes=_class_order(root, rows))


def _parent(name: str, where: str) -> str:
    if "/" not in name:
        raise RequestError(f"{where}: expected <class>/<video>, got {name!r}")
    return PurePosixPath(name).parent.name


def _class_order(root: Path, rows: list[Row]) -> tuple[str, ...]:
    found = find_lists(root, named("classInd.txt"))
    if not found:
        return ()
    lines = [line.split(maxsplit=1) for line, _ in _lines(found[0])]
    if wrong := [line for line in lines if len(line) < 2 or not re.fullmatch(r"\d{1,9}", line[0])]:
        raise RequestError(f"{found[0]}: expected '<number> <class>' on every line, got {' '.join(wrong[0])!r}")
    classes = tuple(label for _, label in sorted(lines, key=lambda line: int(line[0])))
    for row in rows:
        if row.label not in classes:
            raise RequestError(f"{row.where}: class {row.label!r} is not in {found[0]}")
    return classes


def read_hmdb51(root: Path, split: int, *, rest_is_train: bool = False) -> Lists:
    """`<class>_test_splitN.txt`: 1 is train, 2 is test and 0 is neither, or train, as the common benchmark has it."""
    found = _require_split(HMDB51_LIST, split, "hmdb51", root)
    sides: dict[str, Split | None] = {"0": "train" if rest_is_train else None, "1": "train", "2": "test"}
    rows = []
    for path in found:
        label, _, number = path.stem.rpartition("_test_split")
        for name, side, where in _numbered_names(path) if number == str(split) else ():
            if side not in sides:
                raise RequestError(f"{where}: expected 0, 1 or 2 after the name, got {side!r}")
            rows.append(Row((f"{label}/{name}",), label, sides[side], where))
    return Lists(tuple(rows), flips=True, unused=f"on neither side of official split {split}")


ARCHIVES = {
    "ucf101": "UCF101TrainTestSplits-RecognitionTask.zip of https://www.crcv.ucf.edu/data/UCF101.php",
    "hmdb51": "test_train_splits.rar of https://serre.lab.brown.edu/hmdb51.html",
}


def _require_split(pattern: str, split: int, layout: str, root: Path) -> list[Path]:
    paths = find_lists(root, named(pattern))
    numbers = {int(re.sub(pattern, r"\1", path.name)) for path in paths}
    if not numbers:
        places = ", ".join(folder or "." for folder in LIST_FOLDERS[:4])
        raise RequestError(
            f"{root} has no {layout} lists (looked in {places}); put the official split files there: {ARCHIVES[layout]}"
        )
    if split not in numbers:
        raise RequestError(f"{root} has no list for split {split}, only for {', '.join(map(str, sorted(numbers)))}")
    return paths


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text(path).split("\n"), start=1):
        if line.strip():
            yield line.strip(), f"{path.name}, line {number}"


def _numbered_names(path: Path) -> Iterator[tuple[str, str, str]]:
    """(name, number or nothing, where) of every line; a name may hold spaces."""
    for line, where in _lines(path):
        name, number = NUMBERED_NAME.fullmatch(line).groups()  # type: ignore[union-attr]  # matches any line
        yield name, number or "", where


def read_kinetics(root: Path) -> Lists:
    """Kinetics' `label,youtube_id,time_start,time_end,split` tables; the validation split is the one that is scored."""
    rows = []
    found = kinetics_tables(root)
    if not found:
        raise RequestError(f"{root} has no table with Kinetics' columns label,youtube_id,time_start,time_end,split")
    for path in found:
        for record, where in records(path):
            if record.get("label"):  # not every copy of the test list has any
                names = (*_cut(record, where), record["youtube_id"])
                word = record.get("split") or path.stem.split("_")[-1]
                rows.append((Row(names, record["label"], None, where), word))
    return _sided(rows, flips=True, scored="validation")


def _cut(record: dict[str, str], where: str) -> tuple[str, ...]:
    """The name of a video that was cut to its seconds; none where the table has no seconds."""
    told = [record.get("time_start", ""), record.get("time_end", "")]
    if told == ["", ""]:
        return ()
    try:
        start, end = (int(float(seconds)) for seconds in told)
    except (ValueError, OverflowError) as error:
        raise RequestError(f"{where}: time_start and time_end are {told}; expected seconds") from error
    return (f"{record['youtube_id']}_{start:06d}_{end:06d}",)


def kinetics_tables(root: Path) -> list[Path]:
    return find_lists(root, lambda path: path.suffix == ".csv" and {"label", "youtube_id"} <= set(header(path)))


class _Clip(BaseModel):
    id: int | str
    template: str


def read_ssv2(root: Path) -> Lists:
    """Something-Something v2's JSON lists: `train`, `validation` (scored), and `labels`, which orders the classes."""
    files = ssv2_files(root)
    if missing := {"train", "validation", "labels"} - set(files):
        raise RequestError(f"{root} has no Something-Something v2 JSON for {', '.join(sorted(missing))}")
    numbers = _json(files["labels"], dict[str, int])
    rows = []
    sides: dict[str, Split] = {"train": "train", "validation": "test"}
    for name, side in sides.items():
        for position, record in enumerate(_json(files[name], list[_Clip])):
            where = f"{files[name].name}, item {position}"
            label = re.sub(r"[\[\]]", "", record.template)
            if label not in numbers:
                raise RequestError(f"{where}: label {label!r} is not in {files['labels'].name}")
            rows.append(Row((str(record.id),), label, side, where))
    return Lists(tuple(rows), flips=False, classes=tuple(sorted(numbers, key=numbers.__getitem__)))


def ssv2_files(root: Path) -> dict[str, Path]:
    """The lists by what they hold, of the first folder that has most of the three."""
    found = max(by_folder(root, named(SSV2_LIST)), key=len, default=[])
    return {re.sub(SSV2_LIST, r"\1", path.name): path for path in found}


def tables(root: Path) -> list[Path]:
    """The tables of the data's folder that name videos, labels, and splits or groups."""
    found = by_folder(root, lambda path: _is_table(header(path)))
    return [path for paths in found for path in paths]


def _is_table(names: tuple[str, ...]) -> bool:
    has = set(names)
    return ({"label", "split"} <= has and bool({"path", "folder_name"} & has)) or {"path", "label", "group"} <= has


ABOVE = "put the table into a folder above all the videos that it lists"


def read_table(root: Path, table: Path) -> Lists:
    """A table of path,label,split, or MiniUCF's folder_name,label,split, whose names are videos' without an extension.

    A path is relative to the table's folder or to `root`. Where a table has test rows its validation rows are left out;
    where it has none, they are the test split. A column `group` tells which videos were cut from one; a table that has
    it may leave the split to be drawn.
    """
    has = columns(table)
    if not _is_table(has):
        raise RequestError(
            f"{table} needs the columns path,label,split, or path,label,group for a split to be drawn (or "
            f"folder_name,label,split); it has {has}"
        )
    column, drawn = "path" if "path" in has else "folder_name", "split" not in has
    needed = [column, "label", *([] if drawn else ["split"])]
    rows = []
    for record, where in records(table):
        if empty := [name for name in needed if not record.get(name)]:
            raise RequestError(f"{where}: no {' and no '.join(empty)}")
        name = record[column]
        names = _relative(root, table, name, where) if column == "path" else (name,)
        row = Row(names, record["label"], None, where, record.get("group") or None)
        rows.append((row, record.get("split", "train")))
    sided = _sided(rows, flips=column == "folder_name" and _of_known_names(rows), exact=column == "path")
    return replace(sided, drawn=drawn)


def _of_known_names(rows: list[tuple[Row, str]]) -> bool:
    """Whether all are UCF101's, as MiniUCF's are, or all HMDB51's."""
    return any(all(known.fullmatch(row.names[0]) for row, _ in rows) for known in (UCF101_NAME, HMDB51_NAME))


def _relative(root: Path, table: Path, name: str, where: str) -> tuple[str, ...]:
    """The path below `root` that a table's path may mean: from the table's folder, then from `root`."""
    here = (root.absolute(), root.absolute())  # an absolute path by way of a link
    places = [(table.parent.resolve(), root.resolve()), (root.resolve(), root.resolve()), here]
    names = [os.path.relpath(folder / name, below) for folder, below in places]
    inside = [Path(name).as_posix() for name in names if not name.startswith(os.pardir)]
    if not inside:
        raise RequestError(f"{where}: {name!r} lies outside {root}: {ABOVE}")
    return tuple(dict.fromkeys(inside))


def _sided(
    rows: list[tuple[Row, str]], *, flips: bool, exact: bool = False, scored: Literal["test", "validation"] = "test"
) -> Lists:
    """The rows, each on the side that the word of its split column tells; where there are both, `scored` is tested."""
    for row, word in rows:
        if word.casefold() not in SPLIT_WORDS:
            raise RequestError(f"{row.where}: split is {word!r}; expected train or test (or validation)")
    words = [SPLIT_WORDS[word.casefold()] for _, word in rows]
    spare = "validation" if scored == "test" else "test"
    sides: Mapping[str, Split | None] = {
        "train": "train",
        scored: "test",
        spare: None if scored in words else "test",
    }
    sided = tuple(replace(row, split=sides[word]) for (row, _), word in zip(rows, words, strict=True))
    unused = f"in the {spare} split; the {scored} split is the one that is scored"
    return Lists(sided, flips=flips, exact=exact, unused=unused)


def _json(path: Path, kind: type[T]) -> T:
    try:
        return TypeAdapter(kind).validate_json(text(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise RequestError(f"{path} is not as Something-Something v2 writes it: {place}: {first['msg']}") from error
