"""The split files that data sets come with, read as rows of (names a file may have, label, split).

Nothing here looks at the videos: `vidistill.tasks.videos.layouts` finds the files that the rows name.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from vidistill.storage.errors import RequestError

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
LIST_SUFFIXES = frozenset({".csv", ".json", ".parquet", ".txt"})
TABLE_SUFFIXES = frozenset({".csv", ".parquet"})
SPLIT_WORDS: dict[str, Literal["train", "test", "validation"]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "eval"), "validation"),
}
UCF101_NAME = re.compile(r"v_.+_g\d+_c\d+")
HMDB51_NAME = re.compile(r"(?P<source>.+)_[hulf]_(?:nm|cm)_np\d+_(?:fr|ba|le|ri)_(?:goo|med|bad)_\d+")
NUMBERED_NAME = re.compile(r"(.+?)(?:\s+(\d+))?")
MINIUCF_CLASSES = 50


@dataclass(frozen=True)
class Row:
    """One line of a list: the names that its file may have, best first, and the side it stands on (None: neither)."""

    names: tuple[str, ...]
    label: str
    split: Split | None
    where: str


@dataclass(frozen=True)
class Lists:
    """What a data set's lists say.

    `classes` is the order that the data set gives them, empty where it is the sorted one. `exact`: names are whole
    paths; otherwise more folders may stand before a name and its extension may differ. `unused` says why a row has no
    split.
    """

    dataset: str
    rows: tuple[Row, ...]
    classes: tuple[str, ...] = ()
    exact: bool = False
    unused: str = ""


def find_lists(root: Path, pattern: str) -> list[Path]:
    """The files of this pattern in the first folder of `LIST_FOLDERS` that has any, sorted by name."""
    return next(filter(None, by_folder(root, pattern)), [])


def by_folder(root: Path, pattern: str) -> Iterator[list[Path]]:
    for folder in LIST_FOLDERS:
        yield sorted(path for path in (root / folder).glob(pattern) if path.name[0] != "." and path.is_file())


def read_ucf101(root: Path, split: int) -> Lists:
    """`trainlist0N.txt` and `testlist0N.txt`; the class order is `classInd.txt`'s (else the sorted one)."""
    _require_split(find_lists(root, "trainlist*.txt"), r"trainlist0?(\d+)\.txt", split, "ucf101", root)
    rows: list[Row] = []
    sides: tuple[Split, ...] = ("train", "test")
    for side in sides:
        paths = find_lists(root, f"{side}list{split:02d}.txt")
        if not paths:
            raise RequestError(f"trainlist{split:02d}.txt has no {side}list{split:02d}.txt beside it in {root}")
        rows += [Row((name,), _parent(name, where), side, where) for name, _, where in _numbered_names(paths[0])]
    return Lists("ucf101", tuple(rows), classes=_class_order(root, rows))


def _parent(name: str, where: str) -> str:
    if "/" not in name:
        raise RequestError(f"{where}: expected <class>/<video>, got {name!r}")
    return PurePosixPath(name).parent.name


def _class_order(root: Path, rows: list[Row]) -> tuple[str, ...]:
    found = find_lists(root, "classInd.txt")
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
    found = find_lists(root, "*_test_split*.txt")
    _require_split(found, r".+_test_split(\d+)\.txt", split, "hmdb51", root)
    sides: dict[str, Split | None] = {"0": "train" if rest_is_train else None, "1": "train", "2": "test"}
    rows = []
    for path in found:
        label, _, number = path.stem.rpartition("_test_split")
        for name, side, where in _numbered_names(path) if number == str(split) else ():
            if side not in sides:
                raise RequestError(f"{where}: expected 0, 1 or 2 after the name, got {side!r}")
            rows.append(Row((f"{label}/{name}",), label, sides[side], where))
    return Lists("hmdb51", tuple(rows), unused=f"on neither side of official split {split}")


ARCHIVES = {
    "ucf101": "UCF101TrainTestSplits-RecognitionTask.zip of https://www.crcv.ucf.edu/data/UCF101.php",
    "hmdb51": "test_train_splits.rar of https://serre.lab.brown.edu/hmdb51.html",
}


def _require_split(paths: list[Path], pattern: str, split: int, layout: str, root: Path) -> None:
    numbers = {int(match[1]) for path in paths if (match := re.fullmatch(pattern, path.name))}
    if not numbers:
        places = ", ".join(folder or "." for folder in LIST_FOLDERS[:4])
        raise RequestError(
            f"{root} has no {layout} lists (looked in {places}); put the official split files there: {ARCHIVES[layout]}"
        )
    if split not in numbers:
        raise RequestError(f"{root} has no list for split {split}, only for {', '.join(map(str, sorted(numbers)))}")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
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
        for record, where in _records(path):
            if record.get("label"):  # the official test list has none
                names = (*_cut(record, where), record["youtube_id"])
                word = record.get("split") or path.stem.split("_")[-1]
                rows.append((Row(names, record["label"], None, where), word))
    return _sided(Lists("kinetics", ()), rows)


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
    return [path for path in find_lists(root, "*.csv") if {"label", "youtube_id"} <= set(columns(path))]


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
    return Lists("ssv2", tuple(rows), classes=tuple(sorted(numbers, key=numbers.__getitem__)))


