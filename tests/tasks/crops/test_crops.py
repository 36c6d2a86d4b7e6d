"""OptDistill's steps against arithmetic by hand and the boxes that sprites record, by the real detector and CSRT."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vidistill.models import regions
from vidistill.storage.errors import RequestError, TransientError
from vidistill.storage.store import Store
from vidistill.tasks.crops import detect, mosaic, motion, score, track, tracking, training
from vidistill.tasks.crops.detect import Detection
from vidistill.tasks.crops.mosaic import Crop
from vidistill.tasks.crops.pictures import outline
from vidistill.tasks.crops.tracking import TrackParameters, given_weights, open_detector, tracks_job, weights_of
from vidistill.tasks.learning.kinetics import r3d_state
from vidistill.tasks.learning.training import Device
from vidistill.tasks.stage import Runtime, Work
from vidistill.tasks.videos.decode import BlockVideo
from vidistill.tasks.videos.decoder import Decoder, VideoError
from vidistill.tasks.videos.sprites import SpritesParameters, render_clips, write_video

SPRITES = SpritesParameters(size=48, frames=16, train_per_class=12, test_per_class=2)


@pytest.fixture(scope="module")
def rendered() -> list[tuple[str, np.ndarray, np.ndarray]]:
    return [(name, frames_NHWC, boxes_N4) for name, frames_NHWC, boxes_N4, _ in render_clips(SPRITES)]


@pytest.fixture(scope="module")
def trained(rendered) -> detect.Trained:
    torch.set_num_threads(1)
    seen = [(frames[i], tuple(map(float, boxes[i]))) for name, frames, boxes in rendered for i in (0, 5, 10)
            if name.startswith("train")]  # fmt: skip
    parameters = training.DetectorParameters(steps=150, batch_size=16, side=48)
    return detect.Trained(training.fit(seen, parameters), 48, confidence=0.25)


# Decoding


@pytest.fixture
def video(tmp_path: Path) -> tuple[Path, np.ndarray]:
    random = np.random.default_rng(0)
    steps_N111 = (np.arange(12) * 17)[:, None, None, None]
    frames_NHWC = ((steps_N111 + random.integers(0, 40, (1, 24, 36, 3))) % 256).astype(np.uint8)
    write_video(tmp_path / "v.mp4", frames_NHWC)
    return tmp_path / "v.mp4", frames_NHWC


def test_frames_come_whole_and_in_order(video) -> None:
    path, _ = video
    with av.open(str(path)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with Decoder() as decoder:
        got = list(decoder.frames(path))
        third = list(decoder.frames(path, every=3))
        first = list(decoder.frames(path, limit=1))
        assert len(got) == len(every) == 12
        assert max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(got, every, strict=True)) <= 16
        assert np.array_equal(third, got[::3])
        assert np.array_equal(first, got[:1])


def test_a_reader_that_stops_early_does_not_confuse_the_next(video) -> None:
    path, _ = video
    with Decoder() as decoder:
        frames = decoder.frames(path)
        next(frames)
        frames.close()
        assert len(list(decoder.frames(path))) == 12
        assert decoder.probe(path).frames == 12


def test_a_file_that_is_no_video_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with Decoder() as decoder, pytest.raises(VideoError, match="not a video file"):
        list(decoder.frames(tmp_path / "text.mp4"))


def test_a_rotated_video_comes_upright(data_root: Path) -> None:
    rotated = [path for path in sorted((data_root / "odd" / "rotated").iterdir()) if path.is_file()]
    assert rotated
    for path in rotated:
        with Decoder() as decoder:
            probe, (frame_HWC,) = decoder.probe(path), decoder.frames(path, limit=1)
        assert frame_HWC.shape[:2] == (probe.height, probe.width)


# Detect


def found(*boxes: tuple[float, ...], label: str = "person") -> list[Detection]:
    return [Detection(box, label, 1 - 0.1 * i) for i, box in enumerate(boxes)]


FIVE = found(*[(i, i, i + 10.0, i + 10.0) for i in range(5)])


def test_the_papers_rule_draws_three_of_the_wanted_boxes_by_the_seed() -> None:
    others = found((0, 0, 20, 20), label="dog")
    draws = [
        detect.choose_boxes(others + FIVE, ("person",), "paper", np.random.default_rng(seed), (64, 64))
        for seed in range(20)
    ]
    assert {len(draw) for draw in draws} == {3}
    assert {one.label for draw in draws for one in draw} == {"person"}
    assert {one.box for draw in draws for one in draw} == {one.box for one in FIVE}
    again = detect.choose_boxes(others + FIVE, ("person",), "paper", np.random.default_rng(0), (64, 64))
    assert again == draws[0]


def test_the_codes_rule_takes_the_first_two_of_any_label() -> None:
    others = found((0, 0, 20, 20), label="dog")
    chosen = detect.choose_boxes(others + FIVE, ("person",), "code", np.random.default_rng(0), (64, 64))
    assert [one.label for one in chosen] == ["dog", "person"]


def test_boxes_are_cut_at_the_border_and_slivers_left_out() -> None:
    boxes = found((-10, -10, 20, 20), (62, 0, 90, 40), (70, 70, 90, 90))
    (only,) = detect.choose_boxes(boxes, ("person",), "paper", np.random.default_rng(0), (64, 64))
    assert only.box == (0, 0, 20, 20)


def test_a_label_that_the_detector_does_not_know_is_a_wrong_request() -> None:
    with pytest.raises(RequestError, match=r"yolo.pt knows no label 'unicorn': it knows person, dog"):
        detect.check_labels(("unicorn",), ("person", "dog"), "yolo.pt")


def test_average_precision_by_hand() -> None:
    """Ranked 0.9 right, 0.8 wrong, 0.7 right, of three boxes: 1/3·1 + 1/3·2/3."""
    box, far = (0.0, 0.0, 10.0, 10.0), (40.0, 40.0, 50.0, 50.0)
    pictures = [
        ([Detection(box, "t", 0.9), Detection(box, "t", 0.8)], box),
        ([Detection(box, "t", 0.7)], box),
        ([], far),
    ]
    assert training.average_precision(pictures, 0.5) == pytest.approx(1 / 3 + 2 / 9)
    assert training.mean_average_precision(pictures)["map"] == pytest.approx(1 / 3 + 2 / 9)


def test_precision_at_a_recall_is_the_best_there_or_above() -> None:
    """Ranked wrong, right, right, of two boxes: precision 1/2 at the first, 2/3 at the second, hence 2/3 at both."""
    box, far = (0.0, 0.0, 10.0, 10.0), (40.0, 40.0, 50.0, 50.0)
    pictures = [([Detection(far, "t", 0.9), Detection(box, "t", 0.8)], box), ([Detection(box, "t", 0.7)], box)]
    assert training.average_precision(pictures, 0.5) == pytest.approx(2 / 3)


def test_mirrored_boxes_stay_on_their_object() -> None:
    pictures, boxes = np.zeros((40, 3, 32, 32), np.uint8), []
    random = np.random.default_rng(1)
    for picture_CHW in pictures:
        x0, y0 = random.integers(0, 20, 2)
        picture_CHW[:, y0 : y0 + 7, x0 : x0 + 11] = 200
        boxes.append([x0, y0, x0 + 11, y0 + 7])
    for seed in range(8):
        x_BCHW, boxes_B4 = training._augmented(
            torch.from_numpy(pictures), torch.tensor(boxes).float(), np.random.default_rng(seed)
        )
        for x_CHW, box in zip(x_BCHW, boxes_B4.int().tolist(), strict=True):
            rows, columns = np.nonzero(x_CHW[0].numpy())
            assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box


def test_the_trained_detector_finds_unseen_sprites(trained, rendered) -> None:
    unseen = [(frames[i], tuple(map(float, boxes[i]))) for name, frames, boxes in rendered for i in (2, 9)
              if name.startswith("test")]  # fmt: skip
    facts = training.mean_average_precision([(trained.detect(frame), box) for frame, box in unseen])
    assert facts["map50"] > 0.9
    assert facts["map"] > 0.4


def test_detections_are_in_pixels_of_the_frame_whatever_its_size(trained, rendered) -> None:
    _, frames_NHWC, boxes_N4 = rendered[0]
    large_HWC = cv2.resize(frames_NHWC[0], None, fx=3, fy=3)
    (best, *_) = trained.detect(large_HWC)
    assert track.overlap(best.box, tuple(boxes_N4[0] * 3.0)) > 0.6


def test_detections_of_a_frame_that_is_no_square_are_those_of_the_square_it_was(trained, rendered) -> None:
    _, frames_NHWC, _ = rendered[0]
    wide_HWC = np.repeat(np.repeat(frames_NHWC[0], 2, axis=0), 5, axis=1)  # 96×240
    (best, *_), (wide, *_) = trained.detect(frames_NHWC[0]), trained.detect(wide_HWC)
    assert track.overlap(wide.box, tuple(np.array(best.box) * (5, 2, 5, 2))) > 0.9


def test_frames_and_boxes_are_squeezed_alike() -> None:
    frame_HWC = np.zeros((90, 160, 3), np.uint8)
    frame_HWC[30:60, 40:120] = 255
    picture_HWC, box = training.squeezed(frame_HWC, (40, 30, 120, 60), 48)
    assert picture_HWC.shape == (48, 48, 3)
    assert box == pytest.approx((12, 16, 36, 32))
    rows, columns = np.nonzero(picture_HWC[..., 0] > 127)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == box


def test_hog_finds_nobody_in_noise_and_keeps_to_the_frame(data_root: Path) -> None:
    people = detect.People(confidence=0.25)
    grey_HWC = np.full((120, 160, 3), 128, np.uint8)
    assert people.detect(grey_HWC) == []
    path = sorted((data_root / "ucf101_10").rglob("*.mp4"))
    seen = 0
    with Decoder() as decoder:
        for one in path[::60]:
            (frame_HWC,) = decoder.frames(one, limit=1)
            detections = people.detect(frame_HWC)
            seen += bool(detections)
            assert all(item.label == "person" for item in detections)
            assert [item.confidence for item in detections] == sorted((d.confidence for d in detections), reverse=True)
    assert seen


@pytest.fixture
def ultralytics(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    if importlib.util.find_spec("ultralytics") is None:
        pytest.skip("the extra `crops` is not installed")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
    return detect.ultralytics_yolo()


def test_yolo_is_loaded_from_a_file_and_keeps_quiet(ultralytics, tmp_path: Path) -> None:
    model = ultralytics("yolov5n.yaml", task="detect")
    model.model.names = {0: "person", 1: "dog"} | dict.fromkeys(range(2, 80), "thing")
    model.save(tmp_path / "mine.pt")
    yolo = detect.Yolo(str(tmp_path / "mine.pt"), confidence=1e-5, device=torch.device("cpu"))
    threads = torch.get_num_threads()
    found = yolo.detect(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    assert "person" in yolo.labels
    assert all(one.label in yolo.labels and 0 <= one.box[0] <= one.box[2] <= 64 for one in found)
    assert torch.get_num_threads() == threads
    utils, events = sys.modules["ultralytics.utils"], sys.modules.get("ultralytics.utils.events")
    assert utils.ONLINE is False
    assert utils.SETTINGS["sync"] is False
    assert events is None or not events.events.enabled


def test_yolo_is_shown_blue_first(ultralytics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it expects arrays, which it takes for what OpenCV reads."""
    model = ultralytics("yolov5n.yaml", task="detect")
    model.save(tmp_path / "mine.pt")
    yolo = detect.Yolo(str(tmp_path / "mine.pt"), confidence=0.5, device=torch.device("cpu"))
    predict, seen = yolo._model.predict, []
    monkeypatch.setattr(yolo._model, "predict", lambda frame, **given: seen.append(frame) or predict(frame, **given))
    red_HWC = np.zeros((48, 64, 3), np.uint8)
    red_HWC[..., 0] = 255
    yolo.detect(red_HWC)
    assert seen[0][0, 0].tolist() == [0, 0, 255]


