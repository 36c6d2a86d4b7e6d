"""OptDistill as a method of the registry: the contract, its jobs, counts and errors, with real videos and boxes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from flow_running import CLASSES
from method_contract import DECODE, Bench, MethodContract, build_bench, fingerprint, sprite_videos
from resuming import killed_and_resumed

from vidistill.models.regions import cells, resize
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError, RunError
from vidistill.storage.exported import EXPORT, LOGITS
from vidistill.storage.keys import file_digest
from vidistill.storage.store import ArtifactRef, Manifest, Store
from vidistill.tasks import piecewise
from vidistill.tasks.crops import cutting, track
from vidistill.tasks.crops.cutting import CROPS
from vidistill.tasks.crops.optdistill import OptDistill, OptDistillParameters, gather
from vidistill.tasks.crops.tracking import FIRST_FRAMES, TRACKS
from vidistill.tasks.crops.training import BOXES, FACTS, DetectorParameters, detector_job, recorded_boxes
from vidistill.tasks.distil import distil_jobs
from vidistill.tasks.learning.evaluate import StudentParameters, evaluate_job, load_score
from vidistill.tasks.learning.relabel import relabel_job
from vidistill.tasks.methods import Recipe, find_method
from vidistill.tasks.report.crops import crop_sets, row_mark
from vidistill.tasks.report.data import ReportData, Row, RowPlan
from vidistill.tasks.report.export import even, write_set
from vidistill.tasks.report.page import render_html
from vidistill.tasks.stage import Job, run_job, stage_of
from vidistill.tasks.videos.decoder import Decoder
from vidistill.tasks.videos.sprites import write_video

ROW_NUMBERS = ("top1_mean", "top1_std", "top5_mean", "auc_mean", "f1_mean", "bytes", "seconds", "peak_memory_bytes",
               "flops")  # fmt: skip
ROW: dict[str, Any] = {
    "dataset": "sprites", "split": "1", "protocol": "vidistill", "recipe": "hard", "method": "optdistill",
    "variant": "", "ipc": 1, "student": "minic3d_bn", "labels": "hard", "seeds": 1, "artifact": "ab" * 12,
    "per_class": [0.0] * 3, "top1": [0.0],
}  # fmt: skip
QUICK: dict[str, Any] = {
    "training": {"steps": 80, "batch_size": 16, "side": 48, "pictures": 60}, "precision": "fp32",
    "max_lost": 1.0,  # by how much boxes of so short a training are lost depends on the CPU
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Three classes of sprites with their boxes, eight clips each for training, one of them of a single frame."""
    rendered, videos = tmp_path_factory.mktemp("rendered"), tmp_path_factory.mktemp("videos")
    sprite_videos(videos, rendered, train_per_class=8)
    shutil.copy(rendered / BOXES, videos / BOXES)
    write_video(videos / "train" / "left" / "left_scene0099.mp4", np.full((1, 48, 48, 3), 60, np.uint8))
    return build_bench(videos, tmp_path_factory)


def optdistill(**options: Any) -> OptDistill:
    return OptDistill(OptDistillParameters(**QUICK | options))


def made_by(bench: Bench, seed: int = 0, **options: Any) -> DistilledSet:
    method = optdistill(**options)
    return method.distil(bench.material(tuple(range(len(CLASSES))), 1, seed, method))


class TestOneCrop(MethodContract):
    spec = "optdistill"
    options: ClassVar[dict[str, Any]] = QUICK | {"grid": 1}
    seeded = False


class TestTiles(MethodContract):
    spec = "optdistill"
    options: ClassVar[dict[str, Any]] = QUICK | {"grid": 2, "train_on": "tiles", "preselect": 8, "grouping": "random"}


class TestRegions(MethodContract):
    spec = "optdistill"
    options: ClassVar[dict[str, Any]] = QUICK | {"grid": 2, "top_k": 8}
    seeded = False

    @pytest.mark.parametrize("ipc", [1, 2])
    def test_returns_ipc_clips_of_each_class(self, method: OptDistill, bench: Bench, ipc: int) -> None:
        """An instance is a mosaic, of which a student sees the four regions."""
        made = self.distil(method, bench, ipc)
        assert made.clips_NTHWC.shape == (4 * ipc * len(CLASSES), *bench.clips.shape_THWC)
        assert made.stored["mosaics"].shape == (ipc * len(CLASSES), *bench.clips.shape_THWC)
        assert np.bincount(made.labels_N).tolist() == [4 * ipc] * len(CLASSES)
        assert made.clips_an_instance == 4
        assert len(set(made.sources)) == len(made)


