"""A user's own student and front, one file each: in a run, and in `vidistill train`, which makes the same student."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from flow_running import TINY, CommandLine
from safetensors.torch import load_file

from vidistill.flows.own import with_own
from vidistill.flows.parameters import Experiment
from vidistill.flows.train import TrainRequest, train
from vidistill.storage.errors import RequestError
from vidistill.tasks.learning.own import named
from vidistill.tasks.stage import Runtime

NET = '''\
"""A few convolutions over single frames, and the mean of what they say."""

from torch import nn


class Net(nn.Module):
    def __init__(self, classes: int, channels: int):
        super().__init__()
        self.frames = nn.Sequential(nn.Conv2d(channels, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(16, classes)

    def forward(self, x_BCTHW):
        maps = self.frames(x_BCTHW.transpose(1, 2).flatten(0, 1)).mean((2, 3))
        return self.head(maps.unflatten(0, (len(x_BCTHW), -1)).mean(1))
'''
FRONT = '''\
"""What moves, and how fast: each frame's difference to the first, and to the next."""

import torch


def moving(x_BCTHW):
    return torch.cat([x_BCTHW - x_BCTHW[:, :, :1], x_BCTHW.roll(-1, 2) - x_BCTHW], 1)
'''
PAGE = Path(__file__).resolve().parents[2] / "deployments" / "using.md"
RUN = [*(word.replace("front=rgb", "front=front.py:moving") for word in TINY), "--store", "store"]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, server: Any) -> CommandLine:
    folder = tmp_path_factory.mktemp("project")
    (folder / "net.py").write_text(NET)
    (folder / "front.py").write_text(FRONT)
    return CommandLine(folder, server.variables)


@pytest.fixture(scope="module")
def rows(user: CommandLine, videos: Path) -> list[dict[str, Any]]:
    """Of Random, for the user's student, torchvision's and one of ours, all of which see the user's front."""
    students = "net.py:Net,rgb:torchvision:r3d_18,r2plus1d_small"
    ran = user("run", "--data", videos, "--method", "random", *RUN, "--students", students, "--out", "out")
    assert ran.returncode == 0, ran.stderr
    found: list[dict[str, Any]] = json.loads((user.folder / "out" / "report.json").read_text())["rows"]
    return found


def test_it_runs_and_only_its_own_rows_change_with_its_file(
    user: CommandLine, videos: Path, rows: list[dict[str, Any]]
) -> None:
    fronts = {row["student"]: row["front"] for row in rows}
    assert [re.sub(r"@[0-9a-f]{8}", "@", name) for name in fronts] == [
        "moving@:net@", "rgb:torchvision.r3d_18", "moving@:r2plus1d_small"
    ]  # fmt: skip
    asked = ("--data", videos, "--method", "random", *RUN, "--students", "net.py:Net,r2plus1d_small")
    (user.folder / "net.py").write_text(NET.replace("16", "8"))
    planned = user("plan", *asked)
    (user.folder / "net.py").write_text(NET)
    assert re.search(r"score +1 to run.*1 cached", planned.stdout), planned.stdout


def trained(user: CommandLine, source: str, network: str, **options: Any) -> dict[str, Any]:
    request = TrainRequest(source=source, network=network, **options)
    return train(request, Runtime(store=str(user.folder / "store"), threads=1), user.folder / "student")


def test_a_trained_network_is_the_row_s_student(user: CommandLine, rows: list[dict[str, Any]]) -> None:
    row = rows[0]
    ended = user("train", row["artifact"], "--network", "front.py:moving:net.py:Net", "--store", "store")
    assert ended.returncode == 0, ended.stderr
    assert "hard labels: top-1" in ended.stdout
    facts = json.loads((user.folder / "student" / "train.json").read_text())
    assert (facts["network"], facts["labels"], facts["clips"]) == (row["student"], "hard", 3)
    assert {name: facts[name] for name in ("top1", "auc", "f1")} == pytest.approx(
        {name: row[f"{name}_mean"] for name in ("top1", "auc", "f1")}
    )
    assert facts["loss"][-1] > 0
    weights = load_file(user.folder / "student" / "student.safetensors")
    assert weights["body.head.weight"].shape == (3, 16)


def test_an_exported_folder_trains_the_same_network(
    user: CommandLine, videos: Path, rows: list[dict[str, Any]]
) -> None:
    key, network, out = rows[0]["artifact"], f"rgb:{user.folder}/net.py:Net", user.folder / "exported"
    assert user("export", key, "--store", "store", "--out", "exported").returncode == 0
    whole = shutil.copytree(videos, user.folder / "whole", ignore=shutil.ignore_patterns("broken.mp4"))
    of_key = trained(user, key, network, seed=3)
    of_folder = trained(user, str(out), network, seed=3, test=str(whole))
    assert of_folder["loss"] == of_key["loss"] != trained(user, key, network, seed=4)["loss"]
    assert of_folder["top1"] == of_key["top1"]
    alone = trained(user, str(out), network, test=str(whole / "train"))
    assert alone["test_clips"] == 6  # class folders without a split are tested whole


def test_what_cannot_be_trained_is_said(user: CommandLine, rows: list[dict[str, Any]], videos: Path) -> None:
    key, file = rows[0]["artifact"], user.folder / "net.py"
    for said, source, network, options in [
        ("has no class or function 'None'", key, f"{file}:None", {}),
        ("choose from mc3_18", key, "torchvision:r3d", {}),
        ("There is no network 'resnet'", key, "resnet", {}),
        ("has no soft labels", key, "c3d", {"labels": "soft"}),
        ("put each class in its own folder", key, "c3d", {"test": str(videos / "train" / "left")}),
        ("puts out 6", key, f"{user.folder}/front.py:moving:torchvision:r3d_18", {}),
        ("was not written by `vidistill export`", str(user.folder), "c3d", {}),
        ("epochs is 'none'", key, "c3d", {"student": {"epochs": "none"}}),
    ]:
        with pytest.raises(RequestError, match=re.escape(said)):
            trained(user, source, network, **options)


def test_torchvision_s_networks_are_known_by_their_names_in_reports() -> None:
    assert named("rgb:torchvision.mc3_18") == named("rgb:torchvision:mc3_18")


@pytest.mark.parametrize("example", [NET, FRONT], ids=["student", "front"])
def test_it_is_the_example_of_the_page(example: str) -> None:
    assert example in PAGE.read_text()


def test_two_networks_whose_names_differ_by_capitals_are_refused(tmp_path: Path) -> None:
    """Keys hold names without."""
    (tmp_path / "net.py").write_text(NET + "\n\nclass NET(Net):\n    pass\n")
    students = [f"{tmp_path}/net.py:{name}" for name in ("Net", "NET")]
    asked = Experiment.model_validate({"data": "sprites", "cells": [{"method": "random"}], "students": students})
    with pytest.raises(RequestError, match=r"net.py:Net and .*net.py:NET would both be called net@.*: rename one"):
        with_own(asked, Runtime(store="store"))
    for one in (students[:1], students[:1] * 2):
        with_own(asked.model_copy(update={"students": tuple(one)}), Runtime(store="store"))
