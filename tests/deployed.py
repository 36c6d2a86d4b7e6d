"""The shipped deployment on a real server, with a real process worker."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from flow_running import BIN, background

from vidistill import deployments
from vidistill.flows.forms import ON_FORM

PREFECT_FILE = Path(next(iter(deployments.__path__))) / "prefect.yaml"
NAME = "distill/experiment"


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

    def answer(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """What the server says; one that says 503, its SQLite being busy, is asked again, as Prefect's client does."""
        for _ in range(20):
            answer = httpx.request(method, f"{self.env['PREFECT_API_URL']}{path}", json=body, timeout=60)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(0.5)
        return answer

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = self.answer("GET" if body is None else "POST", path, body)
        assert answer.is_success, answer.text
        return answer.json()

    def deploy(self, prefect_file: Path = PREFECT_FILE) -> None:
        template = PREFECT_FILE.parent / "pools" / "process.json"
        pool = ("vidistill", "--type", "process", "--overwrite", "--base-job-template", str(template))
        self.prefect("work-pool", "create", *pool)
        self.prefect("deploy", "--all", "--prefect-file", str(prefect_file))

    def form(self, experiment: dict[str, Any]) -> dict[str, Any]:
        """An experiment as the form's parameters, with a store of the test's."""
        shown = {name: value for name, value in experiment.items() if name in ON_FORM}
        rest = {name: value for name, value in experiment.items() if name not in ON_FORM}
        advanced = rest | {"runtime": {"store": str(self.folder / "store")}}
        return {"methods": [], "ipc": [1], "seeds": 0} | shown | {"advanced": advanced}

    def start(self, experiment: dict[str, Any]) -> str:
        """Ask for a run; its id."""
        parameters = self.form(experiment)
        deployment = self.ask(f"/deployments/name/{NAME}")
        run_id: str = self.ask(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})["id"]
        return run_id

    def run(self, experiment: dict[str, Any], timeout_seconds: float = 180) -> str:
        """Start a run and wait until it has ended; its id."""
        run_id = self.start(experiment)
        deadline = time.monotonic() + timeout_seconds
        while (state := self.ask(f"/flow_runs/{run_id}")["state"])["type"] in {"SCHEDULED", "PENDING", "RUNNING"}:
            assert time.monotonic() < deadline, f"{state} {(self.folder / 'worker.log').read_text()}"
            time.sleep(0.5)
        assert state["type"] == "COMPLETED", f"{state} {(self.folder / 'worker.log').read_text()}"
        return run_id

    def states(self, run_id: str) -> dict[str, str]:
        """The name of each task run's last state."""
        chosen = {"flow_runs": {"id": {"any_": [run_id]}}, "limit": 200}

        def read() -> list[tuple[str, str]]:
            tasks = self.ask("/task_runs/filter", chosen)
            return [(task["name"], task["state"]["name"] if task["state"] else "Pending") for task in tasks]

        return dict(settled(read))

    @contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        command = [str(BIN / "prefect"), "worker", "start", "--pool", "vidistill", "--type", "process"]
        with background(command, self.folder, self.env | {"PREFECT_WORKER_QUERY_SECONDS": "1"}) as process:
            yield process


def settled(read: Callable[[], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """Task runs and their states, of which the server hears a moment after a flow has ended: once nothing changes."""
    deadline, before = time.monotonic() + 60, None
    while True:
        found = sorted(read())
        done = found == before and not {"Pending", "Running"} & {state for _, state in found}
        if done or time.monotonic() > deadline:
            return found
        before = found
        time.sleep(1)


def kill_with_children(pid: int) -> None:
    """SIGKILL a process and all that descend from it, whatever their process groups."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(pid, signal.SIGKILL)
        for child in children:
            kill_with_children(int(child))
