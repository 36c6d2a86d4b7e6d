from __future__ import annotations

import itertools
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidistill.storage.errors import RunError
from vidistill.tasks.videos import decoder as decoder_module
from vidistill.tasks.videos import frames, pictures
from vidistill.tasks.videos.decoder import Decoder, Probe, Sampling, VideoError, borrowed

ONE_FRAME = Sampling(frames=1, interval=1, size=32)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(timeout_seconds=30) as decoder:
        yield decoder


def render(path: Path, count: int, codec: str = "libx264", size: tuple[int, int] = (96, 64), **options: str) -> Path:
    """A video whose frame k has the grey level 40 + 2k at the bottom right, and moving noise at the left."""
    blocks = np.random.default_rng(0).integers(0, 256, (size[1] // 8 + 1, size[0] // 20 + 1, 3), np.uint8)
    noise = blocks.repeat(8, 0).repeat(8, 1)[: size[1], : size[0] * 2 // 5]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv444p" if codec == "ffv1" else "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.thread_count = 1
        for number in range(count):
            picture = np.full((size[1], size[0], 3), 40 + 2 * number, np.uint8)
            picture[:, : noise.shape[1]] = np.roll(noise, (number, 2 * number), (0, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    return path


def numbers_of(clips_VTHWC: np.ndarray) -> np.ndarray:
    """Which frames of `render` these are, (V, T), to within the half level that limited-range luma loses."""
    middle = clips_VTHWC.shape[2] // 2
    return (clips_VTHWC[:, :, middle:, middle:].mean((2, 3, 4)) - 40) / 2


def every_frame(path: Path, size: int) -> np.ndarray:
    """All frames, decoded from the first packet to the last by libav's plain loop."""
    with frames.opened(str(path)) as (container, stream):
        squares, reformatter = [], frames.VideoReformatter()
        for packet in container.demux(stream):
            for frame in packet.decode():
                squares.append(np.empty((size, size, 3), np.uint8))
                pictures.square(frame, reformatter, squares[-1])
    return np.stack(squares)


def assert_same_as_decoding_everything(path: Path, sampling: Sampling) -> None:
    frames_NHWC = every_frame(path, sampling.size)
    numbers_VT = frames.choose(len(frames_NHWC), sampling.frames, sampling.interval, sampling.views)
    clips = frames.clips(str(path), **sampling.model_dump())
    np.testing.assert_array_equal(clips, frames_NHWC[numbers_VT], err_msg=path.name)


# --- which frames -----------------------------------------------------------------------------------------------------


def test_first_clip_is_the_centre_and_the_next_lie_between() -> None:
    numbers_VT = frames.choose(count=101, frames=16, interval=4, views=4)
    assert numbers_VT[:, 0].tolist() == [20, 10, 30, 5]
    assert (np.diff(numbers_VT, axis=1) == 4).all()


@pytest.mark.parametrize("count", [1, 15, 16, 61, 62, 500])
def test_more_views_keep_the_earlier_ones_and_stay_inside(count: int) -> None:
    many = frames.choose(count, 16, 4, 9)
    np.testing.assert_array_equal(frames.choose(count, 16, 4, 3), many[:3])
    assert many.min() >= 0
    assert many.max() < count


def test_a_short_video_is_spread_evenly_with_its_first_and_last_frame() -> None:
    assert frames.choose(4, 8, 4, 1).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]]
    assert frames.choose(60, 16, 4, 2)[1, [0, -1]].tolist() == [0, 59]


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        ("libx264", ".mp4", {"g": "12"}),
        ("libx264", ".ts", {"g": "12"}),
        ("libx264", ".mkv", {"g": "12", "x264-params": "open-gop=1:bframes=3:keyint=12"}),
        ("libx265", ".mp4", {"x265-params": "keyint=12:log-level=none:open-gop=0"}),
        ("libx265", ".mkv", {"x265-params": "keyint=12:log-level=none:open-gop=1"}),
        ("libvpx-vp9", ".webm", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "12"}),
        ("libvpx", ".webm", {"g": "12"}),
        ("libsvtav1", ".mp4", {"g": "12"}),
        ("mpeg4", ".avi", {"g": "12"}),
        ("mpeg4", ".avi", {"g": "12", "bf": "2"}),
        ("mpeg2video", ".ts", {"g": "12", "bf": "2"}),
        ("mjpeg", ".avi", {}),
        ("ffv1", ".mkv", {"g": "12"}),
    ],
)
def test_each_codec_gives_the_frames_of_decoding_everything(
    tmp_path: Path, codec: str, suffix: str, options: dict[str, str]
) -> None:
    path = render(tmp_path / f"video{suffix}", 80, codec, **options)
    for sampling in (Sampling(size=32), Sampling(frames=4, interval=3, size=32, views=5)):
        assert_same_as_decoding_everything(path, sampling)


