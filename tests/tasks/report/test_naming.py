"""The details of a report of several fronts: each front's set has a name of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidistill.storage.distilled import DistilledSet, joined_facts
from vidistill.storage.store import ArtifactRef, Manifest, Store
from vidistill.tasks.report.bytes import POINT, searches
from vidistill.tasks.report.crops import crop_sets, row_mark
from vidistill.tasks.report.data import RowPlan
from vidistill.tasks.report.gather import ReportParameters, _first_sets, _losses
from vidistill.tasks.report.tables import display

PLAIN, MOVED = "minic3d", "centred:minic3d"
PICTURES = {"first_frame": np.zeros((1, 8, 8, 3), np.uint8), "score": np.zeros(1, np.float32)}
PICTURES |= dict.fromkeys(("track", "crop"), np.zeros((1, 2, 8, 8, 3), np.uint8))


def plan(store: Store, network: str, size: int = 1, **more: Any) -> RowPlan:
    """A row of a set of one clip, whose loss and search tell of which front it is."""
    key = f"{len(store.refs()):024d}"
    moved = MOVED in (network, more.get("teacher"))
    point = dict.fromkeys(POINT, 1.0) | {"top1": float(moved), "students": more.pop("students", 1)}
    facts = {"steps": [1], "loss": [float(moved)], "search": [point], "counts": {}}
    clips_NTHWC = np.zeros((1, 2, 8, 8, 3), np.uint8)
    with store.writing(Manifest(kind="distilled", key=key, version=1, parameters={}, inputs={})) as attempt:
        assert attempt is not None
        made = DistilledSet(
            clips_NTHWC, np.zeros(1, np.int64), ("a",), sources=("a.mp4",), facts=facts, extras=PICTURES
        )
        made.save(attempt.folder)
    row = {"method": "optdistill", "variant": "", "recipe": "hard", "labels": "hard", "ipc": size, "student": network}
    refs = (ArtifactRef(kind="distilled", key=key),)
    return RowPlan.model_validate(row | {"network": network, "scores": (), "sets": refs, "makers": ()} | more)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_each_front_has_its_own_losses_searches_clips_and_crops(store: Store) -> None:
    rows = tuple(plan(store, network, size) for network in (PLAIN, MOVED) for size in (5, 1))
    asked = ReportParameters(title="", dataset="", split="1", rows=rows)
    name, other = "optdistill", f"optdistill, by {MOVED}"
    assert {curve.name: curve.loss for curve in _losses(store, asked)} == {
        f"{one}, ipc {size}": [value] for one, value in ((name, 0.0), (other, 1.0)) for size in (5, 1)
    }
    assert {said: tried[0]["top1"] for said, tried in searches(store, rows).items()} == {
        f"{one}, ipc {size}, hard": value for one, value in ((name, 0.0), (other, 1.0)) for size in (5, 1)
    }
    untried = plan(store, PLAIN, students=0)
    assert [point["top1"] for point in searches(store, [untried])[f"{name}, ipc 1, hard"]] == [None]
    assert _first_sets(asked) == {name: rows[1].sets[0], other: rows[3].sets[0]}
    assert [(one.method, one.ipc) for one in crop_sets(store, rows)] == [(name, 5), (name, 1), (other, 5), (other, 1)]


@pytest.mark.parametrize("facts", [
    {"loss": 0.12, "steps": 100}, {"loss": [0.5], "steps": 100}, {"loss": [0.5, 0.4], "steps": [1, 2, 3]},
    {"loss": ["low"], "steps": [1]}, {"loss": [0.5], "steps": [0.5]}, {"loss": [0.5]},
    {"loss": [0.5], "steps": [1], "alpha": [0.1, 0.2]},
    {"search": "grid"}, {"search": [{"lr": 0.1}]}, {"search": 3}, {"mark": 3}, {"mark": ["a"]},
])  # fmt: skip
def test_what_a_user_s_method_says_of_its_set_is_its_own(
    facts: dict[str, Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts are free: what is no curve, search or mark as the report draws them is not drawn."""
    asked = ReportParameters(title="", dataset="", split="1", rows=(plan(store, PLAIN),))
    monkeypatch.setattr(DistilledSet, "facts_of", lambda folder: facts)
    assert (_losses(store, asked), searches(store, asked.rows), row_mark(store, asked.rows[0].sets)) == ([], {}, "")
    assert joined_facts([facts, facts]) == {"parts": [facts, facts]}


def test_a_teacher_tells_sets_apart_where_it_changed_their_clips(store: Store) -> None:
    def rows(recipe: str) -> tuple[RowPlan, ...]:
        soft = {"method": "random", "student": "rgb:c3d", "labels": "soft"}
        return tuple(plan(store, "", recipe=recipe, teacher=one, **soft) for one in (PLAIN, MOVED))

    asked = ReportParameters(title="", dataset="", split="1", rows=(*rows("soft"), *rows("soft+tsgf")))
    assert list(_first_sets(asked)) == ["random", "random, soft+tsgf", f"random, labelled by {MOVED}, soft+tsgf"]


def test_a_name_says_by_whom_beside_its_variant() -> None:
    assert display("tsgf no mask, by c3d") == "TSGF · no mask, by c3d"
    assert display("random, labelled by c3d") == "Random, labelled by c3d"
