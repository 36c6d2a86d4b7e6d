"""What goes wrong says so in one sentence, with the right exit code, and leaves nothing half-made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flow_running import TINY, CommandLine

from vidistill.flows.cli import answer

FAILED, WRONG = 1, 2
RANDOM = ("--method", "random")
Wrong = Callable[..., None]


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


def check(ended: subprocess.CompletedProcess[str], code: int, *said: str, store: Path, out: Path) -> None:
    """One line, with everything that it must name; no report, and nothing in staging."""
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert ended.stderr.startswith("vidistill: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    for part in said:
        assert part in ended.stderr
    assert not list(out.glob("report.*"))
    assert not list(store.glob(".staging/*"))


@pytest.fixture
def wrong(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Wrong:
    """`vidistill run` by its own entry point, in this process: what is wrong is found before anything starts."""

    def call(*arguments: object, said: tuple[str, ...]) -> None:
        command = ["vidistill", "run", *map(str, arguments), "--store", "store", "--out", "out"]
        monkeypatch.setattr(sys, "argv", command)
        ended = subprocess.CompletedProcess(command, answer(), *capsys.readouterr())
        check(ended, WRONG, *said, store=tmp_path / "store", out=tmp_path / "out")
        assert not (tmp_path / "store").exists(), "the store was touched for a wrong request"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    return call


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param((*RANDOM,), ("--data",), id="no data"),
        pytest.param(("--data", "VIDEOS"), ("--method",), id="no method"),
        pytest.param(("--data", "VIDEOS", "--method", "magic"), ("'magic'", "random", "tsgf"), id="unknown method"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--students", "big"), ("'big'", "minic3d_bn"), id="unknown student"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--ipc", "one"), ("--ipc", "'one'", "1,5"), id="ipc is no number"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--ipc", "0"), ("ipc", "at least 1"), id="ipc is nothing"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--ipc", "3"), ("ipc 3", "at most 2"), id="ipc larger than a class"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--seeds", "0"), ("seeds", "0"), id="no seeds"),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--frames", "many"), ("--frames", "integer"), id="frames is no number"
        ),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--layout", "tiff"), ("layout", "'tiff'", "folders"), id="layout"),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--split", "2"), ("split 2", "folders"), id="split that is not there"
        ),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--set", "cells=[{method: random, recipes: [magic]}]"),
            ("recipe 'magic'", "soft+tsgf"),
            id="unknown recipe",
        ),
        pytest.param(
            ("--data", "VIDEOS", "--method", "tsgf", "--set", "tsgf.magic=1"), ("tsgf", "'magic'", "lr"), id="option"
        ),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--set", "teacher.epoch=1"), ("teacher.epoch", "epochs"), id="parameter"
        ),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--set", "magic=1"), ("'magic'", "teacher"), id="unknown --set"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--set", "seeds"), ("'seeds'", "="), id="--set without a value"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--set", "seeds=["), ("seeds=[",), id="--set that is no YAML"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--set", "seeds.a=1"), ("seeds",), id="--set below a number"),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--set", "random.lr=1"), ("'lr'", "it has none"), id="method without options"
        ),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--device", "tpu"), ("'tpu'", "cuda"), id="unknown device"),
        pytest.param(("--preset", "magic"), ("'magic'", "demo"), id="unknown preset"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--magic"), ("--magic", "--help"), id="unknown option"),
        pytest.param(
            ("--data", "VIDEOS", "--method", "tsgf", "--set", "teacher.network=magic"),
            ("magic", "minic3d_bn"),
            id="teacher",
        ),
        pytest.param(("--data", "VIDEOS", "--method", "mine.py:Mine"), ("mine.py:Mine",), id="no such method file"),
    ],
)
def test_a_wrong_request(wrong: Wrong, videos: Path, arguments: tuple[str, ...], said: tuple[str, ...]) -> None:
    wrong(*(str(videos) if word == "VIDEOS" else word for word in arguments), said=said)


def test_data_that_is_not_there(wrong: Wrong) -> None:
    wrong("--data", "nowhere", *RANDOM, said=("nowhere does not exist",))


def test_an_empty_folder(wrong: Wrong, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    wrong("--data", "empty", *RANDOM, said=("empty",))


def test_videos_without_class_folders(wrong: Wrong, tmp_path: Path, videos: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for video in (videos / "train" / "right").iterdir():
        shutil.copy(video, flat)
    wrong("--data", flat, *RANDOM, said=(str(flat), "class", "CSV"))


def test_a_class_with_one_video_cannot_be_split(wrong: Wrong, tmp_path: Path, videos: Path) -> None:
    folder = tmp_path / "scarce"
    shutil.copytree(videos / "train" / "right", folder / "right")
    (folder / "lone").mkdir()
    shutil.copy(next((videos / "train" / "grow").iterdir()), folder / "lone")
    wrong("--data", folder, *RANDOM, said=("lone",))


def test_a_store_inside_the_data(vidistill: CommandLine, videos: Path) -> None:
    folder = vidistill.folder / "data"
    shutil.copytree(videos, folder)
    ended = vidistill("run", "--data", folder, *RANDOM, "--store", folder / "store", "--out", "out")
    check(ended, WRONG, "--store", store=folder / "store", out=vidistill.folder / "out")
    assert not (folder / "store").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param("def (:\n", ("mine.py", "SyntaxError"), id="syntax error"),
        pytest.param("import nothing_of_this_name\n", ("mine.py", "nothing_of_this_name"), id="import error"),
        pytest.param("Mine = 3\n", ("mine.py", "'Mine'", "Method"), id="no method"),
        pytest.param("class Other: ...\n", ("mine.py", "'Mine'"), id="no such class"),
    ],
)
def test_a_method_file_that_cannot_be_used(
    wrong: Wrong, tmp_path: Path, videos: Path, source: str, said: tuple[str, ...]
) -> None:
    (tmp_path / "mine.py").write_text(source)
    wrong("--data", videos, "--method", "mine.py:Mine", said=said)


def test_a_store_below_a_file(vidistill: CommandLine, videos: Path) -> None:
    (vidistill.folder / "file").touch()
    ended = vidistill("run", "--data", videos, *RANDOM, *TINY, "--store", "file/store", "--out", "out")
    check(ended, WRONG, "file/store", "--store", store=vidistill.folder / "nothing", out=vidistill.folder / "out")


def test_a_report_that_cannot_be_written(vidistill: CommandLine, videos: Path) -> None:
    (vidistill.folder / "file").touch()
    ended = vidistill("run", "--data", videos, *RANDOM, *TINY, "--store", "store", "--out", "file/out")
    check(ended, WRONG, "file/out", "--out", store=vidistill.folder / "store", out=vidistill.folder / "nothing")


def test_a_store_that_nothing_can_hold(vidistill: CommandLine, videos: Path) -> None:
    ended = vidistill("run", "--data", videos, *RANDOM, *TINY, "--store", "/proc/store", "--out", "out")
    check(ended, WRONG, "/proc/store", "--store", store=Path("/proc/store"), out=vidistill.folder / "out")


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
    check(ended, WRONG, *said, store=vidistill.folder / "nowhere", out=vidistill.folder / "vidistill-report")
    assert not (vidistill.folder / "nowhere").exists()


def test_what_a_store_does_not_have(vidistill: CommandLine) -> None:
    (vidistill.folder / "empty").mkdir()
    for command, said in ((("ls", "magic"), ("'magic'", "nothing yet")), (("report",), ("none was made yet",))):
        ended = vidistill(*command, "--store", "empty")
        check(ended, WRONG, *said, store=vidistill.folder / "empty", out=vidistill.folder / "vidistill-report")


def test_a_read_only_store(vidistill: CommandLine, videos: Path) -> None:
    if os.geteuid() == 0:
        _needs_mounts(vidistill.folder)
        prefix = _mounted("ro", vidistill.folder)
    else:
        (vidistill.folder / "mount").mkdir(mode=0o500)
        prefix = ()
    ended = vidistill("run", "--data", videos, *RANDOM, *TINY, "--store", "mount/store", "--out", "out", prefix=prefix)
    check(ended, FAILED, "mount/store", "--store", store=vidistill.folder / "mount", out=vidistill.folder / "out")


def test_a_full_disk(warm: CommandLine, videos: Path) -> None:
    """The store's disk fills up during the run."""
    _needs_mounts(warm.folder)
    arguments = ("run", "--data", videos, *RANDOM, *TINY, "--store", "mount/store", "--out", "full")
    ended = warm(*arguments, prefix=_mounted("size=96k", warm.folder))
    check(ended, FAILED, "full", "mount/store", store=warm.folder / "mount", out=warm.folder / "full")


