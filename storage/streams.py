"""Streams: clips as compressed video without a container, and back, to the same pixels on every machine.

A clip is its AV1 packets (libsvtav1 writes, dav1d reads; VP9 where a PyAV has no AV1 encoder) without what all clips
share: the sequence header is stored once. AV1 and VP9 decoders are exact up to the planes by their standards; planes
and RGB are made from each other in whole numbers (planes.py), since every library rounds that step its own way.

Legend: N clips, T frames, H height, W width, 3 colours (RGB).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.errors import ArtifactDamaged, RequestError, RunError, StoreError
from vidistill.storage.obus import leb128, leb128_at, sequence_of, temporal_units, without
from vidistill.storage.planes import even, padded, scaled, to_planes, to_rgb

MAGIC, VERSION = b"VDST", 1
HEADER = struct.Struct("<4sBBHHHHHIB")  # magic, version, codec, T, H, W, coded height and width, N, sequence header
CRC = struct.Struct("<I")
FULL_RANGE, BT601 = 2, 5  # FFmpeg's numbers
LEAST_SIDE = 16  # of a coded picture; the encoders want four and more
WORST_CRF, MOST_FRAMES = 63, 0xFFFF
AT_ONCE = 64  # frames whose planes become pixels: numbers of 32 bits take many times what they hold


@dataclass(frozen=True)
class Codec:
    """A codec's names in FFmpeg, and how it is asked for one thread and a quantiser."""

    encoder: str
    decoder: str

    def options(self, crf: int, preset: int, even: bool) -> dict[str, str]:
        if self.encoder == "libsvtav1":
            params = "lp=1:rc=0:aq-mode=0:use-fixed-qindex-offsets=1:key-frame-qindex-offset=0" if even else "lp=1"
            return {"crf": str(crf), "preset": str(preset), "svtav1-params": params}
        own = {"crf": str(crf), "b": "0", "deadline": "good", "cpu-used": str(min(preset, 5)), "row-mt": "0"}
        return own | ({"qmin": str(crf), "qmax": str(crf)} if even else {})


CODECS = {"av1": Codec("libsvtav1", "libdav1d"), "vp9": Codec("libvpx-vp9", "vp9")}
"""The first that this PyAV can write is taken. A stream names its codec by the place in this order."""


@dataclass(frozen=True)
class Stream:
    """Coded clips of one shape.

    Attributes:
        codec: a name of `CODECS`.
        shape_THW: of a clip as a student sees it.
        coded_HW: of the picture within the codec's own (which is padded to even sides of 16 and more); smaller than
            the clip's where it is scaled up when it is decoded.
        sequence: AV1's sequence header, which every clip begins with; empty for VP9.
        clips: a clip's packets each.
    """

    codec: str
    shape_THW: tuple[int, int, int]
    coded_HW: tuple[int, int]
    sequence: bytes
    clips: tuple[bytes, ...]

    @property
    def picture_HW(self) -> tuple[int, int]:
        """The codec's own picture, with even sides."""
        return even(self.coded_HW[0], LEAST_SIDE), even(self.coded_HW[1], LEAST_SIDE)

    def with_more(self, clips: Sequence[bytes]) -> Stream:
        """With more clips, which were coded with the same settings."""
        return replace(self, clips=(*self.clips, *clips))

    def chosen(self, numbers: Sequence[int]) -> Stream:
        """These clips, in this order."""
        return replace(self, clips=tuple(self.clips[number] for number in numbers))

    def to_bytes(self) -> bytes:
        """Header, an index of lengths and checksums, the checksum of both, and the clips."""
        number = list(CODECS).index(self.codec)
        head = HEADER.pack(MAGIC, VERSION, number, *self.shape_THW, *self.coded_HW, len(self.clips), len(self.sequence))
        index = b"".join(leb128(len(clip)) + CRC.pack(zlib.crc32(clip)) for clip in self.clips)
        head += self.sequence + index
        return head + CRC.pack(zlib.crc32(head)) + b"".join(self.clips)

    @staticmethod
    def from_bytes(data: bytes) -> Stream:
        """What `to_bytes` wrote, every byte checked.

        Raises:
            StoreError: a newer version wrote it.
            ArtifactDamaged: it is cut short, or bits of it have changed.
        """
        if data[:4] != MAGIC[: len(data[:4])]:
            raise ArtifactDamaged("These bytes are no stream of coded clips: its first four are not VDST.")
        if len(data) > 4 and data[4] > VERSION:
            raise StoreError(
                f"The coded clips are of version {data[4]}, and this vidistill reads versions up to {VERSION}: "
                "install a newer one."
            )
        try:
            return _parsed(data)
        except (struct.error, IndexError) as error:
            raise ArtifactDamaged(
                f"The stream of coded clips ends within its index, after {len(data)} bytes."
            ) from error


