"""Where and by what an artifact is made: versions, commit, machine."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def versions() -> dict[str, str]:
    found = {}
    for name in ("vidistill", "torch", "torchvision", "av", "zarr", "numcodecs", "numpy", "prefect", "diffusers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that this process may use: `taskset`, or a container's quota of time, may leave it fewer than the
    machine has.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([bound, *_quotas(groups)])


def _quotas(groups: Path) -> Iterator[int]:
    """The limit of control groups, of version 2 or 1, in whole cores."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with suppress(OSError, ValueError):  # it is not there, or `max`
            quota, period = (int(word) for name in names for word in (groups / name).read_text().split())
            if quota > 0:
                yield math.ceil(quota / period)


@cache
def machine() -> str:
    """The processor's name and the number of its cores that this process may use."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {cores()} core{'' if cores() == 1 else 's'}"


@cache
def commit() -> str:
    """The commit of the checkout that this file lies in; empty for an installed wheel."""
    folder = Path(__file__).resolve().parent
    try:
        own = _git(folder, "rev-parse", "--show-toplevel") == str(folder.parent)  # else one that holds an environment
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=12") if own else ""
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
