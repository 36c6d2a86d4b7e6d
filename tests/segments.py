"""A small data set in the layout of 50Salads, for tests: random features about a mean of each class's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vidistill.storage.store import Store
from vidistill.tasks.segment.layout import survey_sequences
from vidistill.tasks.segment.sequences import Sequences, sequences_job
from vidistill.tasks.stage import Runtime, run_job

CLASSES = ("cut", "peel", "mix")
TRAIN = ("ccccppppppmm", "ppppmmmmcccccc", "mmmccccp")
TEST = ("ccccccmmmppp", "pppppcccmmmm")
DIMENSIONS = 5


def write_layout(
    root: Path, train: Sequence[str] = TRAIN, test: Sequence[str] = TEST, *, longer: int = 0, seed: int = 0
) -> Path:
    """Files of these videos, each a letter a frame; features may have some frames more than there are labels."""
    for folder in ("features", "groundTruth", "splits"):
        (root / folder).mkdir(parents=True)
    random = np.random.default_rng(seed)
    mean_KD = 2 * random.normal(size=(len(CLASSES), DIMENSIONS)) + 3
    (root / "mapping.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(CLASSES)))
    for split, words in (("train", train), ("test", test)):
        names = [f"rgb-{split}-{number}" for number in range(len(words))]
        (root / "splits" / f"{split}.split1.bundle").write_text("".join(f"{name}.txt\n" for name in names))
        for name, word in zip(names, words, strict=True):
            labels = ["cpm".index(letter) for letter in word]
            features_TD = mean_KD[labels + labels[-1:] * longer] + random.normal(size=(len(word) + longer, DIMENSIONS))
            np.save(root / "features" / f"{name}.npy", features_TD.T.astype(np.float32))
            (root / "groundTruth" / f"{name}.txt").write_text("".join(f"{CLASSES[label]}\n" for label in labels))
    return root


def read_layout(root: Path, store: Path, sample_rate: int = 1) -> Sequences:
    """The sequences of a folder, by the stage that reads it."""
    runtime = Runtime(store=str(store), data=str(root), device="cpu", threads=1)
    ref, _ = run_job(sequences_job(1, sample_rate, survey_sequences(root, 1)), runtime)
    return Sequences(Store(store), ref)