def test_a_region_is_its_videos_crop_enlarged(bench: Bench) -> None:
    made = made_by(bench, grid=2)
    regions_NTHWC = cells(made.stored["mosaics"], 2)
    assert np.array_equal(regions_NTHWC[made.extras["clip"]], made.extras["crop"])
    assert np.array_equal(resize(regions_NTHWC, 48, 48), made.clips_NTHWC)
    for source, label in zip(made.sources, made.labels_N, strict=True):
        assert source.split("/")[1] == made.classes[label]


def test_a_set_keeps_its_mosaics_alone(bench: Bench, tmp_path: Path) -> None:
    made = made_by(bench, grid=2)
    made.save(tmp_path / "regions")
    loaded = DistilledSet.load(tmp_path / "regions")
    assert fingerprint(loaded) == fingerprint(made)
    made_by(bench, grid=1).save(tmp_path / "one")
    whole, tiled = (DistilledSet.training_bytes(tmp_path / name) for name in ("one", "regions"))
    assert 0.5 < tiled / whole < 2  # four crops in the room of one


def test_tiles_carry_the_mean_of_their_regions_labels(bench: Bench) -> None:
    tiles, regions = made_by(bench, grid=2, train_on="tiles"), made_by(bench, grid=2)
    assert np.array_equal(tiles.clips_NTHWC, regions.stored["mosaics"])
    method = optdistill(grid=2)
    teacher = bench.material((0,), 1, 0, method).teacher()
    import torch

    from vidistill.tasks.learning import training

    x_BCTHW = training.to_input(regions.clips_NTHWC, bench.clips.table.mean, bench.clips.table.std, bench.device)
    with torch.inference_mode():
        expected_MK = teacher(x_BCTHW).softmax(1).reshape(-1, 4, len(CLASSES)).mean(1)
    np.testing.assert_allclose(np.exp(tiles.logits_NK), expected_MK, atol=1e-3)


def test_pictures_and_counts_are_left_for_the_report(bench: Bench) -> None:
    made = made_by(bench, grid=2)
    assert made.facts["counts"] == {"videos": 25, "cropped": 24, "border": made.facts["counts"]["border"], "still": 0,
                                    "whole": 0, "no target in the first frame": 1}  # fmt: skip
    assert made.facts["detector"]["map50"] > 0.5
    assert "mark" not in made.facts
    shown = made.labels_N[made.extras["clip"]]
    assert shown.tolist() == [0, 1, 2, 3][: len(CLASSES)]  # one of each, of four classes
    assert (np.diff(made.labels_N)[made.extras["clip"][1:] - 1] == 1).all()  # the first
    assert made.extras["first_frame"].shape == (len(shown), 128, 128, 3)
    assert made.extras["track"].shape == (len(shown), *bench.clips.shape_THWC)
    assert made.extras["score"].shape == (len(made),)
    green = (made.extras["track"] == (0, 220, 90)).all(-1)
    assert green.any(axis=(2, 3)).all()  # a box in every frame


@pytest.mark.slow
def test_tracks_are_shared_and_crops_are_not(bench: Bench) -> None:
    small, large = optdistill(grid=2).inputs(bench.given), optdistill(grid=1).inputs(bench.given)
    whole = optdistill(grid=2, fallback="whole").inputs(bench.given)
    other = optdistill(grid=2, redetect=4).inputs(bench.given)
    assert small["tracks"] == large["tracks"] == whole["tracks"] != other["tracks"]
    assert not set(small["crops"]) & {*large["crops"], *whole["crops"]}
    folders = [bench.store.folder(ref) for ref in small["crops"]]
    (outcomes,) = [found for folder in folders if len(found := json.loads((folder / CROPS).read_text())) == 9]
    assert {one["crop"] is None for one in outcomes} == {True, False}
    assert all(one["score"] == max(one["scores"]) for one in outcomes if one["crop"])
    pictures = [len(list((bench.store.folder(ref) / FIRST_FRAMES).iterdir())) for ref in small["tracks"]]
    assert sorted(pictures) == [8, 8, 9]


