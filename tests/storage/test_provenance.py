"""What is said of the machine, and what is taken of it."""

import os
import subprocess
import sys

import pytest


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