def test_more_broken_videos_than_allowed(warm: CommandLine, videos: Path) -> None:
    arguments = ("--data", videos, *RANDOM, *TINY, "--set", "decode.max_lost_share=0.1", "--store", "store")
    ended = warm("run", *arguments, "--out", "lost")
    check(
        ended, FAILED, "train/left/broken.mp4", "max_lost_share", store=warm.folder / "store", out=warm.folder / "lost"
    )


def test_a_teacher_that_the_method_cannot_use(warm: CommandLine, videos: Path) -> None:
    tsgf = ("--method", "tsgf", "--set", "teacher.network=minic3d")
    ended = warm("run", "--data", videos, *tsgf, *TINY, "--store", "store", "--out", "teacher")
    said = ("tsgf", "batch norm", "teacher.network=minic3d_bn")
    check(ended, WRONG, *said, store=warm.folder / "store", out=warm.folder / "teacher")


def test_a_server_that_does_not_answer(vidistill: CommandLine, videos: Path) -> None:
    ended = vidistill("run", "--data", videos, *RANDOM, *TINY, "--store", "store", "--out", "out")
    said = ("http://127.0.0.1:9/api", "PREFECT_API_URL")
    check(ended, FAILED, *said, store=vidistill.folder / "store", out=vidistill.folder / "out")


GREEDY = """
from vidistill.tasks.methods import Method
class Mine(Method):
    def distil(self, material):
        BODY
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param("return material.chosen(material.clips.rows_of(0)[:1])", ("mine", "owes 1 clips"), id="too few"),
        pytest.param("return None", ("mine",), id="no set"),
        pytest.param("raise KeyError('weights')", ("mine", "KeyError", "weights"), id="a stage breaks"),
    ],
)
def test_a_method_that_fails(warm: CommandLine, videos: Path, body: str, said: tuple[str, ...]) -> None:
    (warm.folder / "mine.py").write_text(GREEDY.replace("BODY", body))
    ended = warm("run", "--data", videos, "--method", "mine.py:Mine", *TINY, "--store", "store", "--out", "broken")
    check(ended, FAILED, *said, store=warm.folder / "store", out=warm.folder / "broken")


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
