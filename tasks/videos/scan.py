"""The content of the videos: every file hashed and probed once, and remembered for as long as it does not change."""

from __future__ import annotations

import importlib.metadata
import logging
import sqlite3
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from platformdirs import user_cache_path

from vidistill.storage.keys import file_digest
from vidistill.storage.parameters import Parameters
from vidistill.tasks.videos.decoder import Decoder, Probe, VideoError, twice
from vidistill.tasks.videos.layouts import Entry, Listing, Rejected, data_folder
from vidistill.tasks.videos.split_lists import Split

log = logging.getLogger(__name__)

CREATE = """
CREATE TABLE IF NOT EXISTS files_1
(path TEXT PRIMARY KEY, bytes INTEGER, mtime_ns INTEGER, reader TEXT, content TEXT)
"""  # another shape of a row takes another name
SELECT = "SELECT content FROM files_1 WHERE path = ? AND bytes = ? AND mtime_ns = ? AND reader = ?"
INSERT = "INSERT OR REPLACE INTO files_1 VALUES (?, ?, ?, ?, ?)"
MEMO_WAIT_SECONDS = 5.0
ROWS_A_WRITE = 64


class Video(Parameters):
    """A readable video: where it lies, what it is of, and its content.

    `label` is an index into the listing's classes, `path` relative to the data's folder, `width` and `height` are in
    pixels. `frames` is what the file claims, an estimate.
    """

    path: str
    label: int
    split: Split
    group: str | None
    bytes: int
    sha256: str
    width: int
    height: int
    frames: int
    duration_seconds: float | None
    codec: str


class Content(Parameters):
    """What a readable file holds: its SHA-256 and what the decoder says of it."""

    sha256: str
    probe: Probe


@dataclass(frozen=True)
class Identity:
    """A file as the memo knows it: the same path, size and time of change mean the same content."""

    path: str
    bytes: int
    mtime_ns: int


def scan(
    root: Path,
    listing: Listing,
    *,
    workers: int = 2,
    memo: Path | None = None,
    timeout_seconds: float = 60,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Video], list[Rejected]]:
    """Hash and probe the listed videos; no pixel is decoded here.

    Args:
        root: what was listed, a folder or the table in it.
        listing: from `list_videos(root, …)`.
        workers: threads, each with a decoder process of its own.
        memo: the SQLite file that remembers hashes and probes; by default one per user. Where it cannot be read or
            written, the scan is only slower. Files that cannot be read are not remembered: they are tried again.
        timeout_seconds: for one file's probe.
        progress: called with (files done, files in all).

    Returns:
        The videos and every rejected file, the listing's own among them, both sorted by path.
    """
    folder = data_folder(root).resolve()
    found: dict[str, Identity] = {}
    rejected = list(listing.rejected)
    for entry in listing.entries:
        identity = identify(folder, entry.path)
        if isinstance(identity, Rejected):
            rejected.append(identity)
        else:
            found[entry.path] = identity
    contents = examine_all(found, memo or memo_path(), workers, timeout_seconds, progress)
    rejected += [_failed(path, answer) for path, answer in contents.items() if isinstance(answer, str)]
    labels = {name: label for label, name in enumerate(listing.classes)}
    videos = [
        _video(entry, labels[entry.label], found[entry.path], answer)
        for entry in listing.entries
        if isinstance(answer := contents.get(entry.path), Content)
    ]
    return sorted(videos, key=lambda video: video.path), sorted(rejected, key=lambda item: item.video)


def memo_path() -> Path:
    """This user's memo."""
    return user_cache_path("vidistill") / "files.sqlite"


def identify(folder: Path, path: str) -> Identity | Rejected:
    """The file's identity, or why it has none: it went, or was emptied, since the listing."""
    try:
        status = (folder / path).stat()
    except OSError as error:
        return _failed(path, f"cannot be read: {error.strerror}")
    if not status.st_size:
        return _failed(path, "an empty file")
    return Identity(str(folder / path), status.st_size, status.st_mtime_ns)


def _failed(path: str, reason: str) -> Rejected:
    return Rejected(video=path, outcome="failed", reason=reason)