def test_packets_of_vp8_that_show_nothing_are_no_frames(tmp_path: Path) -> None:
    """Alternate references, which libvpx makes in a second pass: here every tenth packet is told to be one."""
    with (
        av.open(str(render(tmp_path / "plain.webm", 80, "libvpx", g="12"))) as plain,
        av.open(str(tmp_path / "hidden.webm"), "w") as hidden,
    ):
        stream = hidden.add_stream_from_template(plain.streams.video[0])
        for number, packet in enumerate(packet for packet in plain.demux(video=0) if packet.size):
            data = bytearray(bytes(packet))
            data[0] &= 0xFF ^ frames.SHOWN * (number % 10 == 7)
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            hidden.mux(copy)
    assert frames.probe(str(tmp_path / "hidden.webm"))["frames"] == 72
    for sampling in (Sampling(size=32), Sampling(frames=4, interval=3, size=32, views=5)):
        assert_same_as_decoding_everything(tmp_path / "hidden.webm", sampling)


def test_the_numbers_are_those_of_the_rendered_frames(tmp_path: Path, decoder: Decoder) -> None:
    path = render(tmp_path / "video.mp4", 80, g="12", qp="4")
    expected = frames.choose(80, 16, 4, 3)
    np.testing.assert_allclose(numbers_of(decoder.clips(path, Sampling(views=3))), expected, atol=0.6)


def test_an_open_group_of_pictures_is_no_restart(tmp_path: Path) -> None:
    for name, options, restarts in (
        ("open.mkv", "open-gop=1:bframes=3:keyint=12:scenecut=0", 1),
        ("closed.mkv", "open-gop=0:bframes=3:keyint=12:scenecut=0", 7),
    ):
        path = render(tmp_path / name, 80, **{"x264-params": options})
        with frames.opened(str(path)) as (container, stream):
            index = frames.read_index(container, stream)
        assert len(index.restarts) == restarts
        assert sum(packet.is_keyframe for packet in index.held) == 7


def test_decoding_begins_at_the_key_frame_before_the_first_wanted_frame(tmp_path: Path) -> None:
    path = render(tmp_path / "video.mp4", 80, g="10", keyint_min="10", sc_threshold="0")
    with frames.opened(str(path)) as (container, stream):
        index = frames.read_index(container, stream)
        groups = index.groups(np.array([35, 36, 71]))
        decoded = frames.decode(stream.codec_context, index.held, groups, np.array([35, 36, 71]), {})
        numbers = [number for number, _ in decoded]
    assert groups == [(30, 40), (70, 80)]
    assert {35, 36, 71} <= set(numbers)
    assert len(numbers) < 20


def test_a_file_too_large_to_hold_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = render(tmp_path / "video.mp4", 80, g="12")
    sampling = Sampling(size=32, views=3)
    held = frames.clips(str(path), **sampling.model_dump())
    monkeypatch.setattr(frames, "HELD_BYTES", 100)
    np.testing.assert_array_equal(frames.clips(str(path), **sampling.model_dump()), held)


def test_variable_frame_rate_counts_frames_not_time(tmp_path: Path, decoder: Decoder) -> None:
    path = tmp_path / "vfr.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 40 + 2 * number, np.uint8))
            frame.pts, frame.time_base = number * 20 if number < 20 else number * 500, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    numbers = numbers_of(decoder.clips(path, Sampling(frames=10, interval=3, size=32)))
    np.testing.assert_allclose(numbers, frames.choose(30, 10, 3, 1), atol=0.6)


# --- which pixels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (98, 70), (16, 16), (400, 20)])
def test_the_short_side_is_scaled_and_the_middle_kept(tmp_path: Path, decoder: Decoder, size: tuple[int, int]) -> None:
    from PIL import Image

    path = render(tmp_path / "video.mp4", 1, size=size, qp="0")
    clip = decoder.clips(path, ONE_FRAME)
    with av.open(str(path)) as container:
        picture = next(container.decode(video=0)).to_image()
    width, height = (round(side * 32 / min(size)) for side in size)
    left, top = (width - 32) // 2, (height - 32) // 2
    expected = picture.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 32, top + 32))
    assert clip.shape == (1, 1, 32, 32, 3)
    assert clip.dtype == np.uint8
    assert np.abs(clip[0, 0].astype(int) - np.asarray(expected).astype(int)).mean() < 4


