"""Files that are on the disk before anybody is told of them, and folders that go."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vidistill.storage.causes import CAUSES
from vidistill.storage.errors import RequestError, RunError, StoreError, VidistillError
from vidistill.storage.keys import file_digest

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What disks say that know no second name of a file: exFAT, SMB."""
NO_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENAMETOOLONG)
"""What the system says of a path that is no folder which may be written."""


def expanded(place: str | Path) -> Path:
    """A path whose `~` or `~name` is that user's folder; one that begins with `~` and names nobody stays as it is."""
    return Path(os.path.expanduser(place))


def files_of(folder: Path) -> list[Path]:
    """Every file below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def standing(place: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(folder for folder in (place, *place.parents) if folder.exists())


def listed(folder: Path) -> list[Path]:
    """What a folder holds, sorted; nothing where it is not there.

    Raises:
        StoreError: it may not be read: what nobody sees would be taken for what is not there.
    """
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"{folder} cannot be read ({error.strerror}): mend its permissions.") from error


def size_of(folder: Path) -> int:
    """Of a folder's files, as far as nobody removes them meanwhile."""
    total = 0
    for path in files_of(folder):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def settled_digest(path: Path) -> str:
    """The digest of a file that is on the disk now."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return file_digest(path)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def second_name(path: Path, name: Path) -> None:
    """Give a file another name that no file has, or a copy of it where the disk knows no second names.

    Raises:
        FileExistsError: there is a file of that name.
    """
    try:
        os.link(path, name)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with path.open("rb") as source, name.open("xb") as copy:
            shutil.copyfileobj(source, copy)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, or another in its place: a reader sees the one or the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def copy_out(folder: Path, names: Iterable[str], out: Path) -> None:
    """Copy files of an artifact into a user's folder, each of them whole or not at all.

    Raises:
        RequestError, RunError: see `writing_to`.
    """
    with writing_to(out):
        for name in names:
            write_whole(out / name, (folder / name).read_bytes())


def write_out(out: Path, name: str, content: bytes) -> None:
    """Write a file of a user's folder, whole or not at all.

    Raises:
        RequestError, RunError: see `writing_to`.
    """
    with writing_to(out):
        write_whole(out / name, content)


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Have what the system refuses be a sentence that names a user's folder.

    Raises:
        RequestError: it is no folder that may be written.
        RunError: another reason why it cannot be written, such as a full disk.
    """
    try:
        yield
    except VidistillError:
        raise
    except OSError as error:
        why = error.strerror or error
        raise (RequestError if error.errno in NO_FOLDER else RunError)(
            f"{out} cannot be written ({why}): name another --out, and run the same command again."
        ) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder; what somebody else has removed meanwhile, or still reads, is passed over."""

    def failed(_function: object, _path: str, told: tuple[type[BaseException], BaseException, object]) -> None:
        if isinstance(told[1], OSError) and told[1].errno in CAUSES:
            raise told[1]

    shutil.rmtree(folder, onerror=failed)
