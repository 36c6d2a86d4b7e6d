"""The form `coded`: one file with all that a student trains from: compressed clips, labels, and a teacher's logits.

Legend: N clips, V views of each (the whole picture first), T frames, H height, W width, K classes. A view is a part of
the picture, scaled up: it has logits of its own, and a student sees it as a clip of its own. The stream may hold k
times as many frames a clip as a student sees, or a k-th of them; and all clips one after another as one.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.errors import ArtifactDamaged, StoreError
from vidistill.storage.planes import scaled
from vidistill.storage.streams import Stream, decode

FILE, FORM = "set.coded", "coded"
MAGIC, VERSION = b"VDCS", 1
HEADER = struct.Struct("<4sBIHBb")  # magic, version, N, K, V, exponent of the logits' scale
CRC = struct.Struct("<I")
NO_LOGITS = -128
BOX_BYTES = 3


def stored_of(stream: Stream, boxes_NV3: NDArray[np.uint8] | None = None) -> dict[str, NDArray[Any]]:
    """What a set of this form keeps: the stream's bytes, and the boxes of all views but the first.

    Args:
        stream: the clips.
        boxes_NV3: uint8 (N, V−1, 3): side, top and left in 255ths of what is possible (see `view`).
    """
    none_N03 = np.zeros((len(stream.clips), 0, BOX_BYTES), dtype=np.uint8)
    data = np.frombuffer(stream.to_bytes(), dtype=np.uint8)
    return {"stream": data, "boxes": none_N03 if boxes_NV3 is None else boxes_NV3}


def clips(stored: dict[str, NDArray[Any]], shape_NTHWC: tuple[int, ...]) -> NDArray[np.uint8]:
    """The decoded clips, uint8 (N·V, T, H, W, 3): those of one clip side by side (see `shown`)."""
    kept_NTHWC, boxes_NV3 = decode(Stream.from_bytes(stored["stream"].tobytes())), stored["boxes"]
    return shown(kept_NTHWC.reshape(len(boxes_NV3), -1, *kept_NTHWC.shape[2:]), boxes_NV3, shape_NTHWC[1])


def shown(kept_NTHWC: NDArray[np.uint8], boxes_NV3: NDArray[np.uint8], frames: int) -> NDArray[np.uint8]:
    """What a student sees of decoded clips: their views; of each shift, as variants, where there are several."""
    every = [with_views(shift_NTHWC, boxes_NV3) for shift_NTHWC in shifts(kept_NTHWC, frames)]
    return np.stack(every) if len(every) > 1 else every[0]


def shifts(kept_NTHWC: NDArray[np.uint8], frames: int) -> list[NDArray[np.uint8]]:
    """Clips of `frames` frames: of k times as many every k-th, beginning at each of the first k; of a k-th as many all,
    with k − 1 between each two that are linear in time; the last one stays.
    """
    kept = kept_NTHWC.shape[1]
    if kept >= frames:
        return [kept_NTHWC[:, first :: kept // frames] for first in range(kept // frames)]
    k = frames // kept
    made_NTHWC = np.empty((len(kept_NTHWC), frames, *kept_NTHWC.shape[2:]), dtype=np.uint8)
    for t in range(frames):
        before, share = divmod(t, k)
        after_NHWC = kept_NTHWC[:, min(before + 1, kept - 1)].astype(np.int32)
        made_NTHWC[:, t] = ((k - share) * kept_NTHWC[:, before].astype(np.int32) + share * after_NHWC + k // 2) // k
    return [made_NTHWC]


def with_views(clips_NTHWC: NDArray[np.uint8], boxes_NV3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each clip and, after it, the parts of it that its boxes name."""
    if not boxes_NV3.shape[1]:
        return clips_NTHWC
    views = [
        view
        for clip_THWC, boxes_V3 in zip(clips_NTHWC, boxes_NV3, strict=True)
        for view in (clip_THWC, *(part(clip_THWC, box) for box in boxes_V3))
    ]
    return np.stack(views)


