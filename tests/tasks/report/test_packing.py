"""Exported sets in the hands of other tools: each reads the pixels and the labels that were written."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from method_contract import Bench

from vidistill.flows.unpack import unpack
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import ArtifactDamaged
from vidistill.storage.exported import EXPORT
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.distil import distil_jobs
from vidistill.tasks.learning.evaluate import StudentParameters, evaluate_job
from vidistill.tasks.learning.relabel import relabel_job
from vidistill.tasks.methods import Recipe, find_method
from vidistill.tasks.report.export import export_set
from vidistill.tasks.stage import Job, run_job

SOFT = Recipe(labels="soft", temperature=4.0)
STUDENT = StudentParameters(epochs=1, least_steps=2, precision="fp32")
KINDS = ["mkv", "folders", "webdataset", "hf"]


def done(bench: Bench, job: Job) -> ArtifactRef:
    return run_job(job, bench.runtime)[0]


@pytest.fixture(scope="module")
def soft(bench: Bench) -> ArtifactRef:
    """Random clips with a teacher's labels, and a score."""
    source = find_method("random")
    jobs = distil_jobs(source, source.method.Parameters(), 1, 7, 3, {"clips": [bench.given.train]}, "random")
    [made] = [done(bench, job) for job in jobs]
    labelled = done(bench, relabel_job(made, bench.given.train, bench.teacher, SOFT, 7, "label"))
    inputs = {"train": bench.given.train, "test": bench.given.train, "distilled": labelled}
    done(bench, evaluate_job("minic3d", STUDENT, SOFT, 0, inputs, "score"))
    return labelled


@pytest.fixture(scope="module")
def made(bench: Bench, soft: ArtifactRef) -> DistilledSet:
    return DistilledSet.load(bench.store.folder(soft))


