"""Cells that train their students otherwise: what reaches which score, and what their rows are called."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from listed import table

from vidistill.flows.distill import _rest
from vidistill.flows.execution import _error_of
from vidistill.flows.experiment import build
from vidistill.flows.fronts import with_front
from vidistill.flows.parameters import Experiment, checked, load_preset
from vidistill.flows.rows import rows_of
from vidistill.storage.errors import DivergedError, RequestError, StoreError
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.coded.method import CodedParameters
from vidistill.tasks.coded.search import SearchParameters
from vidistill.tasks.learning import benchmark
from vidistill.tasks.report.data import RowPlan
from vidistill.tasks.report.gather import ReportParameters
from vidistill.tasks.stage import Job

FAST = {"least_steps": 7, "optimiser": {"lr": 0.25}}
WORDS = "least_steps 7, lr 0.25"


def built(*cells: dict[str, Any], **settings: Any) -> tuple[dict[ArtifactRef, Job], dict[str, RowPlan]]:
    """The jobs and, by name, the rows but the teacher's of an experiment with these cells."""
    plain = {"data": "videos", "cells": cells, "decode": {"frames": 4, "size": 32, "views": 1}, "seeds": 1}
    jobs = build(with_front(Experiment.model_validate(plain | settings), "rgb"), table()).jobs
    rows = ReportParameters.model_validate(list(jobs.values())[-1].parameters).rows
    return jobs, {row.name: row for row in rows if row.method != "teacher"}


def test_a_cell_changes_its_students_alone_and_deeply() -> None:
    jobs, rows = built({"method": "herding"}, {"method": "herding", "student": FAST}, student={"crop_scale": 0.5})
    plain, fast = (jobs[rows[name].scores[0]].parameters["student"] for name in ("herding", f"herding {WORDS}"))
    assert (fast["least_steps"], fast["optimiser"]["lr"], fast["crop_scale"]) == (7, 0.25, 0.5)
    assert plain | {"least_steps": 7, "optimiser": plain["optimiser"] | {"lr": 0.25}} == fast
    assert rows[f"herding {WORDS}"].sets == rows["herding"].sets, "the set is one"
    assert {job.label for job in jobs.values() if job.stage == "distilled"} == {
        "distil herding hard ipc 1 seed 0", "distil random hard ipc 1 seed 0",
    }  # fmt: skip


def test_random_beside_a_row_is_trained_alike() -> None:
    jobs, rows = built({"method": "herding", "student": FAST, "variant": "own"}, {"method": "full", "student": FAST})
    assert rows.keys() == {f"herding own {WORDS}", f"random {WORDS}", f"full {WORDS}"}
    assert {row.training for row in rows.values()} == {WORDS}
    trained = [jobs[row.scores[0]].parameters["student"] for row in rows.values()]
    assert trained == [trained[0]] * 3
    asked = built({"method": "herding", "student": FAST}, {"method": "random", "student": FAST})[1]
    assert asked.keys() == {f"herding {WORDS}", f"random {WORDS}"}, "a Random that is asked for is that Random"


def test_other_keys_stay() -> None:
    before = built({"method": "herding"})[0]
    after = built({"method": "herding"}, {"method": "herding", "student": FAST})[0]
    scores = {ref for ref, job in before.items() if job.stage in ("score", "distilled")}
    assert len(scores) == 4
    assert scores <= after.keys()
    (report,) = (job for job in before.values() if job.stage == "report")
    assert "'student': {}" not in str(report.parameters["experiment"])