def test_a_still_video_without_a_box_can_be_kept_whole(bench: Bench) -> None:
    method = optdistill(grid=1, fallback="whole")
    found, counts = gather(bench.material((0, 1, 2), 1, 0, method))
    assert counts["cropped"] == 25
    assert counts["whole"] == 1
    (still,) = [crop for crop in found[bench.clips.classes.index("left")] if "scene0099" in crop.path]
    assert still.length == 1 == counts["still"]
    assert np.abs(still.read().astype(int) - 60).max() <= 2


def frames_of(bench: Bench, path: str) -> list[np.ndarray]:
    """Every frame that a crop has, whole."""
    with Decoder() as decoder:
        return list(decoder.frames(Path(bench.runtime.data) / path, every=DECODE.interval))


@pytest.mark.parametrize("window", ["frame", "union"])
def test_windows_follow_the_object_or_hold_all_of_its_way(bench: Bench, window: str) -> None:
    found, _ = gather(bench.material((0, 1, 2), 1, 0, optdistill(grid=2, window=window)))
    for crop in found[bench.clips.classes.index("left")]:
        every = np.array(crop.outcome["boxes"])[:: DECODE.interval][: crop.length]
        union = (*np.array(crop.outcome["boxes"])[:, :2].min(0), *np.array(crop.outcome["boxes"])[:, 2:].max(0))
        for cut_HWC, frame_HWC, box in zip(crop.read(), frames_of(bench, crop.path), every, strict=True):
            place, _ = track.window(tuple(box) if window == "frame" else union, 1.0, frame_HWC.shape)
            assert np.array_equal(cut_HWC, track.cut(frame_HWC, place, 24, 24))


def test_without_a_crop_nothing_is_looked_for_and_every_video_is_whole(bench: Bench) -> None:
    method = optdistill(grid=2, crop=False)
    assert method.inputs(bench.given).keys() == {"tracks", "crops", "teacher"}
    made = method.distil(bench.material((0, 1, 2), 1, 0, method))
    assert made.facts["counts"]["whole"] == made.facts["counts"]["cropped"] == 25
    assert "mark" not in made.facts
    unsure = made_by(bench, grid=2, confidence=1.1, fallback="whole")
    assert np.array_equal(made.stored["mosaics"], unsure.stored["mosaics"])
    assert "mark" in unsure.facts


@pytest.mark.slow
def test_all_candidates_compete_or_the_best_of_each_video(bench: Bench) -> None:
    options = {"grid": 2, "rule": "code", "confidence": 0.01}
    best, _ = gather(bench.material((0, 1, 2), 1, 0, optdistill(**options)))
    every, counts = gather(bench.material((0, 1, 2), 1, 0, optdistill(**options, candidates="all")))
    assert counts["cropped"] == sum(map(len, best.values())) < sum(map(len, every.values()))
    scores = [crop.outcome["scores"] for crops in best.values() for crop in crops]
    assert [crop.score for crops in best.values() for crop in crops] == [max(own) for own in scores]
    assert any(own[0] < max(own) for own in scores)
    for label, crops in every.items():
        for crop in best[label]:
            own = [one for one in crops if one.path == crop.path]
            assert own[0] == crop
            assert [one.score for one in own] == sorted(crop.outcome["scores"], reverse=True)
            assert np.array_equal(own[0].read(), crop.read())
            if crop.length > 1:  # the video of one frame is grey all over
                assert len({one.read().tobytes() for one in own}) == len(own)
    made = made_by(bench, **options, candidates="all")
    for label in range(3):
        highest = sorted((crop.score for crop in every[label]), reverse=True)[:4]
        np.testing.assert_allclose(np.sort(made.extras["score"][made.labels_N == label])[::-1], highest, rtol=1e-6)


def test_motion_needs_neither_boxes_nor_weights(bench: Bench) -> None:
    method = optdistill(grid=2, detector="motion", confidence=0.1)
    assert method.inputs(bench.given).keys() == {"tracks", "crops", "teacher"}
    made = method.distil(bench.material((0, 1, 2), 1, 0, method))
    assert made.facts["counts"]["cropped"] == 24
    assert made.facts["counts"]["nothing moves"] == 1  # the video of one frame
    with pytest.raises(RequestError, match=r"motion knows no label 'dog': it knows motion"):
        optdistill(detector="motion", labels={"*": ["dog"]}).inputs(bench.given)


