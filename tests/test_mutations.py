"""Every mutation of `mutations.py` is seen by a test: each is applied to a copy of the rooms, whose tests must fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

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


def run_tests(tests: tuple[str, ...], rooms: Path) -> subprocess.CompletedProcess[str]:
    """These tests of this repository, over other rooms."""
    environment = os.environ | {"PYTHONPATH": str(rooms / "typing"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_tests_pass_where_nothing_is_changed(tmp_path: Path) -> None:
    """And they are run over the copy: a room that cannot be imported fails them."""
    tests = tuple(sorted({test for mutation in MUTATIONS for test in mutation.tests}))
    rooms = copied(tmp_path / "rooms")
    done = run_tests(tests, rooms)
    assert done.returncode == 0, done.stdout[-3000:]
    (rooms / "tasks" / "methods.py").write_text("raise ImportError")
    assert run_tests(TSGF, rooms).returncode not in (0, FAILED)


@pytest.mark.slow
@each
def test_a_mutation_dies(tmp_path: Path, mutation: Mutation) -> None:
    file = copied(tmp_path / "rooms") / mutation.file
    file.write_text(file.read_text().replace(mutation.text, mutation.replacement))
    done = run_tests(mutation.tests, tmp_path / "rooms")
    assert done.returncode == FAILED, f"{mutation.name} survives:\n{done.stdout[-3000:]}"
