"""The layout in which 50Salads, Breakfast and GTEA are shared (Farha and Gall 2019), read as it is.

`features/NAME.npy` is (D, T) float; `groundTruth/NAME.txt` a class a line, a line a frame; `mapping.txt` a number and a
class a line; `splits/train.split1.bundle` and `splits/test.split1.bundle` a file of groundTruth a line.

Legend: D features a frame, T frames, K classes.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.errors import RequestError
from vidistill.storage.keys import digest, file_digest
from vidistill.storage.parameters import Parameters
from vidistill.tasks.videos.scan import Identity, Memo, memo_path

SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
MAPPING = "mapping.txt"
DIFFERENCE = 0.05
"""Features and labels of a video may differ in length by this share; the longer is cut, as MS-TCN's loader does it."""


class SequenceFile(Parameters):
    """One video: its name, how many of its frames have features and a label, and its content."""

    name: str
    split: Literal["train", "test"]
    frames: int
    cut: int
    features: str
    labels: str


class SequenceTable(Parameters):
    """The videos of one split of a data set; the folder's name is not in it."""

    classes: tuple[str, ...]
    dimensions: int
    videos: tuple[SequenceFile, ...]


def survey_sequences(root: Path, split: int) -> SequenceTable:
    """Read the lists, the labels and the heads of the features of a split; features are hashed once and remembered.

    Raises:
        RequestError: a file is missing or is not what it should be; the message names it.
    """
    classes = read_mapping(root)
    with closing(Memo(memo_path())) as memo:
        videos = [
            _video(root, name, half, classes, memo) for half in SPLITS for name in _listed(root, f"{half}.split{split}")
        ]
    dimensions = {video.name: size for video, size in videos}
    first = next(iter(dimensions))
    for name, size in dimensions.items():
        if size != dimensions[first]:
            raise RequestError(
                f"{_features(root, name)} has {size} features a frame and {first}.npy {dimensions[first]}: they must "
                "be of shape (features, frames), as many features in each."
            )
    _no_name_twice([video.name for video, _ in videos], split)
    return SequenceTable(classes=classes, dimensions=dimensions[first], videos=tuple(video for video, _ in videos))


def read_mapping(root: Path) -> tuple[str, ...]:
    """The classes by their numbers."""
    lines = [line.split(maxsplit=1) for line in _lines(root / MAPPING)]
    if not all(len(words) == 2 and words[0].isdecimal() for words in lines):
        raise RequestError(f"{root / MAPPING} must have a number and a class a line, such as `0 cut_tomato`.")
    numbered = {int(number): name.strip() for number, name in lines}
    if sorted(numbered) != list(range(len(lines))) or len(set(numbered.values())) != len(lines):
        raise RequestError(f"{root / MAPPING} must number its classes 0 to {len(lines) - 1}, each once.")
    return tuple(numbered[number] for number in range(len(lines)))


def read_labels(root: Path, name: str, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """The class of each frame of a video, as a number."""
    path, numbers = root / "groundTruth" / f"{name}.txt", {known: number for number, known in enumerate(classes)}
    lines = [line.strip() for line in _text(path).rstrip().splitlines()]
    strange = next((number for number, line in enumerate(lines) if line not in numbers), None)
    if strange is not None:
        raise RequestError(f"{path}, line {strange + 1}: {lines[strange]!r} is no label that {MAPPING} names.")
    return np.array([numbers[line] for line in lines], dtype=np.int64)


def open_features(root: Path, name: str) -> NDArray[np.floating]:
    """A video's features (D, T), which are read as they are used."""
    path = _features(root, name)
    try:
        features_DT: NDArray[np.floating] = np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise RequestError(f"There is no file {path}, which a list of splits names.") from error
    except Exception as error:  # a damaged head fails in many ways
        said = " ".join(str(error).split())
        raise RequestError(f"{path} cannot be read as an array of NumPy: {said}.") from error
    if not isinstance(features_DT, np.ndarray):
        raise RequestError(f"{path} is an archive of arrays (.npz): it must be one array, float (features, frames).")
    if features_DT.ndim != 2 or features_DT.dtype.kind != "f" or not features_DT.size:
        raise RequestError(
            f"{path} is {features_DT.dtype} of shape {features_DT.shape}: it must be float of shape (features, frames)."
        )
    return features_DT


def _features(root: Path, name: str) -> Path:
    return root / "features" / f"{name}.npy"


def _video(
    root: Path, name: str, split: Literal["train", "test"], classes: tuple[str, ...], memo: Memo
) -> tuple[SequenceFile, int]:
    features_DT, labels_T = open_features(root, name), read_labels(root, name, classes)
    dimensions, long = features_DT.shape
    frames = min(long, len(labels_T))
    if max(long, len(labels_T)) - frames > DIFFERENCE * len(labels_T):
        raise RequestError(
            f"{_features(root, name)} has {long} frames and groundTruth/{name}.txt {len(labels_T)} labels: features "
            "must be of shape (features, frames), of as many frames as there are labels."
        )
    video = SequenceFile(
        name=name, split=split, frames=frames, cut=max(long, len(labels_T)) - frames,
        features=_hashed(_features(root, name), memo), labels=digest(labels_T.tolist()),
    )  # fmt: skip
    return video, dimensions


def _hashed(path: Path, memo: Memo) -> str:
    """The file's SHA-256, which is remembered for as long as it does not change."""
    found = path.stat()
    identity = Identity(str(path.resolve()), found.st_size, found.st_mtime_ns)
    known = memo.recall_text(identity)
    if known is None:
        memo.note_text(identity, known := file_digest(path))
    return known


def _listed(root: Path, bundle: str) -> list[str]:
    names = [Path(line).name.removesuffix(".txt") for line in _lines(root / "splits" / f"{bundle}.bundle")]
    if not names:
        raise RequestError(f"{root / 'splits' / bundle}.bundle names no video.")
    return names


def _no_name_twice(names: list[str], split: int) -> None:
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise RequestError(f"Split {split} names {twice} twice: a video is in train or in test, once.")


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RequestError(
            f"There is no file {path}: the layout is features/NAME.npy, groundTruth/NAME.txt, {MAPPING} and "
            "splits/train.split1.bundle, test.split1.bundle."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read as text: {error}.") from error