def test_where_weights_lie_is_in_no_key(tmp_path: Path) -> None:
    for name in ("mine.pt", "r3d.pt"):
        (tmp_path / name).write_bytes(b"weights")
    asked = optdistill(detector=str(tmp_path / "mine.pt"), scorer=str(tmp_path / "r3d.pt"))
    assert (asked.used(None).detector, asked.used(None).scorer) == ("mine.pt", "r3d.pt")
    assert optdistill().used(None) == optdistill().parameters


def test_what_is_new_is_in_no_key_unless_it_is_asked_for() -> None:
    assert not OptDistillParameters().model_dump().keys() & {"crop", "window", "candidates"}
    asked = OptDistillParameters(crop=False, window="union", candidates="all").model_dump()
    assert asked.keys() >= {"crop", "window", "candidates"}


@pytest.mark.parametrize("kind", ["tracks", "crops"])
def test_a_block_that_was_killed_goes_on_with_its_next_video(
    bench: Bench, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []

    def add(job: Job) -> ArtifactRef:
        jobs.append(job)
        return job.ref

    method = optdistill(grid=2)
    method.inputs(bench.given)
    method.inputs(dataclasses.replace(bench.given, add=add))
    (job,) = [job for job in jobs if job.stage == kind][:1]
    before = bench.store.manifest(run_job(job, bench.runtime)[0]).files
    bench.store.discard(job.ref)
    monkeypatch.setattr(piecewise, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(piecewise, "CHECKPOINT_SHARE", float("inf"))
    assert killed_and_resumed(job, bench.runtime, at=5)[0] == 5
    assert bench.store.manifest(job.ref).files == before


def test_where_few_videos_give_a_crop_the_row_is_marked(bench: Bench) -> None:
    made = made_by(bench, grid=1, detector="hog", fallback="whole")
    assert made.facts["counts"]["whole"] >= 20
    assert made.facts["mark"].startswith("only ")
    with pytest.raises(RequestError, match=r"2×2 regions takes 4 crops of a class, and grow has \d .*fallback=whole"):
        made_by(bench, grid=2, detector="hog")


@pytest.mark.slow
def test_what_a_detector_does_not_read_makes_no_other_tracks(bench: Bench) -> None:
    unread = {"redetect": 4, "rule": "code", "detect_seed": 3}
    assert tracked(bench, detector="hog", **unread) != tracked(bench, detector="hog")
    assert tracked(bench, detector="motion", **unread) == tracked(bench, detector="motion")
    assert tracked(bench, detector="motion", confidence=0.1) != tracked(bench, detector="motion")
    unread |= {"confidence": 0.1, "labels": {"*": ["person"]}, "detector": "hog"}
    assert tracked(bench, crop=False, **unread) == tracked(bench, crop=False)


def tracked(bench: Bench, **options: Any) -> list[str]:
    return [ref.key for ref in OptDistill(OptDistillParameters(grid=1, **options)).inputs(bench.given)["tracks"]]


@pytest.mark.parametrize("changed", [{"videos": 3}, {"preselect": 3}, {"top_k": 3}], ids=str)
def test_more_crops_than_videos_can_give_are_refused_before_anything_is_made(
    bench: Bench, changed: dict[str, int]
) -> None:
    (name,) = changed
    with pytest.raises(RequestError, match=r"takes 4 crops of a class, and \w+ has 3 at most, one a video: lower ipc"):
        optdistill(grid=2, **changed).inputs(bench.given)
    if name == "videos":
        optdistill(grid=2, candidates="all", **changed).inputs(bench.given)


def test_a_broken_video_costs_only_itself_and_one_that_changed_is_said(bench: Bench, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(bench.runtime.data, data)
    path = next((data / "train" / "left").glob("*.mp4"))
    path.write_bytes(path.read_bytes()[:200])
    runtime = bench.runtime.model_copy(update={"data": str(data), "store": str(tmp_path / "store")})
    shutil.copytree(bench.runtime.store, tmp_path / "store")
    jobs: list[Any] = []

    def add(job: Any) -> Any:
        jobs.append(job)
        return job.ref

    optdistill(grid=1, detector="hog", fallback="whole", confidence=0.5).inputs(
        dataclasses.replace(bench.given, add=add)
    )
    (job,) = [job for job in jobs if job.stage == "tracks" and len(job.parameters["videos"]) == 9]
    (cut,) = [one for one in jobs if one.stage == "crops" and one.inputs["tracks"] == [job.ref]]
    with pytest.raises(RunError, match="changed since it was indexed"):
        run_job(job, runtime)
    named, own = path.relative_to(data).as_posix(), {"sha256": file_digest(path)}
    videos = [video | (own if video["path"] == named else {}) for video in job.parameters["videos"]]
    job = job.model_copy(update={"parameters": job.parameters | {"videos": videos}})
    run_job(job, runtime)
    outcomes = json.loads((Store(tmp_path / "store").folder(job.ref) / TRACKS).read_text())
    reasons = [one["reason"] for one in outcomes]
    assert sum(reason.startswith("unreadable: ") for reason in reasons) == 1
    assert sum(reason == "no person in the first frame" for reason in reasons) == len(outcomes) - 1
    one, other, *_ = (data / video["path"] for video in videos if video["path"] != named)
    one.write_bytes(other.read_bytes())  # a video that can be read, and is not the one that was indexed
    cut = cut.model_copy(update={"inputs": cut.inputs | {"tracks": [job.ref]}})
    for late in (cut, job.model_copy(update={"parameters": job.parameters | {"redetect": 3}})):
        with pytest.raises(RunError, match="changed since it was indexed"):
            run_job(late, runtime)


def test_a_budget_on_videos_bounds_the_work(bench: Bench) -> None:
    jobs: list[Any] = []

    def add(job: Any) -> Any:
        jobs.append(job)
        return job.ref

    optdistill(grid=1, videos=2).inputs(dataclasses.replace(bench.given, add=add))
    assert [len(job.parameters["videos"]) for job in jobs if job.stage == "tracks"] == [2, 2, 2]
    assert {stage_of(job).threads for job in jobs if job.stage in {"tracks", "crops", "detector"}} == {"one"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 9}, r"grid=9 leaves regions of 5×5 pixels: for mosaics of 48×48 it can be 6 at most"),
        ({"labels": {"*": ["unicorn"]}}, r"trained knows no label 'unicorn': it knows target"),
        ({"labels": {"*": ["horse"]}, "detector": "hog"}, r"hog knows no label 'horse': it knows person"),
        ({"labels": {"jump": ["target"]}}, r"labels names the class 'jump'"),
        ({"scorer": "KINETICS_9"}, r"no weights 'KINETICS_9'.*optdistill.scorer .* KINETICS400_V1"),
        ({"scorer": "gone/r3d.pt"}, r"no weights 'gone/r3d.pt'"),
        ({"scorer": "kinetics400", "score": "loss"}, r"does not know the class '\w+'.*score=confidence"),
    ],
)
def test_wrong_requests(bench: Bench, options: dict[str, Any], message: str) -> None:
    """Before anything is tracked."""
    with pytest.raises(RequestError, match=message):
        optdistill(**options).inputs(bench.given)


