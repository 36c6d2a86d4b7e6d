"""What is said of the machine, and what is taken of it."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vidistill.storage import provenance


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_a_process_bound_to_one_core_runs_one_job_at_a_time() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from vidistill.tasks.stage import Runtime; from vidistill.storage.provenance import machine;"
        "from vidistill.flows.runners import WORKERS; print(Runtime(store='s').threads, WORKERS, machine())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("1 1 ")
    assert said.strip().endswith(", 1 core")


@pytest.mark.parametrize(
    ("files", "fewer"),
    [
        ({"cpu.max": "50000 100000"}, True),
        ({"cpu.max": "max 100000"}, False),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, True),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, False),
    ],
)
def test_a_container_has_as_many_cores_as_its_quota_lets_it_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], fewer: bool
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert provenance.cores(tmp_path) == (1 if fewer else 3)


def test_a_wheel_does_not_have_the_commit_of_the_repository_that_its_environment_lies_in(tmp_path: Path) -> None:
    module = tmp_path / "lib" / "vidistill" / "storage" / "provenance.py"
    module.parent.mkdir(parents=True)
    shutil.copy(provenance.__file__, module)
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], [*name, "commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    assert runpy.run_path(str(module))["commit"]() == ""
    (tmp_path / "storage").mkdir()
    own = shutil.copy(module, tmp_path / "storage")
    assert len(runpy.run_path(str(own))["commit"]()) >= 12
