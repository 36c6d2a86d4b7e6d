"""Budgets in kilobytes: which rows are asked for, and that what is stored keeps to them."""

from __future__ import annotations

import copy
import json
import shlex
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from flow_running import CLASSES, CommandLine

from vidistill.flows.commands import request_of
from vidistill.flows.parameters import Experiment, override
from vidistill.flows.rows import rows_of
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError, RunError
from vidistill.tasks.distil import DistilParameters, _check_bytes

QUICK = shlex.split(
    "--seeds 1 --frames 4 --size 48 --set decode.max_lost_share=0.5 --set front=rgb --set teacher.epochs=1 "
    "--set teacher.least_steps=1 --set student.epochs=1 --set student.least_steps=3 "
    "--set coded.search.student.epochs=1 --set coded.search.student.least_steps=2 "
    "--set coded.search.crfs=[30,50] --set coded.search.scales=[1.0] --set coded.preset=10"
)


def rows(*cells: dict[str, Any], **asked: Any) -> list[tuple[Any, ...]]:
    experiment = Experiment.model_validate({"data": "sprites", "cells": cells, **asked})
    return [
        (row.cell.method, row.cell.variant, row.recipe.name, row.ipc, row.kb, row.companion)
        for row in rows_of(experiment)
    ]


def test_methods_that_take_kilobytes_take_them_and_others_instances():
    found = rows(
        {"method": "coded", "recipes": ["soft"]}, {"method": "herding"}, {"method": "full"}, kb=[2, 10], ipc=[5]
    )
    assert found == [
        ("coded", "", "soft", None, 2, False),
        ("coded", "random", "soft", None, 2, True),
        ("coded", "", "soft", None, 10, False),
        ("coded", "random", "soft", None, 10, True),
        ("herding", "", "hard", 5, None, False),
        ("random", "", "hard", 5, None, True),
        ("full", "", "hard", None, None, False),
    ]


def test_coded_without_kilobytes_keeps_instances():
    assert rows({"method": "coded", "recipes": ["hard"]}, ipc=[3]) == [
        ("coded", "", "hard", 3, None, False),
        ("random", "", "hard", 3, None, True),
    ]
    assert rows(
        {"method": "coded", "recipes": ["hard"], "ipc": [2]}, {"method": "coded", "recipes": ["hard"]}, kb=[4]
    ) == [
        ("coded", "", "hard", 2, None, False),
        ("random", "", "hard", 2, None, True),
        ("coded", "", "hard", None, 4, False),
        ("coded", "random", "hard", None, 4, True),
    ]


def test_random_clips_beside_coded_ones_are_coded_alike():
    """So that what a row is ahead by is what it chose."""
    even, plain = {"method": "coded", "options": {"even": True, "preset": 8}}, {"method": "coded", "variant": "plain"}
    random = {"method": "coded", "variant": "random", "options": {"pick": "random", "search": None}}

    def coded_random(*cells):
        asked = Experiment.model_validate({"data": "sprites", "cells": cells, "kb": [4]})
        return {row.companion: row.cell.options for row in rows_of(asked) if row.cell.variant == "random"}

    assert coded_random(even) == {True: {"even": True, "preset": 8, "pick": "random", "search": None}}
    assert coded_random(plain) == {True: {"pick": "random", "search": None}}
    with pytest.raises(RequestError, match=r"coded differ in even or preset.*variant: random"):
        coded_random(even, plain)
    assert coded_random(even, random, plain) == coded_random(random, even, plain) == {False: random["options"]}


def test_the_clips_of_any_method_can_be_coded():
    stored = [{"method": "tsgf", "store": "coded"}, {"method": "random", "store": {"crf": 40}}, {"method": "random"}]
    found = rows(*stored)
    assert [row[:3] for row in found if not row[5]] == [
        ("tsgf", "coded", "soft+tsgf"),
        ("tsgf", "coded", "online+tsgf"),
        ("random", "coded", "hard"),
        ("random", "", "hard"),
    ]
    plain = {"data": "sprites", "cells": [{"method": "tsgf"}]}
    for setting, crf in (("tsgf.store=coded", 50), ("tsgf.store.crf=40", 40)):
        asked = Experiment.model_validate(override(copy.deepcopy(plain), [setting]))
        assert asked.cells[0].store is not None
        assert asked.cells[0].store.crf == crf
        assert asked.cells[0].options == {}


@pytest.mark.parametrize(
    ("cell", "asked", "said"),
    [
        ({"method": "tsgf", "kb": [2]}, {}, "The method tsgf takes no budget in kilobytes: ask for ipc, or for coded."),
        ({"method": "tsgf"}, {"kb": [2]}, "no method of this run takes them: add coded"),
        ({"method": "coded", "store": "coded"}, {}, "compressed video already: give it crf"),
        ({"method": "full", "store": "coded"}, {}, "all clips as compressed video"),
        ({"method": "coded", "recipes": ["online"]}, {"kb": [2]}, "has the recipes hard and soft, not online"),
        ({"method": "coded", "recipes": ["soft+tsgf"]}, {"ipc": [2]}, r"soft\+tsgf keeps mixed clips, .* would be raw"),
        (
            {"method": "dm_vdsd", "recipes": ["soft+image"]},
            {},
            r"has variants, .*: take the recipe soft, or online\+image",
        ),
    ],
)
def test_what_cannot_be_held_to_kilobytes_is_a_wrong_request(cell, asked, said):
    with pytest.raises(RequestError, match=said):
        rows(cell, **asked)