def test_a_scorer_has_one_name(bench: Bench) -> None:
    jobs: list[Any] = []

    def add(job: Any) -> Any:
        jobs.append(job)
        return job.ref

    optdistill(scorer="kinetics400").inputs(dataclasses.replace(bench.given, add=add))
    assert {job.parameters["scorer"] for job in jobs if job.stage == "crops"} == {"KINETICS400_V1"}


def test_a_region_is_as_high_and_as_wide_as_its_mosaic_has_room_for() -> None:
    assert optdistill(grid=2, height=48, width=96)._region(56) == (24, 48)


def test_videos_that_are_tracked_are_drawn_by_their_own_seed(bench: Bench) -> None:
    drawn = {seed: [video.path for video in optdistill(videos=2, detect_seed=seed)._tracked(bench.given)]
             for seed in range(5)}  # fmt: skip
    assert all(len(paths) == 2 * len(CLASSES) for paths in drawn.values())
    assert len({tuple(paths) for paths in drawn.values()}) > 2


def test_nothing_to_train_a_detector_on(bench: Bench, tmp_path: Path) -> None:
    given = dataclasses.replace(bench.given, root=tmp_path)
    with pytest.raises(RequestError, match=r"detector=trained needs boxes.json beside the videos"):
        optdistill(detector="trained").inputs(given)


