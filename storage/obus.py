"""AV1's units (OBUs, its §5.3): a stream keeps them without delimiters and without the header that all clips share."""

from __future__ import annotations

from collections.abc import Iterator

SEQUENCE, DELIMITER, FRAME_HEADER, FRAME = 1, 2, 3, 6  # kinds (§6.2.2)


def obus(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(kind, unit, first byte of its content) of each unit; encoders write every unit with its size."""
    place = 0
    while place < len(data):
        length, begin = leb128_at(data, place + 1 + (data[place] >> 2 & 1))
        yield data[place] >> 3 & 15, data[place : begin + length], data[begin] if length else 0
        place = begin + length


def sequence_of(packet: bytes) -> bytes:
    """The sequence header in a clip's first packet."""
    return next(unit for kind, unit, _ in obus(packet) if kind == SEQUENCE)


def without(data: bytes, sequence: bytes) -> bytes:
    """Units without delimiters and this sequence header."""
    return b"".join(unit for kind, unit, _ in obus(data) if kind != DELIMITER and unit != sequence)


def temporal_units(data: bytes) -> Iterator[bytes]:
    """Units up to each shown frame: one that says `show_frame`, or shows an earlier one (§5.9.2).

    Frames whose tiles come in units of their own are not written by encoders for pictures of this size.
    """
    unit = b""
    for kind, obu, first in obus(data):
        unit += obu
        again, shown = first >> 7, first >> 4 & 1
        if (kind == FRAME and shown) or (kind == FRAME_HEADER and again):
            yield unit
            unit = b""


def leb128(value: int) -> bytes:
    """A number in groups of seven bits, the lowest first; the top bit of a byte says that more follow (§4.10.5)."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def leb128_at(data: bytes, place: int) -> tuple[int, int]:
    """A number, and the place after it.

    Raises:
        IndexError: the data ends within it.
    """
    value = shift = 0
    while data[place] & 128:
        value |= (data[place] & 127) << shift
        place, shift = place + 1, shift + 7
    return value | data[place] << shift, place + 1
