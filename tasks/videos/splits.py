"""Groups, and splits that cut none: the test side of class folders, and the held-out part of a training split."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.tasks.videos.split_lists import HMDB51_NAME, Split

GROUP_NAME = re.compile(r".+_(?P<group>g\d+)_c\d+")


class Entry(Parameters):
    """A video: its path relative to the data's folder (posix), and its group (None: it is a group of its own)."""

    path: str
    label: str
    split: Split
    group: str | None = None

    @property
    def unit(self) -> str:
        """What a split may not cut: the group, or the file that has none."""
        return self.group or self.path


def entry_of(path: str, label: str, split: Split, group: str | None = None) -> Entry:
    """An entry with its group: that which a list tells, or else its file's name."""
    return Entry(path=path, label=label, split=split, group=group or group_of(path, label))


def group_of(path: str, label: str) -> str | None:
    """What a file's name tells: the class and its source (UCF101's g01, HMDB51's film), the sprites' scene, or None."""
    stem = PurePosixPath(path).stem
    if match := re.fullmatch(rf"{re.escape(label)}_(scene\d+)", stem):
        return match[1]
    if match := GROUP_NAME.fullmatch(stem):
        return f"{label}_{match['group']}"
    match = HMDB51_NAME.fullmatch(stem)
    return f"{label}/{match['source']}" if match else None


def move_to_test(entries: Iterable[Entry], fraction: float, seed: int) -> list[Entry]:
    """Move about `fraction` of each class's videos to the test split: whole groups, at least one and never all.

    A group's rank is a hash of the seed, its class and its name: the same on every machine, and hardly moved by
    videos that come later. A group of several classes, a scene of the sprites, has one rank in all of them, and what
    one of them draws is moved in all.

    Raises:
        RequestError: a class has fewer than two groups, or other classes draw all that are left of it.
    """
    entries = list(entries)
    units: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in entries:
        units[entry.label][entry.unit] += 1
    classes = Counter(unit for sizes in units.values() for unit in sizes)

    def rank(label: str, unit: str) -> bytes:
        name = unit if classes[unit] > 1 else f"{label}/{unit}"
        return hashlib.sha256(f"{seed}/{name}".encode()).digest()

    moved = {
        unit
        for label, sizes in units.items()
        for unit in _drawn(label, sizes, fraction, sorted(sizes, key=lambda unit: rank(label, unit)))
    }
    for label, sizes in units.items():
        if sizes.keys() <= moved:
            raise RequestError(
                f"class {label!r} has no training video left, as other classes draw groups of it ({min(sizes)}) for "
                "the test: set another index.split_seed, or make train and test folders"
            )
    return [entry.model_copy(update={"split": "test"}) if entry.unit in moved else entry for entry in entries]


def _drawn(label: str, sizes: Counter[str], fraction: float, ranked: list[str]) -> list[str]:
    if len(sizes) < 2:
        raise RequestError(
            f"class {label!r} has one training video or group ({next(iter(sizes))}): a split needs at least two; "
            "add videos, or make train and test folders"
        )
    drawn = [ranked[0]]
    wanted = fraction * sizes.total()
    for unit in ranked[1:-1]:
        taken = sum(sizes[name] for name in drawn)
        if taken + sizes[unit] / 2 <= wanted:
            drawn.append(unit)
    return drawn


def split_notes(entries: Iterable[Entry]) -> list[str]:
    sides: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        sides[entry.unit].add(entry.split)
    both = sorted(unit for unit, splits in sides.items() if len(splits) > 1)
    if not both:
        return []
    stand = "group stands" if len(both) == 1 else "groups stand"
    return [f"{len(both)} {stand} on both sides of the split, so its scores flatter (the first: {both[0]})"]