def test_planes_hold_the_pixels_that_rgb24_would_where_it_scales(tmp_path: Path) -> None:
    path = render(tmp_path / "video.mp4", 1, size=(98, 70))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        reformatter = frames.VideoReformatter()
        rgb = reformatter.reformat(frame, 45, 32, "rgb24", interpolation=pictures.SCALING, threads=1).to_ndarray()
        square = np.empty((32, 32, 3), np.uint8)
        pictures.square(frame, frames.VideoReformatter(), square)
    np.testing.assert_array_equal(square, rgb[:, 6:38])


def test_whole_frames_have_the_pixels_of_clips(decoder: Decoder, tmp_path: Path) -> None:
    path = render(tmp_path / "video.mp4", 2, size=(64, 64))
    (clip_THWC,) = decoder.clips(path, Sampling(frames=2, interval=1, size=64))
    np.testing.assert_array_equal(np.stack(list(decoder.frames(path))), clip_THWC)


# --- files that break loaders -----------------------------------------------------------------------------------------

UNUSABLE = {
    "audio_only.mp4": "no video stream (only audio)",
    "garbage.mp4": "not a video file",
    "no_moov.mp4": "an MP4 without an index (moov atom): cut off, or never finished",
    "one_byte.avi": "not a video file",
    "text_not_video.mp4": "not a video file",
    "truncated_avi_header_only.avi": "an AVI that is cut off within its header",
    "zero_length.mp4": "the file is empty",
}
# name: codec, size as displayed, degrees clockwise, packets
USABLE = {
    "bitflips.avi": ("mpeg4", (320, 240), 0, 167),
    "corrupted_nal.mp4": ("h264", (1280, 720), 0, 50),
    "fps1.mp4": ("h264", (170, 128), 0, 5),
    "fps120.mp4": ("h264", (170, 128), 0, 48),
    "gray.mkv": ("ffv1", (170, 128), 0, 48),
    "midstream_resolution_change.ts": ("h264", (170, 128), 0, 48),
    "mjpeg.avi": ("mjpeg", (170, 128), 0, 48),
    "odd_size_169x127_ffv1.avi": ("ffv1", (169, 127), 0, 48),
    "one_frame.mp4": ("h264", (170, 128), 0, 1),
    "portrait_64x240.mp4": ("h264", (64, 240), 0, 48),
    "single_keyframe_gop.mp4": ("h264", (170, 128), 0, 48),
    "start_time_10s.mkv": ("h264", (170, 128), 0, 48),
    "three_frames.mp4": ("h264", (170, 128), 0, 3),
    "tiny_16x16.mp4": ("h264", (16, 16), 0, 48),
    "truncated_avi_half.avi": ("mpeg4", (320, 240), 0, 85),
    "truncated_faststart_half.mp4": ("h264", (170, 128), 0, 23),
    "v_space and ünïcode (HQ)!.mp4": ("h264", (170, 128), 0, 63),
    "vfr.mp4": ("h264", (170, 128), 0, 48),
    "vp9.webm": ("vp9", (170, 128), 0, 48),
    "wrong_extension_avi_as.mp4": ("mpeg4", (320, 240), 0, 167),
    "rotated/video_90.mov": ("h264", (320, 568), 90, 3),
    "rotated/video_180.mov": ("h264", (568, 320), 180, 3),
    "hmdb51/(HQ)_Rock_Climbing_-_Free_Solo_Speed_Climb_-_Dan_Osman_climb_f_cm_np1_le_med_2.avi": (
        "mpeg4", (320, 240), 0, 243,
    ),
    "hmdb51/6arrowswithin30seconds_shoot_bow_f_nm_np1_fr_med_3.avi": ("mpeg4", (320, 240), 0, 82),
    "hmdb51/AdvancedBoxingTechniquesandExercises_punch_u_nm_np1_ba_med_23.avi": ("mpeg4", (320, 240), 0, 173),
    "hmdb51/BaseballHitinSlowMotion_swing_baseball_f_nm_np1_fr_bad_0.avi": ("mpeg4", (424, 240), 0, 141),
    "hmdb51/Golf_Tips_-_Hit_The_Driver_300+_Yards!!!_golf_f_nm_np1_fr_med_0.avi": ("mpeg4", (320, 240), 0, 90),
}  # fmt: skip


