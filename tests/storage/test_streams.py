from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from held import peak_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidistill.storage import streams
from vidistill.storage.errors import ArtifactDamaged, RequestError, RunError, StoreError
from vidistill.storage.planes import scaled, to_planes, to_rgb
from vidistill.storage.streams import CODECS, Codec, Stream, decode, encode, units

QUICK = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def moving(n: int, t: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    """Smooth colours that drift."""
    time, y, x, _ = np.mgrid[0:t, 0:h, 0:w, 0:3].astype(float)
    phase = np.random.default_rng(seed).uniform(0, 6, (n, 1, 1, 1, 3))
    waves = np.sin((x + 2 * time) / 9 + phase) + np.cos((y - time) / 7 + phase)
    return np.round((waves + 2) * 63).astype(np.uint8)


def kinds(n: int, t: int, h: int, w: int, kind: str, seed: int) -> np.ndarray:
    if kind == "noise":
        return np.random.default_rng(seed).integers(0, 256, (n, t, h, w, 3), dtype=np.uint8)
    if kind == "moving":
        return moving(n, t, h, w, seed)
    return np.full((n, t, h, w, 3), {"black": 0, "white": 255}[kind], dtype=np.uint8)


shapes = st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 70), st.integers(1, 70))


@QUICK
@given(shapes, st.sampled_from(["black", "white", "noise", "moving"]), st.integers(0, 99))
def test_any_clips_come_back_in_their_shape_and_near_their_colours(shape, kind, seed):
    clips = kinds(*shape, kind, seed)
    stream = Stream.from_bytes(encode(clips, crf=20, preset=10).to_bytes())
    found = decode(stream)
    assert found.shape == clips.shape
    assert found.dtype == np.uint8
    if len(clips) and kind != "noise":
        assert np.abs(found.astype(int) - clips).mean() < (6 if kind == "moving" else 1.01)


@QUICK
@given(st.integers(0, 10**9), st.integers(1, 7), st.booleans())
def test_a_stream_that_was_cut_or_flipped_is_named(place, bit, cut):
    data = small().to_bytes()
    place %= len(data)
    broken = data[:place] if cut else data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]
    with pytest.raises((ArtifactDamaged, StoreError)) as raised:
        decode(Stream.from_bytes(broken))
    assert str(raised.value).count(".") == 1 or place == 4
    assert type(raised.value) is ArtifactDamaged or place == 4  # the version's byte


def small() -> Stream:
    return encode(moving(2, 3, 18, 21), crf=50, preset=10)


def test_bytes_that_follow_are_named():
    with pytest.raises(ArtifactDamaged, match="2 bytes follow"):
        Stream.from_bytes(small().to_bytes() + b"ab")


def test_a_newer_version_is_refused_in_one_sentence():
    data = small().to_bytes()
    with pytest.raises(
        StoreError, match=r"are of version 2, and this vidistill reads versions up to 1: install a newer"
    ):
        Stream.from_bytes(data[:4] + b"\x02" + data[5:])


@pytest.mark.parametrize("lacking", ["decoder", "encoder"])
def test_a_codec_that_this_pyav_lacks_is_one_sentence(monkeypatch, lacking):
    stream = small()
    for name in CODECS:
        monkeypatch.setitem(CODECS, name, Codec("no-such-encoder", "no-such-decoder"))
    with pytest.raises(RunError, match=rf"lacks no-such-{lacking}.*install"):
        decode(stream) if lacking == "decoder" else small()


def test_vp9_serves_where_av1_cannot_be_written(monkeypatch):
    monkeypatch.setitem(CODECS, "av1", Codec("no-such-encoder", "libdav1d"))
    clips = moving(2, 12, 33, 40)
    stream = Stream.from_bytes(encode(clips, crf=20).to_bytes())
    assert stream.codec == "vp9"
    assert np.abs(decode(stream).astype(int) - clips).mean() < 4
    assert len(units(stream, 1)) >= 12


@pytest.mark.parametrize("name", ["av1", "vp9"])
def test_an_even_quantiser_spends_less_on_the_first_frame(monkeypatch, name):
    if name == "vp9":
        monkeypatch.setitem(CODECS, "av1", Codec("no-such-encoder", "libdav1d"))
    clips = moving(1, 8, 64, 64)
    usual, even = encode(clips, crf=40), encode(clips, crf=40, even=True)
    assert (usual.codec, even.codec) == (name, name)

    def first(stream):
        sizes = [len(unit) for unit in units(stream, 0)]
        return sizes[0] / sum(sizes)

    assert first(even) < first(usual)


