"""The house: which room may import which, and what an import may cost."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ALLOWED = {
    "models": {"models"},
    "storage": {"storage"},
    "tasks": {"tasks", "models", "storage"},
    "flows": {"flows", "tasks", "models", "storage"},
}
HEAVY = {"torch", "torchvision", "torchmetrics", "sklearn", "cv2", "av", "prefect", "ultralytics", "diffusers"}
TOOLS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink", "save", "load"}
EXAMPLE = """
import a.b
if TYPE_CHECKING:
    import c
else:
    import d
try:
    from e import f
except E:
    import g
def h():
    import i
"""
FILES = sorted(path for room in ALLOWED for path in (REPOSITORY / room).rglob("*.py"))

rooms = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())


def imports(nodes: list[ast.stmt] | Iterator[ast.AST]) -> set[str]:
    """Dotted names that these import; `from vidistill import tasks` counts as vidistill.tasks."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported: all but those in functions and under TYPE_CHECKING."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from run_at_import(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in ("body", "orelse", "finalbody", "handlers"):
                yield from run_at_import(getattr(node, inner, []))


def room_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).parts[0]


def may_load(path: Path) -> set[str]:
    """The heavy packages that a file may import at its top."""
    if room_of(path) == "models" and path.name != "__init__.py":
        return {"torch", "torchvision"}
    if path == REPOSITORY / "tasks" / "videos" / "decoder_child.py":
        return {"av"}
    if path == REPOSITORY / "storage" / "dataset.py":  # torch's data set, imported by whoever trains on one
        return {"torch"}
    if room_of(path) == "flows" and "@flow" in path.read_text():
        return {"prefect"}
    return set()


def test_the_rules_see_something():
    assert {room_of(path) for path in FILES} == set(ALLOWED)
    assert len(FILES) > 30
    tree = ast.parse(EXAMPLE)
    assert imports(run_at_import(tree.body)) == {"a.b", "d", "e.f", "g"}
    assert imports(ast.walk(tree)) == {"a.b", "c", "d", "e.f", "g", "i"}


@rooms
def test_arrows_go_one_way(path):
    named = {
        name.split(".")[1] for name in imports(ast.walk(ast.parse(path.read_text()))) if name.startswith("vidistill.")
    }
    assert named <= ALLOWED[room_of(path)]


@rooms
def test_heavy_packages_are_imported_where_they_are_used(path):
    loaded = {name.split(".")[0] for name in imports(run_at_import(ast.parse(path.read_text()).body))}
    assert loaded & HEAVY <= may_load(path)


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) == "models"], ids=lambda path: path.name)
def test_networks_know_no_prefect_and_no_files(path):
    tree = ast.parse(path.read_text())
    assert "prefect" not in {name.split(".")[0] for name in imports(ast.walk(tree))}
    used = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    touching = {call for call in used if call.rpartition(".")[2] in TOOLS}
    reads_the_cpu = {"cpuinfo.read_text"} if path.name == "compute.py" else set()  # the CPU's flags, from /proc/cpuinfo
    assert touching == reads_the_cpu


def python(code: str, cwd: Path | None = None) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


RUN_CLI = """
import contextlib, io, sys
from vidistill.flows.cli import main
sys.argv = ["vidistill", *{arguments}]
try:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        main()
except SystemExit as leaving:
    assert not leaving.code, leaving.code
assert said.getvalue().strip()
"""


@pytest.mark.parametrize(
    "code",
    [
        "import vidistill.flows.cli, vidistill.flows.commands, vidistill.flows.planning",
        "import vidistill.flows.housekeeping, vidistill.flows.parameters, vidistill.models",
        RUN_CLI.format(arguments=["--help"]),
        RUN_CLI.format(arguments=["plan", "--help"]),
        RUN_CLI.format(arguments=["run", "--help"]),
    ],
    ids=["the commands", "the rest", "--help", "plan --help", "run --help"],
)
def test_what_plans_and_explains_loads_nothing_heavy(code):
    loaded = set(python(f"{code}\nimport sys\nprint(*sys.modules)").split())
    assert "vidistill.flows" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(
    "arguments", [["ls"], ["plan", "--data", "sprites", "--method", "random,tsgf", "--ipc", "1"]], ids=lambda a: a[0]
)
def test_commands_that_only_look_load_nothing_heavy(arguments, tmp_path):
    (tmp_path / "store").mkdir()
    code = RUN_CLI.format(arguments=[*arguments, "--store", str(tmp_path / "store")])
    loaded = set(python(f"{code}\nimport sys\nprint(*sys.modules)").split())
    assert loaded & HEAVY == set()
    assert not list((tmp_path / "store").iterdir())


def command() -> str:
    return str(Path(sys.executable).with_name("vidistill"))


def test_help_answers_at_once():
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        said = subprocess.run([command(), "--help"], capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - begin)
    assert "vidistill demo" in said
    assert min(seconds) < 2


@pytest.fixture
def crowded(tmp_path):
    """A folder with models and tasks of its own, as half of all video projects have."""
    for name in ("models", "storage", "flows"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong room')")
    (tmp_path / "tasks.py").write_text("raise SystemExit('the wrong room')")
    return tmp_path


@pytest.mark.parametrize("room", [*ALLOWED, "deployments"])
def test_a_room_is_found_from_a_folder_with_rooms_of_its_own(crowded, room):
    found = python(f"import vidistill.{room} as room; print(room.__file__)", crowded).strip()
    assert Path(found).resolve().parent == REPOSITORY / room
    with pytest.raises(AssertionError, match="the wrong room"):
        python("import tasks", crowded)


def test_the_command_runs_from_a_folder_with_rooms_of_its_own(crowded):
    environment = os.environ | {"PYTHONPATH": str(crowded)}
    (crowded / "empty").mkdir()
    done = subprocess.run(
        [command(), "ls", "--store", "empty"], capture_output=True, text=True, cwd=crowded, env=environment
    )
    assert done.returncode == 0, done.stderr
