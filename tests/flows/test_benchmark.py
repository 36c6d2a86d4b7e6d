"""A grid on real videos: stages are shared, a failed cell stays a cell, and what is left gets scores and plots."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from flow_running import FAILED, CommandLine, snapshot

from vidistill.flows import use
from vidistill.flows.grid import Benchmark, experiments
from vidistill.flows.planning import plan_grid
from vidistill.tasks.stage import Runtime

RAISES = """
from vidistill.tasks.methods import Method


class Raises(Method):
    def distil(self, material):
        raise KeyError("weights")
"""
QUICK = {"epochs": 1, "least_steps": 2, "precision": "fp32"}
GRID: dict[str, Any] = {
    "cells": [
        {"method": "full", "seeds": 1},
        {"method": "herding"},
        {"method": "herding", "student": {"crop_scale": 1.0}, "ipc": [1], "students": ["minic3d_bn"]},
        {"method": "raises.py:Raises", "ipc": [1], "students": ["minic3d_bn"]},
        {
            "method": "coded",
            "kb": [4, 8],
            "students": ["minic3d_bn"],
            "options": {"search": None, "preset": 10, "crf": 60},
            "recipes": ["hard"],
        },
    ],
    "fronts": ["rgb", "centred"],
    "ipc": [1, 2],
    "students": ["r2plus1d_small", "minic3d_bn"],
    "seeds": 1,
    "decode": {"frames": 4, "size": 32, "views": 1, "max_lost_share": 0.5},
    "teacher": QUICK,
    "student": QUICK,
}


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, server: Any) -> CommandLine:
    folder = tmp_path_factory.mktemp("grid")
    (folder / "raises.py").write_text(RAISES)
    (folder / "grid.yaml").write_text(yaml.safe_dump(GRID))
    return CommandLine(folder, server.variables)


@pytest.fixture(scope="module")
def ran(user: CommandLine, videos: Path) -> Any:
    return user("benchmark", "grid.yaml", "--data", videos, "--store", "store", "--out", "out")


@pytest.fixture(scope="module")
def document(user: CommandLine, ran: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((user.folder / "out" / "report.json").read_text())
    return found


def test_a_failed_cell_stays_a_cell(ran: Any, document: dict[str, Any]) -> None:
    assert ran.returncode == FAILED
    assert re.search(r"2 of \d+ rows failed \(The method raises failed in raises\.py, line 7", ran.stderr), ran.stderr
    assert {(row["method"], row["ipc"], row["student"]) for row in document["failed"]} == {
        ("raises", 1, "minic3d_bn"), ("raises", 1, "centred:minic3d_bn")
    }  # fmt: skip
    rows = Counter((row["method"], row["front"]) for row in document["rows"])
    assert rows["herding", "rgb"] == rows["herding", "centred"] == 5
    assert rows["coded", "rgb"] == 4  # with Random beside it
    assert rows["full", "rgb"] == 2


def test_what_fronts_share_is_made_once(user: CommandLine, ran: Any, document: dict[str, Any]) -> None:
    made = Counter(path.parent.parent.name for path in (user.folder / "store").glob("[!.]*/*/manifest.json"))
    assert (made["index"], made["clips"], made["report"], made["motion"]) == (1, 2, 1, 1)
    random = {row["artifact"] for row in document["rows"] if row["method"] == "random" and row["ipc"] == 1}
    assert len(random) == 1  # Random sees nothing: one set for all fronts and students


def test_its_page_has_every_score_and_plot(user: CommandLine, ran: Any, document: dict[str, Any]) -> None:
    out = user.folder / "out"
    page = (out / "benchmark.md").read_text()
    for heading in ("Cells that", "Accuracy", "Area under accuracy", "Robust scores", "Static and dynamic", "Plots"):
        assert f"## {heading}" in page
    plots = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)
    assert {name.partition("-")[0] for name in plots} == {"bytes", "seconds", "instances", "gains"}
    for name in plots:
        ET.parse(out / name)
    assert "all clips" in (out / "instances-r2plus1d-small-hard-labels.svg").read_text()
    robust = page.partition("## Robust scores")[2].partition("##")[0]
    assert re.search(r"\| Herding \| 1 \| centred:minic3d_bn \| [\d.]+ \| [\d.]+ \|", robust), robust


def test_a_second_grid_is_cached_but_for_what_failed(user: CommandLine, ran: Any, videos: Path) -> None:
    planned = user("plan", "benchmark", "grid.yaml", "--data", videos, "--store", "store")
    assert planned.returncode == 0, planned.stderr
    todo = re.findall(r"^(\w[\w-]*) +(\d+) to run", planned.stdout, re.MULTILINE)
    assert dict(todo) == {"distilled": "1", "score": "2", "report": "1"}, planned.stdout


def test_a_grid_is_priced_before_its_data_are_there(user: CommandLine, tmp_path: Path) -> None:
    expect = {"classes": 5, "train": 100, "test": 25, "megabytes": 50}
    grid = {name: value for name, value in GRID.items() if name != "cells"} | {
        "cells": [{"method": "full"}, {"method": "dm"}], "expect": expect, "fronts": ["rgb"]
    }  # fmt: skip
    (user.folder / "unseen.yaml").write_text(yaml.safe_dump(grid))
    before = snapshot(user.folder)
    planned = user("plan", "benchmark", "unseen.yaml", "--store", "nowhere")
    assert planned.returncode == 0, planned.stderr
    assert re.search(r"jobs to run, .*about .* and \S+ [kMG]B in \S+/nowhere\n", planned.stdout)
    assert snapshot(user.folder).keys() == before.keys()
    ended = user("benchmark", "unseen.yaml", "--store", "nowhere")
    assert ended.returncode == 2
    assert "There are no videos at unseen: give --data DIR" in ended.stderr


def test_what_a_data_set_holds_is_what_is_priced(tmp_path: Path) -> None:
    plain = {"data": "far", "cells": [{"method": "full"}], "front": "rgb", "seeds": 1,
             "expect": {"classes": 3, "train": 60, "test": 33, "megabytes": 93}}  # fmt: skip
    grid = Benchmark.model_validate(plain)
    plan = plan_grid(grid, Runtime(store=str(tmp_path / "none")))
    blocks = [one.job.parameters["videos"] for one in plan.planned if one.job.stage == "block"]
    assert sum(map(len, blocks)) == 93
    assert {video["bytes"] for videos in blocks for video in videos} == {1_000_000}
    assert [one.front for one in experiments(grid)] == ["rgb"]
    assert [one.front for one in experiments(grid.model_copy(update={"fronts": ("auto", "centred")}))] == [
        "auto", "centred"
    ]  # fmt: skip


def test_a_grid_of_published_data_may_be_tried_on_sprites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(use, "reported", lambda *given: begun.append(given))
    plain = {"data": "sprites", "cells": [{"method": "full"}], "front": "rgb",
             "expect": {"classes": 3, "train": 60, "test": 33, "megabytes": 93}}  # fmt: skip
    use.benchmark(Benchmark.model_validate(plain), "store", Path("out"), "cpu", "threads", False, "")
    assert len(begun) == 1
