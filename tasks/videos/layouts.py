"""Where the videos lie: which files are videos, of which class, on which side of the split and in which group.

A layout is read as it is found (class folders, official lists, a table). Every file below the data's folder ends as an
entry or as rejected with a reason; only hidden files and the lists themselves are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.tasks.videos import split_lists
from vidistill.tasks.videos.drafts import Draft, hold_out, match_lists
from vidistill.tasks.videos.files import Rejected as Rejected
from vidistill.tasks.videos.files import Tree, filtered, read_tree, unread
from vidistill.tasks.videos.split_lists import LIST_FOLDERS, Lists, Split
from vidistill.tasks.videos.splits import Entry as Entry  # part of this module's interface, as is Rejected
from vidistill.tasks.videos.splits import entry_of, move_to_test, split_notes
from vidistill.tasks.videos.tables import TABLE_SUFFIXES, columns, header

Layout = Literal["folders", "ucf101", "hmdb51", "hmdb51_5236", "csv", "kinetics", "ssv2"]

TEST_FOLDERS = ("test", "val", "validation")  # the first that is there is scored


def _switch(given: object) -> object:
    """YAML takes a plain `on` for true."""
    return given if not isinstance(given, bool) else "on" if given else "off"


class IndexParameters(Parameters):
    """How a folder of videos is read.

    `hmdb51_5236` trains, as the common benchmark does, on every clip outside of its test list. The test split of class
    folders, and of a table, that have none is drawn in whole groups; so is a holdout, for every choice of a parameter.
    """

    layout: Literal["auto", Layout] = Field(
        "auto", description="How a folder is read; recognised where it is not given."
    )
    split: int = Field(1, ge=1, description="The official split, of UCF101 and HMDB51.")
    split_seed: int = Field(0, description="Of a test split, or a holdout, that is drawn.")
    test_fraction: float = Field(0.25, gt=0, lt=1, description="Of each class, where the test split is drawn.")
    holdout: bool = Field(False, description="Score on a fifth of the training split, and leave the test split alone.")
    test_only: bool = Field(
        False,
        exclude_if=lambda only: not only,
        description="Where a split would be drawn all videos are for the test.",
    )
    flips: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = Field(
        "auto", description="Mirrored clips: on where lists of UCF101, MiniUCF, HMDB51 or Kinetics are read."
    )


class Listing(Parameters):
    """What lies in a folder. A label's index is its place in `classes`; entries and rejected are sorted by path."""

    layout: Layout
    classes: tuple[str, ...]
    flips: bool
    entries: tuple[Entry, ...]
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...] = ()


def list_videos(root: Path, parameters: IndexParameters) -> Listing:
    """Read the layout of `root`, a folder of videos or a table (CSV, Parquet) that lies in one.

    Raises:
        RequestError: nothing there, no videos, a layout or split that is not there, lists that contradict
            themselves, or classes that cannot be split.
    """
    folder = data_folder(root)
    tree = _tree_of(root, folder)
    layout, notes = choose_layout(root, parameters)
    draft = read_layout(root, layout, parameters, tree)
    if parameters.holdout:
        hold_out(draft, parameters.split_seed)
    classes = check(draft, folder, test_only=parameters.test_only)
    return Listing(
        layout=layout,
        classes=classes,
        flips=draft.flips if parameters.flips == "auto" else parameters.flips == "on",
        entries=tuple(sorted(draft.entries, key=lambda entry: entry.path)),
        rejected=all_rejected(draft, tree),
        notes=(*notes, *draft.notes, *split_notes(draft.entries)),
    )


def data_folder(root: Path) -> Path:
    """The folder that all paths are relative to: `root`, or the folder of the table that `root` names.

    Raises:
        RequestError: there is no such path, it cannot be looked into, or it is a file but no table.
    """
    try:
        root.stat()
    except FileNotFoundError as error:
        raise RequestError(f"{root} does not exist: name a folder of videos, or a CSV of path,label,split") from error
    except OSError as error:
        raise RequestError(f"{root} cannot be read ({error.strerror}): name a folder of videos that can be") from error
    if root.is_dir():
        return root
    if root.suffix.lower() not in TABLE_SUFFIXES:
        raise RequestError(f"{root} is a file: name the folder that holds the videos, or a CSV of path,label,split")
    return root.parent


def _tree_of(root: Path, folder: Path) -> Tree:
    try:
        return read_tree(folder)
    except RequestError as error:
        if root.is_dir():
            raise
        raise RequestError(f"no videos lie below {folder}, the folder of {root.name}: {split_lists.ABOVE}") from error


