"""A user's own method: one file beside their own `models/` and `tasks.py`, and the contract that every method keeps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from flow_running import TINY, CommandLine
from method_contract import MethodContract

from vidistill.flows.own import with_own
from vidistill.flows.parameters import Experiment
from vidistill.storage.errors import RequestError
from vidistill.tasks.stage import Runtime

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
    paths = os.pathsep.join(filter(None, [".", os.environ.get("PYTHONPATH")]))
    return CommandLine(folder, {**server.variables, "PYTHONPATH": paths})


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


WRONG = """\
import dataclasses

import numpy as np

from vidistill.tasks.methods import Material, Method


class Raises(Method):
    def distil(self, material: Material):
        return self.weights({})

    def weights(self, table):
        return table["weights"]


class Nothing(Method):
    def distil(self, material: Material):
        pass


class Listed(Method):
    def distil(self, material: Material):
        return [1, 2]


class Few(Method):
    def distil(self, material: Material):
        return material.chosen(material.clips.rows_of(0)[:1])


class Small(Method):
    def distil(self, material: Material):
        made = material.chosen(np.array([material.clips.rows_of(label)[0] for label in material.labels]))
        return self.changed(made)

    def changed(self, made):
        return made.with_clips(made.clips_NTHWC[:, :, ::2, ::2])


class Floats(Small):
    def changed(self, made):
        return made.with_clips(made.clips_NTHWC / 255)


class Names(Small):
    def changed(self, made):
        return dataclasses.replace(made, labels_N=[made.classes[label] for label in made.labels_N])


class Others(Small):
    def changed(self, made):
        return dataclasses.replace(made, classes=("a", "b", "c"))


class Exits(Method):
    def distil(self, material: Material):
        raise SystemExit(0)


class Asks(Method):
    def distil(self, material: Material):
        return material.teacher()
"""
SAID = {
    "raises": "The method raises failed in wrong.py, line 13: KeyError: 'weights'.",
    "nothing": "The method nothing returned nothing: `distil` owes a DistilledSet",
    "listed": "The method listed returned a list: `distil` owes a DistilledSet",
    "few": "The method few owes 1 clips a class and returned {0: 1.0, 1: 0.0, 2: 0.0}",
    "small": "The method small owes clips of shape (4, 48, 48, 3) and returned (4, 24, 24, 3).",
    "floats": "The method floats failed in wrong.py, line 42: ValueError: clips must be uint8 (3, T, H, W, 3)",
    "names": "The method names failed in wrong.py, line 47: ValueError: labels must be an array (N,) of whole numbers",
    "exits": "The method exits failed in wrong.py, line 57: SystemExit: 0.",
    "asks": 'There is no teacher: a method that reads one has needs = ("teacher",).',
    "others": "The method others owes a set of the classes ('grow', 'left', 'right') and returned one",
}
THERE = """\
  File "{file}", line 10, in distil
    return self.weights({{}})
           ^^^^^^^^^^^^^^^^
  File "{file}", line 13, in weights
    return table["weights"]
           ~~~~~^^^^^^^^^^^
KeyError: 'weights'
"""


def test_methods_that_fail_are_rows_of_a_report_that_holds_the_others(user: CommandLine, videos: Path) -> None:
    (user.folder / "wrong.py").write_text(WRONG)
    methods = ",".join(["random", *(f"wrong.py:{name.capitalize()}" for name in SAID)])
    arguments = ("run", "--data", videos, "--method", methods, *TINY, "--store", "store", "--out", "failed")
    ended = user(*arguments)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    document = json.loads((user.folder / "failed" / "report.json").read_text())
    assert [row["method"] for row in document["rows"]] == ["random"]
    found = {row["method"]: row for row in document["failed"]}
    assert found.keys() == SAID.keys()
    for name, sentence in SAID.items():
        assert found[name]["error"].startswith(sentence)
        assert sentence in ended.stderr
    assert found["few"].items() >= {"variant": "", "ipc": 1, "recipe": "hard", "student": "r2plus1d_small"}.items()
    assert THERE.format(file=user.folder / "wrong.py") in ended.stderr
    assert "site-packages" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("vidistill: 10 of 11 rows failed (")
    assert f"the report {user.folder / 'failed' / 'report.html'} holds the others and names them." in last
    assert "KeyError: &#39;weights&#39;" in (user.folder / "failed" / "report.html").read_text()


@pytest.mark.slow
def test_a_method_that_is_mended_makes_another_report(user: CommandLine, videos: Path) -> None:
    (user.folder / "mended.py").write_text(WRONG)
    arguments = ("run", "--data", videos, "--method", "mended.py:Raises", *TINY, "--store", "store", "--out", "mended")
    assert user(*arguments).returncode == 1
    before = _artifacts(user.folder / "store")
    assert not _made_by("raises", user.folder / "store")
    assert user(*arguments).returncode == 1, "the failure was cached as a success"
    assert _artifacts(user.folder / "store") == before

    body = "return material.chosen(np.array([material.clips.rows_of(label)[0] for label in material.labels]))"
    (user.folder / "mended.py").write_text(WRONG.replace("return self.weights({})", body))
    ended = user(*arguments)
    assert ended.returncode == 0, ended.stderr
    document = json.loads((user.folder / "mended" / "report.json").read_text())
    assert document["failed"] == []
    assert {row["method"] for row in document["rows"]} == {"random", "raises"}
    made = _artifacts(user.folder / "store") - before
    assert sorted(artifact.split("/")[0] for artifact in made) == ["distilled", "report", "score"]


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


def _made_by(method: str, store: Path) -> list[str]:
    manifests = [json.loads(path.read_text()) for path in store.glob("distilled/*/manifest.json")]
    return [manifest["key"] for manifest in manifests if manifest["parameters"]["method"] == method]


EMPTY = """
from vidistill.tasks.methods import Method

class Random(Method):
    def distil(self, material):
        return material.chosen([])

class Mine(Random): ...

class Bare(Method): ...

class Loose(Random):
    class Parameters: ...

class Needy(Random):
    needs = ("teachr",)
"""


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (("a/mine.py:Random",), r"a/mine\.py:Random would be called 'random', as other rows are: rename the class"),
        (("a/mine.py:Mine", "b/mine.py:Mine"), r"Two classes would be called 'mine', that of b/mine\.py:Mine too"),
        (("a/mine.py:Bare",), r"The class 'Bare' of a/mine\.py has no distil"),
        (("a/mine.py:Loose",), r"Loose\.Parameters of a/mine\.py is no pydantic model"),
        (("a/mine.py:Needy",), r"Needy\.needs of a/mine\.py names 'teachr': there are teacher, pool"),
    ],
)
def test_what_a_class_may_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, methods: tuple[str, ...], said: str
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(EMPTY + f"# {folder}")
    monkeypatch.chdir(tmp_path)
    asked = Experiment.model_validate({"data": "sprites", "cells": [{"method": method} for method in methods]})
    with pytest.raises(RequestError, match=said):
        with_own(asked, Runtime(store="store"))
