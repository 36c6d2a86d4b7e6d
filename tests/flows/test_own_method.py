"""A user's own method: one file beside their own `models/` and `tasks.py`, and the contract that every method keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from flow_running import TINY, CommandLine
from method_contract import MethodContract

MINE = '''\
"""The clips that move most."""

import numpy as np

from vidistill.tasks.coreset.random import enough
from vidistill.tasks.methods import Material, Method


class Mine(Method):
    def distil(self, material: Material):
        rows = []
        for label in material.labels:
            own = enough(material.clips, label, material.ipc)
            clips_NTHWC = material.clips.read(own).astype(float)
            motion_N = np.abs(np.diff(clips_NTHWC, axis=1)).mean(axis=(1, 2, 3, 4))
            rows.extend(own[np.argsort(-motion_N)[: material.ipc]])
        return material.chosen(np.array(rows))
'''
NOT_TO_BE_IMPORTED = "raise RuntimeError('vidistill imported a module of the folder that it was started from')\n"


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, server: Any) -> CommandLine:
    """A user's project: their method, and packages whose names are those of vidistill's rooms."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "mine.py").write_text(MINE)
    for room in ("models", "storage", "flows", "deployments"):
        (folder / room).mkdir()
        (folder / room / "__init__.py").write_text(NOT_TO_BE_IMPORTED)
    (folder / "tasks.py").write_text(NOT_TO_BE_IMPORTED)
    return CommandLine(folder, {**server.variables, "PYTHONPATH": "."})


def test_it_runs_is_reported_and_only_its_own_changes_run_again(user: CommandLine, videos: Path) -> None:
    arguments = ("run", "--data", videos, "--method", "mine.py:Mine", *TINY, "--store", "store", "--out", "out")
    first = user(*arguments)
    assert first.returncode == 0, first.stderr
    rows = json.loads((user.folder / "out" / "report.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"mine", "random"}
    before = _artifacts(user.folder / "store")

    (user.folder / "mine.py").write_text(MINE.replace("argsort(-motion_N)", "argsort(motion_N)"))
    planned = user("plan", *arguments[1:])
    assert "another method_digest" in planned.stdout
    second = user(*arguments)
    assert second.returncode == 0, second.stderr
    made = _artifacts(user.folder / "store") - before
    assert sorted(artifact.split("/")[0] for artifact in made) == ["distilled", "report", "score"]


def test_it_is_the_example_of_the_readme() -> None:
    assert MINE in (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_its_file_is_found_from_another_folder(user: CommandLine, videos: Path, tmp_path: Path) -> None:
    elsewhere = CommandLine(tmp_path, {name: value for name, value in user.variables.items() if name != "PYTHONPATH"})
    spec = f"{user.folder / 'mine.py'}:Mine"
    planned = elsewhere("plan", "--data", videos, "--method", spec, *TINY, "--store", user.folder / "store")
    assert planned.returncode == 0, planned.stderr
    assert "Everything is cached" in planned.stdout


class TestMine(MethodContract):
    spec = "mine.py:Mine"
    seeded = False

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _beside_it(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        folder = tmp_path_factory.mktemp("beside")
        (folder / "mine.py").write_text(MINE)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            yield


class TestRandom(MethodContract):
    spec = "random"


class TestHerding(MethodContract):
    spec = "herding"
    seeded = False


class TestKCenter(MethodContract):
    spec = "k_center"
    seeded = False


class TestTSGF(MethodContract):
    spec = "tsgf"
    options: ClassVar = {"iterations": 2, "group_classes": 2, "precision": "fp32"}


def _artifacts(store: Path) -> set[str]:
    return {path.parent.relative_to(store).as_posix() for path in store.glob("[!.]*/*/manifest.json")}