def test_other_boxes_make_another_detector(bench: Bench, tmp_path: Path) -> None:
    boxes = json.loads((bench.given.root / BOXES).read_text())
    (tmp_path / BOXES).write_text(json.dumps({name: one | {"boxes": [[0, 0, 9, 9]]} for name, one in boxes.items()}))
    own, other = (detector_job(bench.given.index, DetectorParameters(), root) for root in (bench.given.root, tmp_path))
    assert own.ref != other.ref
    with pytest.raises(RequestError, match=r"boxes.json has changed since this run was asked for: ask again"):
        recorded_boxes(tmp_path, own.parameters["boxes"])
    assert "boxes" not in detector_job(bench.given.index, DetectorParameters(), None).parameters


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", r"boxes.json cannot be used, at its beginning \(Invalid JSON.*a box a frame"),
        ('{"a.mp4": [[0, 0, 9, 9]]}', r"at a.mp4 \("),
        ('{"a.mp4": {"boxes": [[0, 0, 9, 9], null]}}', r"at a.mp4 › boxes › 1 \("),
    ],
)
def test_boxes_that_are_none_are_a_wrong_request(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / BOXES).write_text(text)
    with pytest.raises(RequestError, match=message):
        recorded_boxes(tmp_path)


def test_boxes_of_other_videos_are_a_wrong_request(bench: Bench, tmp_path: Path) -> None:
    shutil.copytree(bench.given.root, tmp_path, dirs_exist_ok=True)
    (tmp_path / BOXES).write_text('{"elsewhere.mp4": {"boxes": [[0, 0, 9, 9]]}}')
    job = detector_job(bench.given.index, DetectorParameters(), tmp_path)
    runtime = bench.runtime.model_copy(update={"data": str(tmp_path)})
    with pytest.raises(RequestError, match=r"boxes of no training video that can be read: .* such as train/"):
        run_job(job, runtime)


def test_the_border_cuts_nothing_of_what_is_kept_whole(tmp_path: Path) -> None:
    class Even:
        def log_probabilities(self, clip_THWC: np.ndarray) -> np.ndarray:
            return np.log(np.full(3, 1 / 3))

    write_video(tmp_path / "wide.mp4", np.full((12, 32, 64, 3), 60, np.uint8))
    parameters = cutting.CropParameters(
        height=16, width=16, interval=4, frames=3, scorer="", digest="", score="confidence", max_lost=0.5,
        fallback="whole", label=0, precision="fp32",
    )  # fmt: skip
    video = {"path": "wide.mp4", "shape": (32, 64), "reason": "kept whole"}
    track = {"boxes": [(0, 0, 64, 32)] * 12, "lost": 0}
    with Decoder() as decoder:
        bench = cutting.Bench(tmp_path, decoder, Even(), 0, parameters)
        whole = cutting.crop_video(bench, video | {"target": False, "tracks": []}, tmp_path / "a", "crop")
        found = cutting.crop_video(bench, video | {"target": True, "tracks": [track]}, tmp_path / "b", "crop")
    assert [whole["border"], found["border"]] == [False, True]


