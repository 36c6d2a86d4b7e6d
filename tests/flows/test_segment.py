"""`vidistill segment`: from a folder of features to tables, cached, with Random beside every set."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import PREFECT_FILE
from flow_running import WRONG, CommandLine, check_refusal, environment
from segments import DIMENSIONS, TRAIN, write_layout

from vidistill.flows.parameters import checked
from vidistill.flows.segments import SegmentRequest, graph_of, plan_segments
from vidistill.storage.errors import RequestError
from vidistill.tasks.report.segments import METRICS
from vidistill.tasks.report.statistics import paired
from vidistill.tasks.stage import Runtime

QUICK = shlex.split(
    "--seeds 2 --set tcn.stages=1 --set tcn.layers=2 --set tcn.width=4 --set tcn.epochs=2 --set tcn.lr=0.01 "
    "--set tsgf.iterations=2"
)
AND_TORCH = """
import sys
from vidistill.flows.cli import main
main()
print("torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, server: Any) -> CommandLine:
    folder = tmp_path_factory.mktemp("user")
    write_layout(folder / "salads")
    return CommandLine(folder, server.variables)


ASKED = ("segment", "--data", "salads", "--method", "full,mean,tsgf", "--points", "1,2", *QUICK, "--store", "store")


@pytest.fixture(scope="module")
def ran(user: CommandLine) -> subprocess.CompletedProcess[str]:
    return user(*ASKED, "--out", "out")


@pytest.fixture(scope="module")
def document(user: CommandLine, ran: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads((user.folder / "out" / "segment.json").read_text())
    return found


def test_a_run_ends_well_and_shows_its_tables(user: CommandLine, ran: subprocess.CompletedProcess[str]) -> None:
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    for words in ("hard labels", "soft labels", "F1@25", "tsgf", "out/segment.json"):
        assert words in ran.stdout
    page = (user.folder / "out" / "segment.md").read_text()
    assert page.startswith("# Temporal action segmentation on salads, split 1\n")
    assert "3 classes, 3 training videos, 2 test videos, 58 frames, 5 features a frame" in page
    assert page.count("| tsgf | 2 |") == page.count("| mean | 1 |") == page.count("| random | 2 |") == 2
    assert page.count("| full | all |") == 1


def test_rows_are_those_that_were_asked_for_with_random_beside_them(document: dict[str, Any]) -> None:
    rows = {(row["method"], row["points"], row["labels"]) for row in document["rows"]}
    sets = {
        (name, points, labels)
        for name in ("mean", "tsgf", "random")
        for points in (1, 2)
        for labels in ("hard", "soft")
    }
    assert rows == sets | {("full", None, "hard")}
    for row in document["rows"]:
        assert (row["dataset"], row["split"], row["seeds"]) == ("salads", 1, 2)
        for name in METRICS:
            assert row[f"{name}_mean"] == pytest.approx(sum(row["by_seed"][name]) / 2)
            assert row[f"{name}_std"] == pytest.approx(statistics.stdev(row["by_seed"][name]))
            assert 0 <= row[f"{name}_mean"] <= 1
    assert document["request"]["data"] == "salads"


def test_sets_of_one_budget_cost_the_same_and_less_than_all(document: dict[str, Any]) -> None:
    bytes_of = {(row["method"], row["points"], row["labels"]): row["bytes"] for row in document["rows"]}
    full = bytes_of.pop(("full", None, "hard"))
    assert full == 4 * DIMENSIONS * sum(map(len, TRAIN)) + 16 * 9
    for points, labels in ((1, "hard"), (2, "hard"), (1, "soft"), (2, "soft")):
        same = {size for (_, own, kind), size in bytes_of.items() if (own, kind) == (points, labels)}
        assert len(same) == 1
    assert bytes_of["tsgf", 1, "hard"] < bytes_of["tsgf", 1, "soft"]
    assert bytes_of["tsgf", 1, "hard"] < bytes_of["tsgf", 2, "hard"]


def test_differences_are_paired_with_random_of_the_same_points_and_labels(document: dict[str, Any]) -> None:
    rows = {(row["method"], row["points"], row["labels"]): row for row in document["rows"]}
    for (method, points, labels), row in rows.items():
        if method in ("full", "random"):
            assert row["differences"] == {}
            continue
        for name in METRICS:
            expected = paired(row["by_seed"][name], rows["random", points, labels]["by_seed"][name])
            assert row["differences"][name] == {"mean": expected.mean, "interval": expected.interval}


def test_a_second_run_does_nothing_and_loads_no_torch(user: CommandLine, document: dict[str, Any]) -> None:
    env = environment(user.folder / "home", **user.variables)
    command = [sys.executable, "-c", AND_TORCH, *ASKED, "--out", "again"]
    ended = subprocess.run(command, cwd=user.folder, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "to run" not in ended.stdout
    assert ended.stdout.splitlines()[-1] == "False"
    assert json.loads((user.folder / "again" / "segment.json").read_text()) == document


def test_gc_keeps_what_a_report_of_segments_rests_on(user: CommandLine, document: dict[str, Any]) -> None:
    ended = user("gc", "--store", "store", "--keep-interrupted", "0", "--yes")
    assert ended.returncode == 0, ended.stderr
    for row in document["rows"]:
        for ref in (*row["sets"], *row["scores"]):
            assert (user.folder / "store" / ref / "manifest.json").is_file()


REFUSED = {
    "no folder": ({"data": "nowhere"}, "There is no file nowhere/mapping.txt: the layout is features/NAME.npy"),
    "a method that there is not": (
        {"methods": ["mean", "dm"]}, "methods (--method) has 'dm': choose from full, mean, random, herding, tsgf"
    ),
    "no points": ({"points": ["0"]}, "points (--points) has '0': it takes 1 or more"),
    "points that are no number": ({"points": ["1", "x"]}, "points (--points) has 'x': it takes a whole number"),
    "labels that there are not": ({"labels": ["online"]}, "labels has 'online': it takes 'hard' or 'soft'"),
    "sprites have one split": ({"data": "sprites", "split": 2}, "sprites have one split: take split 1, not 2"),
    "no such parameter": ({"tcn": {"depth": 3}}, "has no parameter 'tcn.depth'; it knows stages"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_said_in_one_sentence(user: CommandLine, name: str) -> None:
    changes, words = REFUSED[name]
    with pytest.raises(RequestError, match=re.escape(words)):
        graph_of(checked(SegmentRequest, {"data": str(user.folder / "salads")} | changes, "The request"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Which features? Give --data DIR, or --data sprites"),
        (("--data", "salads", "--split", "4"), "There is no file salads/splits/train.split4.bundle"),
    ],
    ids=["nothing", "no such split"],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    user: CommandLine, arguments: tuple[str, ...], words: str
) -> None:
    ended = user("segment", *arguments, "--store", "other", "--out", "no")
    check_refusal(ended, WRONG, words, store=user.folder / "other", out=user.folder / "no")
    assert not (user.folder / "no").exists()


def test_sprites_are_planned_before_they_are_rendered(tmp_path: Path) -> None:
    request = SegmentRequest(data="sprites", points=(1,), seeds=2)
    plan = plan_segments(request, Runtime(store=str(tmp_path / "store")))
    kinds = [one.job.stage for one in plan.todo]
    assert kinds[:3] == ["action-sprites", "sequences", "segment-teacher"]
    assert kinds[-1] == "segment-report"
    # two seeds: of random and tsgf a set each, of mean and herding one; a student of each and of all videos
    assert kinds.count("segment-set") == kinds.count("segment-relabelled") == 2 * 2 + 2
    assert kinds.count("segment-score") == 2 * (1 + 2 * 4)
    assert not (tmp_path / "store").exists()


def test_the_deployment_asks_for_what_there_is() -> None:
    (deployed,) = [one for one in yaml.safe_load(PREFECT_FILE.read_text())["deployments"] if one["name"] == "actions"]
    request = SegmentRequest.model_validate(deployed["parameters"]["request"])
    assert (request.data, request.points) == ("sprites", (1, 4))
    module, _, name = deployed["entrypoint"].rpartition(".")
    assert getattr(importlib.import_module(module), name).name == "segment"


def test_the_teacher_is_trained_for_those_that_need_it() -> None:
    request = SegmentRequest(data="sprites", methods=("mean",), labels=("hard",), seeds=1)
    assert "segment-teacher" not in {job.stage for job in graph_of(request).jobs.values()}
    asked = checked(SegmentRequest, {"data": "sprites", "tcn": {"epochs": 3}}, "The request")
    assert (asked.tcn.epochs, asked.tcn.layers) == (3, 10)
