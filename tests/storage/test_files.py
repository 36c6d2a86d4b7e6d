"""Files that others remove meanwhile, and those that a user is given."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vidistill.storage import files
from vidistill.storage.errors import RequestError, RunError
from vidistill.storage.files import copy_out, expanded, second_name, size_of, write_out


def test_what_begins_like_the_folder_of_a_user_who_is_none_is_a_name_like_any_other() -> None:
    assert [expanded("~/x"), expanded("~nobody-of-this-name/x")] == [Path.home() / "x", Path("~nobody-of-this-name/x")]


def test_what_is_removed_while_it_is_measured_has_no_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(10))
    monkeypatch.setattr(files, "files_of", lambda folder: [folder / "a", folder / "gone", folder / "b"])
    assert size_of(tmp_path) == 20


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, content in (("store", "new"), ("out", "old")):
        (tmp_path / folder).mkdir()
        for name in ("report.html", "report.json"):
            (tmp_path / folder / name).write_text(content)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(RunError, match=r"out cannot be written \(No space left on device\): name another --out"):
            copy_out(tmp_path / "store", ("report.html", "report.json"), tmp_path / "out")
    assert {path.read_text() for path in (tmp_path / "out").iterdir()} == {"old"}
    copy_out(tmp_path / "store", ("report.html", "report.json"), tmp_path / "out")
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {
        "report.html": "new", "report.json": "new"
    }  # fmt: skip


def test_a_folder_that_is_none_is_a_wrong_request(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"file/out cannot be written \(Not a directory\): name another --out"):
        write_out(tmp_path / "file" / "out", "a", b"")


def refusing(number: int) -> Callable[..., None]:
    """A disk's `os.link`."""

    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return link


@pytest.mark.parametrize("number", [None, errno.EPERM, errno.EOPNOTSUPP])
def test_a_second_name_is_nobody_else_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None) -> None:
    """Also on a disk that has no links, as exFAT's: there it is a copy."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("here")
    if number:
        monkeypatch.setattr(os, "link", refusing(number))
    second_name(first, second)
    assert (second.read_text(), second.samefile(first)) == ("here", number is None)
    second.write_text("here")
    with pytest.raises(FileExistsError):
        second_name(first, second)
    monkeypatch.setattr(os, "link", refusing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        second_name(first, tmp_path / "third")
    assert not (tmp_path / "third").exists()