def _video(entry: Entry, label: int, identity: Identity, content: Content) -> Video:
    probe = content.probe
    return Video(
        path=entry.path,
        label=label,
        split=entry.split,
        group=entry.group,
        bytes=identity.bytes,
        sha256=content.sha256,
        width=probe.width,
        height=probe.height,
        frames=probe.frames,
        duration_seconds=probe.duration_seconds,
        codec=probe.codec,
    )


def examine_all(
    found: Mapping[str, Identity],
    memo: Path,
    workers: int,
    timeout_seconds: float,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Content | str]:
    """Each file's content, or the reason why it cannot be read; from the memo where it knows the file."""
    answers: dict[str, Content | str] = {}
    with closing(Memo(memo)) as remembered:
        for path, identity in found.items():
            if content := remembered.recall(identity):
                answers[path] = content
        unknown = {path: identity for path, identity in found.items() if path not in answers}
        with closing(_examined(unknown, workers, timeout_seconds)) as news:
            for done, (path, answer) in enumerate(news, start=len(answers) + 1):
                answers[path] = answer
                if isinstance(answer, Content):
                    remembered.note(found[path], answer)
                if progress:
                    progress(done, len(found))
    return answers


def _examined(
    unknown: Mapping[str, Identity], workers: int, timeout_seconds: float
) -> Generator[tuple[str, Content | str]]:
    with ExitStack() as stack:
        free: SimpleQueue[Decoder] = SimpleQueue()
        for _ in range(min(workers, len(unknown))):
            free.put(stack.enter_context(Decoder(timeout_seconds)))
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        jobs = {pool.submit(examine, identity, free): path for path, identity in unknown.items()}
        for job in as_completed(jobs):
            yield jobs[job], job.result()


def examine(identity: Identity, free: SimpleQueue[Decoder]) -> Content | str:
    """Hash and probe one file with a decoder that is free, or say why that cannot be done."""
    path = Path(identity.path)
    decoder = free.get()
    try:
        content = Content(sha256=file_digest(path), probe=twice(partial(decoder.probe, path)))
        status = path.stat()
    except VideoError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    finally:
        free.put(decoder)
    unchanged = (status.st_size, status.st_mtime_ns) == (identity.bytes, identity.mtime_ns)
    return content if unchanged else "changed while it was read"


class Memo:
    """What is known of files, in a SQLite file that many processes may share; a broken one is a slow one.

    Rows are written by the dozen, in transactions of milliseconds, so that no process waits for another's hashing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Another decoder may say something else, and so may we: 2 counts the frames of VP8 that are shown.
        self._reader = f"av {importlib.metadata.version('av')}, 2"
        self._rows: list[tuple[str, int, int, str, str]] = []
        self._database: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=MEMO_WAIT_SECONDS)
            self._database.execute(CREATE)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def recall(self, identity: Identity) -> Content | None:
        text = self.recall_text(identity)
        try:
            return Content.model_validate_json(text) if text else None
        except ValueError as error:
            self._give_up(error)
            return None

    def recall_text(self, identity: Identity) -> str | None:
        if self._database is None:
            return None
        try:
            wanted = (identity.path, identity.bytes, identity.mtime_ns, self._reader)
            row = self._database.execute(SELECT, wanted).fetchone()
        except sqlite3.Error as error:
            self._give_up(error)
            return None
        return str(row[0]) if row else None

    def note(self, identity: Identity, content: Content) -> None:
        self.note_text(identity, content.model_dump_json())

    def note_text(self, identity: Identity, text: str) -> None:
        self._rows.append((identity.path, identity.bytes, identity.mtime_ns, self._reader, text))
        if len(self._rows) >= ROWS_A_WRITE:
            self._write()

    def close(self) -> None:
        self._write()
        if self._database is not None:
            self._database.close()

    def _write(self) -> None:
        rows, self._rows = self._rows, []
        if self._database is None or not rows:
            return
        try:
            with self._database:
                self._database.executemany(INSERT, rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.warning("%s cannot be used (%s): files are hashed anew; delete it if that stays so", self._path, error)
        if self._database is not None:
            self._database.close()
            self._database = None