def _parsed(data: bytes) -> Stream:
    _, _, number, frames, height, width, coded_h, coded_w, count, size = HEADER.unpack_from(data)
    place = HEADER.size + size
    sequence, entries = data[HEADER.size : place], []
    for _ in range(count):
        length, place = leb128_at(data, place)
        entries.append((length, CRC.unpack_from(data, place)[0]))
        place += CRC.size
    if CRC.unpack_from(data, place)[0] != zlib.crc32(data[:place]) or number >= len(CODECS):
        raise ArtifactDamaged("The header of the coded clips has changed since it was written: its checksum differs.")
    place += CRC.size
    clips = []
    for which, (length, crc) in enumerate(entries, 1):
        clip = data[place : place + length]
        if len(clip) < length:
            raise ArtifactDamaged(f"The stream of coded clips ends within clip {which} of {count}.")
        if zlib.crc32(clip) != crc:
            raise ArtifactDamaged(f"The coded clip {which} of {count} has changed since it was written.")
        clips.append(clip)
        place += length
    if place != len(data):
        raise ArtifactDamaged(f"{len(data) - place} bytes follow the last of the coded clips.")
    codec = list(CODECS)[number]
    return Stream(codec, (frames, height, width), (coded_h, coded_w), sequence, tuple(clips))


# Coding


def best_codec() -> str:
    """The first codec that this PyAV can write.

    Raises:
        RunError: it can write none.
    """
    for name, codec in CODECS.items():
        if _known(codec.encoder, "w"):
            return name
    names = " or ".join(codec.encoder for codec in CODECS.values())
    raise RunError(
        f"This PyAV cannot write compressed video: it lacks {names}; install PyAV's own wheel (pip install av)."
    )


def encode(
    clips_NTHWC: NDArray[np.uint8], crf: int, preset: int = 4, size: int | None = None, *, even: bool = False
) -> Stream:
    """Clips as compressed video, each by itself, so that any of them can be left out.

    Args:
        clips_NTHWC: uint8 RGB of any frames, height and width.
        crf: the quantiser, 1 (fine) to 63 (coarse).
        preset: the encoder's effort: 0 takes minutes, 4 is a good default, 12 is quick.
        size: the longer side of the coded pictures where it is to be smaller; they are scaled up when decoded.
        even: every frame at this quantiser, where encoders otherwise spend more on the first, which the others are
            predicted from: of what moves more is left, of what stands still less.

    Raises:
        RequestError: a quantiser or preset that there is not, or too many frames.
        RunError: this PyAV has no encoder.
    """
    if not (1 <= crf <= WORST_CRF and 0 <= preset <= 12):
        raise RequestError(f"crf must lie in 1…{WORST_CRF} and preset in 0…12; got crf {crf} and preset {preset}.")
    name = best_codec()
    _, frames, height, width, _ = clips_NTHWC.shape
    if frames > MOST_FRAMES:
        raise RequestError(f"A stream holds at most {MOST_FRAMES} frames; got {frames}: keep fewer clips together.")
    longer = min(1, Fraction(size, max(height, width))) if size else 1
    coded_HW = (max(1, round(height * longer)), max(1, round(width * longer)))
    coded = [_packets(name, padded(_shrunk(clip, coded_HW), LEAST_SIDE), crf, preset, even) for clip in clips_NTHWC]
    sequence = next((sequence_of(packets[0]) for packets in coded if name == "av1"), b"")
    clips = tuple(_joined(name, packets, sequence) for packets in coded)
    return Stream(name, (frames, height, width), coded_HW, sequence, clips)


def decode(stream: Stream, threads: int = 1) -> NDArray[np.uint8]:
    """The clips of a stream, uint8 (N, T, H, W, 3); the number of the decoder's threads changes no pixel.

    Raises:
        RunError: this PyAV lacks the stream's codec.
        ArtifactDamaged: the decoder refuses a clip, or finds other frames than the stream promises.
    """
    if not _known(CODECS[stream.codec].decoder, "r"):
        raise RunError(
            f"These clips are coded in {stream.codec.upper()}, which this PyAV cannot read: it lacks "
            f"{CODECS[stream.codec].decoder}; install PyAV's own wheel (pip install av)."
        )
    clips_NTHWC = np.empty((len(stream.clips), *stream.shape_THW, 3), dtype=np.uint8)
    for number in range(len(stream.clips)):
        clips_NTHWC[number] = pictures(_frames(stream, number, threads), stream.shape_THW, stream.coded_HW)
    return clips_NTHWC