@pytest.mark.parametrize(
    ("methods", "refused"), [("coded", True), ("full,coded", True), ("full,herding", False), ("coded,herding", False)]
)
def test_clips_a_class_that_no_method_takes_are_refused(methods, refused):
    named = {"data": "sprites", "cells": [{"method": name} for name in methods.split(",")], "ipc": [5], "kb": [2]}
    with pytest.raises(RequestError, match="No row would have ipc 5") if refused else nullcontext():
        request_of(None, named)


OWN = """
from vidistill.tasks.methods import Method

class Small(Method):
    budgets = ("kb",)

    def distil(self, material):
        return material.chosen(material.clips.rows_of(0)[:1])
"""


def test_a_method_that_takes_kilobytes_alone_is_not_asked_for_instances(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    cell = {"method": f"{tmp_path / 'own.py'}:Small"}
    assert [row[3:] for row in rows(cell, kb=[2])] == [(None, 2, False), (None, 2, True)]
    for asked in ({}, {"ipc": [3]}):
        with pytest.raises(RequestError, match="The method small takes a budget in kilobytes alone: ask for kb"):
            rows(cell, **asked)


def test_labels_to_come_are_within_the_kilobytes_as_they_will_be_kept():
    """A byte each in a coded set, and as floats beside clips of any other form."""
    clips_NTHWC = np.zeros((1, 2, 8, 8, 3), np.uint8)
    made = DistilledSet(clips_NTHWC, np.zeros(1, np.int64), ("a", "b", "c"), facts={})
    asked = DistilParameters(method="own", method_version=1, method_digest="", options={}, ipc=1, seed=0, labels=(0,))
    for soft, size, fits in ((False, 100, True), (False, 101, False), (True, 88, True), (True, 89, False)):
        parameters = asked.model_copy(update={"kb": 0.1, "soft": soft})
        with nullcontext() if fits else pytest.raises(RunError, match="may keep 100 bytes and keeps 101"):
            _check_bytes(made, parameters, size)


def test_rows_keep_to_their_kilobytes(server, videos, tmp_path):
    vidistill = CommandLine(tmp_path, server.variables)
    arguments = (
        "--data",
        videos,
        "--method",
        "coded,random",
        "--set",
        "random.store=coded",
        "--kb",
        "1,3",
        *QUICK,
        "--store",
        "store",
        "--out",
        "out",
    )
    ran = vidistill("run", *arguments)
    assert ran.returncode == 0, ran.stderr
    assert "1 kB" in ran.stdout
    found = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    raw, recoded = [row for row in found if row["method"] == "random"]
    assert (raw["variant"], recoded["variant"]) in {("", "coded"), ("coded", "")}
    raw, recoded = (raw, recoded) if raw["variant"] == "" else (recoded, raw)
    assert raw["bytes_coded"] is None
    assert recoded["bytes_coded"] < recoded["bytes"] == raw["bytes"]
    found = [row for row in found if row["method"] == "coded"]
    assert {(row["method"], row["variant"], row["labels"], row["kb"]) for row in found} == {
        ("coded", variant, labels, kb) for variant in ("", "random") for labels in ("hard", "soft") for kb in (1, 3)
    }
    for row in found:
        kind = "distilled" if row["labels"] == "hard" else "relabelled"
        (file,) = (tmp_path / "store" / kind / row["artifact"]).glob("set.coded")
        assert row["ipc"] is None
        assert row["bytes_coded"] == row["bytes"] == file.stat().st_size <= row["kb"] * 1000 * len(CLASSES)
    hard, random = (
        next(row for row in found if row["variant"] == name and row["labels"] == "hard") for name in ("", "random")
    )
    assert hard["difference_mean"] == pytest.approx(hard["top1_mean"] - random["top1_mean"])
    assert random["difference_mean"] is None
    again = vidistill("plan", *arguments)
    assert "Everything is cached" in again.stdout


@pytest.mark.parametrize(
    ("kb", "said"), [("0.05", "kb 0.05 is less than one clip a class"), ("x", "--kb takes numbers")]
)
def test_a_budget_that_cannot_be_kept_is_one_sentence(server, videos, tmp_path, kb, said):
    ran = CommandLine(tmp_path, server.variables)(
        "run", "--data", videos, "--method", "coded", "--kb", kb, *QUICK, "--store", "store", "--out", "out"
    )
    assert ran.returncode == 2
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith(f"vidistill: {said}")
    assert last.endswith(".")
