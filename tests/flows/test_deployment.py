"""deployments/prefect.yaml on a real server, run by a real process worker from another folder."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flow_running import BIN, background, environment

from vidistill import deployments
from vidistill.flows.parameters import Experiment

PREFECT_FILE = Path(next(iter(deployments.__path__))) / "prefect.yaml"
NAME = "distill/experiment"
EXPERIMENT: dict[str, Any] = {
    "data": "sprites",
    "cells": [
        {"method": "random"},
        {"method": "tsgf", "options": {"iterations": 2, "precision": "fp32"}, "recipes": ["soft"]},
    ],
    "seeds": 1,
    "sprites": {"size": 48, "frames": 12, "train_per_class": 2, "test_per_class": 1},
    "decode": {"size": 48, "frames": 4, "views": 1},
    "teacher": {"epochs": 1, "precision": "fp32"},
    "student": {"steps": 3, "full_steps": 3, "precision": "fp32"},
}


class Deployed:
    """The deployment, asked about through the server's API and started through its command line."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env

    def prefect(self, *arguments: str, folder: Path | None = None) -> str:
        command = [str(BIN / "prefect"), "--no-prompt", *arguments]
        ended = subprocess.run(
            command, cwd=folder or self.folder, env=self.env, capture_output=True, text=True, timeout=240, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        import httpx

        url = f"{self.env['PREFECT_API_URL']}{path}"
        for _ in range(20):
            answer = httpx.get(url, timeout=60) if body is None else httpx.post(url, json=body, timeout=60)
            if answer.status_code != 503:  # its SQLite is busy; Prefect's own client asks again, too
                break
            time.sleep(0.5)
        assert answer.is_success, answer.text
        return answer.json()

    def run(self) -> str:
        """Start a run and wait until it has ended; its id."""
        parameters = {"experiment": EXPERIMENT, "runtime": {"store": str(self.folder / "store")}}
        deployment = self.ask(f"/deployments/name/{NAME}")
        run_id: str = self.ask(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})["id"]
        deadline = time.monotonic() + 180
        while (state := self.ask(f"/flow_runs/{run_id}")["state"])["type"] in {"SCHEDULED", "PENDING", "RUNNING"}:
            assert time.monotonic() < deadline, f"{state} {(self.folder / 'worker.log').read_text()}"
            time.sleep(0.5)
        assert state["type"] == "COMPLETED", f"{state} {(self.folder / 'worker.log').read_text()}"
        return run_id

    def states(self, run_id: str) -> dict[str, str]:
        """The name of each task run's last state; the server hears of it a moment after the run has ended."""
        chosen = {"flow_runs": {"id": {"any_": [run_id]}}, "limit": 200}
        deadline, before = time.monotonic() + 60, None
        while True:
            tasks = self.ask("/task_runs/filter", chosen)
            found = {task["name"]: task["state"]["name"] if task["state"] else "Pending" for task in tasks}
            settled = found == before and not {"Pending", "Running"} & set(found.values())
            if settled or time.monotonic() > deadline:
                return found
            before = found
            time.sleep(1)


@pytest.fixture(scope="module")
def deployed(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("elsewhere")
    env = environment(folder / "home", **server.variables)
    made = Deployed(folder, env)
    made.prefect("work-pool", "create", "vidistill", "--type", "process")
    made.prefect("deploy", "--all", "--prefect-file", str(PREFECT_FILE))
    command = [str(BIN / "prefect"), "worker", "start", "--pool", "vidistill", "--type", "process"]
    with background(command, folder, env | {"PREFECT_WORKER_QUERY_SECONDS": "1"}):
        yield made


@pytest.fixture(scope="module")
def runs(deployed: Deployed) -> tuple[str, str]:
    return deployed.run(), deployed.run()


def test_the_deployment_is_what_the_file_says(deployed: Deployed) -> None:
    deployment = deployed.ask(f"/deployments/name/{NAME}")
    assert deployment["entrypoint"] == "vidistill.flows.distill.distill"
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


def test_its_parameters_are_a_form(deployed: Deployed) -> None:
    deployment = deployed.ask(f"/deployments/name/{NAME}")
    schema = deployment["parameter_openapi_schema"]
    assert set(schema["properties"]) == {"experiment", "runtime", "out"}
    assert schema["required"] == ["experiment"]
    assert set(schema["definitions"]["Experiment"]["properties"]) == set(Experiment.model_fields)
    assert schema["definitions"]["Experiment"]["additionalProperties"] is False
    Experiment.model_validate(deployment["parameters"]["experiment"])


def test_a_wrong_parameter_is_refused_before_a_run_is_made(deployed: Deployed) -> None:
    import httpx

    deployment = deployed.ask(f"/deployments/name/{NAME}")
    url = f"{deployed.env['PREFECT_API_URL']}/deployments/{deployment['id']}/create_flow_run"
    answer = httpx.post(url, json={"parameters": {"experiment": EXPERIMENT | {"sedes": 2}}})
    assert answer.status_code == 409
    assert "sedes" in answer.text


def test_the_first_run_does_the_work_and_the_second_finds_it_cached(deployed: Deployed, runs: tuple[str, str]) -> None:
    first, second = (deployed.states(run_id) for run_id in runs)
    assert set(first.values()) == {"Completed"}
    assert set(second.values()) == {"Cached"}
    assert first.keys() == second.keys()
    assert {"render sprites", "teacher minic3d_bn", "distil tsgf soft ipc 1 seed 0"} <= first.keys()


def test_the_run_shows_its_report(deployed: Deployed, runs: tuple[str, str]) -> None:
    chosen = {"artifacts": {"flow_run_id": {"any_": [runs[0]]}}}
    shown = {artifact["key"]: artifact for artifact in deployed.ask("/artifacts/filter", chosen)}
    assert shown["distill-report"]["type"] == "markdown"
    assert "test split of sprites" in shown["distill-report"]["data"]
    assert "**Random**" in shown["distill-report"]["data"]
    (report,) = (deployed.folder / "store" / "report").glob("*/report.html")
    assert report.as_uri() in json.dumps(shown["distill-page"]["data"])
