"""Exported sets: nothing is lost unless it is asked for, everything a student needs is there, and it reads back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from method_contract import Bench
from safetensors.numpy import load_file

import vidistill
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import ArtifactDamaged, ArtifactNotFound, RequestError
from vidistill.storage.exported import EXPORT, LOGITS, TEACHER, read_video, write_lossless
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.distil import distil_jobs
from vidistill.tasks.learning.evaluate import StudentParameters, evaluate_job
from vidistill.tasks.learning.relabel import relabel_job
from vidistill.tasks.methods import Recipe, find_method
from vidistill.tasks.report.card import _shared
from vidistill.tasks.report.export import export_set, folder_names, said_of_loss, write_set
from vidistill.tasks.stage import Job, run_job
from vidistill.tasks.videos.decode import block_jobs, clips_job
from vidistill.tasks.videos.decoder import Decoder

README = Path(__file__).resolve().parents[3] / "README.md"
STUDENT = StudentParameters(epochs=1, least_steps=2, precision="fp32", crop_scale=0.5)
ONLINE, SOFT = Recipe(labels="online", temperature=2.0), Recipe(labels="soft", temperature=4.0)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def noisy_set(shape_THWC: tuple[int, ...], **others: Any) -> DistilledSet:
    labels_N = np.array([0, 0, 1])
    return DistilledSet(noise(3, *shape_THWC), labels_N, ("a", "b"), sources=("x", "y", "z"), **others)


def assert_same(one: DistilledSet, other: DistilledSet) -> None:
    for name in ("clips_NTHWC", "labels_N", "logits_NK", "others_VNTHWC"):
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None), name
        if left is not None:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
    assert (one.classes, one.sources, one.facts) == (other.classes, other.sources, other.facts)


def exported(made: DistilledSet, out: Path, kind: str, **more: Any) -> dict[str, Any]:
    """A set that no store knows, with the facts that a store would add."""
    out.mkdir()
    facts = write_set(made, out, 8, kind) | more
    (out / EXPORT).write_text(json.dumps(facts))
    return facts


@pytest.mark.parametrize("shape_THWC", [(8, 56, 56, 3), (1, 16, 16, 3), (3, 113, 57, 3), (2, 9, 8, 3)], ids=str)
def test_a_lossless_file_keeps_every_pixel_of_noise(tmp_path: Path, shape_THWC: tuple[int, ...]) -> None:
    clip_THWC = noise(*shape_THWC)
    for name in ("one.mkv", "again.mkv"):
        write_lossless(tmp_path / name, clip_THWC, 8)
    np.testing.assert_array_equal(read_video(tmp_path / "one.mkv"), clip_THWC)
    assert (tmp_path / "one.mkv").read_bytes() == (tmp_path / "again.mkv").read_bytes()
    with Decoder() as decoder:
        np.testing.assert_array_equal(np.stack(list(decoder.frames(tmp_path / "one.mkv"))), clip_THWC)


@pytest.mark.parametrize("kind", ["mkv", "npz"])
def test_a_set_reads_back_as_it_was(tmp_path: Path, kind: str) -> None:
    made = noisy_set((4, 9, 7, 3), logits_NK=np.eye(3, 2, dtype=np.float32), facts={"loss": [1.0]})
    assert exported(made, tmp_path / "out", kind)["lossless"]
    assert_same(DistilledSet.load(str(tmp_path / "out")), made)


def test_files_of_several_clips_are_said_to_be_such() -> None:
    facts = {"form": "regions", "clips_a_file": 4, "logits": "logits.npy"}
    said = "mosaics, from each of which vidistill cuts 4 clips; the teacher's outputs, a row a clip, are in logits.npy"
    assert _shared(facts) == f"{said} alone"


def test_what_was_exported_is_read_whatever_the_machine_s_own_encoding(tmp_path: Path) -> None:
    (tmp_path / EXPORT).write_text(json.dumps({"classes": ["Café"]}, ensure_ascii=False), encoding="utf-8")
    program = "import sys; from vidistill.storage.exported import *; from pathlib import Path\n"
    program += "print(ascii(read_facts(Path(sys.argv[1]))))"
    old = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    ended = subprocess.run(command, env=os.environ | old, capture_output=True, text=True, check=False)
    assert ended.stdout == "{'classes': ['Caf\\xe9']}\n", ended.stderr


@pytest.mark.parametrize("kind", ["mkv", "npz"])
def test_variants_of_a_clip_are_written_and_read_too(tmp_path: Path, kind: str) -> None:
    made = noisy_set((2, 8, 8, 3), others_VNTHWC=noise(3, 3, 2, 8, 8, 3, seed=1))
    facts = exported(made, tmp_path / "out", kind)
    assert [one["variant"] for one in facts["files"]] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert_same(DistilledSet.load(tmp_path / "out"), made)


def test_h264_says_what_it_changed(tmp_path: Path) -> None:
    made = noisy_set((4, 33, 31, 3))
    facts = exported(made, tmp_path / "out", "mp4")
    assert not facts["lossless"]
    back = DistilledSet.load(tmp_path / "out")
    assert back.clips_NTHWC.shape == made.clips_NTHWC.shape
    error = np.sqrt(np.mean((back.clips_NTHWC.astype(float) - made.clips_NTHWC) ** 2))
    assert error > 10
    assert facts["loss"]["codec_error_levels"] == pytest.approx(error, rel=1e-5)
    assert facts["loss"]["psnr_db"] == pytest.approx(20 * np.log10(255 / error), rel=1e-5)


def test_h264_is_read_as_clips_are(tmp_path: Path) -> None:
    """By swscale's other way it is darker."""
    greys = np.linspace(30, 220, 48 * 48 * 3).reshape(48, 48, 3).astype(np.uint8)
    made = replace(noisy_set((4, 48, 48, 3)), clips_NTHWC=np.broadcast_to(greys, (3, 4, 48, 48, 3)).copy())
    facts = exported(made, tmp_path / "out", "mp4")
    path = tmp_path / "out" / facts["files"][0]["file"]
    with Decoder() as decoder:
        np.testing.assert_array_equal(read_video(path), np.stack(list(decoder.frames(path))))
    assert abs(read_video(path).mean() - greys.mean()) < 0.5