def test_the_loss_needs_a_scorer_that_knows_the_class(bench: Bench, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from torchvision.models.video import r3d_18

    torch.manual_seed(0)
    save_file(r3d_18(num_classes=400).state_dict(), tmp_path / "k400.safetensors")
    with pytest.raises(RequestError, match=r"does not know the class '\w+'.*score=confidence"):
        made_by(bench, scorer=str(tmp_path / "k400.safetensors"), score="loss", grid=1, videos=1)


def test_the_job_knows_weights_by_their_content(bench: Bench, tmp_path: Path) -> None:
    keys = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.pt").write_bytes(b"weights")
        jobs: list[Any] = []

        def add(job: Any, jobs: list[Any] = jobs) -> Any:
            jobs.append(job)
            return job.ref

        optdistill(detector=str(tmp_path / folder / "mine.pt")).inputs(dataclasses.replace(bench.given, add=add))
        keys.append([job.ref for job in jobs if job.stage == "tracks"])
        assert jobs[0].places == {} or jobs[0].places["mine.pt"] == str(tmp_path / folder / "mine.pt")
    assert keys[0] == keys[1]


def test_a_student_trains_on_regions_with_labels_of_their_own(bench: Bench) -> None:
    source = find_method("optdistill")
    options = OptDistillParameters(**QUICK, grid=2)
    inputs = {"clips": [bench.given.train], **OptDistill(options).inputs(bench.given)}
    (job,) = distil_jobs(source, options, 1, 0, len(CLASSES), inputs, "optdistill")
    run_job(job, bench.runtime)
    soft = relabel_job(job.ref, bench.given.train, bench.teacher, Recipe(labels="soft"), 0, "label")
    run_job(soft, bench.runtime)
    folder = bench.store.folder(soft.ref)
    made = DistilledSet.load(folder)
    assert made.form == "regions"
    assert made.logits_NK is not None
    assert made.logits_NK.shape == (4 * len(CLASSES), len(CLASSES))
    refs = {"train": bench.given.train, "test": bench.given.train, "distilled": soft.ref}
    score = evaluate_job(
        "minic3d", StudentParameters(epochs=1, least_steps=2, precision="fp32"), Recipe(labels="soft"), 0, refs, "score"
    )
    run_job(score, bench.runtime)
    got = load_score(bench.store.folder(score.ref))
    assert got.clips == 4 * len(CLASSES)
    assert got.training_bytes == DistilledSet.training_bytes(folder)


@pytest.mark.parametrize("kind", ["mkv", "npz", "mp4"])
def test_a_set_of_mosaics_is_exported_as_mosaics(bench: Bench, tmp_path: Path, kind: str) -> None:
    made = made_by(bench, grid=2).with_logits(np.zeros((4 * len(CLASSES), len(CLASSES)), np.float32))
    facts = write_set(made, tmp_path, 8, kind)
    (tmp_path / EXPORT).write_text(json.dumps(facts))
    assert facts["clips_a_file"] == 4
    assert [one["label"] for one in facts["files"]] == [0, 1, 2]
    assert [source for one in facts["files"] for source in one["sources"]] == list(made.sources)
    assert np.load(tmp_path / LOGITS).shape == (12, 3)
    back = DistilledSet.load(tmp_path)
    assert (back.form, back.clips_an_instance, back.sources) == ("regions", 4, made.sources)
    np.testing.assert_array_equal(back.labels_N, made.labels_N)
    tolerance = 12 if kind == "mp4" else 0
    assert np.abs(back.stored["mosaics"].astype(int) - made.stored["mosaics"]).mean() <= tolerance
    assert np.abs(back.clips_NTHWC.astype(int) - made.clips_NTHWC).mean() <= tolerance
    assert even(np.zeros((2, 5, 7, 3), np.uint8)).shape == (2, 6, 8, 3)


def test_the_report_shows_crops_counts_and_every_mosaic(bench: Bench, tmp_path: Path) -> None:
    facts = {"mark": "only 3 of 25 videos (12%) gave a crop of an object"}
    made = dataclasses.replace(made_by(bench, grid=2), facts=made_by(bench, grid=2).facts | facts)
    store = Store(tmp_path)
    manifest = Manifest(kind="distilled", key="ab" * 12, version=1, parameters={}, inputs={})
    with store.writing(manifest) as attempt:
        assert attempt is not None
        made.save(attempt.folder)
    refs = (manifest.ref,)
    plan = RowPlan(method="optdistill", variant="N=2", recipe="hard", labels="hard", ipc=1, student="minic3d_bn",
                   scores=(), sets=refs, makers=())  # fmt: skip
    (shown,) = crop_sets(store, [plan, plan])
    assert (shown.method, shown.ipc, len(shown.mosaics), len(shown.shown)) == ("optdistill N=2", 1, 3, 3)
    row = Row.model_validate(dict.fromkeys(ROW_NUMBERS, 0) | ROW | {"mark": row_mark(store, refs)})
    page = render_html(ReportData("t", "now", {}, list(CLASSES), [row], crops=[shown]))
    assert "OptDistill †" in page
    assert "† OptDistill: only 3 of 25 videos (12%) gave a crop of an object." in page
    assert page.count("mosaic of ") == 3
    assert all(page.count(f"{part} of {crop.video}") == 1 for crop in shown.shown for part in ("first frame", "track"))
    assert "no target in the first frame</dt><dd>1<" in page


def test_a_detector_reports_what_it_is_worth(bench: Bench) -> None:
    (folder,) = [bench.store.folder(ref) for ref in optdistill().inputs(bench.given)["detector"]]
    facts = json.loads((folder / FACTS).read_text())
    assert facts["pictures"] > 0
    assert 0 < facts["map"] <= facts["map50"] <= 1
    assert DECODE.size == 48