def choose_layout(root: Path, parameters: IndexParameters) -> tuple[Layout, list[str]]:
    """The layout that was asked for, or the first that fits, and a note of others that would."""
    if not root.is_dir() and parameters.layout not in ("auto", "csv"):
        raise RequestError(f"{root} is a table: for layout {parameters.layout} name its folder, {root.parent}")
    fitting = _fitting(root) if parameters.layout == "auto" else [parameters.layout]
    chosen, others = fitting[0], fitting[1:]
    if parameters.split != 1 and chosen not in ("ucf101", "hmdb51", "hmdb51_5236"):
        raise RequestError(
            f"{root} is read as {chosen}, which has one split: leave split {parameters.split} out (the official "
            "splits of UCF101 and HMDB51 are 1 to 3)"
        )
    return chosen, [f"read as {chosen}; layout {' or '.join(others)} would fit too"] if others else []


def _fitting(folder: Path) -> list[Layout]:
    """The layouts whose lists are there, else class folders."""
    if not folder.is_dir():
        return ["csv"]
    signs: dict[Layout, bool] = {
        "ucf101": bool(split_lists.find_lists(folder, split_lists.named(split_lists.UCF101_LIST))),
        "hmdb51": bool(split_lists.find_lists(folder, split_lists.named(split_lists.HMDB51_LIST))),
        "ssv2": len(split_lists.ssv2_files(folder)) == 3,
        "kinetics": bool(split_lists.kinetics_tables(folder)),
        "csv": bool(split_lists.tables(folder)),
    }
    return [layout for layout, found in signs.items() if found] or ["folders"]


def read_layout(root: Path, layout: Layout, parameters: IndexParameters, tree: Tree) -> Draft:
    """The entries of a layout, before a holdout and the checks that all layouts share."""
    folder = data_folder(root)
    if layout == "folders":
        return read_folders(folder, parameters, tree)
    readers: dict[Layout, Callable[[], Lists]] = {
        "ucf101": lambda: split_lists.read_ucf101(folder, parameters.split),
        "hmdb51": lambda: split_lists.read_hmdb51(folder, parameters.split),
        "hmdb51_5236": lambda: split_lists.read_hmdb51(folder, parameters.split, rest_is_train=True),
        "kinetics": lambda: split_lists.read_kinetics(folder),
        "ssv2": lambda: split_lists.read_ssv2(folder),
        "csv": lambda: split_lists.read_table(folder, _the_table(root)),
    }
    lists = readers[layout]()
    draft = match_lists(lists, tree, folder)
    if lists.drawn:
        _draw_test(draft, parameters, folder, "a table")
    return draft


def _the_table(root: Path) -> Path:
    if root.is_file():
        return root
    found = split_lists.tables(root)
    if len(found) == 1:
        return found[0]
    if found:
        raise RequestError(f"{root} has {len(found)} tables of videos: name one of {', '.join(map(str, found))} itself")
    raise RequestError(f"{root} has no CSV or Parquet table with the columns path,label,split")


def read_folders(folder: Path, parameters: IndexParameters, tree: Tree) -> Draft:
    """`train/<class>/…` and `test/`, `val/` or `validation/<class>/…`; else `<class>/…` and a seeded split."""
    names = {name.casefold(): name for name in tree.folders if "/" not in name}
    there = [names[name] for name in TEST_FOLDERS if name in names]
    labelled = {path.split("/")[0] for path in tree.videos if path.count("/") == 2}
    tests = sorted(there, key=lambda name: name not in labelled)  # a test split may be without labels
    if "train" in names and tests:
        sides: dict[str, Split] = {names["train"]: "train", tests[0]: "test"}
        draft = Draft([], lambda path: _outside_class_folder(path, 1, tests[0], tests[1:]))
        for path, parts in ((path, path.split("/")) for path in tree.videos):
            if len(parts) == 3 and parts[0] in sides:
                draft.entries.append(entry_of(path, parts[1], sides[parts[0]]))
        if not draft.entries:
            raise RequestError(
                f"no video of {folder} lies in {' or '.join(f'{side}/<class>/' for side in sides)} (the first is "
                f"{tree.videos[0]}): put each class in its own folder there, or add a CSV of path,label,split"
            )
        return draft
    if parameters.layout == "auto" and (found := unread(folder)):
        raise RequestError(_in_no_form(found))
    draft = Draft([], lambda path: _outside_class_folder(path, 0, "", []))
    draft.entries = [entry_of(path, path.split("/")[0], "train") for path in tree.videos if path.count("/") == 1]
    if not draft.entries:
        raise RequestError(_no_class_folders(folder, tree))
    strange = split_lists.by_folder(folder, lambda path: path.suffix.lower() in TABLE_SUFFIXES and not header(path))
    draft.notes += [f"{path.name} cannot be read as a table and is passed over" for found in strange for path in found]
    empty = sorted(set(names.values()) - {entry.label for entry in draft.entries} - set(LIST_FOLDERS))
    draft.notes += [f"folder {name!r} holds no videos itself and is no class" for name in empty]
    _draw_test(draft, parameters, folder, "class folders", _hint(tree, parameters))
    return draft