@pytest.fixture(scope="module")
def folders(bench: Bench, soft: ArtifactRef, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("exports")
    for kind in KINDS:
        assert export_set(bench.store, soft, out / kind, 8, kind)["lossless"]
    return {kind: out / kind for kind in KINDS}


@pytest.fixture(scope="module")
def ffmpeg(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which torchcodec finds the FFmpeg that PyAV brings, by the names that it looks for."""
    if importlib.util.find_spec("torchcodec") is None:
        pytest.skip("torchcodec is not installed: pip install -e '.[readers]' -c constraints.txt")
    brought = Path(av.__file__).parent.parent / "av.libs"
    if not brought.is_dir():
        pytest.skip("this PyAV brings no FFmpeg of its own")
    links = tmp_path_factory.mktemp("ffmpeg")
    for path in brought.iterdir():
        if named := re.match(r"(lib(?:av|sw)\w+)-[0-9a-f]+\.so\.(\d+)", path.name):
            (links / f"{named[1]}.so.{named[2]}").symlink_to(path)
    return os.environ | {"LD_LIBRARY_PATH": f"{links}:{brought}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def read_by(script: str, env: dict[str, str], *arguments: object) -> dict[str, np.ndarray]:
    """What a script puts into `found`, in an environment of its own."""
    ends = "\nimport numpy, sys\nnumpy.savez(sys.argv[1], **found)\n"
    out = Path(str(arguments[0]))
    ran = subprocess.run(
        [sys.executable, "-c", script + ends, *map(str, arguments)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    with np.load(out) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("kind", KINDS)
def test_vidistill_reads_it_back(kind: str, folders: dict[str, Path], made: DistilledSet) -> None:
    back = DistilledSet.load(folders[kind])
    np.testing.assert_array_equal(back.clips_NTHWC, made.clips_NTHWC)
    np.testing.assert_array_equal(back.labels_N, made.labels_N)
    np.testing.assert_array_equal(back.logits_NK, made.logits_NK)
    assert back.sources == made.sources


def test_pyav_reads_a_folder_a_class_by_its_labels(folders: dict[str, Path], made: DistilledSet) -> None:
    with (folders["folders"] / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == made.labels_N.tolist()
    assert [row["class"] for row in rows] == [made.classes[label] for label in made.labels_N]
    np.testing.assert_array_equal(np.float32([json.loads(row["logits"]) for row in rows]), made.logits_NK)
    for row, clip_THWC in zip(rows, made.clips_NTHWC, strict=True):
        assert Path(row["file"]).parent.name == row["class"]
        with av.open(folders["folders"] / row["file"]) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        np.testing.assert_array_equal(np.stack(frames), clip_THWC)


TORCHCODEC = """
import csv, sys
from pathlib import Path
from torchcodec.decoders import VideoDecoder
folder = Path(sys.argv[2])
rows = list(csv.DictReader((folder / "labels.csv").open()))
clips = (VideoDecoder(folder / row["file"], dimension_order="NHWC")[:].numpy() for row in rows)
found = {f"clip {number}": clip for number, clip in enumerate(clips)}
"""


def test_torchcodec_reads_the_pixels(
    ffmpeg: dict[str, str], folders: dict[str, Path], made: DistilledSet, tmp_path: Path
) -> None:
    found = read_by(TORCHCODEC, ffmpeg, tmp_path / "found.npz", folders["folders"])
    np.testing.assert_array_equal(np.stack(list(found.values())), made.clips_NTHWC)


DATASETS = """
import numpy as np, sys
from datasets import load_dataset
data = load_dataset(sys.argv[2], cache_dir=sys.argv[3], split="train")
assert str(data.features["video"]).startswith("Video"), data.features
found = {
    "clips": np.stack([row["video"][:].permute(0, 2, 3, 1).numpy() for row in data]),
    "labels": np.array(data["label"]), "logits": np.array(data["logits"], dtype=np.float32),
    "classes": np.array(data["class"]),
}
"""


def test_hugging_face_s_datasets_reads_it(
    ffmpeg: dict[str, str], folders: dict[str, Path], made: DistilledSet, tmp_path: Path
) -> None:
    pytest.importorskip("datasets", reason="pip install -e '.[readers]' -c constraints.txt")
    found = read_by(DATASETS, ffmpeg, tmp_path / "found.npz", folders["hf"], tmp_path / "cache")
    order = np.argsort(found["labels"])
    np.testing.assert_array_equal(found["clips"][order], made.clips_NTHWC)
    np.testing.assert_array_equal(found["labels"][order], made.labels_N)
    np.testing.assert_array_equal(found["logits"][order], made.logits_NK)
    assert found["classes"].tolist() == [made.classes[label] for label in found["labels"]]


def test_a_set_s_shards_are_unpacked_into_its_classes(
    folders: dict[str, Path], made: DistilledSet, tmp_path: Path
) -> None:
    unpack(folders["webdataset"], tmp_path / "out")
    found = sorted(path.parent.name for path in (tmp_path / "out").rglob("*.mkv"))
    assert found == sorted(made.classes[label] for label in made.labels_N)


def test_webdataset_reads_its_shards(folders: dict[str, Path], made: DistilledSet, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="pip install -e '.[readers]' -c constraints.txt")
    shards = str(folders["webdataset"] / "shard-000000.tar")
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert [sample["cls"] for sample in samples] == made.labels_N.tolist()
    np.testing.assert_array_equal(np.stack([sample["npy"] for sample in samples]), made.logits_NK)
    assert [sample["json"]["sources"] for sample in samples] == [[source] for source in made.sources]
    for sample, clip_THWC in zip(samples, made.clips_NTHWC, strict=True):
        (tmp_path / "clip.mkv").write_bytes(sample["mkv"])
        with av.open(tmp_path / "clip.mkv") as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        np.testing.assert_array_equal(np.stack(frames), clip_THWC)


@pytest.mark.parametrize("kind", KINDS)
def test_croissant_names_files_and_labels(kind: str, folders: dict[str, Path], made: DistilledSet) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="pip install -e '.[readers]' -c constraints.txt")
    data = mlcroissant.Dataset(str(folders[kind] / "croissant.json"))
    assert not data.metadata.ctx.issues.errors
    rows = list(data.records("clips"))
    assert [row["clips/label"] for row in rows] == made.labels_N.tolist()
    assert [row["clips/class"].decode() for row in rows] == [made.classes[label] for label in made.labels_N]
    np.testing.assert_array_equal(np.float32([json.loads(row["clips/logits"]) for row in rows]), made.logits_NK)
    named = {one.name for one in data.metadata.distribution}
    assert ("shard-000000.tar" in named) == (kind == "webdataset")
    if kind != "webdataset":
        assert "videos" in named
        assert all((folders[kind] / row["clips/file"].decode()).is_file() for row in rows)


def test_the_card_says_what_it_is_and_whose(bench: Bench, folders: dict[str, Path], soft: ArtifactRef) -> None:
    text = (folders["mkv"] / "README.md").read_text()
    for said in (
        "- method: random, version", "- seed: 7", "- labels: soft, temperature 4", str(soft),
        "| minic3d | vidistill, epochs 1, least_steps 2, precision fp32 | soft | 0 |",
        "## Scores on the real test split", "## Licence", "their licence and terms hold",
    ):  # fmt: skip
        assert said in text
    assert not text.startswith("---")
    assert (folders["hf"] / "README.md").read_text().startswith("---\nlicense: other")


def test_hard_labels_leave_without_logits(bench: Bench, soft: ArtifactRef, tmp_path: Path) -> None:
    hard = bench.store.manifest(soft).inputs["distilled"][0]
    export_set(bench.store, hard, tmp_path / "hf", 8, "hf")
    lines = [json.loads(line) for line in (tmp_path / "hf" / "metadata.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"file_name", "label", "class", "variant"}] * 3
    assert "logits" not in (tmp_path / "hf" / "README.md").read_text()
    export_set(bench.store, hard, tmp_path / "shards", 8, "webdataset")
    made = {path.name for path in (tmp_path / "shards").iterdir()}
    asked = {"teacher.safetensors"}  # there where another test scored this set with online labels
    assert made - asked == {"README.md", "croissant.json", EXPORT, "labels.csv", "shard-000000.tar"}


def test_a_shard_that_is_damaged_is_said(folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["webdataset"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "shard-000000.tar").write_bytes(b"no shard at all")
    with pytest.raises(ArtifactDamaged, match=r"shard-000000\.tar is not what was written there"):
        DistilledSet.load(tmp_path)
