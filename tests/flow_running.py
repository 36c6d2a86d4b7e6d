"""Running `vidistill` and Prefect as a user does: real processes with a home of their own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

FAILED, WRONG = 1, 2
BIN = Path(sys.executable).parent
CLASSES = ("left", "right", "grow")
TINY = shlex.split(
    "--ipc 1 --seeds 1 --frames 4 --size 48 --set decode.max_lost_share=0.5 --set front=rgb "
    "--set teacher.epochs=1 --set teacher.least_steps=1 --set teacher.precision=fp32 "
    "--set student.epochs=1 --set student.least_steps=3 --set student.precision=fp32"
)


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment with a home of its own and nobody's settings."""
    home.mkdir(parents=True, exist_ok=True)  # Prefect warns where its folder's parent is not there
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "VIDISTILL_", "XDG_"))
    }
    own = {
        "HOME": home,
        "XDG_CACHE_HOME": home / "cache",
        "XDG_DATA_HOME": home / "data",
        "PREFECT_HOME": home / "prefect",
    }
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    return kept | {name: str(path) for name, path in own.items()} | quiet | more


@dataclass(frozen=True)
class CommandLine:
    """`vidistill`, from a folder of its own, with a home of its own."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [*prefix, str(BIN / "vidistill"), *map(str, arguments)]
        env = environment(self.folder / "home", **self.variables)
        return subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=240, check=False
        )


def check_refusal(ended: subprocess.CompletedProcess[str], code: int, *said: str, store: Path, out: Path) -> None:
    """One line, with everything that it must name; no report, and nothing in staging."""
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert ended.stderr.startswith("vidistill: "), repr(ended.stderr)
    assert ended.stderr.count("\n") == 1, ended.stderr
    for part in said:
        assert part in ended.stderr
    assert not list(out.glob("report.*"))
    assert not list(store.glob(".staging/*"))


def snapshot(*folders: Path) -> dict[str, int]:
    """Every file with its time of change."""
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


@contextmanager
def background(command: list[str], folder: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process and all that it starts, gone at the end whatever happens; its output is in `<folder>/<name>.log`."""
    with (folder / f"{command[1]}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            for sent in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, sent)
                    process.wait(timeout=15)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue
