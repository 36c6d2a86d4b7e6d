"""Exported sets as other tools read them: labels beside the clips, shards of WebDataset, a folder of Hugging Face."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.exported import LABELS, METADATA, SHARD

SHARD_CLIPS = 1000
Logits = NDArray[np.float32] | None


def write_labels(out: Path, facts: dict[str, Any], logits_FK: Logits) -> None:
    """`labels.csv`: a line a file, with the teacher's outputs as a JSON list where the set has any."""
    with (out / LABELS).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "class", "variant", "logits"])
        for row in rows(facts, logits_FK):
            logits = json.dumps(row["logits"]) if row["logits"] else ""
            writer.writerow([row["file"], row["label"], row["class"], row["variant"], logits])


def rows(facts: dict[str, Any], logits_FK: Logits) -> list[dict[str, Any]]:
    """A mapping a file."""
    logits = [None] * len(facts["files"]) if logits_FK is None else logits_FK.tolist()
    return [
        {"file": one["file"], "label": one["label"], "class": facts["classes"][one["label"]],
         "variant": one["variant"], "logits": own}
        for one, own in zip(facts["files"], logits, strict=True)
    ]  # fmt: skip


def write_metadata(out: Path, facts: dict[str, Any], logits_FK: Logits) -> None:
    """`metadata.jsonl`, from which Hugging Face's videofolder takes its columns."""
    lines = []
    for row in rows(facts, logits_FK):
        kept = {"file_name": row["file"], "label": row["label"], "class": row["class"], "variant": row["variant"]}
        kept |= {} if row["logits"] is None else {"logits": row["logits"]}
        lines.append(json.dumps(kept, ensure_ascii=False))
    (out / METADATA).write_text("\n".join(lines) + "\n", encoding="utf-8")


def pack_shards(out: Path, files: Sequence[dict[str, Any]], classes: Sequence[str], logits_FK: Logits) -> None:
    """Move the clips into tar files: NUMBER.mkv, .cls, .json, .npy for logits; the same bytes for the same set."""
    for first in range(0, len(files), SHARD_CLIPS):
        shard = SHARD.format(first // SHARD_CLIPS)
        with tarfile.open(out / shard, "w") as tar:
            for place, one in enumerate(files[first : first + SHARD_CLIPS], first):
                written, name = out / one["file"], f"{place:06d}"
                _add(tar, f"{name}.mkv", written.read_bytes())
                _add(tar, f"{name}.cls", str(one["label"]).encode())
                kept = {key: one[key] for key in ("label", "variant", "sources")} | {"class": classes[one["label"]]}
                _add(tar, f"{name}.json", json.dumps(kept, ensure_ascii=False).encode())
                if logits_FK is not None:
                    _add(tar, f"{name}.npy", _npy(logits_FK[place]))
                written.unlink()
                one |= {"file": f"{name}.mkv", "shard": shard}
    for folder in [path for path in out.iterdir() if path.is_dir()]:
        folder.rmdir()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
