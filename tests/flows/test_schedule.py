"""The shipped deployment from nothing to its second night: a schedule fires, the second run is cached, its pages.

`VIDISTILL_SCREENSHOTS=folder` keeps the pictures.
"""

from __future__ import annotations

import os
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import browser, chromium
from deployed import NAME, PREFECT_FILE, Deployed
from flow_running import BIN, background, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # it waits for minutes to begin
SCREEN = 1080
PATIENCE_SECONDS = 1200
EVERY_MINUTE = {"cron": "* * * * *", "timezone": "UTC", "active": True}
SMALL = {
    "sprites": {"size": 48, "frames": 12, "train_per_class": 2, "test_per_class": 1},
    "decode": {"size": 48, "frames": 4, "views": 1},
    "teacher": {"epochs": 1, "least_steps": 1, "precision": "fp32"},
    "student": {"epochs": 1, "least_steps": 3, "precision": "fp32"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A server whose pages work, `distill/experiment` deployed to run each minute, and a worker."""
    folder = tmp_path_factory.mktemp("nights")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    env = environment(folder / "home", PREFECT_API_URL=url, PREFECT_SERVER_UI_API_URL=url)
    with background([str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)], folder, env):
        until(lambda: healthy(url))
        made = Deployed(folder, env)
        made.deploy(prefect_file=scheduled(folder))
        with made.worker():
            yield made


def scheduled(folder: Path) -> Path:
    """The shipped file with a schedule of the test's own, whose runs have little to do."""
    plain = yaml.safe_load(PREFECT_FILE.read_text())
    experiment = next(one for one in plain["deployments"] if one["name"] == "experiment")
    advanced = SMALL | {"runtime": {"store": str(folder / "store")}}
    asked = {"methods": ["random", "herding"], "ipc": [1], "seeds": 1, "front": "rgb", "advanced": advanced}
    experiment["schedules"] = [EVERY_MINUTE | {"parameters": asked}]
    path = folder / "prefect.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def until(reached: Any, seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.fixture(scope="module")
def nights(place: Deployed) -> list[dict[str, Any]]:
    """The first two runs that the schedule started."""

    def ended() -> list[dict[str, Any]]:
        over = {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}
        found: list[dict[str, Any]] = place.ask("/flow_runs/filter", {"flow_runs": over, "sort": "START_TIME_ASC"})
        return found

    until(lambda: len(ended()) >= 2)
    return ended()[:2]


def test_a_schedule_fires_and_the_second_run_is_cached(place: Deployed, nights: list[dict[str, Any]]) -> None:
    assert [(night["auto_scheduled"], night["state"]["type"]) for night in nights] == [(True, "COMPLETED")] * 2
    assert [night["name"] for night in nights] == ["sprites · random, herding · ipc 1"] * 2
    assert "distillation" in nights[0]["tags"]
    first, second = (place.states(night["id"]) for night in nights)
    assert set(first.values()) == {"Completed"}
    assert set(second.values()) == {"Cached"}
    assert nights[1]["total_run_time"] < nights[0]["total_run_time"]


@pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")
def test_what_people_see(place: Deployed, nights: list[dict[str, Any]], tmp_path: Path) -> None:
    pictures = Path(os.environ.get("VIDISTILL_SCREENSHOTS", tmp_path))
    pictures.mkdir(parents=True, exist_ok=True)
    site = place.env["PREFECT_API_URL"].removesuffix("/api")
    deployment = place.ask(f"/deployments/name/{NAME}")["id"]
    chosen = {"artifacts": {"flow_run_id": {"any_": [nights[0]["id"]]}, "key": {"any_": ["distill-report"]}}}
    (report,) = place.ask("/artifacts/filter", chosen)
    with browser(tmp_path) as tab:
        tab.open(f"{site}/deployments/deployment/{deployment}/run", "Parameters", "advanced")
        assert tab.height() <= 2 * SCREEN, "the form is longer than two screens"
        tab.picture(pictures / "form.png", 2 * SCREEN)
        tab.open(f"{site}/runs/flow-run/{nights[0]['id']}", nights[0]["name"], "Completed")
        tab.picture(pictures / "run.png")
        tab.open(f"{site}/artifacts/artifact/{report['id']}", "test split of sprites", "Random")
        tab.picture(pictures / "report.png")
    assert all((pictures / name).stat().st_size > 20_000 for name in ("form.png", "run.png", "report.png"))
