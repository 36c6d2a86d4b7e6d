"""Reading videos by libav, within the process that `decoder_child` is: which frames, decoded how, cut to squares.

Letters: V views, T frames, H = W = size, C = 3 (RGB); U the different frames of all views.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vidistill.tasks.videos.choosing import choose
from vidistill.tasks.videos.pictures import orientation, planes, square

HELD_BYTES = 64 << 20  # compressed packets kept in memory; a larger file is read a second time instead
# Codecs of which a key frame (h264, hevc: an IDR picture) restarts the decoder completely: no later frame refers to an
# earlier one, and the frames of all earlier packets are shown before it.
RESTARTING = frozenset({"ffv1", "h264", "hevc", "mjpeg", "mpeg4", "vp8", "vp9"})
IDR_TYPES = {"h264": {5}, "hevc": {19, 20}}
SHOWN = 0x10  # in the first byte of a VP8 packet; an alternate reference is a packet that shows nothing
SKIPPING = frozenset({"h264", "hevc"})  # codecs whose decoder can leave out a frame that no other refers to


class UnusableVideo(Exception):
    """Why this file gives no clip, in words for the user."""


# --- opening ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: str) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream that is not a cover picture, to be decoded by one thread."""
    if os.path.isdir(path):
        raise UnusableVideo("this is a folder, not a video file")
    try:
        container = av.open("file:" + os.path.abspath(path), metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise UnusableVideo(why_not_opened(path, error)) from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
        if not streams:
            audio = " (only audio)" if container.streams.audio else ""
            raise UnusableVideo(f"no video stream{audio}" if container.streams else "no stream: cut off in its header")
        stream = streams[0]
        if stream.codec_context is None:
            raise UnusableVideo("this build of FFmpeg has no decoder for its video codec")
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        yield container, stream


def why_not_opened(path: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read the file"
    with contextlib.suppress(OSError), open(path, "rb") as file:
        head = file.read(12)
        if not head:
            return "the file is empty"
        if head[4:8] == b"ftyp":
            return "an MP4 without an index (moov atom): cut off, or never finished"
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            return "an AVI that is cut off within its header"
        return "not a video file"
    return f"cannot be opened ({getattr(error, 'strerror', None) or error})"


# --- packets ----------------------------------------------------------------------------------------------------------


@dataclass
class Index:
    """What one pass over a file's packets tells.

    Attributes:
        packets: those with data.
        frames: how many frames they should give, one each; some files give fewer.
        restarts: ascending positions of the packets at which decoding can begin, the first being 0.
        times: the packets' pts.
        held: the packets themselves, None where they exceed `HELD_BYTES`.
    """

    packets: int = 0
    frames: int = 0
    restarts: list[int] = field(default_factory=lambda: [0])
    times: list[int | None] = field(default_factory=list)
    held: list[Any] | None = field(default_factory=list)

    def groups(self, wanted: np.ndarray) -> list[tuple[int, int]]:
        """(first packet, past the last packet) of every stretch between two restarts that holds a wanted frame."""
        bounds = [*self.restarts, self.packets]
        places = np.unique(np.searchsorted(self.restarts, wanted, side="right")) - 1
        return [(bounds[place], bounds[place + 1]) for place in places]

    def shown(self) -> dict[int, int]:
        """Each pts and its frame's place among the frames, empty unless B-frames are told by pts that can be trusted.

        They must differ, put some frame before an earlier packet's, and none across a restart.
        """
        if self.frames < self.packets or None in self.times or len(set(self.times)) < self.packets:
            return {}
        packets_in_order = np.argsort(np.array(self.times))
        stretches = np.searchsorted(self.restarts, packets_in_order, side="right")
        if (np.diff(packets_in_order) > 0).all() or (np.diff(stretches) < 0).any():
            return {}
        return {self.times[packet]: number for number, packet in enumerate(packets_in_order.tolist())}


def read_index(container: Any, stream: Any) -> Index:
    index, size, codec = Index(), 0, stream.codec_context.name
    for packet in packets(container, stream):
        if index.packets and packet.is_keyframe and restarts_decoder(stream.codec_context, packet):
            index.restarts.append(index.packets)
        index.packets += 1
        index.frames += not packet.is_discard and (codec != "vp8" or bool(bytes(packet)[0] & SHOWN))
        index.times.append(packet.pts)
        size += packet.size
        if size > HELD_BYTES:
            index.held = None
        if index.held is not None:
            index.held.append(packet)
    if index.frames < index.packets:
        index.restarts = [0]
    return index


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """The packets with data, up to the end or to where the file is cut off."""
    with contextlib.suppress(av.FFmpegError):
        yield from (packet for packet in container.demux(stream) if packet.size)


def restarts_decoder(context: Any, packet: Any) -> bool:
    if context.name not in RESTARTING or (context.name == "mpeg4" and context.reorder_depth):
        return False  # an MPEG-4 B-frame after a key frame may refer to the frame before it
    if context.name not in IDR_TYPES:
        return True
    return first_picture_type(bytes(packet), context.name, context.extradata or b"") in IDR_TYPES[context.name]


def first_picture_type(data: bytes, codec: str, extradata: bytes) -> int | None:
    """The type of the first NAL unit with picture data. Units follow start codes or, if extradata says so, a length."""
    pictures, shift, mask = (range(1, 6), 0, 0x1F) if codec == "h264" else (range(32), 1, 0x3F)
    with_lengths = extradata[:1] == b"\x01"
    length_size = (extradata[4 if codec == "h264" else 21] & 3) + 1 if with_lengths else 0
    position = 0
    while True:
        if with_lengths:
            unit = position + length_size
            position = unit + int.from_bytes(data[position:unit], "big")
        elif (found := data.find(b"\x00\x00\x01", position)) >= 0:
            position = unit = found + 3
        else:
            return None
        if unit >= len(data):
            return None
        if (kind := data[unit] >> shift & mask) in pictures:
            return kind


# --- frames -----------------------------------------------------------------------------------------------------------


def stretch(numbered: Iterator[tuple[int, Any]], start: int, stop: int) -> Iterator[Any]:
    """The packets from `start` to before `stop`, then None, which asks the decoder for the frames that it held back."""
    for place, packet in numbered:
        if place >= start:
            yield packet
        if place >= stop - 1:
            break
    yield None


def decode(
    context: Any, source: Iterable[Any], groups: list[tuple[int, int]], wanted: np.ndarray, shown: dict[int, int]
) -> Iterator[tuple[int, Any]]:
    """(number, frame) from each group's start to its last wanted frame, going on after damaged packets.

    Frames are counted as they come. With `shown`, B-frames that are not wanted and that no other frame needs are left
    out, and `shown` tells the numbers of the others: the end comes early where these do not ascend.
    """
    numbered, chosen = enumerate(source), set(wanted.tolist())
    for start, stop in groups:
        number, last = start, wanted[wanted < stop][-1]
        context.flush_buffers()
        for packet in stretch(numbered, start, stop):
            if shown and packet is not None:
                context.skip_frame = "DEFAULT" if shown[packet.pts] in chosen else "NONREF"
            for frame in decoded(context, packet):
                if shown:
                    if shown.get(frame.pts, -1) < number:
                        return
                    number = shown[frame.pts]
                yield number, frame
                number += 1
            if number > last:
                break


@contextlib.contextmanager
def replay(path: str, stream: Any, index: Index) -> Iterator[tuple[Any, Iterable[Any]]]:
    """The codec context and the packets for a second pass: those in memory, or the file opened anew."""
    if index.held is not None:
        yield stream.codec_context, index.held
        return
    with opened(path) as (container, again):
        yield again.codec_context, packets(container, again)


def clips(path: str, frames: int, interval: int, size: int, views: int) -> np.ndarray:
    """The clips of one video, uint8 (V, T, H, W, 3).

    Decoding begins at the restarts before the wanted frames and leaves out what it can. Where frames that the packets
    promised do not come, the whole file is decoded, and if need be again, choosing among the frames that it really has.
    """
    count, lean = None, True
    for _ in range(3):
        with opened(path) as (container, stream):
            index = read_index(container, stream)
            count = index.frames if count is None else count
            if not count:
                break
            numbers_VT = choose(count, frames, interval, views)
            wanted, places = np.unique(numbers_VT, return_inverse=True)
            pixels_UHWC, decoded = collect(path, stream, index, wanted, size, lean)
        if len(pixels_UHWC) == len(wanted):
            return pixels_UHWC[places.reshape(numbers_VT.shape)]
        count, lean = None if lean else decoded, False
    raise UnusableVideo("no frame could be decoded")


def collect(path: str, stream: Any, index: Index, wanted: np.ndarray, size: int, lean: bool) -> tuple[np.ndarray, int]:
    """The wanted frames as far as they came, uint8 (U, H, W, 3), and the number after the last frame's."""
    pixels_UHWC = np.empty((len(wanted), size, size, 3), np.uint8)
    reformatter = VideoReformatter()  # keeps its tables, which a frame's own `reformat` computes for every frame
    filled, number = 0, -1
    groups = index.groups(wanted) if lean else [(0, index.packets)]
    shown = index.shown() if lean and stream.codec_context.name in SKIPPING else {}
    with replay(path, stream, index) as (context, source):
        for number, frame in decode(context, source, groups, wanted, shown):
            if filled < len(wanted) and number == wanted[filled]:
                square(frame, reformatter, pixels_UHWC[filled])
                filled += 1
    return pixels_UHWC[:filled], number + 1


def frames(path: str, every: int, limit: int | None) -> Iterator[np.ndarray]:
    """Every `every`-th frame of a video at its own size, turned upright, uint8 (H, W, 3).

    Damaged packets are passed over; all frames have the first one's size, whatever comes later in the stream.
    """
    with opened(path) as (container, stream):
        reformatter, number, size = VideoReformatter(), 0, None
        for packet in itertools.chain(packets(container, stream), [None]):
            for frame in decoded(stream.codec_context, packet):
                size = size or (frame.width, frame.height)
                if limit is not None and number >= limit * every:
                    return
                if number % every == 0:
                    step, turns = orientation(frame)
                    yield np.rot90(np.dstack(planes(frame, reformatter, *size))[::step], turns)
                number += 1
    if not number:
        raise UnusableVideo("no frame could be decoded")


def decoded(context: Any, packet: Any) -> list[Any]:
    """A packet's frames, none where it is damaged."""
    try:
        return list(context.decode(packet))
    except av.FFmpegError:
        return []


def probe(path: str) -> dict[str, Any]:
    """What `vidistill.tasks.videos.decoder.Probe` holds."""
    with opened(path) as (container, stream):
        index = read_index(container, stream)
        with replay(path, stream, index) as (context, source):
            everything = decode(context, source, [(0, index.packets)], np.array([0]), {})
            frame = next((frame for _, frame in everything), None) if index.packets else None
        if frame is None:
            raise UnusableVideo("no frame could be decoded")
        turned = round(frame.rotation / 90) % 2
        ticks = stream.duration and stream.duration * stream.time_base
        duration = ticks or (container.duration and container.duration / av.time_base)
        return {
            "width": frame.height if turned else frame.width,
            "height": frame.width if turned else frame.height,
            "rotation": -90 * round(frame.rotation / 90) % 360,
            "frames": index.frames,
            "fps": float(stream.average_rate) if stream.average_rate else None,
            "duration_seconds": float(duration) if duration else None,
            "codec": stream.codec_context.name,
        }
