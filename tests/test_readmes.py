"""What the README files name is there: links, files, presets, methods, parameters, options and commands."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from vidistill.flows import cli, commands
from vidistill.flows.own import with_own
from vidistill.flows.parameters import Experiment, PoolRequest, checked
from vidistill.flows.rows import rows_of
from vidistill.tasks.stage import Runtime

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for pages in ("*.md", "deployments/*.md", "deployments/presets/*.md", "tests/benchmarks/*.md")
    for page in ROOT.glob(pages)
}
COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PLACEHOLDERS = {"NAME"}
FOLDERS = ("README.md", "deployments", "flows", "models", "storage", "tasks", "tests", "Makefile", "constraints.txt")


def said(text: str) -> Iterator[str]:
    """Every command line of a page: those of its console blocks, and code within its sentences."""
    for kind, block in FENCE.findall(text):
        if kind == "console":
            yield from (line[2:].partition(" #")[0].strip() for line in block.splitlines() if line.startswith("$ "))
    for code in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        yield " ".join(code.split())


SAID = sorted({(page, line) for page, text in PAGES.items() for line in said(text)})


def lines(*begins: str) -> Any:
    chosen = [(page, line) for page, line in SAID if line.startswith(begins) and not PLACEHOLDERS & set(line.split())]
    assert chosen, f"no page says {begins}"
    return pytest.mark.parametrize(("page", "line"), chosen, ids=[f"{page}: {line}" for page, line in chosen])


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[type, dict[str, Any]]]:
    """What a command line asked for, in a folder with the README's own file; nothing runs."""
    found: list[tuple[type, dict[str, Any]]] = []
    for name, model in (("run", Experiment), ("plan", Experiment), ("pool", PoolRequest)):
        monkeypatch.setattr(commands, name, lambda plain, *_, model=model: found.append((model, plain)))
    (tmp_path / "mine.py").write_text(example())
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for name, holds in (("net.py", "class Net"), ("front.py", "def moving")):
        blocks = (block for _, block in FENCE.findall(PAGES["deployments/using.md"]))
        (tmp_path / name).write_text(next(block for block in blocks if holds in block))
    monkeypatch.chdir(tmp_path)
    return found


def example() -> str:
    return next(
        block for kind, block in FENCE.findall(PAGES["README.md"]) if kind == "python" and "class Mine" in block
    )


@lines("vidistill ", "--")
def test_a_command_line_asks_for_what_there_is(page: str, line: str, asked: list[tuple[type, dict[str, Any]]]) -> None:
    words = shlex.split(line.removeprefix("vidistill "))
    if words[0].startswith("--"):  # options alone: those of `run`
        words = ["run", "--data", "DIR", "--method", "random,tsgf,optdistill", *words]
        if words[-1].startswith("--"):
            assert words[-1] in {
                option for command in COMMANDS.values() for param in command.params for option in param.opts
            }
            return
    command, arguments = COMMANDS[words[0]], words[1:]
    if arguments[:1] == ["benchmark"]:
        assert (ROOT / "deployments" / "presets" / f"benchmark_{arguments[1]}.yaml").is_file()
    elif arguments[:1] == ["pool"]:
        cli.app(words[1:], standalone_mode=False)
        check(*asked[-1])
    elif command.name in {"run", "plan", "pool", "demo"} and (arguments or command.name == "demo"):
        cli.app(words, standalone_mode=False)
        check(*asked[-1])
    elif arguments:
        command.make_context(command.name, arguments)


def check(model: type, plain: dict[str, Any]) -> None:
    request = checked(model, {"data": "DIR"} | plain, "the line")
    if isinstance(request, Experiment):
        for row in rows_of(with_own(request, Runtime(store="store"))[0]):
            if row.source is not None:
                checked(row.source.method.Parameters, row.cell.options, row.source.name)


@lines("python ")
def test_a_script_is_there_and_knows_its_options(page: str, line: str) -> None:
    script, *words = shlex.split(line.removeprefix("python "))
    source = (ROOT / script).read_text()
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in source