def part(clip_THWC: NDArray[np.uint8], box: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The part of a picture that a box names, scaled to all of it."""
    _, height, width, _ = clip_THWC.shape
    side, top, left = map(int, box)
    high, wide = max(1, height * side // 255), max(1, width * side // 255)
    y, x = (height - high) * top // 255, (width - wide) * left // 255
    return scaled(clip_THWC[:, y : y + high, x : x + wide], height, width)


def rounded(logits_NK: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits as they are read back: 255 levels, a power of two apart. Those that were read back stay as they are."""
    values_NK, exponent = _quantised(logits_NK)
    return np.ldexp(values_NK.astype(np.float32), exponent)


def _quantised(logits_NK: NDArray[np.float32]) -> tuple[NDArray[np.int8], int]:
    largest = float(np.abs(logits_NK).max(initial=0))
    exponent = int(np.clip(np.ceil(np.log2(largest / 127)), -100, 100)) if largest > 0 else 0
    return np.ldexp(logits_NK, -exponent).round().clip(-127, 127).astype(np.int8), exponent


def to_bytes(
    labels_N: NDArray[np.int64], logits_NK: NDArray[np.float32] | None, classes: int, stored: dict[str, NDArray[Any]]
) -> bytes:
    """A set as one file; labels and logits are those of every view."""
    boxes_NV3 = stored["boxes"]
    views = boxes_NV3.shape[1] + 1
    values_NK, exponent = (None, NO_LOGITS) if logits_NK is None else _quantised(logits_NK)
    head = HEADER.pack(MAGIC, VERSION, len(boxes_NV3), classes, views, exponent)
    head += labels_N[::views].astype(_label_type(classes)).tobytes() + boxes_NV3.tobytes()
    head += b"" if values_NK is None else values_NK.tobytes()
    return head + CRC.pack(zlib.crc32(head)) + stored["stream"].tobytes()


def size_of(clips: int, views: int, classes: int, logits: bool) -> int:
    """Bytes of the file besides the stream."""
    a_clip = _label_type(classes).itemsize + BOX_BYTES * (views - 1) + (views * classes if logits else 0)
    return HEADER.size + CRC.size + clips * a_clip


def logits_bytes(path: Path) -> int:
    """Bytes that the logits of a set's file take."""
    with path.open("rb") as file:
        _, _, n, k, views, exponent = HEADER.unpack(file.read(HEADER.size))
    return 0 if exponent == NO_LOGITS else n * views * k


def read(
    path: Path,
) -> tuple[NDArray[np.int64], NDArray[np.float32] | None, dict[str, NDArray[Any]]]:
    """Labels and logits of every view, and what the form keeps.

    Raises:
        StoreError: a newer version wrote the file.
        ArtifactDamaged: it is cut short or changed.
    """
    data = path.read_bytes()
    if len(data) > len(MAGIC) and data[:4] == MAGIC and data[4] > VERSION:
        raise StoreError(
            f"The coded set {path} is of version {data[4]}, and this vidistill reads versions up to {VERSION}: "
            "install a newer one."
        )
    try:
        magic, _, n, k, views, exponent = HEADER.unpack_from(data)
        end = size_of(n, views, k, exponent != NO_LOGITS)
        if magic != MAGIC or zlib.crc32(data[: end - CRC.size]) != CRC.unpack_from(data, end - CRC.size)[0]:
            raise ArtifactDamaged(f"The coded set {path} has changed since it was written: its checksum differs.")
    except struct.error as error:
        raise ArtifactDamaged(f"The coded set {path} is cut short: it ends after {len(data)} bytes.") from error
    place = HEADER.size + n * _label_type(k).itemsize
    labels_N = np.frombuffer(data[HEADER.size : place], dtype=_label_type(k)).astype(np.int64).repeat(views)
    boxes = np.frombuffer(data, dtype=np.uint8, count=n * (views - 1) * BOX_BYTES, offset=place)
    stored = {"stream": np.frombuffer(data[end:], dtype=np.uint8), "boxes": boxes.reshape(n, views - 1, BOX_BYTES)}
    if exponent == NO_LOGITS:
        return labels_N, None, stored
    values_NK = np.frombuffer(data, dtype=np.int8, count=n * views * k, offset=place + boxes.size).reshape(-1, k)
    return labels_N, np.ldexp(values_NK.astype(np.float32), exponent), stored


def _label_type(classes: int) -> np.dtype[Any]:
    return np.dtype("<u1" if classes <= 256 else "<u2")
