"""`vidistill doctor` tells a sound environment from an ill one, soon, and changes nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from flow_running import CommandLine, environment

from vidistill.flows.cli import answer

NOBODY = "http://127.0.0.1:9/api"
LOADED = """
import sys
from vidistill.flows.cli import main
main()
print(*sorted({"torch", "torchvision", "prefect"} & sys.modules.keys()))
"""
Doctor = Callable[..., tuple[int, dict[str, str], str]]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """The exit code, the finding of each check, and what is said on stderr."""

    def call(*arguments: str) -> tuple[int, dict[str, str], str]:
        monkeypatch.setattr(sys, "argv", ["vidistill", "doctor", "--store", "store", *arguments])
        code = answer()
        said = capsys.readouterr()
        return code, {line.split()[1]: line for line in said.out.splitlines()}, said.err

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return call


def test_a_sound_environment(tmp_path: Path) -> None:
    examined = CommandLine(tmp_path)("doctor", "--thorough", "--store", "store")
    assert (examined.returncode, examined.stderr) == (0, ""), examined.stdout
    assert all(line.startswith("ok ") for line in examined.stdout.splitlines())
    assert "precision auto = " in examined.stdout


def test_what_nobody_foresaw_is_a_finding_like_any_other(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise OSError("libtorch.so is not there")

    monkeypatch.setattr("vidistill.flows.doctor._zarr", broken)
    code, lines, said = doctor()
    assert code == 1
    assert "it fails (OSError: libtorch.so is not there): install everything with constraints.txt." in lines["Zarr"]
    assert "extras" in lines
    assert "checks failed; each line above" in said


def test_nothing_slow_is_loaded_and_nothing_made(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOADED, "doctor", "--store", str(tmp_path / "folder" / "store")]
    env = environment(tmp_path / "home")
    examined = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert examined.stdout.splitlines()[-1] == ""
    assert "will be made by the first run" in examined.stdout
    assert [path.name for path in tmp_path.rglob("*")] == ["home"]


@pytest.mark.parametrize(
    ("name", "found", "said"),
    [
        ("torchvision", "0.28.0", ("torchvision 0.28.0 is installed", ">=0.29", "constraints.txt")),
        ("torch", "2.13.0", ("torch 2.13.0 is installed", ">=2.14", "constraints.txt")),
        ("torchvision", "0.29.2+cu126", ("0.29.2+cu126", "2.14.1+cpu")),
        ("fastapi", "0.155.0", ("fastapi 0.155.0", "<0.151")),
        ("sqlalchemy", "2.1.0", ("sqlalchemy 2.1.0", "<2.1")),
    ],
)
def test_a_package_that_does_not_fit(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, found: str, said: tuple[str, ...]
) -> None:
    """It is the first on the path, as far as its metadata goes."""
    if "+" in found:
        install(tmp_path / "other", "torch", "2.14.1+cpu")
    install(tmp_path / "other", name, found)
    monkeypatch.syspath_prepend(tmp_path / "other")
    code, findings, stderr = doctor()
    check = "Prefect" if name in {"fastapi", "sqlalchemy"} else name
    assert code == 1
    assert findings[check].startswith("ill")
    for part in said:
        assert part in findings[check]
    assert stderr.startswith("vidistill: ")
    assert stderr.endswith("of 9 checks failed; each line above says what to do.\n")


def install(folder: Path, name: str, version: str) -> None:
    """The metadata of a package, and no more."""
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir(parents=True)
    requires = "Requires-Dist: torch (>=2.14.0)\n" if name == "torchvision" else ""
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")


def test_an_opencv_that_cannot_be_loaded(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    code, findings, _ = doctor()
    assert (code, [name for name, line in findings.items() if not line.startswith("ok")]) == (1, ["OpenCV"])
    assert "it is installed and cannot be loaded (libGL.so.1" in findings["OpenCV"]


def test_a_server_that_answers(doctor: Doctor, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server.url)
    code, findings, _ = doctor()
    assert code == 0
    assert f"{server.url} answers" in findings["server"]


@pytest.mark.parametrize("url", [NOBODY, "nonsense"])
def test_a_dead_server(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    code, findings, _ = doctor()
    assert code == 1
    assert findings["server"].startswith("ill")
    assert f"{url} is dead (" in findings["server"]


@pytest.mark.parametrize(("code", "well"), [(401, True), (403, True), (500, False)])
def test_a_server_that_asks_for_a_login_is_not_dead(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, code: int, well: bool
) -> None:
    class Guarded(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(code)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Guarded) as guarded:
        Thread(target=guarded.serve_forever, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{guarded.server_port}/api")
        found = doctor()[1]["server"]
        guarded.shutdown()
    assert ("answers, but not to this check" in found) == well == found.startswith("ok")


def test_a_home_of_prefect_that_cannot_be_written(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a server that is named, where a run's own keeps its database."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file" / "prefect"))
    code, findings, _ = doctor()
    assert code == 1
    assert "file is a file: set PREFECT_HOME" in findings["server"]


def test_a_dead_server_of_a_profile(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "prefect").mkdir()
    profiles = f'active = "team"\n[profiles.team]\nPREFECT_API_URL = "{NOBODY}"\n'
    (tmp_path / "prefect" / "profiles.toml").write_text(profiles)
    assert f"{NOBODY} is dead (" in doctor()[1]["server"]


def test_a_profile_that_is_no_toml(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "profiles.toml").write_text("active = ")
    code, findings, _ = doctor()
    assert code == 1
    assert "profiles.toml cannot be read" in findings["server"]


def test_a_store_below_a_file(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    code, findings, _ = doctor("--store", "store/below")
    assert code == 1
    assert "store is a file" in findings["store"]


def test_a_store_that_cannot_be_reached(doctor: Doctor) -> None:
    code, findings, _ = doctor("--store", "nonsense://bucket")
    assert code == 1
    assert "nonsense" in findings["store"]
