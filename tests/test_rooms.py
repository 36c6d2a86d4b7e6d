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
    if path.parent == REPOSITORY / "tasks" / "videos" and path.name in ("decoder_child.py", "frames.py", "pictures.py"):
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


# --- rooms within tasks --------------------------------------------------------------------------------------------

SHARED = {"stage", "piecewise", "methods", "distil", "learning", "videos"}
"""What every family of tasks may import; `distil` is for sets that are made of another method's."""
MADE_OF = {"coded": {"coreset"}, "select": {"coreset"}, "segment": {"coreset", "tsgf"}}
LAZY = {("vidistill.storage.distilled", "vidistill.storage.exported")}
"""One door opens both kinds of folders, and what the one reads is made of what the other is."""
MODULES = {"vidistill." + ".".join(path.with_suffix("").relative_to(REPOSITORY).parts): path for path in FILES}


def modules_of(nodes: list[ast.stmt] | Iterator[ast.AST], own: str) -> set[str]:
    """The modules of the library that these import, but for the one that they stand in."""
    names = imports(nodes)
    return {known for name in names for known in (name, name.rpartition(".")[0]) if known in MODULES} - {own}


def family_of(module: str) -> str:
    """`learning` of vidistill.tasks.learning.training, `stage` of vidistill.tasks.stage."""
    return module.split(".")[2]


def test_few_files_stand_beside_the_rooms_of_tasks():
    assert len(list((REPOSITORY / "tasks").glob("*.py"))) <= 6


@pytest.mark.parametrize("room", sorted(path.parent.name for path in (REPOSITORY / "tasks").glob("*/__init__.py")))
def test_a_room_of_tasks_imports_what_all_share_and_no_sibling(room):
    used = set()
    for module, path in MODULES.items():
        if module.startswith(f"vidistill.tasks.{room}."):
            found = modules_of(ast.walk(ast.parse(path.read_text())), module)
            used |= {family_of(one) for one in found if one.startswith("vidistill.tasks.")}
    if room == "report":
        return
    assert used <= SHARED | {room} | MADE_OF.get(room, set())


def test_nothing_in_tasks_reads_the_report():
    for module, path in MODULES.items():
        if module.startswith("vidistill.tasks.") and family_of(module) != "report":
            found = modules_of(ast.walk(ast.parse(path.read_text())), module)
            assert not [one for one in found if one.startswith("vidistill.tasks.report.")], module


def circle(graph: dict[str, set[str]]) -> set[str]:
    """The modules that import each other in a circle, and those that need them."""
    left = {module: set(needs) for module, needs in graph.items()}
    while ends := {module for module, needs in left.items() if not needs}:
        left = {module: needs - ends for module, needs in left.items() if module not in ends}
    return set(left)


@pytest.mark.parametrize("of_types", [False, True], ids=["when it runs", "for type checkers, too"])
def test_no_modules_import_each_other_in_a_circle(of_types):
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}
    graph = {}
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text())
        hidden = set() if of_types else modules_of(under_type_checking(tree), module)
        shown = modules_of(ast.walk(tree), module) - hidden | modules_of(run_at_import(tree.body), module)
        graph[module] = {one for one in shown if (module, one) not in LAZY}
    assert circle(graph) == set()


def under_type_checking(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for inner in node.body:
                yield from ast.walk(inner)


# --- what users import ---------------------------------------------------------------------------------------------

PUBLIC = {
    "vidistill": {"Dataset", "DistilledSet"},
    "vidistill.storage.parameters": {"Parameters"},
    "vidistill.tasks.methods": {"Given", "Material", "Method", "Recipe"},
    "vidistill.tasks.coreset.random": {"enough"},
    "vidistill.tasks.learning.training": {"Device", "generator"},
    "vidistill.tasks.match.core": {"Loop", "differentiated", "fresh_network", "leaf", "optimise"},
    "vidistill.tasks.match.losses": {"class_means", "mean_embedding_distance"},
    "vidistill.tasks.match.real": {"RealClips"},
    "vidistill.tasks.match.sets": {"finished", "keep_in_range", "start_clips"},
}
"""What a method in a user's own file may import; it stays where it is."""
OWN_METHODS = ("tasks/match/own_matching.py", "flows/test_own_method.py")


def used_from(source: str) -> set[tuple[str, str]]:
    """Names of the library that a file uses: (vidistill.tasks.match.core, leaf)."""
    tree, found = ast.parse(source), set()
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("vidistill"):
            for alias in node.names:
                if f"{node.module}.{alias.name}" in PUBLIC:
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                else:
                    found.add((node.module, alias.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found.add((modules[node.value.id], node.attr))
    return found


def test_public_imports():
    python("\n".join(f"from {module} import {', '.join(sorted(names))}" for module, names in PUBLIC.items()))
    own_matching, beside = ((REPOSITORY / "tests" / path).read_text() for path in OWN_METHODS)
    own_method = beside.partition("MINE = '''\\\n")[2].partition("'''")[0]
    for source in (own_matching, own_method):
        used = used_from(source)
        assert used
        assert {(module, name) for module, name in used if name not in PUBLIC.get(module, ())} == set()


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) == "models"], ids=lambda path: path.name)
def test_networks_know_no_prefect_and_no_files(path):
    tree = ast.parse(path.read_text())
    assert "prefect" not in {name.split(".")[0] for name in imports(ast.walk(tree))}
    used = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    touching = {call for call in used if call.rpartition(".")[2] in TOOLS}
    reads_the_cpu = {"cpuinfo.read_text"} if path.name == "cpu.py" else set()  # the CPU's flags, from /proc/cpuinfo
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
    "arguments",
    [
        ["ls"],
        ["plan", "--data", "sprites", "--method", "random,tsgf", "--ipc", "1"],
        ["plan", "pool", "--data", "sprites"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
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


@rooms
def test_files_and_functions_fit_a_head(path):
    assert len(path.read_text().splitlines()) <= 350
    functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
    assert max((node.end_lineno - node.lineno + 1 for node in functions), default=0) <= 60
