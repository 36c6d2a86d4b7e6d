"""Index: which videos there are, of which class, in which split, and which files cannot be used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vidistill.storage.errors import TransientError
from vidistill.storage.keys import digest
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.stage import Job, Work, report_progress, stage
from vidistill.tasks.videos.layouts import IndexParameters, Rejected, list_videos
from vidistill.tasks.videos.scan import Video, scan

INDEX = "index.json"


class IndexTable(Parameters):
    """Every file of a data set with its outcome. The folder's name is not in it: a renamed copy is the same data."""

    layout: str
    classes: tuple[str, ...]
    flips: bool
    videos: tuple[Video, ...]
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...] = ()

    def kept(self) -> IndexTable:
        """What clips depend on: without the notes, and without the files that a rule leaves out."""
        failed = tuple(rejected for rejected in self.rejected if rejected.outcome == "failed")
        return self.model_copy(update={"rejected": failed, "notes": ()})

    def of_split(self, split: str) -> list[Video]:
        return [video for video in self.videos if video.split == split]


def survey(root: Path, parameters: IndexParameters, *, workers: int = 2, timeout_seconds: float = 60.0) -> IndexTable:
    """List, hash and probe the videos of a folder; hashes and probes are remembered by path, size and time.

    Raises:
        RequestError: the folder is missing, empty, or not laid out as the parameters say.
    """
    listing = list_videos(root, parameters)
    videos, rejected = scan(
        root, listing, workers=workers, timeout_seconds=timeout_seconds,
        progress=lambda done, total: report_progress("index", done, total, "hashing and probing"),
    )  # fmt: skip
    return IndexTable(
        layout=listing.layout,
        classes=listing.classes,
        flips=listing.flips,
        videos=tuple(videos),
        rejected=tuple(rejected),
        notes=(*listing.notes, *_copies(videos)),
    )


def _copies(videos: Sequence[Video]) -> Iterator[str]:
    """Notes of files that are the same, byte for byte, and stand on both sides of the split or in several classes."""
    alike: dict[str, list[Video]] = {}
    for video in videos:
        alike.setdefault(video.sha256, []).append(video)
    kinds = {"split": "on both sides of the split, so that scores flatter", "label": "in several classes"}
    for kind, told in kinds.items():
        found = [same for same in alike.values() if len({getattr(video, kind) for video in same}) > 1]
        if found:
            first = " = ".join(video.path for video in found[0][:3])
            are = "file is" if len(found) == 1 else "files are"
            yield f"{len(found)} {are} there more than once, byte for byte, {told} (the first: {first})"


class IndexJobParameters(Parameters):
    index: IndexParameters
    content: str


def index_job(table: IndexTable, parameters: IndexParameters) -> Job:
    """What clips are made by: a stray file makes nothing anew."""
    return files_job(table.kept(), parameters)


def files_job(table: IndexTable, parameters: IndexParameters) -> Job:
    """The index with every file and note, for a report; where all files are videos, that which clips are made by."""
    label = "index" if table == table.kept() else "index of all files"
    return index(IndexJobParameters(index=parameters, content=digest(table)), label=label)


@stage("index", version=1)
def index(work: Work) -> None:
    parameters = IndexJobParameters.model_validate(work.job.parameters)
    table = survey(Path(work.runtime.data), parameters.index, timeout_seconds=work.runtime.timeout_seconds)
    if digest(table) != parameters.content:
        table = table.kept()
    if digest(table) != parameters.content:
        raise TransientError(f"The videos in {work.runtime.data} changed while they were indexed: run again.")
    (work.folder / INDEX).write_text(table.model_dump_json(indent=1), encoding="utf-8")
    folder = Path(work.runtime.data)
    rendered = folder.is_relative_to(work.store.root / "sprites")
    work.record(dataset="sprites" if rendered else folder.name)
    work.record(counts={"videos": len(table.videos), "rejected": len(table.rejected), "classes": len(table.classes)})


def load_index(store: Store, ref: ArtifactRef) -> IndexTable:
    return IndexTable.model_validate_json((store.folder(ref) / INDEX).read_bytes())
