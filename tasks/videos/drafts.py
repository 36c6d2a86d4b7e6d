"""What a layout says of its videos, before it is checked: entries, what is left out, notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vidistill.storage.errors import RequestError
from vidistill.tasks.videos.files import Finder, Rejected, Tree, filtered
from vidistill.tasks.videos.split_lists import Lists, Row
from vidistill.tasks.videos.splits import Entry, entry_of, move_to_test

HOLDOUT_FRACTION = 0.2


@dataclass
class Draft:
    """A layout as read; `leftover` says why a video that no entry names is left out."""

    entries: list[Entry]
    leftover: Callable[[str], str]
    flips: bool = False
    classes: tuple[str, ...] = ()
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def match_lists(lists: Lists, tree: Tree, folder: Path) -> Draft:
    """Find the file of every row. One with a side and without a video has failed; a class without any is a note.

    Raises:
        RequestError: no row's file is there, or a file stands in the lists twice.
    """
    finder = Finder(tree, folder)
    draft = Draft([], lambda _: "in none of the lists", flips=lists.flips, classes=lists.classes)
    listed: dict[str, Row] = {}
    missing: list[Row] = []
    for row in lists.rows:
        path = next(filter(None, (finder.find(name, exact=lists.exact) for name in row.names)), None)
        if path is None:
            missing += [row] if row.split else []
        elif path in listed:
            raise RequestError(f"{path} is listed twice: {listed[path].where} and {row.where}")
        else:
            listed[path] = row
    if not lists.rows:
        raise RequestError(f"the table or the lists of {folder} name no videos")
    if all(map(finder.problem, listed)):
        first = f"; the first is {lists.rows[0].names[0]!r}"
        raise RequestError(f"none of the {len(lists.rows)} listed videos lies below {folder}{first}")
    for path, row in listed.items():
        if row.split is None:
            draft.rejected.append(filtered(path, lists.unused))
        elif problem := finder.problem(path):
            reason = f"{problem}, though listed ({row.where})"
            draft.rejected.append(Rejected(video=path, outcome="failed", reason=reason))
        else:
            draft.entries.append(entry_of(path, row.label, row.split, row.group))
    _report_missing(draft, missing)
    return draft


def _report_missing(draft: Draft, missing: list[Row]) -> None:
    present = {entry.label for entry in draft.entries}
    absent = sorted({row.label for row in missing} - present)
    for row in missing:
        if row.label in present:
            reason = f"listed ({row.where}) but not there"
            draft.rejected.append(Rejected(video=row.names[0], outcome="failed", reason=reason))
    if absent:
        more = ", …" if len(absent) > 3 else ""
        what = "class has no videos here and is" if len(absent) == 1 else "classes have no videos here and are"
        draft.notes.append(f"{len(absent)} listed {what} left out ({', '.join(absent[:3])}{more})")


def hold_out(draft: Draft, seed: int) -> None:
    """Drop the test split and put a group-aware fifth of the training split in its place."""
    reason = "in the test split, which a holdout leaves alone"
    draft.rejected += [filtered(entry.path, reason) for entry in draft.entries if entry.split == "test"]
    train = [entry for entry in draft.entries if entry.split == "train"]
    draft.entries = move_to_test(train, HOLDOUT_FRACTION, seed)