def test_a_network_s_own_optimiser_is_what_is_changed() -> None:
    jobs, rows = built({"method": "random", "student": {"optimiser": {"lr": 0.25}}}, students=["minic3d"])
    trained = jobs[rows["random lr 0.25"].scores[0]].parameters["student"]["optimiser"]
    assert (trained["lr"], trained["warmup_share"], trained["batch_size"]) == (0.25, 0.05, 32)


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"least_step": 7}, r"has no parameter 'least_step' \(is least_steps meant\?\); it knows epochs, least_steps"),
        ({"optimiser": {"speed": 7}}, "The student of random has no parameter 'optimiser.speed'; it knows method, lr"),
        ({"optimiser": {"lr": "fast"}}, "The student of random: optimiser.lr is 'fast'"),
        ({"optimiser": 3}, "The student of random: optimiser is 3: it takes parameters of its own"),
    ],
)
def test_what_cannot_be_changed(student: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        built({"method": "random", "student": student})


def test_the_common_benchmark_lets_nothing_be_changed() -> None:
    with pytest.raises(RequestError, match="protocol vdsd trains every student alike: take `student` from the cell of"):
        built({"method": "random", "student": FAST}, protocol="vdsd")
    with pytest.raises(RequestError, match=r"trains every student alike: take student\.epochs away"):
        built({"method": "random"}, protocol="vdsd", student={"epochs": 7})
    jobs, _ = built({"method": "random"}, protocol="vdsd", student={"precision": "fp32"})
    students = [job.parameters["student"] for job in jobs.values() if job.stage == "score"]
    assert {(one["precision"], one["epochs"]) for one in students} == {("fp32", benchmark.STUDENT.epochs)}


def test_teachers_and_experts_are_scored_by_our_own_protocol() -> None:
    jobs, _ = built({"method": "mtt"}, {"method": "herding"}, protocol="vdsd")
    rows = ReportParameters.model_validate(list(jobs.values())[-1].parameters).rows
    assert {row.method: row.protocol for row in rows} == {
        "mtt": "vdsd", "random": "vdsd", "herding": "vdsd", "teacher": "vidistill", "expert": "vidistill"
    }  # fmt: skip


def test_the_common_benchmark_tests_on_several_views() -> None:
    def views(**settings: Any) -> dict[str, int]:
        jobs, _ = built({"method": "random"}, **settings)
        blocks = (job for job in jobs.values() if job.stage == "block")
        return {block.label.split()[1]: block.parameters["sampling"]["views"] for block in blocks}

    plain, common = views(), views(protocol="vdsd")
    assert (plain["test"], common["test"]) == (1, benchmark.TEST_VIEWS)
    assert plain["train"] == common["train"]


def test_a_row_says_that_its_students_began_with_weights(tmp_path: Path) -> None:
    (tmp_path / "own.pt").write_bytes(b"weights")
    begun = {"method": "random", "student": {"pretrained": {"r3d_18": str(tmp_path / "own.pt")}}}
    jobs, _ = built({"method": "random"}, begun, students=["r3d_18", "minic3d"], front="rgb")
    report = ReportParameters.model_validate(list(jobs.values())[-1].parameters)
    assert [(row.student, row.name, row.began_with) for row in report.rows] == [
        ("r3d_18", "random", ""), ("minic3d", "random", ""),
        ("r3d_18", "random pretrained.r3d_18 own.pt", "own.pt"), ("minic3d", "random pretrained.r3d_18 own.pt", ""),
    ]  # fmt: skip
    assert str(tmp_path) not in report.model_dump_json()
    assert {place for job in jobs.values() for place in job.places.values()} == {str(tmp_path / "own.pt")}


def test_weights_are_for_rgb_and_for_one_protocol() -> None:
    weights = {"student": {"pretrained": {"r3d_18": "kinetics400"}}, "students": ["centred:r3d_18"]}
    with pytest.raises(
        RequestError, match="r3d_18 are for RGB, and centred:r3d_18 sees another front: ask for rgb:r3d"
    ):
        built({"method": "random"}, **weights)
    with pytest.raises(RequestError, match=r"vdsd trains every student alike: take student\.pretrained away"):
        built({"method": "random"}, **weights | {"students": ["rgb:r3d_18"], "protocol": "vdsd"})
    assert built({"method": "random"}, **weights | {"students": ["rgb:r3d_18"]})


@pytest.mark.parametrize(("name", "rows", "trainings"), [("recipe", 40, 9), ("steps", 23, 6)])
def test_the_presets_that_choose_how_to_train(name: str, rows: int, trainings: int) -> None:
    experiment = checked(Experiment, {"data": "videos"} | load_preset(name), name)
    made = rows_of(experiment)
    assert experiment.index.holdout, "the test split is for the table alone"
    assert (len(made), len({row.training for row in made})) == (rows, trainings)
    assert {row.cell.method for row in made} == {"random", "full"}


def test_soft_labels_and_features_are_asked_for_in_the_precision_that_is_asked_for() -> None:
    jobs, _ = built(
        {"method": "herding", "recipes": ["soft"], "options": {"precision": "fp32"}}, teacher={"precision": "fp32"}
    )
    labelled = [job.parameters["precision"] for job in jobs.values() if job.stage == "relabelled"]
    assert labelled == ["fp32", "fp32"]
    (herding,) = (job for job in jobs.values() if job.parameters.get("method") == "herding")
    assert herding.parameters["options"]["precision"] == "fp32"
    plain = built({"method": "herding", "recipes": ["soft"]})[0].values()
    assert {job.parameters["precision"] for job in plain if job.stage == "relabelled"} == {"auto"}
    (herding,) = (job for job in plain if job.parameters.get("method") == "herding")
    assert "precision" not in herding.parameters["options"]


def test_a_part_that_is_given_in_part_keeps_the_rest_of_its_default() -> None:
    given: dict[str, Any] = {"data": "sprites", "cells": [{"method": "random"}]}
    asked = Experiment.model_validate(given | {"student": {"optimiser": {"lr": 0.1}}})
    default = Experiment.model_validate(given).student.optimiser
    assert default.batch_size != type(default)().batch_size
    assert asked.student.optimiser == default.model_copy(update={"lr": 0.1})
    search = checked(CodedParameters, {"search": {"student": {"epochs": 2}}}, "coded").search
    assert search is not None
    assert search.student.least_steps == SearchParameters().student.least_steps


def test_a_network_s_rate_that_is_given_leaves_all_else_as_it_is() -> None:
    usual = Experiment.model_validate({"data": "sprites", "cells": [{"method": "random"}]}).student
    given = {"minic3d": {"lr": 0.02}, "r2plus1d_small_gn": {"lr": 0.03}}
    asked = {"data": "sprites", "cells": [{"method": "random"}], "student": {"networks": given}}
    student = Experiment.model_validate(asked).student
    assert student.of("minic3d").optimiser == usual.of("minic3d").optimiser.model_copy(update={"lr": 0.02})
    assert student.of("r2plus1d_small_gn").optimiser == usual.optimiser.model_copy(update={"lr": 0.03})
    for network in ("c3d", "video_swin_t", "r2plus1d_small"):
        assert student.of(network) == usual.of(network)
    with pytest.raises(RequestError, match=r"student\.networks\.minic4d is no network: there are r2plus1d_small, "):
        built({"method": "random"}, student={"networks": {"minic4d": {"lr": 0.02}}})


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ({"method": "dm", "options": {"network": "nonet"}}, r"dm\.network is 'nonet': there are r2plus1d_small, "),
        (
            {"method": "dm", "options": {"network": "convnet2d"}},
            r"dm\.network is 'convnet2d': there are r2plus1d_small",
        ),
        ({"method": "mtt", "options": {"expert": {"network": "nonet"}}}, r"mtt\.expert\.network is 'nonet'"),
        ({"method": "tsgf"}, r"tsgf needs a teacher with batch norm .*: set teacher\.network=minic3d_bn"),
    ],
)
def test_networks_that_a_method_cannot_have_are_said_before_anything_is_done(cell: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        built(cell, teacher={"network": "minic3d"} if cell["method"] == "tsgf" else {})
    built({"method": "static_dc"}, {"method": "dm_vdsd"}, {"method": "tsgf"})


@pytest.mark.parametrize("asked", [
    {"cells": [{"method": "mtt", "options": {"expert": {"network": "r2plus1d_small_in"}}}]},
    {"cells": [{"method": "random"}], "students": ["centred:r2plus1d_small_in"]},
    {"cells": [{"method": "full"}], "teacher": {"network": "r2plus1d_small_in"}},
])  # fmt: skip
def test_clips_that_are_too_small_for_a_network_are_said_before_anything_is_done(asked: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="2 frames of 16 pixels are too small for r2plus1d_small_in: take 3 frames"):
        rows_of(Experiment.model_validate({"data": "sprites", "decode": {"frames": 2, "size": 16}} | asked))
    assert rows_of(Experiment.model_validate({"data": "sprites", "decode": {"frames": 3, "size": 16}} | asked))


def test_a_wrong_request_that_a_stage_finds_costs_its_rows_alone() -> None:
    plain = {"data": "videos", "cells": [{"method": "random"}, {"method": "dm"}], "seeds": 1}
    graph = build(with_front(Experiment.model_validate(plain), "rgb"), table())
    dm = next(ref for ref, job in graph.jobs.items() if job.parameters.get("method") == "dm")
    report = list(_rest(graph, {dm: RequestError("too few")}).jobs.values())[-1].parameters
    assert [row["method"] for row in report["rows"]] == ["random"]
    assert [(row["method"], row["error"]) for row in report["failed"]] == [("dm", "too few")]
    with pytest.raises(StoreError, match="full"):
        _rest(graph, {dm: StoreError("full")})
    with_teacher = build(with_front(Experiment.model_validate(plain | {"cells": [{"method": "tsgf"}]}), "rgb"), table())
    sets = [ref for ref, job in with_teacher.jobs.items() if job.stage == "distilled"]
    with pytest.raises(RequestError, match="too few"):  # a report of the teacher alone is of no use
        _rest(with_teacher, {ref: RequestError("too few") for ref in sets})


def test_a_training_that_diverges_is_named() -> None:
    jobs, _ = built({"method": "tsgf"})
    teacher = next(job for job in jobs.values() if job.stage == "teacher")
    future: Future[None] = Future()
    future.set_exception(DivergedError("The loss is nan at step 2: try less."))
    assert str(_error_of(teacher, future)) == "teacher r2plus1d_small: The loss is nan at step 2: try less."  # type: ignore[arg-type]


def test_a_coded_set_is_known_by_its_variants_where_it_has_any() -> None:
    """And no other key of a coded set is another one by it."""
    kept: dict[str, Any] = {"store": {"crf": 40}}
    jobs, _ = built(
        {"method": "dm_vdsd", **kept}, {"method": "dm_vdsd", "variant": "one", "options": {"memories": 1}, **kept},
        {"method": "random", **kept},
    )  # fmt: skip
    made = {job.label: job.parameters for job in jobs.values() if job.stage == "recoded"}
    assert {label: parameters.get("variants") for label, parameters in made.items()} == {
        "code dm_vdsd coded hard ipc 1 seed 0": 4,
        "code dm_vdsd one coded hard ipc 1 seed 0": None,
        "code random coded hard ipc 1 seed 0": None,
    }


def test_what_a_row_rests_on_is_counted_once() -> None:
    """TSGF's teacher is who answers its online students, too: its seconds are those of one."""
    _, rows = built({"method": "tsgf", "recipes": ["online+tsgf"]}, {"method": "random", "recipes": ["online+tsgf"]})
    kinds = {row.method: sorted(ref.kind for ref in row.makers[0]) for row in rows.values()}
    assert kinds["random"].count("teacher") == kinds["tsgf"].count("teacher") == 1
    assert all(len(set(refs)) == len(refs) for row in rows.values() for refs in row.makers)


@pytest.mark.parametrize(
    "cells",
    [
        ({"method": "tsgf"}, {"method": "tsgf", "options": {"mask": False}}),
        ({"method": "random", "store": {"crf": 40}}, {"method": "random", "store": {"crf": 60}}),
        ({"method": "coded", "variant": "random", "kb": [50], "options": {"pick": "herding", "search": None}},
         {"method": "coded", "kb": [50]}),
    ],
    ids=["options", "quantisers", "Random's own name"],
)  # fmt: skip
def test_no_cell_is_dropped_because_another_has_its_name(cells: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(RequestError, match=r"Two cells that differ are both called .*: give one a variant's name"):
        built(*cells)
    built(*(cell | {"variant": f"number {number}"} for number, cell in enumerate(cells)))


def test_no_cell_is_dropped_because_its_weights_have_the_name_of_another_s() -> None:
    """Nor is Random beside it."""
    a, b = ({"method": "random", "student": {"pretrained": {"r3d_18": f"{place}/best.pt"}}} for place in "ab")
    for cells in ((a, b), (a, b | {"method": "herding"})):
        with pytest.raises(RequestError, match=r"both be called 'pretrained.r3d_18 best.pt': rename a file"):
            built(*cells)
    rows_of(Experiment.model_validate({"data": "videos", "cells": [a, a]}))


def test_a_cell_that_is_asked_for_twice_is_one_row() -> None:
    assert built({"method": "herding"}, {"method": "herding"})[1].keys() == {"herding", "random"}


@pytest.mark.parametrize(("students", "own", "refused"), [
    (["minic3d"], {"optimiser": {"lr": 0.002}}, True),
    (["minic3d", "centred:c3d"], {"optimiser": {"lr": 0.002}}, True),
    (["minic3d", "r2plus1d_small"], {"optimiser": {"lr": 0.002}}, False),
    (["minic3d"], {"networks": {"minic3d": {"lr": 0.002}}}, False),
    (["minic3d"], {"least_steps": 100}, False),
])  # fmt: skip
def test_an_optimiser_that_is_no_student_s_is_a_wrong_request(
    students: list[str], own: dict[str, Any], refused: bool
) -> None:
    """Students of these bodies have one of their own: what is asked for would change nothing."""
    asked = Experiment.model_validate(
        {"data": "v", "cells": [{"method": "random"}], "students": students, "student": own}
    )
    if not refused:
        rows_of(asked)
        return
    with pytest.raises(RequestError, match=r"minic3d.* ha(s|ve) one: set student\.networks\.minic3d\.lr"):
        rows_of(asked)
