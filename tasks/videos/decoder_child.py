"""The process behind `vidistill.tasks.videos.decoder.Decoder`: a crash or a hang of libav costs one video, not the run.

It reads one JSON object a line on stdin and answers each on stdout: four bytes of length, that much JSON, then as many
bytes of pixels as the JSON's shape says. To "frames" it answers with such a message for each frame, and one without a
shape.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import struct
import sys
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import numpy as np

from vidistill.tasks.videos.frames import UnusableVideo, clips, frames, probe


def answer(request: dict[str, Any]) -> Iterator[tuple[dict[str, Any], np.ndarray | None]]:
    """The messages that answer a request, one unless it asks for frames."""
    action = request.pop("action")
    try:
        if action == "probe":
            yield {"probe": probe(**request)}, None
        elif action == "frames":
            yield from (with_shape(frame_HWC) for frame_HWC in frames(**request))
            yield {}, None
        else:
            yield with_shape(clips(**request))
    except UnusableVideo as error:
        yield {"unusable": str(error)}, None
    except MemoryError:
        yield {"unusable": "too large for this machine's memory", "passing": True}, None
    except (av.FFmpegError, OSError, ValueError) as error:
        yield {"unusable": f"cannot be decoded ({error})"}, None


def with_shape(pixels: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    return {"shape": pixels.shape}, np.ascontiguousarray(pixels)


def serve(requests: BinaryIO, answers: BinaryIO, timeout_seconds: float) -> None:
    """Answer until the parent closes its end, which its death also does."""
    with open(os.devnull, "w") as nowhere:
        answers.write(struct.pack(">I", 2) + b"{}")
        answers.flush()
        for line in requests:
            # The parent ends a hang; this is for a child whose parent is gone. It fires even where the GIL is held.
            faulthandler.dump_traceback_later(timeout_seconds + 5, exit=True, file=nowhere)
            for header, pixels in answer(json.loads(line)):
                text = json.dumps(header).encode()
                answers.write(struct.pack(">I", len(text)) + text)
                if pixels is not None:
                    answers.write(pixels.data)
                answers.flush()
                faulthandler.dump_traceback_later(timeout_seconds + 5, exit=True, file=nowhere)
            faulthandler.cancel_dump_traceback_later()


def end_with_parent() -> None:
    """The parent's end of the pipe of requests closes with it, in the middle of a long video, too."""
    waiting = select.poll()
    waiting.register(0, 0)
    waiting.poll()
    os._exit(1)


def main() -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # nothing that a library prints may get among the answers
        with contextlib.suppress(BrokenPipeError):
            serve(sys.stdin.buffer, answers, float(sys.argv[1]))


if __name__ == "__main__":
    main()
