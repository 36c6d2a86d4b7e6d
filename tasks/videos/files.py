"""The files below a data set's folder: which are videos, why the others are none, and which one a list means."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vidistill.storage.clips import Rejected as Rejected
from vidistill.storage.errors import RequestError
from vidistill.tasks.videos.split_lists import LIST_FOLDERS, LIST_SUFFIXES, by_folder
from vidistill.tasks.videos.tables import TABLE_SUFFIXES, header

VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob",
    ".webm", ".wmv",
})  # fmt: skip
SPLIT_NAME = re.compile(r"(train|test|val|split)", re.IGNORECASE)


@dataclass(frozen=True)
class Tree:
    """The files below the data's folder, by path relative to it (posix): its videos, and what is none."""

    videos: tuple[str, ...]
    folders: tuple[str, ...]
    rejected: tuple[Rejected, ...]


def read_tree(folder: Path) -> Tree:
    """Walk a folder: videos by their extension, everything else rejected; hidden files and lists are not mentioned."""
    videos: list[str] = []
    folders: list[str] = []
    rejected: list[Rejected] = []
    unreadable: list[OSError] = []
    for here, names, files in os.walk(folder, followlinks=True, onerror=unreadable.append):
        base = PurePosixPath(Path(here).relative_to(folder).as_posix())
        visible = sorted(name for name in names if name[0] != ".")
        reasons = {name: _folder_problem(Path(here, name), folder) for name in visible}
        names[:] = [name for name in visible if not reasons[name]]
        folders += [str(base / name) for name in names]
        shown = sorted(name for name in files if name[0] != ".")
        seen = [name for name in shown if not _is_list(base / name)]
        reasons |= {name: _file_problem(Path(here, name)) for name in seen}
        videos += [str(base / name) for name in seen if not reasons[name]]
        rejected += [filtered(str(base / name), reason) for name, reason in reasons.items() if reason]
        if not visible and not shown and here != str(folder):
            rejected.append(filtered(str(base), "an empty folder"))
    for error in unreadable:
        path = Path(error.filename).relative_to(folder).as_posix()
        rejected.append(
            Rejected(video=path, outcome="failed", reason=f"a folder that cannot be read: {error.strerror}")
        )
    if not videos:
        raise RequestError(_no_videos(folder, rejected))
    return Tree(tuple(sorted(videos)), tuple(folders), tuple(rejected))


def _is_list(path: PurePosixPath) -> bool:
    place = "" if str(path.parent) == "." else str(path.parent)
    return path.suffix.lower() in LIST_SUFFIXES and place in LIST_FOLDERS


def unread(folder: Path) -> Path | None:
    """A list that by its name or its columns tells a split, or a link to a table that is not there.

    Asked for where no list is in a form that is read.
    """
    return next((paths[0] for paths in by_folder(folder, tells_split)), None)


def tells_split(path: Path) -> bool:
    """Whether a list tells a split, by its name or its columns; a table that a link does not find may."""
    gone = path.suffix.lower() in TABLE_SUFFIXES and not os.path.exists(path)
    return bool(gone or SPLIT_NAME.match(path.stem) or "split" in re.findall(r"\w+", " ".join(header(path))))


def _folder_problem(path: Path, root: Path) -> str:
    if path.is_symlink():
        target = path.resolve()
        if path.parent.resolve().is_relative_to(target):
            return "a link to a folder that it lies in"
        inside = target.is_relative_to(root.resolve())
        if inside and not any(part[0] == "." for part in target.relative_to(root.resolve()).parts):
            return "a link to a folder that is read in its own place"
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return "a folder, though named like a video"
    return _name_problem(path)


def _file_problem(path: Path) -> str:
    if problem := _name_problem(path):
        return problem
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return f"not a video file ({path.suffix})" if path.suffix else "not a video file (no extension)"
    try:
        status = path.stat()
    except FileNotFoundError:
        return "a link to a file that is not there"
    except OSError:
        return ""  # a video that cannot be read: the scan says why
    if not stat.S_ISREG(status.st_mode):
        return "neither a file nor a folder"
    return "" if status.st_size else "an empty file"


def _name_problem(path: Path) -> str:
    return "" if _readable(path.name) == path.name else "its name is not valid UTF-8: rename it"


def _readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def filtered(path: str, reason: str) -> Rejected:
    return Rejected(video=_readable(path), outcome="filtered", reason=reason)


def _no_videos(folder: Path, rejected: list[Rejected]) -> str:
    if not rejected:
        return f"{folder} is empty: name a folder that holds videos"
    found = ", ".join(f"{count} × {reason}" for reason, count in Counter(r.reason for r in rejected).most_common(3))
    return f"{folder} holds no videos ({found}); known extensions are {' '.join(sorted(VIDEO_SUFFIXES))}"


class Finder:
    """Finds the file that a list names, below a folder."""

    def __init__(self, tree: Tree, folder: Path) -> None:
        self._folder = folder
        self._rejected = {rejected.video: rejected.reason for rejected in tree.rejected}
        self._paths: dict[str, str] = {}
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for path in (*tree.videos, *sorted(self._rejected)):
            self._paths[unicodedata.normalize("NFC", path)] = path
            self._by_stem[_parts(path)[-1]].append(path)

    def problem(self, path: str) -> str:
        """Why a file is no video; nothing of one that is."""
        return self._rejected.get(path, "")

    def find(self, name: str, *, exact: bool) -> str | None:
        """The file of this name, or None.

        Unless `exact`, further folders may stand before the name, and the extension and upper case may differ.

        Raises:
            RequestError: more than one file fits.
        """
        if (path := self._paths.get(unicodedata.normalize("NFC", name))) or exact:
            return path
        wanted = _parts(name)
        if not wanted:
            return None
        found = [path for path in self._by_stem[wanted[-1]] if _parts(path)[-len(wanted) :] == wanted]
        same_suffix = [path for path in found if PurePosixPath(path).suffix == PurePosixPath(name).suffix]
        found = same_suffix if len(found) > 1 and same_suffix else found
        if len(found) > 1:
            found = self._own_places(found)
        if len(found) > 1:
            raise RequestError(f"the lists name {name!r}, and {len(found)} files fit: {', '.join(found[:3])}")
        return found[0] if found else None

    def _own_places(self, paths: list[str]) -> list[str]:
        """Without links to others of them, such as of flat files into class folders."""
        linked = [path for path in paths if (self._folder / path).is_symlink()]
        places = {os.path.realpath(self._folder / path) for path in paths if path not in linked}
        return [path for path in paths if path not in linked or os.path.realpath(self._folder / path) not in places]


def _parts(name: str) -> tuple[str, ...]:
    path = PurePosixPath(unicodedata.normalize("NFC", name).casefold())
    return path.with_suffix("").parts if path.suffix in VIDEO_SUFFIXES else path.parts