def test_every_odd_file_has_its_expected_outcome(data_root: Path) -> None:
    odd = data_root / "odd"
    assert {str(path.relative_to(odd)) for path in odd.rglob("*.*") if path.is_file()} == {*UNUSABLE, *USABLE}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_file_says_why(data_root: Path, decoder: Decoder, name: str) -> None:
    for ask in (decoder.probe, lambda path: decoder.clips(path, Sampling())):
        with pytest.raises(VideoError) as error:
            ask(data_root / "odd" / name)
        assert str(error.value) == UNUSABLE[name]


@pytest.mark.parametrize("name", USABLE)
def test_an_odd_file_is_decoded(data_root: Path, decoder: Decoder, name: str) -> None:
    probe = decoder.probe(data_root / "odd" / name)
    assert (probe.codec, (probe.width, probe.height), probe.rotation, probe.frames) == USABLE[name]
    clips = decoder.clips(data_root / "odd" / name, Sampling(size=64, views=2))
    assert clips.shape == (2, 16, 64, 64, 3)
    assert clips.std() > 10


def odd_clip(data_root: Path, name: str) -> np.ndarray:
    return frames.clips(str(data_root / "odd" / name), 16, 4, 64, 1)[0]


@pytest.mark.parametrize("name", ["start_time_10s.mkv", "vfr.mp4", "vp9.webm", "fps120.mp4", "mjpeg.avi"])
def test_the_same_scene_looks_the_same_in_other_containers(data_root: Path, name: str) -> None:
    difference = np.abs(odd_clip(data_root, name).astype(int) - odd_clip(data_root, "single_keyframe_gop.mp4"))
    assert difference.mean() < 5


def test_gray_gives_three_equal_channels(data_root: Path) -> None:
    gray = odd_clip(data_root, "gray.mkv").astype(int)
    assert np.ptp(gray, axis=-1).max() <= 1
    assert np.abs(gray - odd_clip(data_root, "single_keyframe_gop.mp4").mean(-1, keepdims=True)).mean() < 8


def test_a_size_change_in_mid_stream_keeps_the_picture(data_root: Path) -> None:
    clip = odd_clip(data_root, "midstream_resolution_change.ts").astype(int)
    assert np.abs(np.diff(clip, axis=0)).mean(axis=(1, 2, 3)).max() < 25


def test_a_damaged_file_gives_the_frames_that_it_has(data_root: Path) -> None:
    three = odd_clip(data_root, "three_frames.mp4")
    assert len(np.unique(three.reshape(16, -1), axis=0)) == 3
    assert len(np.unique(odd_clip(data_root, "truncated_faststart_half.mp4").reshape(16, -1), axis=0)) == 16
    assert len(np.unique(odd_clip(data_root, "one_frame.mp4").reshape(16, -1), axis=0)) == 1


@pytest.mark.parametrize(("name", "turns"), [("video_90.mov", 3), ("video_180.mov", 2)])
def test_the_display_rotation_is_applied(data_root: Path, name: str, turns: int) -> None:
    path = data_root / "odd" / "rotated" / name
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24", width=114, height=64)
    upright = np.rot90(stored[:, 25:89], turns)
    assert np.abs(odd_clip(data_root, f"rotated/{name}")[0].astype(int) - upright).mean() < 3


MATRICES = list(itertools.product((-1, 1), (-1, 1), (False, True)))
"""What a display matrix may do: the signs of x and y, and whether they change places."""


