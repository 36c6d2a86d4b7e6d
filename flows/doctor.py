"""`vidistill doctor`: what commonly breaks an environment, and how to mend it."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from vidistill.storage.errors import RunError
from vidistill.storage.opening import default_location, open_store

console = Console(soft_wrap=True, highlight=False)


class Ill(Exception):
    """A finding, with what to do."""


def examine(store: str | None) -> None:
    """Run every check and print a line each.

    Raises:
        RunError: at least one check failed.
    """
    checks: dict[str, Callable[[], str]] = {
        "torch": _torch,
        "torchvision": _torchvision,
        "PyAV": _codecs,
        "OpenCV": _opencv,
        "Zarr": _zarr,
        "Prefect": _prefect,
        "device": _device,
        "store": lambda: _store(store or default_location()),
        "extras": _extras,
    }
    ill = 0
    for name, check in checks.items():
        try:
            console.print(f"[green]ok[/green]   {name:12} {check()}")
        except Ill as finding:
            ill += 1
            console.print(f"[red]ill[/red]  {name:12} {finding}")
    if ill:
        raise RunError(f"{ill} of {len(checks)} checks failed; each line above says what to do.")


def _torch() -> str:
    import torch

    return f"{torch.__version__}, {os.cpu_count()} CPU cores"


def _torchvision() -> str:
    """A torchvision built for another torch imports with `operator torchvision::nms does not exist`."""
    try:
        importlib.import_module("torchvision.ops")
    except (ImportError, RuntimeError) as error:
        raise Ill(f"does not fit this torch ({error}): install both with constraints.txt.") from error
    return version("torchvision")


def _codecs() -> str:
    import av

    missing = [name for name in ("h264", "mpeg4", "vp9") if name not in av.codecs_available]
    if missing:
        raise Ill(f"its FFmpeg cannot read {', '.join(missing)}: install the `av` wheel of constraints.txt.")
    return f"{av.__version__}, {len(av.codecs_available)} codecs"


def _opencv() -> str:
    """opencv-python writes over opencv-contrib-python's folder and takes CSRT with it; pip says nothing."""
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        return "not installed: no optical flow in reports, no optdistill (pip install 'vidistill[crops]')"
    if not hasattr(cv2, "TrackerCSRT_create"):
        raise Ill(
            f"cv2 {cv2.__version__} has no CSRT: another OpenCV package was installed over opencv-contrib-python. "
            "Mend it: pip install --force-reinstall --no-deps opencv-contrib-python -c constraints.txt"
        )
    return f"{cv2.__version__} with CSRT"


def _zarr() -> str:
    import numpy as np

    from vidistill.storage.clips import create_clip_array, open_clip_array

    with tempfile.TemporaryDirectory() as folder:
        create_clip_array(Path(folder), (1, 2, 4, 4, 3))[:] = 7
        if not np.all(np.asarray(open_clip_array(Path(folder))[...]) == 7):
            raise Ill("does not read what it wrote: install zarr and numcodecs with constraints.txt.")
    return f"{version('zarr')}, numcodecs {version('numcodecs')}"


def _prefect() -> str:
    """A fastapi ≥ 0.155 breaks the server of Prefect 3.8 when it is imported, one ≥ 0.151 `prefect deploy`."""
    try:
        importlib.import_module("prefect.server.api.server")
    except Exception as error:
        raise Ill(f"its server does not import ({error}): pip install 'fastapi<0.151'.") from error
    address = os.environ.get("PREFECT_API_URL")
    where = f"server at {address}" if address else "no PREFECT_API_URL: each run starts its own server"
    return f"{version('prefect')}, {where}"


def _device() -> str:
    from vidistill.models import compute

    device = compute.resolve_device("auto")
    return f"{device}, precision auto = {compute.resolve_precision('auto', device)}"


def _store(location: str) -> str:
    try:
        open_store(location).check_writable()
    except (OSError, ValueError) as error:
        raise Ill(str(error)) from error
    if "://" in location:
        return location
    free = shutil.disk_usage(location).free
    if free < 2e9:
        raise Ill(f"{location} has {free / 1e9:.1f} GB free: make room, or set VIDISTILL_STORE.")
    return f"{location}, {free / 1e9:.0f} GB free"


def _extras() -> str:
    found = []
    for name in ("s3fs", "prefect-dask", "opencv-contrib-python", "ultralytics", "diffusers", "transformers"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent")
    return ", ".join(found)