def ssv2_files(root: Path) -> dict[str, Path]:
    pattern = re.compile(r"(?:something-something-v2-)?(train|validation|labels)\.json")
    return {match[1]: path for path in find_lists(root, "*.json") if (match := pattern.fullmatch(path.name))}


def tables(root: Path) -> list[Path]:
    """The tables of the data's folder that name videos, labels and splits."""
    found = [path for suffix in sorted(TABLE_SUFFIXES) for paths in by_folder(root, f"*{suffix}") for path in paths]
    return [path for path in found if _is_table(columns(path))]


def _is_table(names: tuple[str, ...]) -> bool:
    return {"label", "split"} <= set(names) and bool({"path", "folder_name"} & set(names))


ABOVE = "put the table into a folder above all the videos that it lists"


def read_table(root: Path, table: Path) -> Lists:
    """A table of path,label,split, or MiniUCF's folder_name,label,split, whose names are videos' without an extension.

    A path is relative to the table's folder or to `root`. Where a table has test rows its validation rows are left out;
    where it has none, they are the test split.
    """
    header = columns(table)
    if not _is_table(header):
        raise RequestError(f"{table} needs the columns path,label,split (or folder_name,label,split); it has {header}")
    column = "path" if "path" in header else "folder_name"
    rows = []
    for record, where in _records(table):
        if empty := [name for name in (column, "label", "split") if not record.get(name)]:
            raise RequestError(f"{where}: no {' and no '.join(empty)}")
        name = record[column]
        names = _relative(root, table, name, where) if column == "path" else (name,)
        rows.append((Row(names, record["label"], None, where), record["split"]))
    dataset = root.resolve().name if column == "path" else _dataset([row for row, _ in rows], root)
    return _sided(Lists(dataset, (), exact=column == "path"), rows)


def _relative(root: Path, table: Path, name: str, where: str) -> tuple[str, ...]:
    """The path below `root` that a table's path may mean: from the table's folder, then from `root`."""
    here = (root.absolute(), root.absolute())  # an absolute path by way of a link
    places = [(table.parent.resolve(), root.resolve()), (root.resolve(), root.resolve()), here]
    names = [os.path.relpath(folder / name, below) for folder, below in places]
    inside = [Path(name).as_posix() for name in names if not name.startswith(os.pardir)]
    if not inside:
        raise RequestError(f"{where}: {name!r} lies outside {root}: {ABOVE}")
    return tuple(dict.fromkeys(inside))


def _dataset(rows: list[Row], root: Path) -> str:
    if all(UCF101_NAME.fullmatch(row.names[0]) for row in rows):
        return "miniucf" if len({row.label for row in rows}) == MINIUCF_CLASSES else "ucf101"
    return "hmdb51" if all(HMDB51_NAME.fullmatch(row.names[0]) for row in rows) else root.resolve().name


def _sided(lists: Lists, rows: list[tuple[Row, str]]) -> Lists:
    """Give every row its side, from the word that its split column holds."""
    for row, word in rows:
        if word.casefold() not in SPLIT_WORDS:
            raise RequestError(f"{row.where}: split is {word!r}; expected train or test (or validation)")
    words = [SPLIT_WORDS[word.casefold()] for _, word in rows]
    sides: Mapping[str, Split | None] = {
        "train": "train",
        "test": "test",
        "validation": None if "test" in words else "test",
    }
    sided = tuple(replace(row, split=sides[word]) for (row, _), word in zip(rows, words, strict=True))
    return replace(lists, rows=sided, unused="in the validation split; the test split is the one that is scored")


def columns(table: Path) -> tuple[str, ...]:
    """A table's column names, lower case."""
    if table.suffix.lower() == ".parquet":
        return tuple(name.strip().lower() for name in _parquet(table).schema.names)
    with table.open(encoding="utf-8-sig", newline="", errors="replace") as file, _as_table(table):
        return tuple(name.strip().lower() for name in next(csv.reader(file), []))


@contextmanager
def _as_table(table: Path) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise RequestError(f"{table} is no CSV: {error}") from error


def _records(table: Path) -> Iterator[tuple[dict[str, str], str]]:
    """Every row as {column: text} with the place it stands at."""
    if table.suffix.lower() == ".parquet":
        for number, record in enumerate(_parquet(table).to_pylist()):
            yield {str(name).lower(): _cell(value) for name, value in record.items()}, f"{table.name}, row {number}"
        return
    reader = csv.DictReader(io.StringIO(_text(table), newline=""), fieldnames=columns(table), restkey="")
    with _as_table(table):
        next(reader, None)
        for record in reader:
            yield {name: _cell(value) for name, value in record.items()}, f"{table.name}, line {reader.line_num}"


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _parquet(table: Path) -> Any:
    if importlib.util.find_spec("pyarrow") is None:
        raise RequestError(f"{table} is a Parquet file: install pyarrow, or save it as CSV with the same columns")
    try:
        return importlib.import_module("pyarrow.parquet").read_table(table)
    except (OSError, ValueError) as error:  # pyarrow's own errors are one of them
        raise RequestError(f"{table} is no Parquet file: {error}") from error


def _json(path: Path, kind: type[T]) -> T:
    try:
        return TypeAdapter(kind).validate_json(_text(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise RequestError(f"{path} is not as Something-Something v2 writes it: {place}: {first['msg']}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
