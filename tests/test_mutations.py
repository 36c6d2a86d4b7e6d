"""Every mutation of `mutations.py` is seen by a test: each is applied to a copy of the rooms, whose tests must fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

sys.path.append(str(Path(__file__).resolve().parent))

from mutations import MUTATIONS, TSGF, Mutation

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("deployments", "flows", "models", "storage", "tasks")
FAILED = 1  # pytest's exit status where a test failed; another one says that none was run

each = pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)


@each
def test_a_mutation_names_what_is_there(mutation: Mutation) -> None:
    """So that whoever moves code moves its mutations too."""
    assert (REPOSITORY / mutation.file).read_text().count(mutation.text) == 1
    assert mutation.text != mutation.replacement
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert name.split("::")[-1].partition("[")[0] in (REPOSITORY / file).read_text()


def test_no_two_mutations_have_one_name() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


def copied(folder: Path) -> Path:
    """A copy of the rooms in the shape in which they are imported."""
    for room in ROOMS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / room, folder / room, ignore=ignored)
    package = folder / "typing" / "vidistill"
    package.mkdir(parents=True)
    for room in ROOMS:
        (package / room).symlink_to(folder / room)
    (package / "__init__.py").symlink_to(folder / "storage" / "vidistill" / "__init__.py")
    return folder


RUNNER = """
import json, os, sys
import numpy, pytest, safetensors.torch, sklearn.cluster, sklearn.linear_model, torch, torchmetrics, zarr
for line in sys.stdin:
    rooms, log, tests = json.loads(line)
    child = os.fork()
    if not child:
        sys.path.insert(0, rooms)
        os.environ["PYTHONPATH"] = rooms
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        slow = ["-m", "slow or not slow"] if all("::" in test for test in tests) else []
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *slow, *tests]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
Run = Callable[[tuple[str, ...], Path], tuple[int, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs tests of this repository over other rooms; each run is a fork of a process that has imported all but those.

    Gives pytest's exit status, and what it said.
    """
    log = tmp_path_factory.mktemp("log") / "log"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUNNER]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdin=PIPE, stdout=PIPE, text=True) as runner:
        assert runner.stdin is not None
        assert runner.stdout is not None

        def run_tests(tests: tuple[str, ...], rooms: Path) -> tuple[int, str]:
            runner.stdin.write(json.dumps([str(rooms / "typing"), str(log), tests]) + "\n")
            runner.stdin.flush()
            return int(runner.stdout.readline()), log.read_text()[-3000:]

        yield run_tests


@pytest.mark.slow
def test_the_tests_pass_where_nothing_is_changed(tmp_path: Path, run: Run) -> None:
    """And they are run over the copy: a room that cannot be imported fails them."""
    tests = tuple(sorted({test for mutation in MUTATIONS for test in mutation.tests}))
    rooms = copied(tmp_path / "rooms")
    status, said = run(tests, rooms)
    assert status == 0, said
    (rooms / "tasks" / "methods.py").write_text("raise ImportError")
    assert run(TSGF, rooms)[0] not in (0, FAILED)


@pytest.mark.slow
@each
def test_a_mutation_dies(tmp_path: Path, run: Run, mutation: Mutation) -> None:
    file = copied(tmp_path / "rooms") / mutation.file
    file.write_text(file.read_text().replace(mutation.text, mutation.replacement))
    status, said = run(mutation.tests, tmp_path / "rooms")
    assert status == FAILED, f"{mutation.name} survives:\n{said}"
    assert not re.search(r"(Import|Name|Syntax|Attribute|UnboundLocal)Error", said), (
        f"{mutation.name} is no more than a crash:\n{said}"
    )
