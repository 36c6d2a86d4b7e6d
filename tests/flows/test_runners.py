"""One experiment on threads, processes, Dask and Ray: the same bytes, the same words, the same end by Ctrl-C."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import DASK, ENGINES, OWN, engine
from flow_running import TINY, WRONG, CommandLine
from terminals import CTRL_C, Terminal, check_alone, check_stopped

METHODS = ("--method", "random,tsgf", "--set", "tsgf.iterations=2", "--set", "tsgf.precision=fp32")
RAISES = """
from vidistill.tasks.methods import Method
class Mine(Method):
    def distil(self, material):
        raise LookupError("no luck")
"""


DASK_IS_THERE = importlib.util.find_spec("prefect_dask") is not None


def run(folder: Path, server: Any, videos: Path, runner: str, *more: object) -> subprocess.CompletedProcess[str]:
    ended = CommandLine(folder, server.variables)(
        "run", "--data", videos, *TINY, *METHODS, "--store", "store", "--out", "out", "--runner", runner, *more
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended


def checksums(store: Path) -> dict[str, Any]:
    """Of every artifact but the report, which says how long things took."""
    made = [json.loads(file.read_text()) for file in store.glob("[!.]*/*/manifest.json")]
    return {f"{one['kind']}/{one['key']}": one["files"] for one in made if one["kind"] != "report"}


@pytest.fixture(scope="module")
def on_threads(tmp_path_factory: pytest.TempPathFactory, server: Any, videos: Path) -> Path:
    folder = tmp_path_factory.mktemp("threads")
    run(folder, server, videos, "threads")
    return folder


@pytest.mark.parametrize("runner", ENGINES)
def test_every_runner_makes_the_same_bytes(
    runner: str, on_threads: Path, tmp_path: Path, server: Any, videos: Path
) -> None:
    with engine(runner, tmp_path) as address:
        ended = run(tmp_path, server, videos, address)
    assert checksums(tmp_path / "store") == checksums(on_threads / "store")
    assert "teacher: done in" in ended.stdout, "the flow does not hear of its jobs"
    assert ended.stderr == ""


@pytest.mark.slow
def test_a_cached_run_needs_no_engine(on_threads: Path, server: Any, videos: Path) -> None:
    """Nor does it look for the cluster, which is not there."""
    ended = run(on_threads, server, videos, "dask:tcp://127.0.0.1:9" if DASK_IS_THERE else "processes")
    assert "begins" not in ended.stdout


@pytest.mark.slow
def test_an_error_keeps_its_file_and_line_across_processes(tmp_path: Path, server: Any, videos: Path) -> None:
    (tmp_path / "mine.py").write_text(RAISES)
    given = ("--method", "random,mine.py:Mine", "--store", "store", "--out", "out", "--runner", "processes")
    ended = CommandLine(tmp_path, server.variables)("run", "--data", videos, *TINY, *given)
    assert ended.returncode == 1
    assert "rows failed" in ended.stderr
    assert "no luck" in ended.stderr
    assert (tmp_path / "out" / "report.json").exists()


TRAINING = ("--method tsgf --set teacher.epochs=5000 --set teacher.checkpoint_epochs=1", "teacher-checkpoint/*/man*")


@pytest.fixture
def training(terminal: Callable[..., Terminal], videos: Path, request: pytest.FixtureRequest) -> Terminal:
    options, reached = TRAINING
    made = terminal("run", "--data", videos, *TINY, *shlex.split(options), "--runner", request.param)
    made.until(lambda: any(made.store.glob(reached)))
    return made


@pytest.mark.parametrize("training", OWN, indirect=True)
def test_ctrl_c_stops_every_worker(training: Terminal) -> None:
    training.press(CTRL_C)
    check_stopped(training)
    assert any(training.store.glob(TRAINING[1]))


@pytest.mark.parametrize("training", OWN, indirect=True)
def test_a_killed_flow_takes_its_workers_along(training: Terminal) -> None:
    os.kill(training.pid, 9)
    assert training.ended()[0] == -9
    check_alone(training)


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_an_engine_that_is_not_installed_is_named_with_the_remedy(kind: str, tmp_path: Path, videos: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules['prefect_{kind}'] = None")
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    ended = CommandLine(tmp_path, {"PYTHONPATH": paths})(
        "run", "--data", videos, *TINY, "--method", "random", "--store", "store", "--out", "out", "--runner", kind
    )
    assert ended.returncode == WRONG
    assert ended.stderr == (f"vidistill: The runner {kind} is not installed: pip install 'vidistill[{kind}]'.\n")
    assert not (tmp_path / "store").exists()


@DASK
def test_a_cluster_that_does_not_answer_is_one_sentence(tmp_path: Path, server: Any, videos: Path) -> None:
    given = ("--method", "random", "--store", "store", "--out", "out", "--runner", "dask:tcp://127.0.0.1:9")
    variables = server.variables | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3s"}
    ended = CommandLine(tmp_path, variables)("run", "--data", videos, *TINY, *given)
    assert ended.returncode == 1
    assert ended.stderr.startswith("vidistill: The runner dask at tcp://127.0.0.1:9 does not start: ")
    assert ended.stderr.count("\n") == 1
