"""Ctrl-C and SIGTERM at a command line: one sentence, soon, whatever runs; what was checkpointed stays.

Told once, jobs end at their next step, and Prefect hears of it. Told twice, or where that takes too long, the process
ends as it is: the store is made for it. A thread watches for the signals, because Python's own handlers wait for the
main thread, which may be anywhere, and because Prefect has a handler of its own.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import NoReturn

STOPPED = 130
SENTENCE = "vidistill: stopped; run the same command again to go on from here.\n"
ANEW, BEGINNING = "vidistill: stopped; the same command begins anew.\n", ("train", "export", "unpack")
"""Of commands that keep no checkpoints."""
PATIENCE_SECONDS = 5.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = b"\x1b[?25h"


class Stopping:
    """What this process is told by signals from here on."""

    def __init__(self) -> None:
        self.asked = False
        self._stderr = os.dup(2)
        self._silent = "--verbose" not in sys.argv
        self._saying = threading.Lock()
        told, tell = os.pipe()
        os.set_blocking(tell, False)
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._interrupt)
        atexit.register(self._end)  # the first to be registered is the last to run
        threading.Thread(target=self._watch, args=(told,), daemon=True, name="stopping").start()

    def leave(self) -> NoReturn:
        """End this process as it is."""
        self.say()
        with suppress(OSError):
            if os.isatty(1):
                os.write(1, SHOW_CURSOR)  # progress bars hide it
        os._exit(STOPPED)

    def say(self) -> None:
        """The sentence, once."""
        if self._saying.acquire(blocking=False):
            with suppress(OSError):  # nobody is there to read it
                os.write(self._stderr, (ANEW if sys.argv[1:] and sys.argv[1] in BEGINNING else SENTENCE).encode())

    def _end(self) -> None:
        """Without taking apart what torch and Prefect have built, which takes seconds on a busy machine."""
        if self._saying.locked():
            sys.stdout.flush()
            os._exit(STOPPED)

    def _watch(self, told: int) -> None:
        while os.read(told, 1)[0] not in SIGNALS:
            continue
        self._hush()
        select.select([told], [], [], PATIENCE_SECONDS)
        self.leave()

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._hush()
        raise KeyboardInterrupt

    def _hush(self) -> None:
        """What is cut off complains, in threads and destructors too; nobody needs to read that."""
        self.asked = True
        if self._silent:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