def _draw_test(draft: Draft, parameters: IndexParameters, folder: Path, of: str, hint: str = "") -> None:
    """Draw the test split of what tells none."""
    if parameters.test_only:
        draft.entries = [entry.model_copy(update={"split": "test"}) for entry in draft.entries]
        return
    _check_classes({entry.label for entry in draft.entries}, folder)
    draft.entries = move_to_test(draft.entries, parameters.test_fraction, parameters.split_seed)
    tested = sum(entry.split == "test" for entry in draft.entries)
    draft.notes.append(
        f"{of} without a split: the test split is {tested} of {len(draft.entries)} videos, drawn with seed "
        f"{parameters.split_seed} in whole groups, one at least and about {parameters.test_fraction:.0%} of each "
        f"class{hint}"
    )


def _in_no_form(path: Path) -> str:
    table = path.suffix.lower() in TABLE_SUFFIXES
    has = f" it has {', '.join(columns(path)) or 'none'}" if table else " or the lists of UCF101 or HMDB51"
    return (
        f"{path} tells a split in no form that is read: give a table with the columns path,label,split;{has}. "
        "To draw a split of class folders instead, name layout folders"
    )


def _hint(tree: Tree, parameters: IndexParameters) -> str:
    if parameters.layout != "auto":
        return ""
    for name, pattern in (("UCF101", split_lists.UCF101_NAME), ("HMDB51", split_lists.HMDB51_NAME)):
        if all(pattern.fullmatch(PurePosixPath(path).stem) for path in tree.videos):
            return f" (the names are {name}'s: its official lists go into splits/)"
    return ""


def _outside_class_folder(path: str, depth: int, scored: str, unscored: list[str]) -> str:
    parts = path.split("/")
    if parts[0] in unscored:
        return f"in {parts[0]}/, while {scored}/ is the split that is scored"
    if len(parts) <= depth + 1:
        return "in no class folder"
    too_deep = "too deep: of a class folder the videos that lie in it itself are read"
    return too_deep if len(parts) > depth + 2 else "beside the train and test folders"


def _no_class_folders(folder: Path, tree: Tree) -> str:
    first = tree.videos[0]
    if all("/" not in video for video in tree.videos):
        return f"the videos lie in {folder} itself: put each class in its own folder, or add a CSV of path,label,split"
    parent = folder / PurePosixPath(first).parent.parent
    return f"{folder} holds no class folders with videos (the first is {first}): name {parent}, or the like, instead"


def check(draft: Draft, folder: Path, *, test_only: bool = False) -> tuple[str, ...]:
    """The classes in their order, once there are two at least, each with training videos, and a test split."""
    train = {entry.label for entry in draft.entries if entry.split == "train"}
    test = {entry.label for entry in draft.entries if entry.split == "test"}
    if test_only and not train:
        return tuple(label for label in draft.classes or sorted(test) if label in test)
    missing = [f"{row.video}, {row.reason}" for row in draft.rejected if row.outcome == "failed"]
    lost = f" ({len(missing)} listed and missing; the first is {missing[0]})" if missing else ""
    if unknown := sorted(test - train):
        raise RequestError(f"class {unknown[0]!r} of {folder} has test videos but no training videos{lost}")
    _check_classes(train, folder, lost)
    if not test:
        raise RequestError(
            f"{folder} has no test videos{lost}: add some, or set holdout to score on part of the training split"
        )
    draft.notes += [f"class {label!r} has no test videos" for label in sorted(train - test)]
    return tuple(label for label in draft.classes or sorted(train) if label in train)


def _check_classes(labels: set[str], folder: Path, lost: str = "") -> None:
    if len(labels) < 2:
        has = f"only one class ({', '.join(labels)})" if labels else "no training videos"
        raise RequestError(f"{folder} has {has}{lost}: there is nothing to tell apart")


def all_rejected(draft: Draft, tree: Tree) -> tuple[Rejected, ...]:
    """The files that are no videos, the ones that the layout left out, and the videos that no entry names."""
    named = {entry.path for entry in draft.entries} | {rejected.video for rejected in draft.rejected}
    leftover = [filtered(path, draft.leftover(path)) for path in tree.videos if path not in named]
    none = [rejected for rejected in tree.rejected if rejected.video not in named]
    return tuple(sorted((*none, *draft.rejected, *leftover), key=lambda rejected: rejected.video))
