"""Export: a distilled set as files that anybody can read, beside all that a student of it needs.

Legend: N clips, T frames, H height, W width; clips are uint8 RGB.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidistill.storage import coded
from vidistill.storage.clips import Clips
from vidistill.storage.distilled import CLIPS, DistilledSet
from vidistill.storage.errors import RequestError
from vidistill.storage.exported import ARRAYS, EXPORT, LOGITS, TEACHER, read_video, write_lossless, write_packets
from vidistill.storage.files import files_of, writing_to
from vidistill.storage.keys import file_digest
from vidistill.storage.store import ArtifactRef, Store
from vidistill.storage.streams import Stream
from vidistill.tasks.learning.teacher import WEIGHTS
from vidistill.tasks.report.card import write_card, write_croissant
from vidistill.tasks.report.origin import Origin
from vidistill.tasks.report.packing import pack_shards, write_labels, write_metadata
from vidistill.tasks.videos.sprites import write_video

Videos = Sequence[NDArray[np.uint8]]
FORMATS = {
    "mkv": "FFV1 in Matroska: RGB, bit by bit",
    "folders": "the same, by the name of how it lies there: a folder a class, and labels.csv",
    "webdataset": "the same in shards of WebDataset, with labels and logits beside each clip",
    "hf": "the same as a folder that Hugging Face's load_dataset reads, with its card",
    "npz": "one NumPy archive, bit by bit",
    "coded": "a coded set's own packets in Matroska, not coded again: a file a clip, or one of one stream",
    "coded_class": "the same, a file a class",
    "mp4": "H.264, crf 18, half of the colour resolution: lossy",
}
CODED = ("coded", "coded_class")
NOTHING_LEARNED: dict[str, float | None] = {"learned_levels": None, "learned_kept": None}
"""Of clips that did not begin as real ones, or that were mixed since: another clip's box is no distillation."""


def export_set(store: Store, ref: ArtifactRef, out: Path, fps: int, kind: str) -> dict[str, Any]:
    """Write a set with everything that the store knows of how it was made and scored.

    Returns:
        What `export.json` holds.

    Raises:
        RequestError: there is no such format, or the folder is not empty.
        RunError: the folder cannot be written.
    """
    if kind not in FORMATS:
        raise RequestError(f"There is no format {kind!r}: choose {', '.join(FORMATS)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} is not an empty folder: name another --out, so that no files are mixed.")
    made, origin = DistilledSet.load(store.folder(ref)), Origin.of(store, ref)
    if kind in CODED and made.form != coded.FORM:
        others = ", ".join(name for name in FORMATS if name not in CODED)
        raise RequestError(f"{ref} keeps no compressed video: choose {others}, or make a coded set (README).")
    try:
        with writing_to(out):
            return _written(store, ref, made, origin, out, fps, kind)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _written(
    store: Store, ref: ArtifactRef, made: DistilledSet, origin: Origin, out: Path, fps: int, kind: str
) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    facts = write_set(made, out, fps, kind) | origin.facts(made.logits_NK is not None)
    if kind == "mp4":
        mixed = origin.relabelled and origin.relabelled.parameters["recipe"]["augmentation"] != "none"
        facts["loss"] |= NOTHING_LEARNED if mixed else _kept(made, facts, out, origin.clips)
    if origin.teacher:
        shutil.copyfile(store.folder(origin.teacher) / WEIGHTS, out / TEACHER)
    write_labels(out, facts, _logits_a_file(made, facts))
    facts["sha256"] = {path.relative_to(out).as_posix(): file_digest(path) for path in files_of(out)}
    exported = sum((out / name).stat().st_size for name in facts["sha256"] if name != TEACHER)
    facts["bytes"] = {"stored": DistilledSet.training_bytes(store.folder(ref)), "exported": exported}
    if origin.teacher:
        facts["bytes"]["teacher"] = (out / TEACHER).stat().st_size
    (out / EXPORT).write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
    write_card(out, facts)
    write_croissant(out, facts | {"created": store.manifest(ref).created[:10]})
    return facts


