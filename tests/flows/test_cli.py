"""The command line, as a script would use it: real processes, a real server, tiny real videos."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from flow_running import CLASSES, TINY, CommandLine, environment, snapshot

from vidistill.flows import commands, server

ROW = set(
    shlex.split(
        "dataset split protocol recipe method variant ipc student labels top1_mean top1_std top5_mean auc_mean f1_mean "
        "bytes seconds peak_memory_bytes flops seeds artifact"
    )
)
KINDS = ("index", "block", "clips", "teacher", "teacher-score", "distilled", "relabelled", "score", "report")
TSGF = ("--set", "tsgf.iterations=2", "--set", "tsgf.precision=fp32")
AND_TORCH = """
import sys
from vidistill.flows.cli import main
main()
print("torch" in sys.modules)
"""


@dataclass(frozen=True)
class Session:
    """A user's folder in which `plan` and then `run` were called for the first time."""

    vidistill: CommandLine
    arguments: tuple[str, ...]
    store: Path
    planned: subprocess.CompletedProcess[str]
    planned_files: dict[str, int]
    ran: subprocess.CompletedProcess[str]
    trace: Path | None

    @property
    def out(self) -> Path:
        return self.vidistill.folder / "out"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Session:
    """No server is running: the command starts its own. Its connections are traced where strace is installed."""
    folder = tmp_path_factory.mktemp("user")
    vidistill, store = CommandLine(folder), folder / "store"
    arguments = ("--data", str(videos), "--method", "random,tsgf", *TINY, *TSGF, "--store", "store")
    before = snapshot(videos)
    planned = vidistill("plan", *arguments)
    planned_files = {
        path: at for path, at in snapshot(videos, folder).items() if path not in before and "/home/" not in path
    }
    trace = folder / "connections" if _can_trace() else None
    tracer = ("strace", "-f", "--seccomp-bpf", "-e", "trace=connect", "-o", str(trace)) if trace else ()
    ran = vidistill("run", *arguments, "--out", "out", prefix=tracer)
    return Session(vidistill, arguments, store, planned, planned_files, ran, trace)


def _can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-f", "--seccomp-bpf", "true"], capture_output=True, check=False).returncode == 0


def test_plan_of_a_first_run_says_that_everything_is_to_run_and_writes_nothing(session: Session) -> None:
    assert session.planned.returncode == 0, session.planned.stderr
    said = {line.split()[0]: line for line in session.planned.stdout.splitlines() if line and not line.startswith(" ")}
    for kind in KINDS:
        assert "to run" in said[kind]
        assert "cached" not in said[kind]
    assert session.planned.stderr == ""
    assert session.planned_files == {}


def test_a_run_ends_well_and_silently(session: Session) -> None:
    assert session.ran.returncode == 0, session.ran.stderr
    assert session.ran.stderr == ""
    assert "tsgf" in session.ran.stdout
    assert "report.html" in session.ran.stdout


def test_a_run_ends_with_the_command_that_exports_a_set_of_it(session: Session) -> None:
    (line,) = (line for line in session.ran.stdout.splitlines() if "vidistill export" in line)
    assert line.startswith("A set as files, here tsgf 1: ")
    words = shlex.split(line.partition(": vidistill ")[2])
    assert words[-2:] == ["--store", str(session.store)]
    assert session.vidistill(*words).returncode == 0
    assert (session.vidistill.folder / "set" / "export.json").exists()


def test_the_report_has_what_scripts_read(session: Session) -> None:
    document = json.loads((session.out / "report.json").read_text())
    for row in document["rows"]:
        assert row.keys() >= ROW
        assert (row["student_seconds"] > 0) == (row["method"] != "teacher")
        ipc = None if row["method"] == "teacher" else 1
        assert (row["ipc"], row["seeds"], row["student"]) == (ipc, 1, "r2plus1d_small")
        assert 0 <= row["top1_mean"] <= 1
        assert row["bytes"] > 0
        assert row["flops"] > 0
    tsgf = {row["recipe"] for row in document["rows"] if row["method"] == "tsgf"}
    assert tsgf == {"soft+tsgf", "online+tsgf"}
    assert {row["recipe"] for row in document["rows"] if row["method"] == "random"} == tsgf | {"hard"}
    (rejected,) = document["rejected"]
    assert rejected.keys() >= {"video", "outcome", "reason"}
    assert (rejected["video"], rejected["outcome"]) == ("train/left/broken.mp4", "failed")
    assert rejected["reason"]
    page = (session.out / "report.html").read_text()
    assert "tsgf" in page
    assert not re.search(r"(src|href)=[\"']https?://", page)


def test_a_run_reaches_no_other_machine(session: Session) -> None:
    if session.trace is None:
        pytest.skip("strace is not installed, or may not trace here")
    lines = session.trace.read_text().splitlines()
    reached = [line for line in lines if re.search(r"sa_family=AF_INET6?\b", line)]
    assert reached, "the run never spoke to its own server"
    assert [line for line in reached if not re.search(r'"(127\.0\.0\.\d+|::1)"', line)] == []


