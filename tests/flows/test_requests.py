"""Wrong requests: one sentence that says what was wrong, where, and what to do; exit code 2, and nothing is touched."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from flow_running import TINY, WRONG, check_refusal

from vidistill.flows.cli import answer

RANDOM = ("--method", "random")
Say = Callable[..., subprocess.CompletedProcess[str]]
Wrong = Callable[..., None]


@pytest.fixture
def say(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Say:
    """`vidistill` in this process: what is wrong is found before anything starts."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = ["vidistill", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        return subprocess.CompletedProcess(command, answer(), *capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    return call


@pytest.fixture
def wrong(tmp_path: Path, say: Say) -> Wrong:
    """A `vidistill run` that is refused, and has touched nothing."""

    def call(*arguments: object, said: tuple[str, ...]) -> None:
        ended = say("run", "--store", "store", "--out", "out", *arguments)
        check_refusal(ended, WRONG, *said, store=tmp_path / "store", out=tmp_path / "out")
        assert not (tmp_path / "store").exists(), "the store was touched for a wrong request"

    return call


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param((*RANDOM,), ("--data",), id="no data"),
        pytest.param(("--data", "VIDEOS"), ("--method",), id="no method"),
        pytest.param(
            ("--data", "VIDEOS", "--method", "coded", "--kb", "2", "--ipc", "5"),
            ("No row would have ipc 5: coded takes the kilobytes",),
            id="ipc of no method",
        ),
        pytest.param(("--data", "VIDEOS", "--method", "magic"), ("'magic'", "random", "tsgf"), id="unknown method"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--students", "big"), ("'big'", "minic3d_bn"), id="unknown student"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--ipc", "one"), ("--ipc", "'one'", "1,5"), id="ipc is no number"),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--ipc", "0"),
            ("ipc (--ipc) has 0: it takes 1 or more.",),
            id="ipc is nothing",
        ),
        pytest.param(
            ("--data", "VIDEOS", "--method", "coded", "--kb", "0"),
            ("kb (--kb) has 0: it takes more than 0.",),
            id="no kB",
        ),
        pytest.param(
            ("--data", "VIDEOS", "--preset", "demo", "--recipes", "hard"),
            ("--recipes", "--method"),
            id="recipes of a preset",
        ),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--recipes", "hard,smooth"), ("'smooth'",), id="recipes that are none"
        ),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--ipc", "1,,5"), ("--ipc", "'1,,5'", "comma"), id="ipc with a gap"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--ipc", ""), ("--ipc", "''"), id="ipc is empty"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--ipc", "1.5"), ("--ipc", "'1.5'"), id="half a clip"),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--set", "ipc=3"), ("ipc (--ipc) is 3", "[a, b]"), id="ipc is no list"
        ),
        pytest.param(
            ("--data", "VIDEOS", "--method", "random,"), ("--method", "'random,'"), id="methods end in a comma"
        ),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--students", ","), ("--students", "','"), id="students are a comma"
        ),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--ipc", "3"), ("ipc 3", "at most 2"), id="ipc larger than a class"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--seeds", "0"), ("seeds (--seeds) is 0",), id="no seeds"),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--seeds", "1000000"), ("it takes 1000 or less.",), id="a million seeds"
        ),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--seeds", "0-2,1"),
            ("--seeds is '0-2,1': it takes a whole number (how many seeds). Try `vidistill run --help`.",),
            id="which seeds",
        ),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--seeds", ""), ("--seeds is '': it takes a whole",), id="seeds"),
        pytest.param(
            ("--data", "VIDEOS", "--method", "coded", "--kb", "9", "--set", "coded.search.crfs=[46,99]"),
            ("search.crfs has 99: it takes 63 or less",),
            id="a quantiser that there is not",
        ),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--frames", "many"),
            ("--frames is 'many'", "whole number"),
            id="frames is no number",
        ),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--frames", "-1"),
            ("decode.frames (--frames) is -1",),
            id="fewer than no frames",
        ),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--size", "4"), ("decode.size (--size) is 4", "8"), id="size is tiny"
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
        pytest.param(("--data", "VIDEOS", "--method", "sfvd", "--set", "sfvd.rate=1"), ("'rate'", "keys"), id="a rate"),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--set", "student.optimiser.lr=.inf"), ("infinite",), id="an infinite number"
        ),
        pytest.param(("--data", "VIDEOS", "--method", "coded", "--kb", "inf"), ("infinite",), id="infinitely many kB"),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--set", "cells=[{method: random, ipc: [0]}]"),
            ("cells.0.ipc has 0", "1 or more"),
            id="a cell's ipc is nothing",
        ),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--set", "random.lr=1"), ("'lr'", "it has none"), id="method without options"
        ),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--protocol", "tsgf"), ("'tsgf'", "'vdsd'"), id="unknown protocol"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--device", "tpu"), ("'tpu'", "cuda"), id="unknown device"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--runner", "spark"), ("spark", "dask:ADDRESS"), id="no runner"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--runner", "dask:"), ("dask:ADDRESS",), id="no address"),
        pytest.param(("--preset", "magic"), ("'magic'", "demo"), id="unknown preset"),
        pytest.param(("--preset", "pool_sprites"), ("preset of `vidistill pool`", "--method"), id="a pool's preset"),
        pytest.param(("--preset", "benchmark_sprites"), ("one of `vidistill benchmark`",), id="a grid's preset"),
        pytest.param(("--preset", "x" * 300), ("File name too long",), id="a preset that no system can open"),
        pytest.param(("--data", "sprites", *RANDOM, "--split", "2"), ("one split", "--layout"), id="sprites' split"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--store", "s3://"), ("names no bucket",), id="no bucket"),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--set", "cells=[{methd: random}]"),
            ("no parameter 'cells.0.methd' (is method meant?)",),
            id="a misspelled cell",
        ),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--set", "cells=[{ipc: [1]}]"), ("cells.0.method is missing",), id="cell"
        ),
        pytest.param(("--data", "VIDEOS", *RANDOM, "--magic"), ("--magic", "--help"), id="unknown option"),
        pytest.param(
            ("--data", "VIDEOS", "--methods", "random"),
            ("No such option: --methods. Did you mean --method? Try `vidistill run --help`.",),
            id="a misspelled option",
        ),
        pytest.param(
            ("--data", "VIDEOS", "--method", "tsgf", "--set", "teacher.network=magic"),
            ("magic", "minic3d_bn"),
            id="teacher",
        ),
        pytest.param(("--data", "VIDEOS", "--method", "mine.py:Mine"), ("mine.py:Mine",), id="no such method file"),
        pytest.param(("--data", "VIDEOS", *RANDOM, "more"), ("(more)", "--help"), id="an argument too many"),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--seeds"), ("'--seeds'", "`vidistill run -"), id="an option without a value"
        ),
        pytest.param(
            ("--data", "VIDEOS", *RANDOM, "--store", "foo://bar"), ("foo://bar",), id="store of a kind unknown"
        ),
    ],
)
def test_a_wrong_request(wrong: Wrong, videos: Path, arguments: tuple[str, ...], said: tuple[str, ...]) -> None:
    wrong(*(str(videos) if word == "VIDEOS" else word for word in arguments), said=said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("fish",), ("'fish'", "benchmark PRESET", "pool"), id="no command that is planned"),
        pytest.param(("benchmark",), ("'benchmark'", "benchmark PRESET"), id="which benchmark"),
        pytest.param(("benchmark", "sprites", "--seeds", "2"), ("`vidistill benchmark`", "--seeds"), id="not a grid's"),
        pytest.param(("pool", "--data", "sprites", "--ipc", "1"), ("`vidistill pool`", "--clips", "--ipc"), id="pool"),
        pytest.param(("pool",), ("--data",), id="a pool of what"),
        pytest.param(("pool", "--data", "sprites", "--clips", "0"), ("clips_a_class is 0",), id="a pool of nothing"),
        pytest.param(("--data", "sprites", *RANDOM, "--clips", "3"), ("--clips", "plan pool"), id="not a run's"),
        pytest.param(("--data", "sprites", *RANDOM, "--log", "tensorbord"), ("'tensorbord'", "wandb"), id="no logger"),
    ],
)
def test_a_wrong_plan(say: Say, tmp_path: Path, arguments: tuple[str, ...], said: tuple[str, ...]) -> None:
    check_refusal(say("plan", "--store", "store", *arguments), WRONG, *said, store=tmp_path / "store", out=tmp_path)


def test_a_pool_is_priced(say: Say, tmp_path: Path) -> None:
    planned = say("plan", "pool", "--data", "sprites", "--clips", 40, "--store", "store")
    assert planned.returncode == 0, planned.stderr
    assert re.search(r"^pool-part +32 to run", planned.stdout, re.MULTILINE)  # 8 classes, 10 clips a part
    assert not (tmp_path / "store").exists()


def test_data_that_is_not_there(wrong: Wrong) -> None:
    for name in ("nowhere", "~nobody-of-this-name/videos"):
        wrong("--data", name, *RANDOM, said=(f"{name} does not exist",))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        pytest.param("a.csv", "file,class\nx,left\n", ("a.csv", "path,label,split", "'file'"), id="other columns"),
        pytest.param("a.csv", "", ("a.csv", "path,label,split"), id="empty table"),
        pytest.param("a.csv", "path,label,split\n", ("name no videos",), id="table without rows"),
        pytest.param("a.csv", "path,label,split\nx.mp4,left,learn\n", ("line 2", "'learn'", "train"), id="other split"),
        pytest.param("a.csv", "path,label,split\nbj\xf6rn.mp4,left,train\n", ("a.csv", "UTF-8"), id="Latin-1"),
        pytest.param("a.csv", "path,label,split\n/b.mp4,left,train\n", ("'/b.mp4'", "above all"), id="elsewhere"),
        pytest.param("a.mp4", "", ("a.mp4", "is a file", "folder", "CSV"), id="a video"),
    ],
)
def test_a_file_as_data(
    wrong: Wrong, tmp_path: Path, videos: Path, name: str, content: str, said: tuple[str, ...]
) -> None:
    shutil.copytree(videos / "train", tmp_path / "train")
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    wrong("--data", name, *RANDOM, said=said)


def test_a_table_away_from_its_videos(wrong: Wrong, tmp_path: Path, videos: Path) -> None:
    (tmp_path / "lists").mkdir()
    rows = "".join(f"{path},{path.parent.name},train\n" for path in videos.rglob("*.mp4"))
    (tmp_path / "lists" / "a.csv").write_text("path,label,split\n" + rows)
    wrong("--data", "lists/a.csv", *RANDOM, said=("a.csv", "above all the videos"))


@pytest.mark.parametrize("method", ["random", "full"])
def test_a_class_that_cannot_be_read(wrong: Wrong, tmp_path: Path, videos: Path, method: str) -> None:
    shutil.copytree(videos, tmp_path / "data")
    for video in (tmp_path / "data" / "train" / "grow").iterdir():
        video.write_bytes(b"not a video")
    wrong("--data", "data", "--method", method, said=("'grow'", "vidistill index", "take the class away"))


def test_a_class_without_test_videos_is_said_before_anything_is_decoded(
    wrong: Wrong, tmp_path: Path, videos: Path
) -> None:
    shutil.copytree(videos, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "test" / "grow")
    wrong("--data", "data", *RANDOM, said=("No test video of the class 'grow'", "vidistill index"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param("cells: [{method: random, recipes: [sofft]}]", ("'sofft'", "soft+tsgf"), id="unknown recipe"),
        pytest.param("cells: [{method: random}]\nteacher: {epoch: 3}", ("teacher.epoch", "epochs"), id="old field"),
        pytest.param("cels: [{method: random}]", ("no cells", "'cels'"), id="misspelled"),
        pytest.param("cells: [random]", ("cells has 'random'", "name: value"), id="method without its name"),
        pytest.param("- data", ("own.yaml", "mapping"), id="list"),
        pytest.param("cells: [", ("own.yaml", "YAML"), id="no YAML"),
        pytest.param("data: bj\xf6rn", ("own.yaml", "YAML", "utf-8"), id="Latin-1"),
    ],
)
def test_a_preset_that_cannot_be_used(
    wrong: Wrong, tmp_path: Path, videos: Path, content: str, said: tuple[str, ...]
) -> None:
    (tmp_path / "own.yaml").write_bytes(content.encode("latin-1"))
    wrong("--preset", "own.yaml", "--data", videos, said=said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("distil",), ("'distil'", "--help")),
        (("pln",), ("Did you mean 'plan'? Try `vidistill --help`.",)),
        (("index", "--frames", "8"), ("No such option: --frames. Try `vidistill index --help`.",)),
        (("segment", "--data", "sprites", "--method", "foo"), ("methods (--method) has 'foo': choose from full",)),
        (("index",), ("'--data'",)),
        (("index", "--data", ""), ("Which videos?",)),
        (("index", "--data", "nowhere"), ("nowhere does not exist",)),
        (("index", "--data", "sprites"), ("rendered by a run",)),
        (("export",), ("'key'",)),
        (("train", "KEY", "--frames", "3"), ("No such option: --frames. Try `vidistill train --help`.",)),
        (("pool", "--data", "sprites", "--clips", "0"), ("pool.clips_a_class is 0",)),
        (("pool",), ("--data",)),
        (("doctor", "--magic"), ("--magic",)),
        (("train", "KEY", "--network", "minic3d", "--set", "epochs=[1"), ("epochs=[1", "not a YAML value")),
    ],
    ids=lambda value: " ".join(value),
)
def test_another_wrong_command(say: Say, tmp_path: Path, arguments: tuple[str, ...], said: tuple[str, ...]) -> None:
    check_refusal(say(*arguments), WRONG, *said, store=tmp_path, out=tmp_path)


def test_a_store_or_a_report_on_a_file(say: Say, tmp_path: Path, videos: Path) -> None:
    (tmp_path / "file").touch()
    for option, other in (("--store", "--out"), ("--out", "--store")):
        ended = say("run", "--data", videos, *RANDOM, *TINY, other, "other", option, "file")
        check_refusal(ended, WRONG, "file cannot be written", option, store=tmp_path / "other", out=tmp_path / "other")


def test_without_a_command_the_help_is_shown(say: Say) -> None:
    ended = say()
    assert (ended.returncode, ended.stderr) == (WRONG, "")
    assert "Usage: " in ended.stdout


@pytest.mark.parametrize("arguments", [("-h",), ("run", "-h"), ("doctor", "-h")], ids=" ".join)
def test_help_is_short(say: Say, arguments: tuple[str, ...]) -> None:
    ended = say(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Usage: " in ended.stdout
    assert "--help" in ended.stdout


def test_the_version_is_said(say: Say) -> None:
    ended = say("--version")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"vidistill {version('vidistill')}\n", "")


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


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param("def (:\n", ("mine.py", "SyntaxError"), id="syntax error"),
        pytest.param("import nothing_of_this_name\n", ("mine.py", "nothing_of_this_name"), id="import error"),
        pytest.param("import sys; sys.exit(0)\n", ("mine.py", "SystemExit"), id="exit"),
        pytest.param("Mine = 3\n", ("mine.py", "'Mine'", "Method"), id="no method"),
        pytest.param("class Other: ...\n", ("mine.py", "'Mine'"), id="no such class"),
    ],
)
def test_a_method_file_that_cannot_be_used(
    wrong: Wrong, tmp_path: Path, videos: Path, source: str, said: tuple[str, ...]
) -> None:
    (tmp_path / "mine.py").write_text(source)
    wrong("--data", videos, "--method", "mine.py:Mine", said=said)


def test_the_way_to_a_wrong_request_changes_no_exit_code(say: Say) -> None:
    ended = say("run", "--data", "nowhere", *RANDOM, "--verbose")
    assert ended.returncode == WRONG
    assert "nowhere does not exist: name a folder of videos" in ended.stderr
    assert "Traceback" in ended.stderr


def test_a_store_that_does_not_answer_is_said(say: Say) -> None:
    ended = say("ls", "--store", "ftp://nobody.invalid/x")
    assert ended.returncode == WRONG
    assert ended.stderr.startswith("vidistill: The store ftp://nobody.invalid/x cannot be opened: ")