def write_set(made: DistilledSet, out: Path, fps: int, kind: str) -> dict[str, Any]:
    """Write the clips, a file each under their class (or one archive), and `logits.npy` where labels are soft.

    Of a set of mosaics the mosaics are written: `clips_a_file` says how many clips a student cuts from each. Of a set
    whose clips have variants every variant is written.
    """
    videos, share = _videos(made, kind), made.clips_an_instance if made.form == "regions" or kind in CODED else 1
    count, folders = len(made) // share, folder_names(made.classes)
    suffix = "mp4" if kind == "mp4" else "mkv"
    files = []
    for place in range(len(videos)):
        variant, number = divmod(place, count)
        label = int(made.labels_N[number * share])
        name = f"{number:05d}-{variant}" if len(videos) > count else f"{number:05d}"
        sources = list(made.sources[number * share : (number + 1) * share])
        files.append({"file": f"{folders[label]}/{name}.{suffix}", "label": label, "variant": variant,
                      "sources": sources})  # fmt: skip
    if made.logits_NK is not None:
        np.save(out / LOGITS, made.logits_NK)
    facts: dict[str, Any] = {
        "format": kind,
        "lossless": kind != "mp4",
        "fps": fps,
        "form": "regions" if made.form == "regions" else CLIPS,
        "classes": list(made.classes),
        "clips_a_file": share,
        "shape": list(made.clips_NTHWC.shape),
        "video_shape": list(videos[0].shape),
        "logits": LOGITS if made.logits_NK is not None else None,
        "facts": made.facts,
        "files": files,
    }
    if kind in CODED:
        return facts | _write_coded(made, out, files, fps, apart=kind == "coded")
    if kind == "npz":
        np.savez_compressed(out / ARRAYS, videos=np.stack(videos))
        for one in files:
            one["file"] = ARRAYS
    else:
        for one, video_THWC in zip(files, videos, strict=True):
            _write(out / str(one["file"]), video_THWC, fps, lossless=kind != "mp4")
    if kind == "webdataset":
        pack_shards(out, files, made.classes, _logits_a_file(made, facts))
    if kind == "hf":
        write_metadata(out, facts, _logits_a_file(made, facts))
    if kind == "mp4":
        facts["loss"] = _psnr(videos, [read_video(out / str(one["file"])) for one in files])
    return facts


def _logits_a_file(made: DistilledSet, facts: dict[str, Any]) -> NDArray[np.float32] | None:
    """The teacher's outputs for the clip of each file, (F, K); none where a file gives several clips."""
    if made.logits_NK is None or facts["clips_a_file"] > 1:
        return None
    return made.logits_NK[[number % len(made) for number in range(len(facts["files"]))]]


def _stream(made: DistilledSet) -> Stream:
    return Stream.from_bytes(made.stored["stream"].tobytes())


def _write_coded(
    made: DistilledSet, out: Path, files: list[dict[str, Any]], fps: int, *, apart: bool
) -> dict[str, Any]:
    """The packets of clips, a file each or a file a class; what a reader needs to know of the pictures in them.

    Clips that share a file follow each other in it as they do in `files`.
    """
    stream = _stream(made)
    if len(stream.clips) < len(files):  # each clip is predicted from those before it
        files[:] = [one | {"file": "clips.mkv"} for one in files]
        held = {"clips.mkv": [0]}
    else:
        held = {}
        for number, one in enumerate(files):
            one["file"] = one["file"] if apart else f"{Path(one['file']).parent}.mkv"
            held.setdefault(one["file"], []).append(number)
    for name, numbers in held.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_packets(out / name, stream, numbers, fps)
    frames = stream.shape_THW[0] * len(stream.clips) // len(files)
    size = {"coded_frames": frames, "coded_size": list(stream.coded_HW)}
    return {"codec": stream.codec, **size, "boxes": made.stored["boxes"].tolist()}


