"""The layout of 50Salads, Breakfast and GTEA: what is read, and what is wrong with a folder that is not so."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from segments import CLASSES, DIMENSIONS, TEST, TRAIN, read_layout, write_layout

from vidistill.storage.errors import RequestError, RunError
from vidistill.storage.keys import digest
from vidistill.tasks.segment import layout
from vidistill.tasks.segment.layout import survey_sequences
from vidistill.tasks.segment.sequences import sequences_job
from vidistill.tasks.stage import Runtime, run_job


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_layout(tmp_path / "salads")


def test_videos_have_their_split_their_frames_and_their_classes(root: Path) -> None:
    table = survey_sequences(root, 1)
    assert (table.classes, table.dimensions) == (CLASSES, DIMENSIONS)
    assert [(one.name, one.split, one.frames) for one in table.videos] == [
        *((f"rgb-train-{number}", "train", len(word)) for number, word in enumerate(TRAIN)),
        *((f"rgb-test-{number}", "test", len(word)) for number, word in enumerate(TEST)),
    ]


def test_sequences_are_the_files_frame_by_frame(root: Path, tmp_path: Path) -> None:
    sequences = read_layout(root, tmp_path / "store")
    assert sequences.rows("train") == [0, 1, 2]
    assert sequences.rows("test") == [3, 4]
    train_FD = np.concatenate([np.load(root / "features" / f"rgb-train-{number}.npy").T for number in range(3)])
    for row, name in enumerate(("rgb-train-0", "rgb-train-1", "rgb-train-2", "rgb-test-0", "rgb-test-1")):
        file_TD = np.load(root / "features" / f"{name}.npy").T
        assert sequences.name(row) == name
        np.testing.assert_array_equal(sequences.features(row), file_TD)
        words = (root / "groundTruth" / f"{name}.txt").read_text().split()
        assert [CLASSES[label] for label in sequences.labels(row)] == words
        expected = (file_TD - train_FD.mean(0, dtype=np.float64)) / train_FD.std(0, dtype=np.float64)
        np.testing.assert_allclose(sequences.standardised(row), expected, rtol=1e-4, atol=1e-5)
    low_D, high_D = sequences.limits()
    of_train = [sequences.standardised(row) for row in (0, 1, 2)]
    np.testing.assert_allclose(low_D, np.concatenate(of_train).min(0), rtol=1e-5)
    np.testing.assert_allclose(high_D, np.concatenate(of_train).max(0), rtol=1e-5)


def test_every_second_frame_has_features_and_all_keep_their_labels(root: Path, tmp_path: Path) -> None:
    whole, half = read_layout(root, tmp_path / "store"), read_layout(root, tmp_path / "store", sample_rate=2)
    for row in range(5):
        np.testing.assert_array_equal(half.features(row), whole.features(row)[::2])
        np.testing.assert_array_equal(half.labels(row), whole.labels(row)[::2])
        np.testing.assert_array_equal(half.all_labels(row), whole.labels(row))


def test_a_dimension_that_never_changes_is_not_divided_by_nothing(root: Path, tmp_path: Path) -> None:
    for path in (root / "features").iterdir():
        features_DT = np.load(path)
        features_DT[2] = 0.7
        np.save(path, features_DT)
    sequences = read_layout(root, tmp_path / "store")
    assert np.abs(sequences.standardised(0)[:, 2]).max() < 1e-5


def test_a_few_frames_more_are_cut_and_said(tmp_path: Path) -> None:
    long = "c" * 60 + "p" * 40
    root = write_layout(tmp_path / "salads", [long], [long], longer=4)
    table = survey_sequences(root, 1)
    assert {(one.frames, one.cut) for one in table.videos} == {(100, 4)}
    sequences = read_layout(root, tmp_path / "store")
    assert sequences.features(0).shape == (100, DIMENSIONS)


def test_the_key_is_the_content(root: Path, tmp_path: Path) -> None:
    table = survey_sequences(root, 1)
    elsewhere = root.rename(tmp_path / "renamed")
    assert survey_sequences(elsewhere, 1) == table
    path = elsewhere / "features" / "rgb-train-1.npy"
    content = path.read_bytes()
    np.save(path, np.load(path) + 1)
    assert digest(survey_sequences(elsewhere, 1)) != digest(table)
    path.write_bytes(content)
    assert digest(survey_sequences(elsewhere, 1)) == digest(table)
    labels = elsewhere / "groundTruth" / "rgb-test-0.txt"
    labels.write_text(labels.read_text().replace("cut", "mix", 1))
    assert digest(survey_sequences(elsewhere, 1)) != digest(table)


def test_features_are_hashed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, hashed = survey_sequences(root, 1), []
    monkeypatch.setattr(layout, "file_digest", lambda path: hashed.append(path.name) or "another")
    assert survey_sequences(root, 1) == table
    (root / "features" / "rgb-train-0.npy").touch()
    survey_sequences(root, 1)
    assert hashed == ["rgb-train-0.npy"]


def test_what_changes_between_the_plan_and_the_work_is_no_result(root: Path, tmp_path: Path) -> None:
    job = sequences_job(1, 1, survey_sequences(root, 1))
    path = root / "features" / "rgb-train-1.npy"
    np.save(path, np.load(path) + 1)
    runtime = Runtime(store=str(tmp_path / "store"), data=str(root), device="cpu", threads=1)
    with pytest.raises(RunError, match="changed while they were read: run again"):
        run_job(job, runtime)


def test_features_that_are_not_finite_are_refused(root: Path, tmp_path: Path) -> None:
    path = root / "features" / "rgb-test-1.npy"
    features_DT = np.load(path)
    features_DT[1, 3] = np.nan
    np.save(path, features_DT)
    with pytest.raises(RequestError, match=r"rgb-test-1 hold values that are not finite"):
        read_layout(root, tmp_path / "store")


def remove(name: str):
    return lambda root: (root / name).unlink()


def write(name: str, text: str):
    return lambda root: (root / name).write_text(text)


def save_archive(name: str):
    def spoil(root: Path) -> None:
        with (root / "features" / f"{name}.npy").open("wb") as file:
            np.savez(file, features=np.zeros((DIMENSIONS, 12), np.float32))

    return spoil


def save(name: str, array: np.ndarray):
    return lambda root: np.save(root / "features" / f"{name}.npy", array)


WRONG = {
    "no mapping": (remove("mapping.txt"), "There is no file .*mapping.txt: the layout is features/NAME.npy"),
    "no list": (remove("splits/test.split1.bundle"), "There is no file .*test.split1.bundle: the layout is"),
    "no labels": (remove("groundTruth/rgb-train-1.txt"), "There is no file .*groundTruth/rgb-train-1.txt"),
    "no features": (
        remove("features/rgb-test-0.npy"),
        "There is no file .*rgb-test-0.npy, which a list of splits names",
    ),
    "an empty list": (write("splits/train.split1.bundle", "\n"), "train.split1.bundle names no video"),
    "a video twice": (
        write("splits/test.split1.bundle", "rgb-test-0.txt\nrgb-train-2.txt\n"),
        "Split 1 names rgb-train-2 twice: a video is in train or in test, once",
    ),
    "an unknown label": (
        write("groundTruth/rgb-train-1.txt", "cut\nfry\n" * 7),
        "rgb-train-1.txt, line 2: 'fry' is no label that mapping.txt names",
    ),
    "a line without a label": (
        write("groundTruth/rgb-train-1.txt", "cut\ncut\n\n" + "peel\n" * 9),
        "rgb-train-1.txt, line 3: '' is no label that mapping.txt names",
    ),
    "labels that are no text": (
        lambda root: (root / "groundTruth" / "rgb-train-1.txt").write_bytes(b"\xff\xfe\x00"),
        "rgb-train-1.txt cannot be read as text",
    ),
    "a mapping without numbers": (write("mapping.txt", "cut\npeel\nmix\n"), "a number and a class a line, such as"),
    "a mapping with a power": (
        write("mapping.txt", "² cut\n1 peel\n2 mix\n"),
        "a number and a class a",
    ),
    "a mapping with a gap": (
        write("mapping.txt", "0 cut\n1 peel\n3 mix\n"),
        "must number its classes 0 to 2, each once",
    ),
    "a class twice": (write("mapping.txt", "0 cut\n1 cut\n2 mix\n"), "must number its classes 0 to 2, each once"),
    "lengths that differ": (
        save("rgb-train-0", np.zeros((DIMENSIONS, 20), np.float32)),
        "rgb-train-0.npy has 20 frames and groundTruth/rgb-train-0.txt 12 labels",
    ),
    "frames by features": (
        save("rgb-train-0", np.zeros((12, DIMENSIONS), np.float32)),
        r"has 5 frames and groundTruth/rgb-train-0.txt 12 labels: features must be of shape \(features, frames\)",
    ),
    "another number of features": (
        save("rgb-test-1", np.zeros((3, 12), np.float32)),
        "rgb-test-1.npy has 3 features a frame and rgb-train-0.npy 5",
    ),
    "an array of three axes": (save("rgb-test-1", np.zeros((3, 12, 1), np.float32)), r"float32 of shape \(3, 12, 1\)"),
    "integers": (save("rgb-test-1", np.zeros((5, 12), np.int64)), "is int64 of shape"),
    "an archive": (save_archive("rgb-test-1"), "rgb-test-1.npy is an archive of arrays"),
    "no array": (write("features/rgb-test-1.npy", "text"), "rgb-test-1.npy cannot be read as an array of NumPy"),
    "an empty array file": (write("features/rgb-test-1.npy", ""), "rgb-test-1.npy cannot be read as an array of NumPy"),
    "half an archive": (
        write("features/rgb-test-1.npy", "PK\x03\x04 and no more"),
        "rgb-test-1.npy cannot be read as an array of NumPy",
    ),
    "a damaged head": (
        write("features/rgb-test-1.npy", "\x93NUMPY\x01\x00\x0a\x00{'descr': ("),
        "rgb-test-1.npy cannot be read as an array of NumPy",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_sentence(root: Path, name: str) -> None:
    spoil, words = WRONG[name]
    spoil(root)
    with pytest.raises(RequestError, match=words) as caught:
        survey_sequences(root, 1)
    assert re.fullmatch(r"[^\n]+\.", str(caught.value))


def test_a_list_may_name_videos_without_the_ending(root: Path) -> None:
    for kind, ending in (("features", "npy"), ("groundTruth", "txt")):
        (root / kind / f"rgb-test-0.{ending}").rename(root / kind / f"rgb.0.{ending}")
    for name in ("rgb.0", "rgb.0.txt"):
        (root / "splits" / "test.split2.bundle").write_text(f"{name}\n")
        (root / "splits" / "train.split2.bundle").write_text("rgb-train-0\n")
        assert [one.name for one in survey_sequences(root, 2).videos] == ["rgb-train-0", "rgb.0"]


def test_another_split_has_lists_of_its_own(root: Path) -> None:
    for split in ("train", "test"):
        (root / "splits" / f"{split}.split2.bundle").write_text(f"rgb-{split}-0.txt\n")
    assert [one.name for one in survey_sequences(root, 2).videos] == ["rgb-train-0", "rgb-test-0"]
    with pytest.raises(RequestError, match=r"train.split3.bundle"):
        survey_sequences(root, 3)