@lines("make ", "pip ", "prefect ", "docker ")
def test_other_tools_find_what_they_are_given(page: str, line: str) -> None:
    if line.startswith("make "):
        assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for extra in re.findall(r"\.\[([\w,-]+)\]", line):
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for file in re.findall(r"\S+\.(?:yaml|txt)\b", line):
        assert (ROOT / file).is_file()


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_are_there(page: str) -> None:
    text, folder = PAGES[page], (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" not in target:
            found = (folder / path).resolve() if path else ROOT / page
            assert found.exists(), target
            found = found / "README.md" if found.is_dir() else found
            assert not anchor or anchor in anchors(found.read_text()), target
    for _, line in ((page, code) for code in said(text)):
        if re.fullmatch(r"[\w./-]+", line) and "/" in line and line.split("/")[0] in FOLDERS:
            assert (ROOT / line).exists(), line


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_preset_has_its_place_and_its_command() -> None:
    presets = {path.stem for path in (ROOT / "deployments" / "presets").glob("*.yaml")}
    text = PAGES["deployments/presets/README.md"]
    assert {name for name in presets if f"({name}.yaml)" in text} == presets
    grids = {name for name in presets if name.startswith("benchmark_")}
    commands = {name: f"--preset {name}" for name in presets - grids - {"demo"}}
    commands |= {name: f"vidistill benchmark {name.removeprefix('benchmark_')}" for name in grids}
    assert [name for name, said in commands.items() if f"{said}`" not in text and f"{said} " not in text] == []


def test_the_methods_of_the_registry_are_in_the_readme() -> None:
    from vidistill.tasks.methods import REGISTRY

    assert {name for name in REGISTRY if f"`{name}`" in PAGES["README.md"]} == REGISTRY.keys()


def test_the_front_door_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 250


ROW = {
    "method": "random", "variant": "", "recipe": "hard", "ipc": 1, "student": "c3d", "labels": "hard", "top1_mean": 0.1,
    "top1_std": 0.01, "difference_mean": None, "difference_error": None, "top5_mean": 0.5, "auc_mean": 0.5,
    "f1_mean": 0.1, "bytes": 1e5, "seconds": 1, "peak_memory_bytes": 1e8, "flops": 1e12, "seeds": 3,
}  # fmt: skip


def write_tables() -> Any:
    spec = importlib.util.spec_from_file_location("write_tables", ROOT / "tests/benchmarks/write_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_report_s_tables_are_written_where_a_page_asks_for_them(tmp_path: Path) -> None:
    tables = write_tables()
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- best a -->\nold\n<!-- end -->\n<!-- table a -->\n<!-- end -->\n<!-- table b -->\n<!-- end -->\n"
    )
    ahead = ROW | {"method": "dm", "top1_mean": 0.3, "difference_mean": 0.2, "difference_error": 0.05}
    behind = ROW | {"method": "mtt", "top1_mean": 0.2, "difference_mean": 0.1}
    document = {"rows": [ROW, behind, ahead, ROW | {"method": "full", "ipc": None, "seeds": 1}], "notes": ["A note."]}
    assert tables.write([page], "a", json.loads(json.dumps(document))) == 2
    written = page.read_text().splitlines()
    assert "| hard | 1 | dm | c3d | 30.0 ± 1.0 | +20.0 ± 5.0 | 10.0 ± 1.0 | 10.0 | 0.10 MB |" in written
    methods = [line.split("|")[1].strip() for line in written if line.startswith("| ") and " hard | " in line[3:]]
    assert [name for name in methods if name in {"dm", "mtt", "random", "full"}] == ["dm", "mtt", "random", "full"]
    assert "old" not in written
    assert "A note." in written
    assert written[-2:] == ["<!-- table b -->", "<!-- end -->"]
    assert tables.write([page], "c", document) == 0


def test_tables_know_kilobytes_and_intervals() -> None:
    tables = write_tables()
    coded = ROW | {"method": "coded", "labels": "soft", "recipe": "soft", "ipc": None, "kb": 2.0}
    rows = [
        coded | {"top1_mean": 0.4, "difference_mean": 0.1, "difference_interval": 0.02},
        coded | {"variant": "random"},
    ]
    assert tables.best({"rows": rows}).splitlines() == [
        "| labels | ipc | best | student | top-1 % | − Random (paired, 95 %) | Random | all clips | bytes |",
        "|---" * 9 + "|",
        "| soft | 2 kB | coded | c3d | 40.0 ± 1.0 | +10.0 ± 2.0 | 10.0 ± 1.0 |  | 0.10 MB |",
    ]
    assert "| coded random | soft | 2 kB |" in tables.tables({"rows": rows, "notes": []})


def test_a_row_of_another_network_than_the_student_s_is_marked() -> None:
    rows = [ROW | {"network": name} for name in ("c3d", "rgb:c3d", "", "minic3d")]
    shown = [
        line.split("|")[4].strip() for line in write_tables().tables({"rows": rows, "notes": []}).splitlines()[4:8]
    ]
    assert shown == ["c3d", "c3d", "c3d", "c3d †"]


def test_the_random_beside_a_row_is_its_own_teacher_s() -> None:
    soft = ROW | {"labels": "soft", "recipe": "soft"}
    rows = [
        soft | {"teacher": "c3d", "top1_mean": 0.2},
        other := soft | {"teacher": "centred:c3d", "by": "centred:c3d"},
        soft | {"method": "dm", "teacher": "centred:c3d", "top1_mean": 0.3},
    ]
    assert write_tables().label(other) == "random, labelled by centred:c3d"
    assert "| 30.0 ± 1.0 |  | 10.0 ± 1.0 |" in write_tables().best({"rows": rows})


def test_a_table_of_ways_to_train_has_a_column_a_budget() -> None:
    rows = [
        ROW | {"training": "lr 0.1", "ipc": 5, "top1_mean": 0.3},
        ROW | {"training": ""},
        ROW | {"training": "lr 0.1", "method": "full", "ipc": None},
        ROW | {"training": "", "ipc": 5, "top1_mean": 0.2},
    ]
    assert write_tables().trained({"rows": rows}).splitlines() == [
        "| student | trained | 1 | 5 | all |",
        "|---" * 5 + "|",
        "| c3d | lr 0.1 |  | **30.0 ± 1.0** | **10.0 ± 1.0** |",
        "| c3d | as it is | **10.0 ± 1.0** | 20.0 ± 1.0 |  |",
    ]


def test_a_table_of_iterations_has_a_column_a_number_and_the_seconds() -> None:
    rows = [
        ROW,
        ROW | {"method": "dm", "variant": "300 iterations", "seconds": 6.4, "top1_mean": 0.3},
        ROW | {"method": "mtt", "variant": "30 iterations", "seconds": 9},
        ROW | {"method": "dm", "variant": "30 iterations", "top1_mean": 0.2},
        ROW | {"method": "teacher"},
    ]
    assert write_tables().by_iterations({"rows": rows, "notes": ["Made here."]}).splitlines() == [
        "| method | student | 0 | 30 | 300 |",
        "|---" * 5 + "|",
        "| random hard | c3d | 10.0 ± 1.0 |  |  |",
        "| dm hard | c3d |  | 20.0 ± 1.0 (1 s) | 30.0 ± 1.0 (6 s) |",
        "| mtt hard | c3d |  | 10.0 ± 1.0 (9 s) |  |",
        "",
        "Made here.",
    ]


def test_a_table_says_how_long_a_student_of_all_clips_took() -> None:
    rows = [ROW | {"method": "full", "ipc": None, "student": name, "student_seconds": took}
            for name, took in (("rgb:minic3d", 61.4), ("minic3d", 0.0))]  # fmt: skip
    made = write_tables().tables({"rows": [ROW | {"student_seconds": 3.0}, *rows], "notes": ["Made here."]})
    assert made.splitlines()[-2:] == [
        "Made here.", "A student of all clips was trained and tested in: rgb:minic3d 61 s."
    ]  # fmt: skip


def test_a_table_by_bytes_shows_what_nobody_beats_with_as_many(tmp_path: Path) -> None:
    tables = write_tables()
    page = tmp_path / "page.md"
    page.write_text("<!-- bytes a -->\n<!-- end -->\n")
    rows = [
        ROW,
        ROW | {"method": "coded", "ipc": None, "kb": 10, "bytes": 2e4, "bytes_coded": 2e4, "top1_mean": 0.3},
        ROW | {"method": "dm", "variant": "coded", "kb": None, "bytes_coded": 3e4, "top1_mean": 0.2},
        ROW | {"method": "full", "ipc": None},
        ROW | {"method": "dm", "variant": "lr 1", "training": "lr 1", "bytes": 1e4},
    ]
    assert tables.write([page], "a", {"rows": rows, "classes": ["x", "y"], "notes": []}) == 1
    assert [line for line in page.read_text().splitlines() if line.startswith("| ") and "c3d" in line] == [
        "| **10.0** | **coded** | **10 kB** | **hard** | **c3d** | **30.0 ± 1.0** |",
        "| 15.0 | dm coded | 1 | hard | c3d | 20.0 ± 1.0 |",
        "| 50.0 | random | 1 | hard | c3d | 10.0 ± 1.0 |",
        "| **5.0** | **dm lr 1** | **1** | **hard** | **c3d** | **10.0 ± 1.0** |",
    ]
    assert "**hard labels, lr 1**" in page.read_text()
