"""`vidistill unpack`: shards of WebDataset, or a data set of Hugging Face, as the folders that every command reads."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidistill.storage.errors import RequestError
from vidistill.storage.locks import locked
from vidistill.tasks.videos.files import VIDEO_SUFFIXES

TRAIN, TEST = "train", "test"
PART = ".part"
"""Where videos lie until all are there: hidden, so that no command takes some of them for a data set."""


@dataclass(frozen=True)
class Sample:
    """A video: its bytes or where they lie, its name (it may tell its group) and suffix, its class, its side."""

    content: bytes | Path
    stem: str
    suffix: str
    label: str
    split: str


def unpack(source: Path, out: Path) -> dict[str, int]:
    """Write `out/<train|test>/<class>/<name>.<suffix>`, names as they were; how many videos of each side.

    A side is told from the name of a shard or a split: train, or test, val and validation; what says neither is train.

    Raises:
        RequestError: the source is neither, a video has no class, or the folder is not empty.
    """
    if (source.is_absolute() or source.suffix == ".tar") and not os.access(source, os.R_OK):
        why = "cannot be read" if os.access(source, os.F_OK) else "is not there"
        raise RequestError(f"{source} {why}: give shards of WebDataset (.tar), or a data set of Hugging Face.")
    _check_empty(out)
    other = RequestError(f"Another `vidistill unpack` writes to {out}: name another --out, or wait until it has ended.")
    with locked(out / f"{PART}.lock", other):
        _check_empty(out)  # somebody may have ended meanwhile
        return _write(source, out)


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(PART) for path in out.iterdir())):
        raise RequestError(f"{out} is not an empty folder: name another --out, so that no files are mixed.")


def _write(source: Path, out: Path) -> dict[str, int]:
    shards = sorted(source.rglob("*.tar")) if source.is_dir() else [source]
    samples = _of_shards(shards) if shards and shards[0].suffix == ".tar" else _of_datasets(source)
    counts: Counter[str] = Counter()
    part = out / PART
    shutil.rmtree(part, ignore_errors=True)
    try:
        for number, sample in enumerate(samples):
            if not sample.label.strip() or "/" in sample.label or sample.label.startswith("."):
                raise RequestError(
                    f"Video {number} of {source} has the class {sample.label!r}, which names no folder that is read."
                )
            path = part / sample.split / sample.label / f"{sample.stem}{sample.suffix}"
            if path.exists():
                path = path.with_stem(f"{number}-{sample.stem}")  # a group is told by a name's end
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(sample.content, Path):
                shutil.copyfile(sample.content, path)
            else:
                path.write_bytes(sample.content)
            counts[sample.split] += 1
        if not counts:
            raise RequestError(f"{source} holds no videos ({', '.join(sorted(VIDEO_SUFFIXES))}).")
        for split in counts:
            (part / split).rename(out / split)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    part.rmdir()
    return dict(counts)


def _side(name: str) -> str:
    words = re.split(r"[^a-z]+", name.lower())
    return TEST if {"test", "testing", "val", "valid", "validation", "eval"} & set(words) else TRAIN


def _of_shards(shards: list[Path]) -> Iterator[Sample]:
    """Members of one name up to its first point are a sample: a video and cls, txt or json for its class."""
    for shard in shards:
        try:
            with tarfile.open(shard) as tar:
                group: dict[str, bytes] = {}
                key = ""
                for member in (member for member in tar if member.isfile()):
                    folder, _, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    if (named := f"{folder}/{stem}") != key:
                        yield from _sample(group, shard, key)
                        group, key = {}, named
                    if suffix.lower() in group:
                        raise RequestError(f"{key} of {shard} stands there twice: name its samples apart.")
                    file = tar.extractfile(member)
                    group[suffix.lower()] = file.read() if file else b""
                yield from _sample(group, shard, key)
        except (tarfile.TarError, OSError) as error:
            raise RequestError(f"{shard} is no shard of WebDataset: {error}.") from error


def _sample(group: dict[str, bytes], shard: Path, key: str) -> Iterator[Sample]:
    suffixes = [name for name in group if f".{name.rpartition('.')[2]}" in VIDEO_SUFFIXES]
    if len(suffixes) > 1:
        held = " and ".join(f".{name}" for name in suffixes)
        raise RequestError(f"{key} of {shard} has several videos ({held}) for one class: leave one of them in.")
    if not suffixes:
        if "cls" in group:
            held = ", ".join(f".{name}" for name in group)
            raise RequestError(f"{key} of {shard} has a class and no video of a known kind: it has {held}.")
        return
    label = _label(group)
    if not label:
        raise RequestError(f"{key} of {shard} has no class: it is looked for in .cls, .txt and .json (class or label).")
    stem = key.rpartition("/")[2]
    yield Sample(group[suffixes[0]], stem, f".{suffixes[0].rpartition('.')[2]}", label, _side(shard.stem))


def _label(group: dict[str, bytes]) -> str:
    """The class that the JSON names, else what cls or txt say, else the JSON's label; nothing if none can be read."""
    try:
        found: Any = json.loads(group.get("json", b"{}"))
    except ValueError:
        found = {}
    told = found if isinstance(found, dict) else {}
    texts = (_text(group.get(kind, b"")) for kind in ("cls", "txt"))
    named, numbered = ("" if told.get(key) is None else str(told[key]) for key in ("class", "label"))
    return next(filter(None, (named, *texts, numbered)), "")


def _text(content: bytes) -> str:
    try:
        return content.decode().strip()
    except UnicodeDecodeError:
        return ""


def _of_datasets(source: Path) -> Iterator[Sample]:
    """Rows of a data set that `save_to_disk` wrote or that `load_dataset` reads, with a column of videos."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise RequestError(
            f"{source} holds no .tar of WebDataset, and Hugging Face's datasets is not installed to look further: "
            "pip install -e '.[readers]' -c constraints.txt."
        ) from error
    try:
        saved = any((source / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))
        found = datasets.load_from_disk(str(source)) if saved else datasets.load_dataset(str(source))
    except Exception as error:
        raise RequestError(f"{source} is no data set of Hugging Face: {' '.join(str(error).split())}.") from error
    splits = found if isinstance(found, dict) else {TRAIN: found}
    for name, split in splits.items():
        video = next((key for key, kind in split.features.items() if isinstance(kind, datasets.Video)), None)
        label = next((key for key in ("class", "label", "labels") if key in split.features), None)
        if video is None or label is None:
            raise RequestError(
                f"{source} needs a column of the feature Video and one named label; it has {split.features}."
            )
        names = getattr(split.features[label], "names", None)
        for number, row in enumerate(split.cast_column(video, datasets.Video(decode=False))):
            if row[video] is None or row[label] is None or (names and row[label] < 0):
                lacks = "video" if row[video] is None else "class"
                raise RequestError(f"Row {number} of {name} of {source} has no {lacks}: filter such rows out first.")
            place, content = Path(row[video]["path"] or "video.mp4"), row[video]["bytes"]
            said = names[row[label]] if names else str(row[label])
            suffix = place.suffix or ".mp4"
            yield Sample(place if content is None else content, place.stem, suffix, said, _side(str(name)))
