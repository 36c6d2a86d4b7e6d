"""What networks see first: in whose names it stands, and whose rows it leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from listed import table

from vidistill.flows import fronts
from vidistill.flows.experiment import build
from vidistill.flows.fronts import UNDECIDED, expected_graph, front_graph, with_front
from vidistill.flows.grid import merged
from vidistill.flows.parameters import Experiment
from vidistill.storage.errors import RequestError
from vidistill.storage.store import Store
from vidistill.tasks.report.gather import ReportParameters
from vidistill.tasks.stage import Runtime


def experiment(*methods: str, **settings: Any) -> Experiment:
    cells = [{"method": name} for name in methods]
    small = {"decode": {"frames": 4, "size": 32, "views": 1}, "seeds": 1}
    return Experiment.model_validate({"data": "videos", "cells": cells} | small | settings)


def test_a_front_stands_in_the_name_of_every_network() -> None:
    asked = with_front(experiment("mtt", "tsgf", students=["minic3d", "rgb:c3d"]), "centred")
    assert asked.students == ("centred:minic3d", "rgb:c3d")
    jobs = list(build(asked, table()).jobs.values())
    (teacher,) = (job for job in jobs if job.stage == "teacher")
    assert teacher.parameters["network"] == "centred:r2plus1d_small"
    experts = {job.parameters["expert"]["network"] for job in jobs if job.stage == "expert"}
    assert experts == {"centred:minic3d"}
    assert {job.parameters["network"] for job in jobs if job.stage == "score"} == {"centred:minic3d", "rgb:c3d"}
    rows = ReportParameters.model_validate(jobs[-1].parameters).rows
    assert {row.network for row in rows if row.method == "mtt"} == {"centred:minic3d"}
    assert {row.network for row in rows if row.method == "tsgf"} == {"centred:r2plus1d_small"}
    assert [row.method for row in rows if row.ipc is None] == ["teacher", "expert"]


def test_a_coreset_is_made_with_the_network_whose_features_it_measures_in() -> None:
    asked = experiment("herding")
    cells = [{"method": "herding"}, {"method": "herding", "variant": "r", "options": {"features": "random"}}]
    asked = with_front(Experiment.model_validate(asked.model_dump() | {"cells": cells}), "centred")
    rows = ReportParameters.model_validate(list(build(asked, table()).jobs.values())[-1].parameters).rows
    made = {row.variant: row.network for row in rows if row.method == "herding"}
    assert made == {"": "centred:r2plus1d_small", "r": "centred:minic3d"}


def test_a_row_names_the_teacher_that_labels_its_clips() -> None:
    """A student with a front of its own sees the labels of each front's teacher."""
    cells = [{"method": "random", "recipes": ["hard", "soft", "online", "learned"]}]
    asked = [with_front(experiment(cells=cells, students=["rgb:c3d"]), front) for front in ("rgb", "centred")]
    graphs = [build(one, table()) for one in asked]
    parameters = ReportParameters.model_validate(list(merged(graphs).jobs.values())[-1].parameters)
    runs = parameters.command.splitlines()
    assert [run.startswith("vidistill run --data videos") and "&&" not in run for run in runs] == [True, True]
    rows = parameters.rows
    named = sorted((row.recipe, row.teacher) for row in rows if row.method == "random")
    both = ("centred:r2plus1d_small", "r2plus1d_small")
    assert named == [("hard", ""), ("learned", ""), *((kind, name) for kind in ("online", "soft") for name in both)]