def test_a_class_s_folder_lies_inside_the_exported_one() -> None:
    assert folder_names(["walk", "Apply Eye"]) == ["walk", "Apply Eye"]
    assert folder_names(["a/b", "../c"]) == ["a_b", "_c"]
    assert folder_names(["..", "a/b", "a:b", "A_B"]) == ["000", "001 a_b", "002 a_b", "003 A_B"]


def test_what_is_no_set_and_what_is_damaged_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFound, match=r"holds no distilled set.*no export\.json"):
        DistilledSet.load(tmp_path)
    facts = exported(noisy_set((4, 8, 8, 3)), tmp_path / "out", "mkv")
    write_lossless(tmp_path / "out" / facts["files"][1]["file"], noise(3, 8, 8, 3), 8)
    with pytest.raises(ArtifactDamaged, match=r"00001\.mkv holds \(3, 8, 8\).*instead of \(4, 8, 8\)"):
        DistilledSet.load(tmp_path / "out")
    (tmp_path / "out" / facts["files"][0]["file"]).write_bytes(b"no video")
    with pytest.raises(ArtifactDamaged, match=r"00000\.mkv cannot be read"):
        DistilledSet.load(tmp_path / "out")
    (tmp_path / "out" / EXPORT).write_text("{")
    with pytest.raises(ArtifactDamaged, match=r"export\.json cannot be read"):
        vidistill.Dataset(tmp_path / "out")


@pytest.mark.parametrize("kind", ["mkv", "npz", "webdataset", "hf"])
def test_a_flipped_bit_of_an_exported_set_is_found(bench: Bench, tmp_path: Path, kind: str) -> None:
    made = done(bench, relabel_job(distilled(bench, "random"), bench.given.train, bench.teacher, SOFT, 7, "label"))
    facts = export_set(bench.store, made, tmp_path / "out", 8, kind)
    assert_same(DistilledSet.load(tmp_path / "out"), DistilledSet.load(bench.store.folder(made)))
    read = {facts["logits"], *(one.get("shard", one["file"]) for one in facts["files"])}
    assert read <= facts["sha256"].keys()
    for name in sorted(read):
        file = tmp_path / "out" / name
        content = file.read_bytes()
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(ArtifactDamaged, match=rf"{file.name} is not what was written there: export the set again"):
            vidistill.Dataset(tmp_path / "out")
        file.write_bytes(content)
    assert len(vidistill.Dataset(tmp_path / "out")) == 3


def done(bench: Bench, job: Job) -> ArtifactRef:
    return run_job(job, bench.runtime)[0]


