"""A command in a terminal of its own, and how it has to end when it is stopped."""

from __future__ import annotations

import os
import pty
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

from flow_running import BIN, environment

SENTENCE = "vidistill: stopped; run the same command again to go on from here.\n"
CTRL_C = b"\x03"
SOON_SECONDS = 10
PATIENCE_SECONDS = 200


class Terminal:
    """A command that leads the session of a terminal of its own, whose keys go to all that runs in its foreground."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder, self.home, self.store = folder, folder / "home", folder / "store"
        env = environment(self.home)
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.dup2(os.open("stderr", os.O_CREAT | os.O_WRONLY), 2)
            os.execve(BIN / "vidistill", ["vidistill", *map(str, arguments), "--store", "store"], env)
        self.shown = b""

    def press(self, key: bytes) -> None:
        os.write(self._terminal, key)

    def until(self, reached: Callable[[], bool]) -> None:
        """Show what the command writes until something has happened."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not reached():
            assert self._read(0.02), self.stderr or self.shown.decode()
            assert time.monotonic() < deadline, "the run makes no progress"

    def ended(self) -> tuple[int, float]:
        """The exit code, and the seconds that it took to come."""
        since = time.monotonic()
        while self._read(1):
            assert time.monotonic() < since + 6 * SOON_SECONDS, "the run does not end"
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), time.monotonic() - since

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def left(self) -> list[int]:
        """Processes of this home, or of this folder where they have renamed themselves over their environment (Ray's);
        their ends are not waited for.
        """
        mark, found = f"HOME={self.home}\0".encode(), []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (place / "environ").read_bytes() or (place / "cwd").readlink() == self.folder:
                    found.append(int(place.name))
            except OSError:  # ended meanwhile
                continue
        return found

    def close(self) -> None:
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)
        os.close(self._terminal)

    def _read(self, seconds: float) -> bool:
        """Take what is written within this time; False: everything has closed its end."""
        if select.select([self._terminal], [], [], seconds)[0]:
            try:
                self.shown += os.read(self._terminal, 65536)
            except OSError:
                return False
        return True


def check_stopped(run: Terminal, within: float = SOON_SECONDS) -> None:
    code, seconds = run.ended()
    assert code == 130, run.stderr
    assert run.stderr == SENTENCE
    assert b"Traceback" not in run.shown
    assert seconds < within
    check_alone(run)


def check_alone(run: Terminal) -> None:
    deadline = time.monotonic() + SOON_SECONDS
    while left := run.left():
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]
        time.sleep(0.1)