@pytest.mark.parametrize(("method", "options", "settings", "network"), [
    ("coded", {"pick": "random"}, {}, ""),
    ("coded", {"pick": "random"}, {"recipe": "soft"}, ""),
    ("coded", {"pick": "medium"}, {}, "centred:r2plus1d_small"),
    ("coded", {"pick": "random"}, {"kb": [9]}, "centred:cnn_gru"),
    ("coded", {"pick": "random"}, {"kb": [9], "recipe": "soft"}, "centred:cnn_gru"),
    ("optdistill", {"grid": 1, "detector": "motion"}, {}, "centred:r2plus1d_small"),
    ("optdistill", {"grid": 1, "detector": "motion", "scorer": "KINETICS400_V1"}, {}, ""),
])  # fmt: skip
def test_a_set_is_made_with_the_network_that_its_jobs_ask(
    method: str, options: dict[str, Any], settings: dict[str, Any], network: str
) -> None:
    """A teacher that gives labels alone made no set."""
    own = options | ({"search": {"network": "cnn_gru"}} if "kb" in settings else {})
    recipes = [settings.get("recipe", "hard")]
    cells = [{"method": method, "options": own, "recipes": recipes}]
    budget = {name: value for name, value in settings.items() if name != "recipe"}
    asked = Experiment.model_validate(experiment(method).model_dump() | budget | {"cells": cells})
    jobs = build(with_front(asked, "centred"), table()).jobs
    rows = ReportParameters.model_validate(list(jobs.values())[-1].parameters).rows
    asked_for = [row for row in rows if row.method == method and not row.variant and bool(row.kb) == ("kb" in settings)]
    assert {row.network for row in asked_for} == {network}


def test_what_stands_still_has_no_row_where_the_student_sees_what_moves() -> None:
    asked = with_front(experiment("static_dc", "random", "sfvd_t", students=["minic3d"]), "centred")
    parameters = ReportParameters.model_validate(list(build(asked, table()).jobs.values())[-1].parameters)
    assert {row.method for row in parameters.rows} == {"random", "sfvd_t", "expert"}
    assert parameters.notes == (
        "The clips of static_dc stand still, and centred:minic3d sees what moves alone, so it has no row here",
    )
    seen = with_front(experiment("static_dc", students=["minic3d"]), "rgb")
    assert "static_dc" in {row.method for row in ReportParameters.model_validate(
        list(build(seen, table()).jobs.values())[-1].parameters).rows}  # fmt: skip
    matched = with_front(experiment("random", "sfvd", "static_dc", students=["rgb:minic3d"]), "centred")
    parameters = ReportParameters.model_validate(list(build(matched, table()).jobs.values())[-1].parameters)
    assert {row.method for row in parameters.rows} == {"random", "static_dc"}  # which matches still frames by a ConvNet
    assert parameters.notes == (
        "The clips of sfvd stand still, and centred:minic3d sees what moves alone, so it has no row here",
    )
    labelled = {"cells": [{"method": "static_dc", "recipes": ["hard", "soft"]}], "students": ["rgb:minic3d"]}
    asked = with_front(experiment("static_dc", **labelled), "centred")
    parameters = ReportParameters.model_validate(list(build(asked, table()).jobs.values())[-1].parameters)
    assert {row.recipe for row in parameters.rows if row.method == "static_dc"} == {"hard"}
    assert parameters.notes == (
        "The clips of static_dc stand still, and centred:r2plus1d_small sees what moves alone, so it has no row here",
    )
    with pytest.raises(RequestError, match=r"static_dc stand still.*choose --front rgb"):
        build(with_front(experiment("static_dc"), "centred"), table())


BLIND = [
    ({}, "centred", "r2plus1d_small"),
    ({"students": ["rgb:minic3d"]}, "centred", "r2plus1d_small"),  # its teacher
    ({"students": ["centred:minic3d"]}, "rgb", "minic3d"),
    ({"students": ["centred:minic3d"], "cells": [{"method": "full"}]}, "rgb", "minic3d"),
    ({"teacher": {"network": "centred:minic3d"}, "cells": [{"method": "tsgf"}]}, "rgb", "minic3d"),
    ({"cells": [{"method": "dm", "options": {"network": "centred:minic3d"}}]}, "rgb", "minic3d"),
]


@pytest.mark.parametrize(("settings", "front", "body"), BLIND)
def test_of_one_frame_what_moves_is_nothing(settings: dict[str, Any], front: str, body: str) -> None:
    asked = experiment("random", **{"decode": {"frames": 1}} | settings)
    with pytest.raises(RequestError, match=f"of one frame stand still, and centred:{body} sees.*choose --front rgb"):
        build(with_front(asked, front), table())


def test_of_one_frame_other_students_have_their_rows() -> None:
    asked = with_front(experiment("random", decode={"frames": 1}, students=["minic3d", "centred:c3d"]), "rgb")
    parameters = ReportParameters.model_validate(list(build(asked, table()).jobs.values())[-1].parameters)
    assert {row.student for row in parameters.rows} == {"minic3d"}
    assert parameters.notes == (
        "Clips of one frame stand still, and centred:c3d sees what moves alone, so it has no row here",
    )


def test_until_it_is_decided_a_plan_has_the_trials_and_what_comes_after(tmp_path: Any) -> None:
    store, asked = Store(tmp_path), experiment("random")
    graph = expected_graph(asked, table(), store, lambda one, videos, ref: build(one, videos, ref, asked))
    assert [job.label for job in graph.jobs.values() if job.stage in ("trial", "front")] == [
        "try rgb", "try centred", "try rgb+difference", "front",
    ]  # fmt: skip
    (score,) = (job for job in graph.jobs.values() if job.stage == "score")
    assert score.parameters["network"] == f"{UNDECIDED}:r2plus1d_small"
    assert "--front" not in ReportParameters.model_validate(list(graph.jobs.values())[-1].parameters).command


def test_where_nothing_can_be_held_out_there_are_no_trials() -> None:
    assert front_graph(experiment("random"), table(groups=1)) is None


def test_where_a_class_loses_its_groups_in_decoding_the_front_is_rgb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(*_: Any) -> None:
        raise RequestError("class a has one group")

    monkeypatch.setattr(fronts, "run_graph", lost)
    asked, decided = fronts.choose_front(experiment("random"), table(), Runtime(store=str(tmp_path)))
    assert (asked.front, decided) == ("rgb", None)
    assert "The front is rgb, since it cannot be chosen on a part of the training split: class a has" in caplog.text


def test_experts_have_a_row_of_each_kind_of_them() -> None:
    cells = [{"method": "mtt", "options": {"experts": 3}, "variant": number, "seeds": 2} for number in "ab"]
    cells[1]["options"] = {"experts": 2, "expert": {"epochs": 7}, "max_start_epoch": 2}
    jobs = build(with_front(experiment(cells=cells), "centred"), table()).jobs
    rows = ReportParameters.model_validate(list(jobs.values())[-1].parameters).rows
    found = {row.variant: row for row in rows if row.method == "expert"}
    assert {name: (row.student, len(row.scores), row.ipc) for name, row in found.items()} == {
        "epochs 10, lr 0.05": ("centred:minic3d", 3, None),
        "epochs 7, lr 0.05": ("centred:minic3d", 2, None),
    }  # fmt: skip
    scored = [jobs[ref] for ref in found["epochs 7, lr 0.05"].scores]
    experts = [job.inputs["expert"][0] for job in scored]
    assert [(ref,) for ref in experts] == list(found["epochs 7, lr 0.05"].makers)
    assert [(jobs[ref].parameters["seed"], jobs[ref].parameters["expert"]["epochs"]) for ref in experts] == [
        (0, 7), (1, 7),
    ]  # fmt: skip


def test_of_clips_of_one_frame_there_is_nothing_to_choose(tmp_path: Any) -> None:
    asked = experiment("random", decode={"frames": 1})
    graph = expected_graph(asked, table(), Store(tmp_path), lambda one, videos, ref: build(one, videos, ref, asked))
    (score,) = (job for job in graph.jobs.values() if job.stage == "score")
    assert score.parameters["network"] == "r2plus1d_small"