def distilled(bench: Bench, spec: str, seed: int = 7, **options: Any) -> ArtifactRef:
    source = find_method(spec)
    parameters = source.method.Parameters(**options)
    inputs = {"clips": [bench.given.train], **source.method(parameters).inputs(bench.given)}
    return [done(bench, job) for job in distil_jobs(source, parameters, 1, seed, 3, inputs, spec)][-1]


def scored(bench: Bench, made: ArtifactRef, recipe: Recipe, **inputs: ArtifactRef) -> ArtifactRef:
    refs = {"train": bench.given.train, "test": bench.given.train, "distilled": made, **inputs}
    return done(bench, evaluate_job("minic3d", STUDENT, recipe, 0, refs, "score"))


def test_an_export_holds_all_that_a_student_needs(bench: Bench, tmp_path: Path) -> None:
    made = distilled(bench, "random")
    score, out = scored(bench, made, ONLINE, teacher=bench.teacher), tmp_path / "out"
    facts = export_set(bench.store, made, out, 12, "mkv")
    assert facts == json.loads((out / EXPORT).read_text())
    assert_same(DistilledSet.load(out), DistilledSet.load(bench.store.folder(made)))
    table = bench.clips.table
    expected = {"mean": list(table.mean), "std": list(table.std), "flips": table.flips, "frames": 4, "interval": 4,
                "size": 48, "fps": 12, "crop": 0.5, "ipc": 1, "seed": 7, "recipe": "online", "labels": "online",
                "temperature": 2.0, "logits": None, "set": str(made)}  # fmt: skip
    assert {name: facts[name] for name in expected} == expected
    assert facts["method"] == {"name": "random", "version": 1, "digest": "", "options": {}}
    [told] = facts["scores"]
    assert told["artifact"] == str(score)
    assert {"student": "minic3d", "recipe": "online", "seed": 0}.items() <= told.items()
    assert facts["from"]["mean std flips"] == str(bench.given.train)
    assert facts["teacher"]["network"] == "r2plus1d_small"
    kept = bench.store.folder(bench.teacher) / "weights.safetensors"
    assert (out / facts["teacher"]["weights"]).read_bytes() == kept.read_bytes()
    assert load_file(out / TEACHER)
    assert facts["bytes"]["teacher"] == kept.stat().st_size
    assert f"{kept.stat().st_size:,} in the teacher's weights" in (out / "README.md").read_text()
    data = vidistill.Dataset(out)
    assert [int(target) for _, target in data] == [0, 1, 2]


def test_how_the_common_benchmark_trains_is_not_how_to_train(bench: Bench, tmp_path: Path) -> None:
    made = distilled(bench, "random", seed=8)
    refs = {"train": bench.given.train, "test": bench.given.train, "distilled": made}
    done(bench, evaluate_job("r2plus1d_small", STUDENT, Recipe(), 0, refs, "score", "vdsd"))
    facts = export_set(bench.store, made, tmp_path / "vdsd", 8, "npz")
    assert (facts["students"], [one["protocol"] for one in facts["scores"]]) == ({}, ["vdsd"])
    assert (facts["scores"][0]["student"], facts["scores"][0]["training"]) == ("r2plus1d_small", {})
    scored(bench, made, Recipe())
    facts = export_set(bench.store, made, tmp_path / "both", 8, "npz")
    assert list(facts["students"]) == ["minic3d"]
    assert facts["crop"] == 0.5


def test_scores_on_the_test_clips_of_a_later_day_are_not_the_set_s_own(bench: Bench, tmp_path: Path) -> None:
    made = distilled(bench, "random", seed=9)
    own = scored(bench, made, Recipe())
    blocks = block_jobs(bench.given.table, bench.given.decode, "test")
    later = clips_job(bench.given.index, bench.given.decode, "test", blocks, bench.given.train)
    for job in (*blocks, later):
        done(bench, job)
    scored(bench, made, Recipe(), test=later.ref)
    facts = export_set(bench.store, made, tmp_path / "out", 8, "npz")
    assert [one["artifact"] for one in facts["scores"]] == [str(own)]