def test_a_second_run_does_nothing_and_loads_no_torch(session: Session) -> None:
    assert session.ran.returncode == 0, session.ran.stderr
    document = json.loads((session.out / "report.json").read_text())
    before = _artifacts(session.store)
    env = environment(session.vidistill.folder / "home")
    command = [sys.executable, "-c", AND_TORCH, "run", *session.arguments, "--out", "again"]
    again = subprocess.run(command, cwd=session.vidistill.folder, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    assert again.stdout.splitlines()[-1] == "False"
    assert _artifacts(session.store) == before
    assert json.loads((session.vidistill.folder / "again" / "report.json").read_text()) == document


@pytest.mark.slow  # a machine that has much to do may stop the server before its last second is written
def test_prefect_keeps_every_task_run_of_a_run_that_takes_a_moment(session: Session) -> None:
    """The server of the run's own ends with it."""
    before = _task_runs(session)
    again = session.vidistill("run", *session.arguments, "--out", "kept")
    assert again.returncode == 0, again.stderr
    assert _task_runs(session) == before + len(list(session.store.glob("[!.]*/*/manifest.json")))


def _task_runs(session: Session) -> int:
    with closing(sqlite3.connect(session.vidistill.folder / "home" / "prefect" / "prefect.db")) as database:
        (count,) = database.execute("select count(*) from task_run where state_type = 'COMPLETED'").fetchone()
    return int(count)


def test_plan_after_a_run_finds_everything_cached(session: Session) -> None:
    planned = session.vidistill("plan", *session.arguments)
    assert planned.returncode == 0, planned.stderr
    assert "Everything is cached" in planned.stdout
    assert "to run" not in planned.stdout


def test_plan_names_the_parameter_that_changed(session: Session) -> None:
    planned = session.vidistill("plan", *session.arguments, "--set", "teacher.epochs=2")
    assert "epochs 1 → 2" in planned.stdout
    assert "its input is made anew: teacher" in planned.stdout
    blocks = next(line for line in planned.stdout.splitlines() if line.startswith("block"))
    assert "to run" not in blocks


def test_index_lists_every_file_with_its_outcome(session: Session, videos: Path) -> None:
    listed = session.vidistill("index", "--data", videos, "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    document = json.loads(listed.stdout)
    assert document["classes"] == sorted(CLASSES)
    outcomes = {row["video"]: row["outcome"] for row in document["videos"]}
    assert outcomes.pop("train/left/broken.mp4") == "failed"
    files = {path.relative_to(videos).as_posix() for path in videos.rglob("*.mp4") if path.name != "broken.mp4"}
    assert outcomes == dict.fromkeys(files, "kept")


def test_names_are_printed_as_they_are_and_with_what_was_noted(
    tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets are no markup; index and plan say that a split was drawn, and what copies stand on both sides of it."""
    source = next((videos / "train" / "left").glob("left*.mp4")).read_bytes()
    for name in ("a/[1] x.mp4", "a/2.mp4", "b/[bold]y.mp4", "b/4.mp4"):
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_bytes(source)
    commands.index(str(tmp_path / "own"), None, None, as_json=False)
    listed = capsys.readouterr().out
    assert re.findall(r"^kept +(.*\.mp4)", listed, re.MULTILINE) == [
        "a/2.mp4", "a/[1] x.mp4", "b/4.mp4", "b/[bold]y.mp4"
    ]  # fmt: skip
    asked = {"data": str(tmp_path / "own"), "cells": [{"method": "random"}], "front": "rgb"}
    commands.plan(asked, str(tmp_path / "store"), "cpu", "threads")
    for printed in (listed, capsys.readouterr().out):
        assert "the test split is 2 of 4 videos, drawn with seed 0" in printed
        assert "1 file is there more than once, byte for byte, on both sides of the split" in printed
        assert "byte for byte, in several classes (the first: a/2.mp4 = a/[1] x.mp4 = b/4.mp4)" in printed


def test_ls_lists_the_artifacts(session: Session) -> None:
    listed = session.vidistill("ls", "--store", "store")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert {line.split("/")[0] for line in listed.stdout.splitlines() if "/" in line.split()[0]} == set(KINDS)
    teachers = session.vidistill("ls", "teacher", "--store", "store").stdout.splitlines()
    assert teachers[1].startswith("teacher/")
    assert teachers[-1].startswith("1 artifact, ")


def test_the_terminal_marks_what_collapsed_and_names_what_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"method": "random", "variant": "", "recipe": "hard", "labels": "hard", "ipc": 1, "kb": None,
           "student": "c3d", "front": "rgb", "top1_mean": 0.5, "top1_std": 0.1, "bytes": 9, "bytes_coded": None,
           "seconds": 1, "seeds": 2, "collapsed": []}  # fmt: skip
    lost = {"video": "a/garbage.mp4", "outcome": "failed", "reason": "no video stream"}
    document = {"rows": [row, row | {"method": "dm", "collapsed": [1]}],
                "rejected": [lost, lost | {"video": "notes.txt", "outcome": "filtered"}]}  # fmt: skip
    commands.print_table(document)
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["hard", "labels,", "student", "c3d,", "networks", "see", "rgb"] in lines
    assert [line[:2] for line in lines if line[:1] in (["random"], ["dm"])] == [["random", "1"], ["dm", "†"]]
    assert "\n† some of its students call nearly everything one class\n" in shown
    assert "\n1 video is lost (a/garbage.mp4: no video stream): see the report.\n" in shown


def test_what_rows_of_the_terminal_share_stands_in_their_title(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"method": "random", "variant": "", "recipe": "hard", "labels": "hard", "ipc": 1, "kb": None,
           "student": "centred:c3d", "front": "centred", "top1_mean": 0.5, "top1_std": 0.1, "bytes": 9,
           "bytes_coded": None, "seconds": 1, "seeds": 2, "collapsed": []}  # fmt: skip
    for others, title, student in (
        ({}, "student c3d, networks see centred", None),
        ({"student": "centred:r3d"}, "networks see centred", "c3d"),
        ({"student": "c3d", "front": "rgb"}, None, "centred:c3d"),
    ):
        commands.print_table({"rows": [row, row | {"method": "dm"} | others], "rejected": []})
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].strip() == ", ".join(filter(None, ["hard labels", title]))
        assert ("student" in lines[2].split()) == (student is not None)
        assert next(line for line in lines if line.startswith("random")).split()[1] == (student or "1")


def test_report_latest_is_the_report_of_the_run(session: Session) -> None:
    written = session.vidistill("report", "latest", "--store", "store", "--out", "once-more")
    assert (written.returncode, written.stderr) == (0, "")
    for name in ("report.html", "report.json"):
        assert (session.vidistill.folder / "once-more" / name).read_bytes() == (session.out / name).read_bytes()


def test_gc_names_what_no_report_uses_and_removes_it_when_told(session: Session, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(session.store, store)
    shutil.rmtree(next((store / "report").iterdir()))  # nothing that this report read is used any longer
    dead = store / ".staging" / "0123.dead"
    dead.mkdir(parents=True)
    before = snapshot(store)
    named = session.vidistill("gc", "--store", store)
    assert named.returncode == 0, named.stderr
    assert re.search(r"^  teacher +1 ", named.stdout, re.MULTILINE)
    assert "--yes" in named.stdout
    assert snapshot(store) == before
    removed = session.vidistill("gc", "--store", store, "--yes")
    assert removed.returncode == 0, removed.stderr
    assert _artifacts(store) == {}
    assert not dead.exists()


def test_gc_keeps_what_a_report_was_made_from(session: Session, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(session.store, store)
    before = _artifacts(store)
    assert session.vidistill("gc", "--store", store, "--yes").returncode == 0
    assert _artifacts(store) == before


def test_verify_finds_one_flipped_byte(session: Session, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(session.store, store)
    whole = session.vidistill("verify", "--store", store)
    assert (whole.returncode, whole.stderr) == (0, "")
    weights = next((store / "teacher").glob("*/*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    damaged = session.vidistill("verify", "--store", store)
    assert damaged.returncode == 1
    assert f"teacher/{weights.parent.name} is damaged" in damaged.stdout
    assert damaged.stderr.startswith("vidistill: 1 of ")
    assert "Traceback" not in damaged.stderr


def _artifacts(store: Path) -> dict[str, int]:
    return {path: at for path, at in snapshot(store).items() if "/.staging/" not in path and "/.locks/" not in path}


def test_every_out_knows_the_user_s_own_folder() -> None:
    """`--out=~/set`, which shells leave as it is."""
    import typer

    from vidistill.flows import cli

    options = {
        (name, option.name): option
        for name, command in typer.main.get_command(cli.app).commands.items()  # type: ignore[attr-defined]
        for option in command.params
    }
    outs = [option for (_, name), option in options.items() if name == "out"]
    assert len(outs) > 8
    assert {option.process_value(None, "~/set") for option in outs} == {Path.home() / "set"}


def test_no_proxy_is_asked_for_a_server_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SimpleNamespace(api=SimpleNamespace(url=None))
    monkeypatch.setattr("prefect.settings.get_current_settings", lambda: settings)
    monkeypatch.setattr("prefect.context.refresh_global_settings_context", lambda: None)
    monkeypatch.setattr(server, "start", lambda _: "http://127.0.0.1:4200/api")
    monkeypatch.setattr(server.os, "environ", {"NO_PROXY": "intern.example"})
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    server.connect(verbose=True)
    assert server.os.environ["no_proxy"] == "intern.example,127.0.0.1"


def test_two_runs_that_look_at_one_folder_at_once_are_in_nobody_s_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "touch", lambda *_: None)  # as if the other had removed it
    commands.check_out(tmp_path)
