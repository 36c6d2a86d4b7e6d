"""deployments/prefect.yaml on a real server, run by a real process worker from another folder."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from deployed import NAME, PREFECT_FILE, Deployed
from flow_running import environment

from vidistill.flows.parameters import Experiment
from vidistill.models import NETWORKS
from vidistill.tasks.methods import REGISTRY

EXPERIMENT: dict[str, Any] = {
    "data": "sprites",
    "cells": [
        {"method": "random"},
        {"method": "tsgf", "options": {"iterations": 2, "precision": "fp32"}, "recipes": ["soft"]},
    ],
    "seeds": 1,
    "sprites": {"size": 48, "frames": 12, "train_per_class": 2, "test_per_class": 1},
    "decode": {"size": 48, "frames": 4, "views": 1},
    "front": "rgb",
    "teacher": {"epochs": 1, "least_steps": 1, "precision": "fp32"},
    "student": {"epochs": 1, "least_steps": 3, "precision": "fp32"},
}


@pytest.fixture(scope="module")
def deployed(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("elsewhere")
    made = Deployed(folder, environment(folder / "home", **server.variables))
    made.deploy()
    with made.worker():
        yield made


@pytest.fixture(scope="module")
def runs(deployed: Deployed) -> tuple[str, str]:
    return deployed.run(EXPERIMENT), deployed.run(EXPERIMENT)


def test_the_deployment_is_what_the_file_says(deployed: Deployed) -> None:
    deployment = deployed.ask(f"/deployments/name/{NAME}")
    assert deployment["entrypoint"] == "vidistill.flows.forms.distill"
    assert deployment["pull_steps"] in (None, [])
    assert deployment["path"] in (None, ".")
    assert deployment["work_pool_name"] == "vidistill"
    assert deployment["global_concurrency_limit"]["limit"] == 1
    (schedule,) = deployment["schedules"]
    assert (schedule["active"], schedule["schedule"]["cron"]) == (False, "0 3 * * 1")
    assert not deployment["paused"]


def test_it_can_be_deployed_again_from_the_checkout(deployed: Deployed) -> None:
    before = deployed.ask(f"/deployments/name/{NAME}")
    root = PREFECT_FILE.parent.parent
    deployed.prefect("deploy", "--all", "--prefect-file", "deployments/prefect.yaml", folder=root)
    after = deployed.ask(f"/deployments/name/{NAME}")
    assert (after["id"], len(after["schedules"])) == (before["id"], 1)


def test_a_schedule_that_is_switched_on_plans_runs(deployed: Deployed) -> None:
    """In a week or so; `test_schedule.py` waits for runs that begin."""
    deployment = deployed.ask(f"/deployments/name/{NAME}")
    switch = f"/deployments/{deployment['id']}/schedules/{deployment['schedules'][0]['id']}"
    chosen = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    assert deployed.answer("PATCH", switch, {"active": True}).is_success
    try:
        deadline = time.monotonic() + 120
        while not (planned := deployed.ask("/flow_runs/filter", chosen)) and time.monotonic() < deadline:
            time.sleep(1)
    finally:
        assert deployed.answer("PATCH", switch, {"active": False}).is_success
    assert planned
    assert planned[0]["auto_scheduled"]


def test_its_parameters_are_a_form(deployed: Deployed) -> None:
    schema = deployed.ask(f"/deployments/name/{NAME}")["parameter_openapi_schema"]
    shown = schema["properties"]
    assert list(shown) == [
        "data", "preset", "methods", "ipc", "kb", "students", "front", "seeds", "runner", "advanced"
    ]  # fmt: skip
    assert all(one["description"] for one in shown.values())
    assert shown["methods"]["items"]["enum"] == ["full", *REGISTRY]
    assert shown["students"]["items"]["enum"] == list(NETWORKS)
    assert {"demo", "sprites"} <= set(shown["preset"]["enum"])
    reached = {*shown, *shown["advanced"]["propertyNames"]["enum"]}
    assert reached >= set(Experiment.model_fields), "a parameter is neither on the form nor in advanced"


@pytest.mark.parametrize(
    "wrong",
    [
        {"methods": ["magic"]},
        {"students": ["big"]},
        {"ipc": [0]},
        {"advanced": {"sedes": 2}},
        {"runner": "9"},
    ],
    ids=str,
)
def test_a_wrong_parameter_is_refused_before_a_run_is_made(deployed: Deployed, wrong: dict[str, Any]) -> None:
    deployment = deployed.ask(f"/deployments/name/{NAME}")
    answer = deployed.answer("POST", f"/deployments/{deployment['id']}/create_flow_run", {"parameters": wrong})
    assert answer.status_code == 409
    assert next(iter(wrong)) in answer.text


def test_every_deployment_s_own_parameters_fit_its_form(deployed: Deployed) -> None:
    from prefect.utilities.schema_tools import validate

    found = [deployed.ask(f"/deployments/name/{name}") for name in (NAME, "pool/generate", "refresh/nightly")]
    for one in found:
        validate(one["parameters"], one["parameter_openapi_schema"], raise_on_error=True)
        assert "vidistill" in one["tags"]
        assert one["enforce_parameter_schema"]


def test_a_run_s_name_says_data_methods_and_budgets(deployed: Deployed, runs: tuple[str, str]) -> None:
    assert deployed.ask(f"/flow_runs/{runs[0]}")["name"] == "sprites · random, tsgf · ipc 1"


def test_the_first_run_does_the_work_and_the_second_finds_it_cached(deployed: Deployed, runs: tuple[str, str]) -> None:
    first, second = (deployed.states(run_id) for run_id in runs)
    assert set(first.values()) == {"Completed"}
    assert set(second.values()) == {"Cached"}
    assert first.keys() == second.keys()
    assert {"render sprites", "teacher r2plus1d_small", "distil tsgf soft ipc 1 seed 0"} <= first.keys()


def test_the_run_shows_its_report(deployed: Deployed, runs: tuple[str, str]) -> None:
    chosen = {"artifacts": {"flow_run_id": {"any_": [runs[0]]}}}
    shown = {artifact["key"]: artifact for artifact in deployed.ask("/artifacts/filter", chosen)}
    assert shown["distill-report"]["type"] == "markdown"
    assert "test split of sprites" in shown["distill-report"]["data"]
    assert "| Random |" in shown["distill-report"]["data"]
    (report,) = (deployed.folder / "store" / "report").glob("*/report.html")
    assert report.as_uri() in json.dumps(shown["distill-page"]["data"])