def test_soft_labels_leave_with_their_temperature(bench: Bench, tmp_path: Path) -> None:
    made = distilled(bench, "random")
    soft = done(bench, relabel_job(made, bench.given.train, bench.teacher, SOFT, 7, "label"))
    facts = export_set(bench.store, soft, tmp_path / "out", 8, "npz")
    assert (facts["labels"], facts["recipe"], facts["temperature"], facts["teacher"]) == ("soft", "soft", 4.0, None)
    logits_NK = np.load(tmp_path / "out" / facts["logits"])
    np.testing.assert_array_equal(logits_NK, DistilledSet.load(bench.store.folder(soft)).logits_NK)
    exponent_NK = np.exp(logits_NK / 4.0)
    data = vidistill.Dataset(tmp_path / "out")
    for (x_CTHW, target_K), clip_THWC, expected_K in zip(
        data, DistilledSet.load(tmp_path / "out").clips_NTHWC, exponent_NK, strict=True
    ):
        mean_C, std_C = bench.clips.table.mean, bench.clips.table.std
        np.testing.assert_allclose(x_CTHW.permute(1, 2, 3, 0), (clip_THWC / 255 - mean_C) / std_C, atol=1e-5)
        np.testing.assert_allclose(target_K, expected_K / expected_K.sum(), atol=1e-6)
    assert [int(target) for _, target in vidistill.Dataset(tmp_path / "out", labels="hard")] == [0, 1, 2]


def test_hard_labels_are_not_taken_for_soft_ones(tmp_path: Path) -> None:
    exported(noisy_set((2, 8, 8, 3)), tmp_path / "out", "npz", labels="hard", mean=[0] * 3, std=[1] * 3)
    with pytest.raises(ValueError, match="no soft labels"):
        vidistill.Dataset(tmp_path / "out", labels="soft")
    with pytest.raises(ValueError, match="labels is 'Soft': take 'hard' or 'soft'"):
        vidistill.Dataset(tmp_path / "out", labels="Soft")  # type: ignore[arg-type]


def test_h264_says_how_much_of_what_was_learned_is_left(bench: Bench, tmp_path: Path) -> None:
    options = {"iterations": 2, "batch_real": 2, "precision": "fp32", "lr": 500.0}
    learned, random = distilled(bench, "dm", **options), distilled(bench, "random")
    loss = export_set(bench.store, learned, tmp_path / "dm", 8, "mp4")["loss"]
    made = DistilledSet.load(bench.store.folder(learned))
    paths = [video.path for video in bench.clips.table.videos]
    real_NTHWC = bench.clips.read([paths.index(source) for source in made.sources])
    change = made.clips_NTHWC.astype(float) - real_NTHWC
    assert loss["learned_levels"] == pytest.approx(np.sqrt(np.mean(change**2)), rel=1e-4)
    assert 0.05 < loss["learned_kept"] < 1.05
    assert re.search(r"the distillation had changed them by \d+\.\d, of which \d+% is left\.", said_of_loss(loss))
    assert not (tmp_path / "dm" / "real.mp4").exists()
    loss = export_set(bench.store, random, tmp_path / "random", 8, "mp4")["loss"]
    assert (loss["learned_levels"], loss["learned_kept"]) == (None, None)
    assert "cannot be told" in said_of_loss(loss)
    mix = Recipe(labels="soft", augmentation="tsgf", settings={"saliency": {}})
    mixed, _ = run_job(relabel_job(learned, bench.given.train, bench.teacher, mix, 0, ""), bench.runtime)
    loss = export_set(bench.store, mixed, tmp_path / "mixed", 8, "mp4")["loss"]
    assert loss["learned_levels"] is None  # another clip's box is nothing that was learned


def test_a_folder_that_cannot_be_written_is_said(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"file/set cannot be written \(Not a directory\): name another --out"):
        export_set(bench.store, distilled(bench, "random"), tmp_path / "file" / "set", 8, "mkv")


def test_a_folder_that_is_not_empty_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    made = distilled(bench, "random")
    with pytest.raises(RequestError, match="not an empty folder"):
        export_set(bench.store, made, tmp_path / "out", 8, "mkv")
    with pytest.raises(RequestError, match=r"no format 'gif'"):
        export_set(bench.store, made, tmp_path / "new", 8, "gif")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_the_readme_s_loop_trains_on_an_exported_set(bench: Bench, tmp_path: Path) -> None:
    made = distilled(bench, "random")
    soft = done(bench, relabel_job(made, bench.given.train, bench.teacher, SOFT, 7, "label"))
    export_set(bench.store, soft, tmp_path / "set", 8, "mkv")
    [snippet] = re.findall(r"```python\n(import torch\n.*?)```", README.read_text(), re.DOTALL)
    check = 'import sys\nassert not {"vidistill.flows", "vidistill.tasks", "prefect"} & sys.modules.keys()\n'
    ran = subprocess.run(
        [sys.executable, "-c", snippet.replace("range(100)", "range(5)") + check],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "student.pt").is_file()
    assert (tmp_path / "set" / LOGITS).is_file()
