"""What goes wrong says so in one sentence, with the right exit code, and leaves nothing half-made."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from flow_running import FAILED, TINY, WRONG, CommandLine, check_refusal

RANDOM = ("--method", "random")


@pytest.fixture
def vidistill(tmp_path: Path) -> CommandLine:
    """Without a server: what is wrong with a request is found before one is started."""
    return CommandLine(tmp_path, {"PREFECT_API_URL": "http://127.0.0.1:9/api"})


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, server: Any, videos: Path) -> CommandLine:
    """With a server and a store in which the videos are decoded."""
    made = CommandLine(tmp_path_factory.mktemp("warm"), server.variables)
    ran = made("run", "--data", videos, *RANDOM, *TINY, "--store", "store", "--out", "first")
    assert ran.returncode == 0, ran.stderr
    return made


def test_a_store_inside_the_data(vidistill: CommandLine, videos: Path) -> None:
    folder = vidistill.folder / "data"
    shutil.copytree(videos, folder)
    ended = vidistill("run", "--data", folder, *RANDOM, "--store", folder / "store", "--out", "out")
    check_refusal(ended, WRONG, "--store", store=folder / "store", out=vidistill.folder / "out")
    assert not (folder / "store").exists()


def test_a_store_below_a_file(vidistill: CommandLine, videos: Path) -> None:
    (vidistill.folder / "file").touch()
    ended = vidistill("run", "--data", videos, *RANDOM, *TINY, "--store", "file/store", "--out", "out")
    check_refusal(
        ended, WRONG, "file/store", "--store", store=vidistill.folder / "nothing", out=vidistill.folder / "out"
    )


def test_a_report_that_cannot_be_written(vidistill: CommandLine, videos: Path) -> None:
    (vidistill.folder / "file").touch()
    ended = vidistill("run", "--data", videos, *RANDOM, *TINY, "--store", "store", "--out", "file/out")
    check_refusal(ended, WRONG, "file/out", "--out", store=vidistill.folder / "store", out=vidistill.folder / "nothing")


def test_a_store_that_nothing_can_hold(vidistill: CommandLine, videos: Path) -> None:
    ended = vidistill("run", "--data", videos, *RANDOM, *TINY, "--store", "/proc/store", "--out", "out")
    check_refusal(ended, WRONG, "/proc/store", "--store", store=Path("/proc/store"), out=vidistill.folder / "out")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("verify",), ("There is no store", "nowhere")),
        (("ls",), ("There is no store", "nowhere")),
        (("gc",), ("There is no store", "nowhere")),
        (("report",), ("There is no store", "nowhere")),
    ],
    ids=lambda value: value[0],
)
def test_a_store_that_is_not_there(vidistill: CommandLine, command: tuple[str], said: tuple[str, ...]) -> None:
    ended = vidistill(*command, "--store", "nowhere")
    check_refusal(ended, WRONG, *said, store=vidistill.folder / "nowhere", out=vidistill.folder / "vidistill-report")
    assert not (vidistill.folder / "nowhere").exists()


def test_what_a_store_does_not_have(vidistill: CommandLine) -> None:
    (vidistill.folder / "empty").mkdir()
    for command, said in ((("ls", "magic"), ("'magic'", "nothing yet")), (("report",), ("none was made yet",))):
        ended = vidistill(*command, "--store", "empty")
        check_refusal(ended, WRONG, *said, store=vidistill.folder / "empty", out=vidistill.folder / "vidistill-report")


def test_a_read_only_store(vidistill: CommandLine, videos: Path) -> None:
    if os.geteuid() == 0:
        _needs_mounts(vidistill.folder)
        prefix = _mounted("ro", vidistill.folder)
    else:
        (vidistill.folder / "mount").mkdir(mode=0o500)
        prefix = ()
    ended = vidistill("run", "--data", videos, *RANDOM, *TINY, "--store", "mount/store", "--out", "out", prefix=prefix)
    check_refusal(
        ended, FAILED, "mount/store", "--store", store=vidistill.folder / "mount", out=vidistill.folder / "out"
    )


@pytest.mark.slow
def test_a_full_disk(warm: CommandLine, videos: Path) -> None:
    """The store's disk fills up during the run."""
    _needs_mounts(warm.folder)
    arguments = ("run", "--data", videos, *RANDOM, *TINY, "--store", "mount/store", "--out", "full")
    ended = warm(*arguments, prefix=_mounted("size=96k", warm.folder))
    check_refusal(
        ended,
        FAILED,
        " could not be made: ",
        "full",
        "mount/store",
        store=warm.folder / "mount",
        out=warm.folder / "full",
    )


def test_more_broken_videos_than_allowed(warm: CommandLine, videos: Path) -> None:
    arguments = ("--data", videos, *RANDOM, *TINY, "--set", "decode.max_lost_share=0.05", "--store", "store")
    ended = warm("run", *arguments, "--out", "lost")
    check_refusal(
        ended, FAILED, "train/left/broken.mp4", "max_lost_share", store=warm.folder / "store", out=warm.folder / "lost"
    )


def test_a_teacher_that_the_method_cannot_use(warm: CommandLine, videos: Path) -> None:
    tsgf = ("--method", "tsgf", "--set", "teacher.network=minic3d")
    ended = warm("run", "--data", videos, *tsgf, *TINY, "--store", "store", "--out", "teacher")
    said = ("tsgf", "batch norm", "teacher.network=minic3d_bn")
    check_refusal(ended, WRONG, *said, store=warm.folder / "store", out=warm.folder / "teacher")


def test_a_server_that_does_not_answer(vidistill: CommandLine, videos: Path) -> None:
    ended = vidistill("run", "--data", videos, *RANDOM, *TINY, "--store", "store", "--out", "out")
    said = ("http://127.0.0.1:9/api", "PREFECT_API_URL")
    check_refusal(ended, FAILED, *said, store=vidistill.folder / "store", out=vidistill.folder / "out")


def _mounted(options: str, folder: Path) -> tuple[str, ...]:
    """A prefix that runs a command with a small file system at `mount`, gone when the command ends."""
    script = f'mount -t tmpfs -o {options} tmpfs "{folder}/mount" && exec "$@"'
    return ("unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh")


def _needs_mounts(folder: Path) -> None:
    (folder / "mount").mkdir(exist_ok=True)
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    tried = subprocess.run([*_mounted("size=64k", folder), "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"a file system may not be mounted here: {tried.stderr.strip()}")