def pictures(frames: Sequence[Any], shape_THW: tuple[int, int, int], coded_HW: tuple[int, int]) -> NDArray[np.uint8]:
    """Decoded frames of a clip (PyAV's, `yuv420p`) as uint8 (T, H, W, 3): cut to what was coded, and scaled up."""
    made_THWC = np.empty((len(frames), *shape_THW[1:], 3), dtype=np.uint8)
    for some in (slice(first, first + AT_ONCE) for first in range(0, len(frames), AT_ONCE)):
        planes = (np.stack([_plane(frame.planes[i]) for frame in frames[some]]) for i in range(3))
        cut_THWC = to_rgb(*planes)[:, : coded_HW[0], : coded_HW[1]]
        made_THWC[some] = scaled(cut_THWC, *shape_THW[1:])
    return made_THWC


def units(stream: Stream, number: int) -> list[bytes]:
    """The packets of one clip, one a shown frame, as a container keeps them: the first with the sequence header."""
    if stream.codec == "av1":
        found = list(temporal_units(stream.clips[number]))
        return [stream.sequence + found[0], *found[1:]]
    found, place = [], 0
    while place < len(stream.clips[number]):
        length, place = leb128_at(stream.clips[number], place)
        found.append(stream.clips[number][place : place + length])
        place += length
    return found


def _known(name: str, mode: Literal["r", "w"]) -> bool:
    from av.codec.codec import Codec as Known
    from av.codec.codec import UnknownCodecError

    try:
        Known(name, mode)
    except UnknownCodecError:
        return False
    return True


def _shrunk(clip_THWC: NDArray[np.uint8], coded_HW: tuple[int, int]) -> NDArray[np.uint8]:
    from PIL import Image

    if clip_THWC.shape[1:3] == coded_HW:
        return clip_THWC
    side = (coded_HW[1], coded_HW[0])
    return np.stack([np.asarray(Image.fromarray(frame).resize(side, Image.Resampling.LANCZOS)) for frame in clip_THWC])


@contextmanager
def _own_scheduling() -> Iterator[None]:
    """Put this thread's scheduling back: opened by root, SVT-AV1 leaves it, and all threads that it starts later, in
    real time, ahead of everything else on the machine.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def _packets(name: str, clip_THWC: NDArray[np.uint8], crf: int, preset: int, even: bool) -> list[bytes]:
    import av

    os.environ.setdefault("SVT_LOG", "1")  # its warnings say that small pictures do without some tools
    frames, height, width, _ = clip_THWC.shape
    context: Any = av.CodecContext.create(CODECS[name].encoder, "w")
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
    context.thread_count, context.gop_size = 1, max(frames, 1)
    context.color_range, context.colorspace = FULL_RANGE, BT601
    context.options = CODECS[name].options(crf, preset, even)
    with _own_scheduling():
        context.open()
    made: list[bytes] = []
    for time in range(frames):
        planes = (plane_1HW[0] for plane_1HW in to_planes(clip_THWC[time : time + 1]))
        frame = av.VideoFrame(width, height, "yuv420p")
        frame.pts, frame.color_range, frame.colorspace = time, FULL_RANGE, BT601
        for plane, values_HW in zip(frame.planes, planes, strict=True):
            rows_HW = np.zeros((plane.height, plane.line_size), dtype=np.uint8)
            rows_HW[:, : values_HW.shape[1]] = values_HW
            plane.update(rows_HW.tobytes())
        made += [bytes(packet) for packet in context.encode(frame)]
    return made + [bytes(packet) for packet in context.encode(None)]


def _frames(stream: Stream, number: int, threads: int) -> list[Any]:
    """The frames of one clip as they are coded.

    Raises:
        ArtifactDamaged: these are not the frames that the stream promises.
    """
    import av

    context: Any = av.CodecContext.create(CODECS[stream.codec].decoder, "r")
    context.thread_count = threads
    try:
        found = [frame for unit in units(stream, number) for frame in context.decode(av.Packet(unit))]
        found += context.decode(None)
    except (av.FFmpegError, IndexError) as error:
        raise ArtifactDamaged(
            f"The coded clip {number + 1} of {len(stream.clips)} cannot be decoded: {error}."
        ) from error
    height, width = stream.picture_HW
    promised = [(stream.shape_THW[0], height, width, "yuv420p")]
    if [(len(found), one.height, one.width, one.format.name) for one in found[:1]] != promised:
        raise ArtifactDamaged(
            f"Clip {number + 1} of {len(stream.clips)} decodes to other frames than the stream promises."
        )
    return found


def _plane(plane: Any) -> NDArray[np.uint8]:
    rows_HW: NDArray[np.uint8] = np.frombuffer(plane, dtype=np.uint8).reshape(plane.height, plane.line_size)
    return rows_HW[:, : plane.width]


def _joined(name: str, packets: Sequence[bytes], sequence: bytes) -> bytes:
    """A clip's packets as they are stored: AV1's units tell where they end, VP9's packets need their lengths."""
    if name == "av1":
        return without(b"".join(packets), sequence)
    return b"".join(leb128(len(packet)) + packet for packet in packets)