def test_a_word_names_no_file_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("hog", "motion", "nothing", "trained", "teacher"):
        (tmp_path / name).touch()
        assert weights_of(name) == (name, "", {})
    (tmp_path / "mine").touch()
    assert weights_of("mine")[1]


def test_weights_are_those_that_a_key_knows(tmp_path: Path) -> None:
    (tmp_path / "r3d.pth").write_bytes(b"weights")
    name, digest, places = weights_of(str(tmp_path / "r3d.pth"))
    work: Any = SimpleNamespace(job=SimpleNamespace(places=places))
    assert given_weights(work, name, digest) == str(tmp_path / "r3d.pth")
    assert given_weights(work, "yolov5su.pt", "") == "yolov5su.pt"
    (tmp_path / "r3d.pth").write_bytes(b"others")
    with pytest.raises(TransientError, match="changed during the run"):
        given_weights(work, name, digest)
    (tmp_path / "r3d.pth").unlink()
    with pytest.raises(RequestError, match=r"There are no weights at .*r3d\.pth"):
        given_weights(work, name, digest)


def test_yolo_runs_where_a_job_runs_by_default_and_must_know_what_is_wanted(
    ultralytics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ultralytics("yolov5n.yaml", task="detect").save(tmp_path / "mine.pt")
    name, digest, places = weights_of(str(tmp_path / "mine.pt"))
    parameters = TrackParameters(
        detector=name, digest=digest, confidence=1e-5, labels=("0",), rule="paper", redetect=1, seed=0, videos=()
    )
    runtime, store = Runtime(store=str(tmp_path / "store")), Store(tmp_path / "store")
    job = tracks_job(parameters, None, places, "track")
    with store.writing(job.manifest) as attempt:
        detector = open_detector(Work(job, runtime, store, attempt), parameters)
        assert runtime.device == "auto"
        detector.detect(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
        detector.labels = ("dog", "horse")
        monkeypatch.setattr(tracking, "Yolo", lambda *_: detector)
        work = Work(job, runtime, store, attempt)
        for wanted in ({"labels": ("dog",)}, {"labels": (), "rule": "code"}):
            open_detector(work, parameters.model_copy(update=wanted))
        with pytest.raises(RequestError, match=r"mine.pt knows no label 'person': it knows dog, horse"):
            open_detector(work, parameters.model_copy(update={"labels": ()}))
        (tmp_path / "mine.pt").write_bytes(b"others")
        with pytest.raises(TransientError, match=r"mine.pt changed during the run: run again"):
            open_detector(work, parameters.model_copy(update={"labels": ("dog",)}))


def test_weights_that_cannot_be_had_are_a_wrong_request(ultralytics, tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    for weights in (str(tmp_path / "broken.pt"), str(tmp_path / "absent.pt")):
        with pytest.raises(RequestError, match=r"cannot be had.*hog.*trained"):
            detect.load_yolo(weights)


def test_what_is_installed_and_does_not_load_is_not_to_be_installed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)  # as if it were not there
    with pytest.raises(RequestError, match=r"needs OpenCV: pip install 'vidistill\[crops\]'"):
        detect.opencv()
    broken = detect._not_imported("optdistill", "OpenCV", ImportError("libGL.so.1: cannot open shared object file"))
    assert "libGL.so.1" in str(broken)
    assert "pip install" not in str(broken)


def test_opencv_has_csrt() -> None:
    assert hasattr(cv2, "TrackerCSRT_create"), "opencv-python was installed over opencv-contrib-python"
    assert detect.opencv() is cv2
    assert cv2.getNumThreads() == 1


def panned(frame: int, square: int) -> np.ndarray:
    """A textured picture that goes two pixels to the left a frame, and a square at this place with its own texture."""
    random = np.random.default_rng(0)
    wide_HW = cv2.GaussianBlur(random.normal(size=(64, 160)), (0, 0), 3)
    grey_HW = np.clip(100 + 40 * wide_HW / wide_HW.std(), 0, 255)[:, 2 * frame : 2 * frame + 96]
    picture_HWC = np.repeat(grey_HW[..., None].astype(np.uint8), 3, axis=2)
    picture_HWC[20:36, square : square + 16] = random.integers(0, 256, (16, 16, 3))
    return picture_HWC


def test_motion_is_what_moves_against_the_rest_in_every_frame() -> None:
    frames = [panned(frame, 20 + 3 * frame) for frame in range(12)]
    found = motion.moving(iter(frames), 0.25)
    assert found is not None
    assert (len(found.boxes), found.lost) == (12, 0)
    for frame, box in enumerate(found.boxes):
        assert track.overlap(box, (20 + 3 * frame, 20, 36 + 3 * frame, 36)) > 0.5, frame
    assert 0.25 < found.confidence < 1
    twice = motion.moving((cv2.resize(frame, None, fx=2, fy=2) for frame in frames), 0.25)
    assert twice is not None
    assert track.overlap(twice.boxes[5], (70, 40, 102, 72)) > 0.5


def test_a_frame_without_enough_change_in_one_place_has_the_box_of_the_frame_before() -> None:
    frames = [panned(0, 20 + 3 * min(frame, 6)) for frame in range(12)]
    found = motion.moving(iter(frames), 0.25)
    assert found is not None
    assert found.lost == 5
    assert found.boxes[6:] == [found.boxes[6]] * 6
    assert motion.moving(iter(frames), 1.0) is None
    assert motion.moving(iter([frames[0]] * 4), 0.25) is None
    assert motion.moving(iter(frames[:1]), 0.25) is None
    assert motion.moving(iter([frames[0], frames[0][:32]]), 0.25) is None  # of another shape


def test_motion_finds_the_targets_of_sprites_without_weights(rendered) -> None:
    overlaps = []
    for _, frames_NHWC, boxes_N4, *_ in [one for one in rendered if one[0].startswith("test")]:
        found = motion.moving(iter(frames_NHWC), 0.1)
        assert found is not None
        overlaps.append(mean_overlap(found.boxes, boxes_N4))
    assert np.mean(overlaps) > 0.45


# Track


@pytest.mark.parametrize(
    ("box", "aspect", "expected"),
    [
        ((20, 20, 30, 40), 1.0, (15, 20, 35, 40)),  # as wide as it is tall
        ((20, 20, 40, 30), 1.0, (20, 15, 40, 35)),
        ((20, 20, 40, 30), 2.0, (20, 20, 40, 30)),  # already of the ratio
        ((20, 20, 30, 40), 2.0, (5, 20, 45, 40)),
        ((0, 20, 10, 40), 1.0, (0, 20, 20, 40)),  # moved off the left border
        ((90, 50, 100, 60), 1.0, (90, 50, 100, 60)),
        ((80, 30, 100, 60), 1.0, (70, 30, 100, 60)),  # moved off the right border
        ((0, 0, 100, 60), 1.0, (20, 0, 80, 60)),  # larger than the picture
    ],
)
def test_windows(box, aspect, expected) -> None:
    place, border = track.window(tuple(map(float, box)), aspect, (60, 100))
    assert place == pytest.approx(expected)
    assert (place[2] - place[0]) / (place[3] - place[1]) == pytest.approx(aspect)
    middle = [(one[0] + one[2], one[1] + one[3]) for one in (box, expected)]
    covers = expected[0] <= box[0] and expected[1] <= box[1] and expected[2] >= box[2] and expected[3] >= box[3]
    assert border == (middle[0] != middle[1] or not covers)


def test_a_cut_is_the_linear_scaling_of_its_window() -> None:
    frame_HWC = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    got_HWC = track.cut(frame_HWC, (10.0, 5.0, 30.0, 25.0), 12, 12)
    assert np.array_equal(got_HWC, cv2.resize(frame_HWC[5:25, 10:30], (12, 12), interpolation=cv2.INTER_LINEAR))
    assert np.array_equal(track.cut(frame_HWC, (10.0, 5.0, 30.0, 25.0), 20, 20), frame_HWC[5:25, 10:30])


def mean_overlap(boxes, truth_N4) -> float:
    return float(
        np.mean([track.overlap(box, tuple(map(float, true))) for box, true in zip(boxes, truth_N4, strict=True)])
    )


@pytest.mark.slow
def test_csrt_follows_and_looking_again_follows_better(trained, rendered) -> None:
    overlaps: dict[int, list[float]] = {0: [], 4: []}
    for _, frames_NHWC, boxes_N4 in [one for one in rendered if one[0].startswith("test")][::2]:
        chosen = trained.detect(frames_NHWC[0])[:1]
        for redetect, values in overlaps.items():
            (one,) = track.track_all(iter(frames_NHWC), chosen, trained, redetect)
            assert len(one.boxes) == len(frames_NHWC)
            values.append(mean_overlap(one.boxes, boxes_N4))
    assert np.mean(overlaps[0]) > 0.35
    assert np.mean(overlaps[4]) > max(0.55, np.mean(overlaps[0]))


def test_a_still_object_stays_where_it_is() -> None:
    frame_HWC = np.full((64, 64, 3), 40, np.uint8)
    frame_HWC[20:40, 24:44] = np.random.default_rng(0).integers(100, 256, (20, 20, 3))
    (one,) = track.track_all([frame_HWC] * 6, found((24, 20, 44, 40)), detect.People(0.25), 0)
    assert one.lost == 0
    assert track.overlap(one.boxes[-1], (24, 20, 44, 40)) > 0.7


def test_a_lost_object_keeps_its_last_box_and_is_counted() -> None:
    random = np.random.default_rng(0)
    first_HWC = np.full((64, 64, 3), 40, np.uint8)
    first_HWC[20:40, 24:44] = random.integers(100, 256, (20, 20, 3))
    black_HWC = np.zeros_like(first_HWC)
    (one,) = track.track_all([first_HWC, *[black_HWC] * 5], found((24, 20, 44, 40)), detect.People(0.25), 0)
    assert one.lost == 5
    assert one.boxes == [(24, 20, 44, 40)] * 6


def test_looking_again_starts_on_the_box_of_the_same_label_that_overlaps_most() -> None:
    frame_HWC = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    follower = track.Follower(frame_HWC, Detection((20, 20, 40, 40), "person", 1.0))
    before = follower._csrt
    seen = [
        Detection((20, 20, 40, 40), "dog", 0.9),
        Detection((34, 34, 54, 54), "person", 0.8),
        Detection((22, 21, 42, 41), "person", 0.7),
    ]
    follower.look_again(frame_HWC, seen)
    assert follower.track.boxes == [(22, 21, 42, 41)]
    assert follower._csrt is not before
    follower.look_again(frame_HWC, found((50, 50, 60, 60)))  # elsewhere: it goes on as it was
    assert follower.track.boxes == [(22, 21, 42, 41)]
    lost = follower._csrt
    for seen in ([], [Detection((22, 21, 42, 41), "dog", 0.9)]):  # nobody is there: what was lost stays lost
        follower.look_again(frame_HWC, seen)
        assert follower._csrt is lost


@pytest.mark.parametrize("sliver", [(315, 20, 320, 225), (100, 100, 101.2, 101.2)], ids=str)
def test_a_sliver_that_csrt_cannot_take_is_lost_and_costs_no_more(sliver: tuple[float, ...]) -> None:
    frames = [np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)] * 4
    (one,) = track.track_all(frames, found(sliver), detect.People(0.25), 0)
    assert (one.lost, one.boxes) == (3, [sliver] * 4)

    class Shrinking:  # a detector whose second look finds a sliver of what the first one found
        labels = wanted = ("person",)

        def detect(self, frame_HWC: np.ndarray) -> list[Detection]:
            return found(sliver)

    start = (max(0.0, sliver[0] - 30), max(0.0, sliver[1] - 30), sliver[2], sliver[3])
    (again,) = track.track_all(frames, found(start), Shrinking(), 2)
    assert again.boxes[2:] == [sliver] * 2


@pytest.mark.slow
def test_each_video_draws_its_own_boxes(video) -> None:
    """Five people, of whom three are followed: another video of the same seed draws others."""
    path, _ = video

    class Crowd:
        labels = wanted = ("person",)

        def detect(self, frame_HWC: np.ndarray) -> list[Detection]:
            return FIVE

    parameters = TrackParameters(detector="hog", digest="", confidence=0.25, labels=(), rule="paper", redetect=0,
                                 seed=0, videos=())  # fmt: skip
    drawn = set()
    with Decoder() as decoder:
        for number in range(6):
            one = BlockVideo(path=path.name, bytes=path.stat().st_size, sha256=f"{number:08x}" * 8)
            outcome = tracking.track_video(path.parent, one, parameters, Crowd(), decoder, path.with_suffix(".jpg"))
            drawn.add(tuple(tuple(follow["boxes"][0]) for follow in outcome["tracks"]))
    assert all(len(boxes) == 3 for boxes in drawn)
    assert len(drawn) > 2


def test_a_first_frame_that_cannot_be_kept_is_no_silence(tmp_path: Path) -> None:
    frame_HWC = np.full((32, 48, 3), 90, np.uint8)
    tracking._keep_picture(frame_HWC, tmp_path / "0.jpg")
    assert np.abs(cv2.imread(str(tmp_path / "0.jpg")).astype(int) - 90).max() < 3
    with pytest.raises(OSError, match="gone"):
        tracking._keep_picture(frame_HWC, tmp_path / "gone" / "0.jpg")


def test_a_video_of_one_frame_has_its_first_box() -> None:
    (one,) = track.track_all([np.zeros((64, 64, 3), np.uint8)], found((4, 4, 20, 20)), detect.People(0.25), 0)
    assert one.boxes == [(4, 4, 20, 20)]


# Score


def test_both_scores() -> None:
    log_probabilities_K = np.log([0.2, 0.7, 0.1])
    assert score.score(log_probabilities_K, "confidence", None) == pytest.approx(0.7)
    assert score.score(log_probabilities_K, "loss", 0) == pytest.approx(np.log(0.2))


def test_r3d_from_a_file_scores_like_torchvision(tmp_path: Path) -> None:
    from torchvision.models.video import r3d_18

    torch.manual_seed(0)
    network = r3d_18(num_classes=3).eval()
    save_file(network.state_dict(), tmp_path / "r3d.safetensors")
    scorer = score.kinetics_scorer(
        str(tmp_path / "r3d.safetensors"), ("a", "b", "c"), Device(torch.device("cpu"), "fp32", 1)
    )
    clip_THWC = np.random.default_rng(0).integers(0, 256, (4, 112, 112, 3), dtype=np.uint8)
    mean, std = torch.tensor([0.43216, 0.394666, 0.37645]), torch.tensor([0.22803, 0.22145, 0.216989])
    x_BCTHW = ((torch.from_numpy(clip_THWC).float() / 255 - mean) / std).permute(3, 0, 1, 2)[None]
    with torch.inference_mode():
        expected = network(x_BCTHW)[0].double().log_softmax(0)
    np.testing.assert_allclose(scorer.log_probabilities(clip_THWC), expected, atol=1e-4)
    with pytest.raises(RequestError, match="3 classes apart, and the data have 2"):
        score.kinetics_scorer(str(tmp_path / "r3d.safetensors"), ("a", "b"), Device(torch.device("cpu"), "fp32", 1))


def test_networks_whose_weights_are_loaded_draw_none_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch has one generator: whoever begins a network holds the lock, so that a student's weights are its seed's."""
    from torchvision.models import video

    from vidistill.models import detector, dropout

    begun: list[bool] = []

    def free() -> bool:
        """Whether another thread could begin a network now."""
        return dropout.TORCHS.acquire(blocking=False) and dropout.TORCHS.release() is None

    def watched(make: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
        def made(**given: Any) -> torch.nn.Module:
            with ThreadPoolExecutor(1) as other:
                begun.append(other.submit(free).result())
            return make(**given)

        return made

    save_file(video.r3d_18(num_classes=2).state_dict(), tmp_path / "r3d.safetensors")
    save_file(detector.Detector().state_dict(), tmp_path / training.WEIGHTS)
    monkeypatch.setattr(video, "r3d_18", watched(video.r3d_18))
    monkeypatch.setattr(detector, "Detector", watched(detector.Detector))
    score.kinetics_scorer(str(tmp_path / "r3d.safetensors"), ("a", "b"), Device(torch.device("cpu"), "fp32", 1))
    training.load_detector(tmp_path, training.DetectorParameters(), 0.5)
    assert begun == [False, False]


def test_weights_of_r3d_that_cannot_be_had(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(RequestError, match="no weights 'KINETICS_9'"):
        r3d_state("KINETICS_9", "give others")
    with pytest.raises(RequestError, match="does not hold R3D-18's weights"):
        r3d_state(str(tmp_path / "other.safetensors"), "give others")


def test_classes_are_found_by_name_whatever_their_spelling() -> None:
    assert score.place_of("PlayingViolin", ("archery", "playing violin")) == 1
    assert score.place_of("left", ("archery", "playing violin")) is None
    assert score.place_of("Бег", ("Прыжок", "Бег")) == 1
    assert score.place_of("jump-1", ("jump1", "jump-1")) == 1


# Tile


def crops_with(*facts: tuple[float, int]) -> list[Crop]:
    return [Crop(i, f"v{i:02d}", value, length) for i, (value, length) in enumerate(facts)]


def choose(crops: list[Crop], mosaics: int, grid: int, seed: int = 0, **changed) -> list[list[str]]:
    options = {"top_k": None, "threshold": None, "grouping": "length"} | changed
    groups = mosaic.grouped(crops, mosaics, grid, random=np.random.default_rng(seed), name="left", **options)
    return [[crop.path for crop in group] for group in groups]


EIGHT = crops_with((0.9, 10), (0.1, 40), (0.8, 30), (0.7, 20), (0.6, 11), (0.2, 9), (0.5, 33), (0.4, 21))


def test_the_best_are_grouped_with_those_of_their_length() -> None:
    assert choose(EIGHT, 1, 2) == [["v00", "v04", "v03", "v02"]]
    assert choose(EIGHT, 2, 1, top_k=2) == [["v00"], ["v02"]]
    # all eight by length: 5 0 4 3 | 7 2 6 1; the first group scores higher
    assert choose(EIGHT, 1, 2, top_k=8) == [["v05", "v00", "v04", "v03"]]


def test_the_threshold_prunes_and_too_few_is_a_wrong_request() -> None:
    assert choose(EIGHT, 1, 2, threshold=0.6) == [["v00", "v04", "v03", "v02"]]
    with pytest.raises(RequestError, match=r"takes 4 crops of a class, and left has 3 \(8 to choose from, 3 of"):
        choose(EIGHT, 1, 2, threshold=0.7)


def test_what_left_too_few_crops_is_said() -> None:
    with pytest.raises(RequestError, match=r"left has 2 \(8 to choose from, 8 of the threshold's score, top_k 2\)"):
        choose(EIGHT, 1, 2, top_k=2)


def test_random_groups_follow_the_seed() -> None:
    draws = {tuple(choose(EIGHT, 1, 2, seed, grouping="random")[0]) for seed in range(6)}
    assert len(draws) > 3
    assert choose(EIGHT, 1, 2, 5, grouping="random") == choose(EIGHT, 1, 2, 5, grouping="random")
    best = {path for seed in range(9) for path in choose(EIGHT, 1, 2, seed, grouping="random", top_k=4)[0]}
    assert best == {"v00", "v02", "v03", "v04"}


def test_preselection_draws_without_repeats() -> None:
    drawn = mosaic.preselected(EIGHT, 5, np.random.default_rng(0))
    assert len({crop.path for crop in drawn}) == 5
    assert mosaic.preselected(EIGHT, 20, np.random.default_rng(0)) == EIGHT
    others = [dataclasses.replace(crop, score=0.0) for crop in EIGHT]  # of the same videos
    both = mosaic.preselected([*EIGHT, *others], 5, np.random.default_rng(0))
    assert sorted(crop.path for crop in both) == sorted(2 * [crop.path for crop in drawn])


def numbered(length: int) -> np.ndarray:
    return np.broadcast_to(np.arange(length, dtype=np.uint8)[:, None, None, None], (length, 2, 2, 3))


def times(clips_NTHWC: np.ndarray) -> list[list[int]]:
    return clips_NTHWC[:, :, 0, 0, 0].tolist()


def test_longer_crops_are_sped_up_to_the_shortest() -> None:
    got = times(mosaic.side_by_side([numbered(6), numbered(11)], 4))
    assert got == [[1, 2, 3, 4], [2, 4, 6, 8]]  # both 6 frames long, 0 1 2 3 4 5 and 0 2 4 6 8 10, then the middle 4


def test_crops_shorter_than_a_clip_are_slowed_to_it() -> None:
    assert times(mosaic.side_by_side([numbered(1), numbered(2), numbered(8)], 4)) == [
        [0, 0, 0, 0], [0, 0, 1, 1], [0, 2, 5, 7],
    ]  # fmt: skip


@pytest.mark.parametrize(("grid", "size"), [(1, 8), (2, 16), (3, 17)])
def test_regions_undo_tiling(grid: int, size: int) -> None:
    side = size // grid
    cells = np.random.default_rng(0).integers(0, 256, (2 * grid**2, 3, side, side, 3), dtype=np.uint8)
    mosaics = regions.tile(cells, grid, size, size)
    assert mosaics.shape == (2, 3, size, size, 3)
    assert np.array_equal(regions.cells(mosaics, grid), cells)
    enlarged = regions.regions({"mosaics": mosaics}, (2 * grid**2, 3, 20, 20, 3))
    assert np.array_equal(enlarged[1], regions.resize(cells[1:2], 20, 20)[0])
    assert abs(float(enlarged.mean()) - float(cells.mean())) < 3


def test_shrinking_averages_what_it_leaves_out() -> None:
    stripes_NTHWC = np.zeros((1, 1, 32, 32, 3), np.uint8)
    stripes_NTHWC[:, :, :, ::2] = 200
    middle = regions.resize(stripes_NTHWC, 8, 8)[..., 2:-2, :]
    assert np.abs(middle.astype(int) - 100).max() <= 10


def test_enlarging_is_bilinear() -> None:
    clip = np.zeros((1, 1, 1, 2, 3), np.uint8)
    clip[..., 1, :] = 100
    assert regions.resize(clip, 1, 4)[0, 0, 0, :, 0].tolist() == [0, 25, 75, 100]


# Pictures


def test_a_box_is_drawn_on_its_pixels() -> None:
    picture_HWC = np.zeros((10, 12, 3), np.uint8)
    outline(picture_HWC, (2, 3, 7, 8), (0, 220, 90))
    drawn = np.argwhere(picture_HWC[..., 1] == 220)
    assert [drawn[:, 1].min(), drawn[:, 0].min(), drawn[:, 1].max() + 1, drawn[:, 0].max() + 1] == [2, 3, 7, 8]
    assert (picture_HWC[4:7, 3:6] == 0).all()
    outline(picture_HWC, (-5, -5, 40, 40), (0, 220, 90))  # beyond the border: cut, no error
    json.dumps(picture_HWC.tolist())


# The installation


def test_doctor_finds_a_cv2_without_csrt_and_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from vidistill.flows import doctor

    assert "with CSRT" in doctor._opencv()
    monkeypatch.delattr(cv2, "TrackerCSRT_create")
    with pytest.raises(doctor.Ill, match=r"no CSRT.*pip install --force-reinstall --no-deps opencv-contrib-python"):
        doctor._opencv()
    with pytest.raises(RequestError, match="vidistill doctor"):
        detect.opencv()


def test_the_installation_ends_with_the_opencv_that_has_csrt() -> None:
    commands = [
        line for line in (Path(__file__).parents[3] / "Makefile").read_text().splitlines() if "pip install" in line
    ]
    assert "opencv-contrib-python" in commands[-1]
    assert "--force-reinstall" in commands[-1]