@pytest.mark.parametrize("wrong", [{"crf": 0}, {"crf": 64}, {"crf": 50, "preset": 13}])
def test_a_quantiser_that_there_is_not_is_a_wrong_request(wrong):
    with pytest.raises(RequestError, match=f"got crf {wrong['crf']}"):
        encode(moving(1, 2, 16, 16), **wrong)


def test_more_frames_than_a_header_counts_are_a_wrong_request():
    with pytest.raises(RequestError, match="at most 65535 frames; got 65536: keep fewer clips together"):
        encode(np.zeros((1, 65536, 1, 1, 3), np.uint8), crf=50)


def test_the_same_pixels_from_another_process_and_another_number_of_threads(tmp_path):
    stream = encode(moving(3, 8, 57, 56), crf=45)
    (tmp_path / "stream").write_bytes(stream.to_bytes())
    here = hashlib.sha256(decode(stream).tobytes()).hexdigest()
    assert hashlib.sha256(decode(stream, threads=4).tobytes()).hexdigest() == here
    code = (
        "import hashlib, pathlib, sys; from vidistill.storage.streams import Stream, decode; "
        "stream = Stream.from_bytes(pathlib.Path(sys.argv[1]).read_bytes()); "
        "print(hashlib.sha256(decode(stream, 2).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "stream")], capture_output=True, text=True)
    assert done.stdout.strip() == here, done.stderr


STORED = base64.b85decode(
    "Rzy=&0RRL59snW$9snW$0RR914+;$c0007{JvzQb2nZGso&kn2$lPZ+ciS>S5CFV@005o=0BVxvf=Q(Ia#pwDhx<js(alySjighydivH{VD$<r"
    "BLDh^9JXL@`)k6MJcxfozx4SzEhmz__A)6b0sthENgbB}00KS(toQ%`wq0|AB87~r8l^P(Pot4@=(FcLCcR%kG88ZZ1PLSnJ8A#`1ONjm;1w}|"
    "vOpREh%yy01_A+q06S^`00evhSYiO)Sv7UG"
)
"""Four frames of 30×34, coded once."""


def test_what_was_coded_before_gives_the_pixels_of_then():
    found = decode(Stream.from_bytes(STORED))
    assert found.shape == (1, 4, 30, 34, 3)
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == "8cb38b05eb0e26c8"


def test_coarser_is_smaller_and_every_clip_stands_by_itself():
    clips = moving(3, 8, 56, 56)
    fine, coarse = encode(clips, crf=20), encode(clips, crf=55)
    assert len(coarse.to_bytes()) < len(fine.to_bytes())
    alone = Stream(fine.codec, fine.shape_THW, fine.coded_HW, fine.sequence, fine.clips[2:])
    np.testing.assert_array_equal(decode(alone)[0], decode(fine)[2])
    assert encode(clips[2:], crf=20).clips == fine.clips[2:]


def test_odd_sides_are_padded_and_cut_back_and_not_scaled():
    odd = moving(1, 3, 17, 19)
    even = np.pad(odd, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    assert encode(odd, crf=30).clips == encode(even, crf=30).clips
    np.testing.assert_array_equal(decode(encode(odd, crf=30)), decode(encode(even, crf=30))[:, :, :17, :19])


def test_a_long_clip_takes_little_more_memory_than_its_pixels():
    """All clips of a set, one after another, are such a one; of its values as 32 bits there would be many copies."""
    clip_1THWC = np.random.default_rng(0).integers(0, 256, (1, 1500, 32, 32, 3), dtype=np.uint8)
    stream, in_coding = peak_of(lambda: encode(clip_1THWC, 63, 12, 32))
    _, in_decoding = peak_of(lambda: decode(stream))
    assert max(in_coding, in_decoding) < 3.5 * clip_1THWC.nbytes


def test_a_clip_splits_into_a_packet_a_frame():
    stream = encode(moving(2, 9, 56, 56), crf=40)
    assert [len(units(stream, number)) for number in range(2)] == [9, 9]
    assert units(stream, 1)[0].startswith(stream.sequence)


def test_a_smaller_picture_is_scaled_up_again():
    clips = moving(2, 4, 56, 40)
    stream = encode(clips, crf=20, size=28)
    assert stream.coded_HW == (28, 20)
    assert decode(stream).shape == clips.shape
    assert np.abs(decode(stream).astype(int) - clips).mean() < 8
    assert encode(clips, crf=20, size=99).coded_HW == (56, 40)


# Planes


def test_greys_and_even_colours_survive_the_planes():
    greys = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 2, 2, 3))
    np.testing.assert_array_equal(to_rgb(*to_planes(greys)), greys)
    rng = np.random.default_rng(0)
    flat = np.broadcast_to(rng.integers(0, 256, (200, 1, 1, 3), dtype=np.uint8), (200, 4, 6, 3))
    assert np.abs(to_rgb(*to_planes(flat)).astype(int) - flat).max() <= 2