def _videos(made: DistilledSet, kind: str) -> list[NDArray[np.uint8]]:
    """What is written as a file each: mosaics, clips and after them their variants, or clips without their views."""
    if kind in CODED:
        return list(made.clips_NTHWC[:: made.clips_an_instance])
    if made.form == "regions":
        return list(made.stored["mosaics"])
    others = [] if made.others_VNTHWC is None else list(made.others_VNTHWC)
    return [clip for clips_NTHWC in [made.clips_NTHWC, *others] for clip in clips_NTHWC]


def folder_names(classes: Sequence[str]) -> list[str]:
    """A folder for each class, whatever its name holds; `export.json` has the names themselves."""
    plain = [re.sub(r"[^\w\-. ()&+,]", "_", name).strip(". ") for name in classes]
    unique = len({name.lower() for name in plain}) == len(plain) and all(plain)
    return plain if unique else [f"{label:03d} {name}".strip() for label, name in enumerate(plain)]


def _write(path: Path, video_THWC: NDArray[np.uint8], fps: int, *, lossless: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if lossless:
        write_lossless(path, video_THWC, fps)
    else:
        write_video(path, even(video_THWC), fps)


def even(clip_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """H.264 takes even sides: the last row or column of an odd one is doubled."""
    height, width = clip_THWC.shape[1:3]
    padded: NDArray[np.uint8] = np.pad(clip_THWC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return padded


def _psnr(videos: Videos, decoded: Videos) -> dict[str, float | None]:
    """Root mean square of what the codec changed, in levels of 255, and the PSNR in decibels (None for no change)."""
    errors = [_difference(back, video) for video, back in zip(videos, decoded, strict=True)]
    error = math.sqrt(np.mean([np.square(one).mean() for one in errors]))
    return {"codec_error_levels": error, "psnr_db": 20 * math.log10(255 / error) if error else None}


def _difference(one_THWC: NDArray[np.uint8], other_THWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The first minus the second, where the first may have a doubled row or column more."""
    frames, height, width, _ = other_THWC.shape
    difference: NDArray[np.float32] = one_THWC[:frames, :height, :width].astype(np.float32) - other_THWC
    return difference


def _kept(made: DistilledSet, facts: dict[str, Any], out: Path, clips: Clips) -> dict[str, float | None]:
    """What is left of what was learned: of the difference between a clip and the real one that it began as.

    The share kept is ⟨d′, d⟩ / ⟨d, d⟩, d the difference learned and d′ that between the files of the clip and of the
    real clip, both through the same codec; None for what did not begin as real clips, or learned nothing.
    """
    rows = {video.path: row for row, video in enumerate(clips.table.videos)}
    learned, left = 0.0, 0.0
    size = 0
    for place, source in enumerate(made.sources if made.form == CLIPS and made.others_VNTHWC is None else ()):
        if source not in rows:
            continue
        real_THWC, scratch = clips.read([rows[source]])[0], out / "real.mp4"
        _write(scratch, real_THWC, facts["fps"], lossless=False)
        coded_THWC = read_video(out / facts["files"][place]["file"])
        change = _difference(made.clips_NTHWC[place], real_THWC)
        coded = _difference(coded_THWC, read_video(scratch))[:, : change.shape[1], : change.shape[2]]
        scratch.unlink()
        learned += float(np.square(change).sum())
        left += float((coded * change).sum())
        size += change.size
    if not learned:
        return NOTHING_LEARNED
    return {"learned_levels": math.sqrt(learned / size), "learned_kept": left / learned}


def said_of_loss(loss: dict[str, float | None]) -> str:
    """What H.264 cost, in a sentence."""
    error, psnr, learned = loss["codec_error_levels"], loss["psnr_db"], loss["learned_levels"]
    lost = f"H.264 changed pixels by {error:.1f} levels of 255" + (f" ({psnr:.1f} dB)" if psnr is not None else "")
    if learned is None:
        return f"{lost}; how much of what was learned is left cannot be told: no clip is a real one that learned."
    return f"{lost}; the distillation had changed them by {learned:.1f}, of which {loss['learned_kept']:.0%} is left."
