"""`vidistill doctor`: what commonly breaks an environment, and how to mend it. It changes nothing.

What the installed packages say of themselves is read without importing them, where that says enough: torch alone takes
longer to import than everything else here.
"""

from __future__ import annotations

import importlib
import os
import shutil
import ssl
import tempfile
import tomllib
import urllib.request
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape

from vidistill.storage.errors import RunError
from vidistill.storage.files import expanded, standing
from vidistill.storage.opening import default_location, open_store
from vidistill.storage.provenance import cores

console = Console(soft_wrap=True, highlight=False)
ANSWER_SECONDS = 1.0
CONSTRAINED = "install both with constraints.txt"


class Ill(Exception):
    """A finding, with what to do."""


def examine(store: str | None, *, thorough: bool = False) -> None:
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
        "server": _server,
        "store": lambda: _store(store or default_location()),
        "extras": _extras,
    }
    if thorough:
        checks |= {"imports": _imports, "device": _device}
    ill = 0
    for name, check in checks.items():
        try:
            console.print(f"[green]ok[/green]   {name:12} {escape(check())}")
        except Exception as finding:  # noqa: BLE001
            ill += 1
            said = str(finding)
            if not isinstance(finding, Ill):
                said = f"it fails ({type(finding).__name__}: {said}): install everything with constraints.txt."
            console.print(f"[red]ill[/red]  {name:12} {escape(said)}")
    if ill:
        raise RunError(f"{ill} of {len(checks)} checks failed; each line above says what to do.")


def _torch() -> str:
    return f"{_fitting('torch', 'vidistill')}, {cores()} CPU cores"


def _torchvision() -> str:
    """Each torchvision is built against one torch; beside another it does not import."""
    found = _fitting("torchvision", "vidistill")
    _fitting("torch", "torchvision")
    builds = {name: version(name).partition("+")[2] for name in ("torch", "torchvision")}
    if all(builds.values()) and len(set(builds.values())) > 1:
        raise Ill(f"{found} was built for another torch than {version('torch')}: {CONSTRAINED}.")
    return found


def _fitting(name: str, dependent: str) -> str:
    """The version of a package, which has to be one that the dependent package asks for."""
    try:
        found = version(name)
    except PackageNotFoundError:
        raise Ill(f"{name} is not installed: pip install -e . -c constraints.txt") from None
    for line in requires(dependent) or ():
        wanted = Requirement(line)
        if wanted.name == name and not wanted.specifier.contains(found, prereleases=True):
            raise Ill(f"{name} {found} is installed and {dependent} needs {wanted.specifier}: {CONSTRAINED}.")
    return found


def _codecs() -> str:
    try:
        import av
    except ImportError as error:
        raise Ill(f"it cannot be loaded ({error}): install the `av` wheel of constraints.txt.") from None
    missing = [name for name in ("h264", "mpeg4", "vp9") if name not in av.codecs_available]
    if missing:
        raise Ill(f"its FFmpeg cannot read {', '.join(missing)}: install the `av` wheel of constraints.txt.")
    return f"{av.__version__}, {len(av.codecs_available)} codecs"


def _opencv() -> str:
    """opencv-python writes over opencv-contrib-python's folder and takes CSRT with it; pip says nothing."""
    try:
        cv2 = importlib.import_module("cv2")
    except ModuleNotFoundError:
        return "not installed: no optical flow in reports, no optdistill (pip install 'vidistill[crops]')"
    except ImportError as error:
        raise Ill(f"it is installed and cannot be loaded ({error}): install what it misses.") from None
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
    """A fastapi ≥ 0.155 breaks the server of Prefect 3.8 when it is imported, one ≥ 0.151 `prefect deploy`; with a
    sqlalchemy ≥ 2.1 its schedules plan no run.
    """
    beside = ", ".join(f"{name} {_fitting(name, 'vidistill')}" for name in ("fastapi", "sqlalchemy"))
    return f"{_fitting('prefect', 'vidistill')}, {beside}"


def _server() -> str:
    url = os.environ.get("PREFECT_API_URL") or _profile().get("PREFECT_API_URL")
    if not url:
        _standing(_home(), "set PREFECT_HOME")
        return "none is named: each run starts its own"
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=ANSWER_SECONDS):  # noqa: S310
            return f"{url} answers"
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        if getattr(error, "code", None) in (401, 403) or isinstance(why, ssl.SSLError):
            return f"{url} answers, but not to this check ({why}): Prefect has its own login and certificates"
        raise Ill(
            f"{url} is dead ({why}): start it with `prefect server start`, or unset PREFECT_API_URL, and each run "
            "starts its own."
        ) from error


def _home() -> Path:
    return expanded(os.environ.get("PREFECT_HOME", "~/.prefect")).absolute()


def _profile() -> dict[str, str]:
    """What the active profile of Prefect's command line sets."""
    file = Path(os.environ.get("PREFECT_PROFILES_PATH", _home() / "profiles.toml"))
    try:
        known = tomllib.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise Ill(f"{file} cannot be read ({error}): mend it, or remove it.") from error
    active = os.environ.get("PREFECT_PROFILE", known.get("active", ""))
    profile: dict[str, str] = known.get("profiles", {}).get(active, {})
    return profile


def _standing(place: Path, mend: str) -> Path:
    """What is there of a folder that has to be written; else the ill is said with how to mend it."""
    try:
        there = standing(place)
    except OSError as error:
        raise Ill(f"{place} cannot be used ({error.strerror}): {mend}.") from error
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is read-only" if there.is_dir() else "is a file"
        raise Ill(f"{place} cannot be written, because {there} {why}: {mend}.")
    return there


def _store(location: str) -> str:
    if "://" in location:
        try:
            open_store(location).refs("report")
        except Exception as error:
            raise Ill(f"{location} cannot be read ({error}): check its address and your access.") from error
        return location
    place = expanded(location).absolute()
    there = _standing(place, "set VIDISTILL_STORE, or give --store")
    free = shutil.disk_usage(there).free
    if free < 2e9:
        raise Ill(f"{place} has {free / 1e9:.1f} GB free: make room, or set VIDISTILL_STORE.")
    made = "" if there == place else ", will be made by the first run"
    return f"{place}, {free / 1e9:.0f} GB free{made}"


def _extras() -> str:
    found = []
    for name in ("s3fs", "prefect-dask", "opencv-contrib-python", "ultralytics", "diffusers", "transformers"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent")
    return ", ".join(found)


def _imports() -> str:
    """A torchvision built for another torch fails with `operator torchvision::nms does not exist`."""
    names = ("torch", "torchvision.ops", "prefect.server.api.server")
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise Ill(f"{name} does not import ({error}): install everything with constraints.txt.") from error
    return ", ".join(names)


def _device() -> str:
    from vidistill.models import compute

    device = compute.resolve_device("auto")
    return f"{device}, precision auto = {compute.resolve_precision('auto', device)}"
