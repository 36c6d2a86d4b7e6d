"""Clips from video files, decoded in a child process: a file that crashes or hangs the decoder costs only itself."""

from __future__ import annotations

import json
import math
import os
import selectors
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import Field

from vidistill.storage.errors import RunError
from vidistill.storage.parameters import Parameters

T = TypeVar("T")
CHILD = Path(__file__).with_name("decoder_child.py")
START_SECONDS = 60.0  # importing libav and numpy from a slow disk
IDLE_SECONDS = 20.0


class Sampling(Parameters):
    """What is taken from each video: `views` clips of `frames` frames, `interval` apart, `size` pixels square."""

    frames: int = Field(16, ge=1)
    interval: int = Field(4, ge=1)
    size: int = Field(112, ge=1)
    views: int = Field(1, ge=1)


class Probe(Parameters):
    """A video as it is shown, but that its pixels count as square whatever the file says.

    Attributes:
        width: in pixels, after the rotation.
        height: in pixels, after the rotation.
        rotation: by how many degrees clockwise the stored frames are turned for display: 0, 90, 180 or 270.
        frames: packets that should give a frame; a damaged file gives fewer.
        fps: mean rate as the container tells it.
        duration_seconds: as the container tells it.
        codec: FFmpeg's name of the decoder.
    """

    width: int
    height: int
    rotation: int
    frames: int
    fps: float | None
    duration_seconds: float | None
    codec: str


class VideoError(Exception):
    """This one video cannot be used; the message is the reason."""


class PassingError(VideoError):
    """It could not be used this time, and that may be the machine's doing: too long, out of memory, or crashed."""


def twice(function: Callable[[], T]) -> T:
    """What it gives; asked once more where it failed by what may have been the machine's doing."""
    try:
        return function()
    except PassingError:
        return function()


class Decoder:
    """One child process that decodes, started when first needed and again after it crashed or hung.

    For one thread at a time. Decoding is single-threaded: use one `Decoder` a core.
    """

    def __init__(self, timeout_seconds: float = 60.0) -> None:
        self.timeout_seconds = timeout_seconds
        self._child: subprocess.Popen[bytes] | None = None

    def probe(self, path: Path) -> Probe:
        """Size, rate and codec of a video of which at least one frame can be decoded.

        Raises:
            VideoError: The video cannot be used.
        """
        header, _ = self._ask({"action": "probe", "path": os.fspath(path)})
        return Probe(**header["probe"])

    def clips(self, path: Path, sampling: Sampling) -> np.ndarray:
        """The video's clips, uint8 (views, frames, size, size, 3), RGB, 0 to 255.

        Frames are chosen by the order in which they leave the decoder. View 0 is the centre of the video, the next
        start at 1/4, 3/4, 1/8 … of the room that is left; a video shorter than `(frames - 1) * interval + 1` is spread
        evenly over `frames`. The pixels are those of decoding every frame, except that in a damaged file decoding
        begins afresh at a key frame, where damage would otherwise last.

        Raises:
            VideoError: The video cannot be used.
        """
        header, pixels = self._ask({"action": "clips", "path": os.fspath(path), **sampling.model_dump()})
        return pixels.reshape(header["shape"])

    def frames(self, path: Path, every: int = 1, limit: int | None = None) -> Iterator[np.ndarray]:
        """Every `every`-th frame at the video's own size, upright, uint8 (H, W, 3) RGB, one at a time, `limit` at most.

        Memory holds one frame, however long the video: the child waits until it is taken. Whoever stops before the end
        costs a new child.

        Raises:
            VideoError: The video cannot be used, or not up to its end.
        """
        header, pixels = self._ask({"action": "frames", "path": os.fspath(path), "every": every, "limit": limit})
        try:
            while "shape" in header:
                yield pixels.reshape(header["shape"])
                header, pixels = self._ask(None)
        except GeneratorExit:
            self.close()
            raise

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any] | None) -> tuple[dict[str, Any], np.ndarray]:
        """The answer to a request; to none, the next message of the last one's answer."""
        child = self._child if request is None and self._child is not None else self._running_child()
        try:
            header, pixels = exchange(child, request, self.timeout_seconds)
        except TimeoutError:
            self.close()
            limit = f"{self.timeout_seconds:g} s, which VIDISTILL_VIDEO_SECONDS can raise"
            raise PassingError(f"decoding took longer than {limit}") from None
        except (EOFError, BrokenPipeError):
            self.close()
            raise PassingError("the decoder crashed") from None
        except BaseException:  # interrupted half-way: the next answer would be the rest of this one
            self.close()
            raise
        if "unusable" in header:
            raise (PassingError if header.get("passing") else VideoError)(header["unusable"])
        return header, pixels

    def _running_child(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = start(self.timeout_seconds)
        return self._child


_idle: dict[Decoder, threading.Timer] = {}
_lock = threading.Lock()


@contextmanager
def borrowed(timeout_seconds: float) -> Iterator[Decoder]:
    """A decoder whose process may have served before: to start one takes as long as to decode twenty small videos.

    Those that nobody borrows for 20 s end.
    """
    with _lock:
        found = next((decoder for decoder in _idle if decoder.timeout_seconds == timeout_seconds), None)
        if found is not None:
            _idle.pop(found).cancel()
    decoder = found or Decoder(timeout_seconds)
    try:
        yield decoder
    except BaseException:
        decoder.close()
        raise
    timer = threading.Timer(IDLE_SECONDS, _end, [decoder])
    timer.daemon = True
    with _lock:
        _idle[decoder] = timer
        timer.start()


def _end(decoder: Decoder) -> None:
    """End a decoder, unless it is at work again."""
    with _lock:
        if _idle.pop(decoder, None) is None:
            return
    decoder.close()


def start(timeout_seconds: float) -> subprocess.Popen[bytes]:
    """A child that has imported what it needs, in a process group of its own: Ctrl-C is the parent's to handle."""
    command = [sys.executable, "-P", str(CHILD), str(timeout_seconds)]
    child = subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    try:
        receive(child, START_SECONDS)
    except (EOFError, TimeoutError):
        child.kill()
        child.communicate()
        raise RunError(f"the decoding process did not start; this tells why: {' '.join(command)} </dev/null") from None
    return child


def exchange(
    child: subprocess.Popen[bytes], request: dict[str, Any] | None, seconds: float
) -> tuple[dict[str, Any], np.ndarray]:
    assert child.stdin is not None
    if request is not None:
        child.stdin.write(json.dumps(request).encode() + b"\n")
    return receive(child, seconds)


def receive(child: subprocess.Popen[bytes], seconds: float) -> tuple[dict[str, Any], np.ndarray]:
    """The child's next answer and the bytes after it, whose number is the product of its "shape".

    Raises:
        TimeoutError: It did not come in time.
        EOFError: The child ended.
    """
    assert child.stdout is not None
    pipe = child.stdout.fileno()
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)

        def read(count: int) -> bytearray:
            data = bytearray(count)
            left = memoryview(data)
            while left:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                got = os.readv(pipe, [left])
                if not got:
                    raise EOFError
                left = left[got:]
            return data

        (length,) = struct.unpack(">I", read(4))
        header = json.loads(read(length))
        pixels = read(math.prod(header["shape"])) if "shape" in header else bytearray()
        return header, np.frombuffer(pixels, np.uint8)