def test_planes_are_those_of_the_standard():
    """BT.601 in full range, in floats."""
    rng = np.random.default_rng(1)
    clip = np.broadcast_to(rng.integers(0, 256, (50, 1, 1, 3), dtype=np.uint8), (50, 2, 2, 3))
    r, g, b = (clip[:, 0, 0, i].astype(float) for i in range(3))
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    y, u, v = to_planes(clip)
    assert np.abs(y[:, 0, 0] - luma).max() <= 0.51
    assert np.abs(u[:, 0, 0] - np.clip(128 + (b - luma) / 1.772, 0, 255)).max() <= 0.51
    assert np.abs(v[:, 0, 0] - np.clip(128 + (r - luma) / 1.402, 0, 255)).max() <= 0.51


def test_colour_is_the_mean_of_two_by_two_pixels():
    clip = np.random.default_rng(2).integers(0, 256, (50, 2, 2, 3), dtype=np.uint8)
    r, g, b = clip.mean(axis=(1, 2)).T
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    _, u, v = to_planes(clip)
    assert np.abs(u[:, 0, 0] - np.clip(128 + (b - luma) / 1.772, 0, 255)).max() <= 0.51
    assert np.abs(v[:, 0, 0] - np.clip(128 + (r - luma) / 1.402, 0, 255)).max() <= 0.51


def test_colour_between_samples_is_linear():
    y, u = np.full((1, 4, 4), 128, np.uint8), np.array([[[128, 128], [228, 228]]], np.uint8)
    blue = to_rgb(y, u, np.full((1, 2, 2), 128, np.uint8))[0, :, :, 2].astype(int)
    np.testing.assert_array_equal(blue, np.clip(128 + np.round(1.772 * np.array([0, 25, 75, 100])), 0, 255)[:, None]
                                  * np.ones((1, 4), int))  # fmt: skip


@QUICK
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_scaling_is_bilinear_between_the_neighbours(h, w, height, width, seed):
    torch = pytest.importorskip("torch")
    clip = np.random.default_rng(seed).integers(0, 256, (2, h, w, 3), dtype=np.uint8)
    found = scaled(clip, height, width)
    x = torch.from_numpy(clip).permute(0, 3, 1, 2).double()
    expected = torch.nn.functional.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    assert np.abs(found - expected.permute(0, 2, 3, 1).numpy()).max() < 2.6


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system has no such scheduling")
def test_coding_leaves_a_thread_s_scheduling_as_it_was(monkeypatch):
    """Root's, that is: others' stays as it is anyway."""
    before, put_back, own = (os.sched_getscheduler(0), os.sched_getparam(0)), [], os.sched_setscheduler
    monkeypatch.setattr(os, "sched_setscheduler", lambda *asked: (put_back.append(asked), own(*asked)))
    encode(moving(1, 2, 16, 16), crf=40)
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before
    assert put_back == [(0, *before)]


@pytest.mark.parametrize("codec", ["av1", "vp9"])
def test_any_player_is_told_the_range_and_the_matrix_of_the_colours(monkeypatch, codec):
    """FFmpeg's numbers: range 2 is full, 0…255; matrix 5 or 6 is BT.601's."""
    if codec == "vp9":
        monkeypatch.setattr(streams, "best_codec", lambda: "vp9")
    stream = encode(moving(1, 3, 24, 32, 0), crf=20, preset=10)
    assert stream.codec == codec
    for frame in streams._frames(stream, 0, 1):
        assert frame.color_range == 2
        assert frame.colorspace in {5, 6}