@pytest.mark.parametrize(("across", "down", "swapped"), MATRICES)
def test_frames_are_shown_as_their_display_matrix_says(tmp_path: Path, across: int, down: int, swapped: bool) -> None:
    """(x, y) is shown at (ax + cy, bx + dy) for the matrix a, b, 0, c, d, 0 … of an MP4's track header."""
    a, b, c, d = (0, across, down, 0) if swapped else (across, 0, 0, down)
    levels = {(-1, -1): 30, (1, -1): 90, (-1, 1): 150, (1, 1): 210}
    picture = np.zeros((64, 96, 3), np.uint8)
    for (x, y), level in levels.items():
        picture[32 * (y > 0) :, 48 * (x > 0) :] = level
    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    data = bytearray((tmp_path / "video.mp4").read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    (tmp_path / "video.mp4").write_bytes(data)
    expected = [[0, 0], [0, 0]]
    for (x, y), level in levels.items():
        expected[b * x + d * y > 0][a * x + c * y > 0] = level
    (whole,) = frames.frames(str(tmp_path / "video.mp4"), 1, None)
    for shown in (frames.clips(str(tmp_path / "video.mp4"), 1, 1, 32, 1)[0, 0], whole):
        corners = [[shown[y, x].mean() for x in (4, -4)] for y in (4, -4)]
        assert np.abs(np.array(corners) - expected).max() < 8
    assert whole.shape == ((96, 64, 3) if swapped else (64, 96, 3))


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [("libx264", ".mp4", {"x264-params": "interlaced=1:tff=1"}), ("mpeg2video", ".mpg", {"flags": "+ildct+ilme"})],
)
def test_an_interlaced_frame_is_seen_as_its_upper_field(
    tmp_path: Path, codec: str, suffix: str, options: dict[str, str]
) -> None:
    """A bar that has moved by its width when the lower field is taken is one bar, not a comb of two."""
    picture = np.full((128, 128, 3), 20, np.uint8)
    picture[0::2, 40:56] = picture[1::2, 56:72] = 235
    with av.open(str(tmp_path / f"video{suffix}"), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 128, 128, "yuv420p", 8_000_000
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    (whole,) = frames.frames(str(tmp_path / f"video{suffix}"), 1, None)
    assert whole.shape == (128, 128, 3)
    for shown in (frames.clips(str(tmp_path / f"video{suffix}"), 1, 1, 64, 1)[0, 0], whole):
        left, right = (slice(x * len(shown) // 128, (x + 8) * len(shown) // 128) for x in (44, 60))
        assert shown[:, left].min() > 180
        assert shown[:, right].max() < 80


def test_folders_missing_and_forbidden_files_are_named(tmp_path: Path, decoder: Decoder) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(VideoError, match="a folder, not a video file"):
        decoder.clips(tmp_path / "folder.mp4", Sampling())
    with pytest.raises(VideoError, match="no such file"):
        decoder.clips(tmp_path / "missing.mp4", Sampling())


def test_names_are_bytes_and_not_addresses(tmp_path: Path, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    video = render(tmp_path / "video.mp4", 3).read_bytes()
    monkeypatch.chdir(tmp_path)
    with Decoder() as in_this_folder:
        for name in (b"latin-\xe9.mp4", b"http:%03d.mp4", b"line\nbreak.mp4", b"-i.mp4"):
            path = Path(os.fsdecode(name))
            path.write_bytes(video)
            assert in_this_folder.clips(path, ONE_FRAME).shape == (1, 1, 32, 32, 3)


def test_a_file_without_any_decodable_frame(tmp_path: Path, decoder: Decoder) -> None:
    path = render(tmp_path / "video.avi", 5, "mpeg4")
    data = bytearray(path.read_bytes())
    begin = data.index(b"movi") + 4
    data[begin:] = b"\0" * (len(data) - begin)
    path.write_bytes(data)
    with pytest.raises(VideoError, match="no frame could be decoded"):
        decoder.clips(path, Sampling())


@pytest.mark.parametrize("folder", ["ucf101_raw", "ucf101_10"])
def test_real_clips_are_those_of_decoding_everything(data_root: Path, folder: str) -> None:
    paths = [path for path in sorted((data_root / folder).rglob("*")) if path.suffix in {".avi", ".mp4"}]
    for path in paths if folder == "ucf101_raw" else paths[::9]:
        assert_same_as_decoding_everything(path, Sampling(size=64, views=3))


# --- the child process ------------------------------------------------------------------------------------------------


def test_probe(tmp_path: Path, decoder: Decoder) -> None:
    probe = decoder.probe(render(tmp_path / "video.mp4", 50))
    assert probe == Probe(width=96, height=64, rotation=0, frames=50, fps=25.0, duration_seconds=2.0, codec="h264")


def test_a_hang_costs_one_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hang.mp4")  # opening it waits for a writer that never comes
    good = render(tmp_path / "good.mp4", 3)
    with Decoder(timeout_seconds=1) as decoder:
        begin = time.monotonic()
        with pytest.raises(VideoError, match="longer than 1 s"):
            decoder.clips(tmp_path / "hang.mp4", ONE_FRAME)
        assert time.monotonic() - begin < 10
        assert decoder.clips(good, ONE_FRAME).shape == (1, 1, 32, 32, 3)


def test_a_stopped_child_costs_one_video(tmp_path: Path) -> None:
    good = render(tmp_path / "good.mp4", 3)
    with Decoder(timeout_seconds=1) as decoder:
        decoder.clips(good, ONE_FRAME)
        os.kill(decoder._child.pid, signal.SIGSTOP)
        with pytest.raises(VideoError, match="longer than 1 s"):
            decoder.clips(good, ONE_FRAME)
        assert decoder.clips(good, ONE_FRAME).shape == (1, 1, 32, 32, 3)


def test_a_crash_costs_one_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "busy.mp4")
    good = render(tmp_path / "good.mp4", 3)
    with Decoder(timeout_seconds=30) as decoder:
        decoder.clips(good, ONE_FRAME)
        threading.Timer(0.5, os.kill, (decoder._child.pid, signal.SIGKILL)).start()
        with pytest.raises(VideoError, match="the decoder crashed"):
            decoder.clips(tmp_path / "busy.mp4", ONE_FRAME)
        assert decoder.clips(good, ONE_FRAME).shape == (1, 1, 32, 32, 3)


def test_a_child_that_died_between_two_videos_costs_none(tmp_path: Path) -> None:
    good = render(tmp_path / "good.mp4", 3)
    with Decoder() as decoder:
        decoder.clips(good, ONE_FRAME)
        os.kill(decoder._child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, decoder._child.pid, os.WEXITED | os.WNOWAIT)
        assert decoder.clips(good, ONE_FRAME).shape == (1, 1, 32, 32, 3)


PARENT = """
import os, sys, threading
from pathlib import Path
from vidistill.tasks.videos.decoder import Decoder, Sampling
decoder = Decoder(timeout_seconds=1)
decoder.probe(Path(sys.argv[1]))
print(decoder._child.pid, flush=True)
if len(sys.argv) > 2:
    threading.Timer(0.2, os._exit, (0,)).start()
    decoder.probe(Path(sys.argv[2]))
os._exit(0)
"""


def test_a_borrowed_decoder_serves_again_and_not_after_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(decoder_module, "IDLE_SECONDS", 1.0)
    with borrowed(7.0) as first, borrowed(7.0) as second:
        assert first is not second
    timers = dict(decoder_module._idle)
    with borrowed(7.0) as third, borrowed(8.0) as fourth:
        assert third in {first, second}
        assert fourth not in {first, second}
        assert timers[third].finished.is_set(), "the end of its idle time comes while it is at work"
    with pytest.raises(ZeroDivisionError), borrowed(9.0) as failed:
        _ = 1 / 0
    with borrowed(9.0) as other:
        assert other is not failed
    deadline = time.monotonic() + 10
    while {first, second, fourth} & set(decoder_module._idle):
        assert time.monotonic() < deadline, "decoders that nobody needs do not end"
        time.sleep(0.1)


@pytest.mark.parametrize("hanging", [False, True])
def test_the_child_does_not_outlive_its_parent(tmp_path: Path, hanging: bool) -> None:
    arguments = [render(tmp_path / "good.mp4", 3)]
    if hanging:
        arguments.append(tmp_path / "hang.mp4")
        os.mkfifo(arguments[-1])
    done = subprocess.run([sys.executable, "-c", PARENT, *arguments], capture_output=True, text=True, check=True)
    assert not done.stderr
    deadline = time.monotonic() + 20
    while is_running(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_damaged_files_leave_the_terminal_alone(data_root: Path) -> None:
    code = "import sys\nfrom vidistill.tasks.videos.decoder import *\nDecoder().clips(sys.argv[1], Sampling())"
    for name in ("bitflips.avi", "truncated_faststart_half.mp4"):
        command = [sys.executable, "-c", code, str(data_root / "odd" / name)]
        done = subprocess.run(command, capture_output=True, check=True)
        assert (done.stdout, done.stderr) == (b"", b"")


def test_the_parent_never_imports_libav() -> None:
    code = "import sys, vidistill.tasks.videos.decoder; print({'av', 'torch', 'prefect', 'cv2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_child_that_cannot_start_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text("import no_such_module")
    monkeypatch.setattr("vidistill.tasks.videos.decoder.CHILD", tmp_path / "child.py")
    with pytest.raises(RunError, match="did not start"):
        Decoder().probe(tmp_path / "video.mp4")
