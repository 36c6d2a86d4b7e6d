"""What people and machines are told of an exported set: a data card and Croissant metadata (MLCommons 1.0)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from vidistill.storage.exported import EXPORT, LABELS, METADATA
from vidistill.storage.parameters import in_words

CARD, CROISSANT = "README.md", "croissant.json"
LICENCE = (
    "The clips are made from videos of {data}: their licence and terms hold for these clips, and nothing is added."
)
FILES = [{"split": "train", "path": ["*/*.mkv", METADATA]}]
HEAD = {
    "license": "other", "task_categories": ["video-classification"], "tags": ["dataset-distillation"],
    "configs": [{"config_name": "default", "data_files": FILES}],
}  # fmt: skip
"""What the card of a Hugging Face folder begins with: without `configs` a class called test would be a split."""
CONFORMS = "http://mlcommons.org/croissant/1.0"
CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/", "dct": "http://purl.org/dc/terms/", "conformsTo": "dct:conformsTo",
    "recordSet": "cr:recordSet", "field": "cr:field", "source": "cr:source", "extract": "cr:extract",
    "column": "cr:column", "fileObject": "cr:fileObject", "fileSet": "cr:fileSet", "includes": "cr:includes",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "key": "cr:key", "isLiveDataset": "cr:isLiveDataset",
}  # fmt: skip
COLUMNS = {"file": "sc:Text", "label": "sc:Integer", "class": "sc:Text", "variant": "sc:Integer", "logits": "sc:Text"}
SUFFIXES = {".mkv": "video/x-matroska", ".mp4": "video/mp4", ".tar": "application/x-tar", ".npz": "application/zip"}


def write_card(out: Path, facts: dict[str, Any]) -> None:
    """`README.md`: method, data, licence, seeds, scores, and how to train on it."""
    text = _card(facts)
    if facts["format"] == "hf":
        text = f"---\n{yaml.safe_dump(HEAD, sort_keys=False)}---\n{text}"
    (out / CARD).write_text(text, encoding="utf-8")


def _card(facts: dict[str, Any]) -> str:
    method, (count, frames, height, width, _) = facts["method"], facts["shape"]
    told = {
        "method": f"{method['name']}, version {method['version']}"
        + (f", {method['options']}" * bool(method["options"])),
        "data": f"{_data(facts)}, split {facts['split'] or '(unknown)'}",
        "clips": f"{count} of {frames} frames of {height}×{width}, every {facts['interval']} frames of a video one",
        **({"files": _shared(facts)} if facts["clips_a_file"] > 1 else {}),
        "classes": str(len(facts["classes"])),
        "budget": f"{facts['kb']:g} kB a class" if facts["ipc"] is None else f"{facts['ipc']} a class",
        "seed": str(facts["seed"]),
        "labels": facts["labels"] + (f", temperature {facts['temperature']:g}" * (facts["labels"] != "hard")),
        "kept": f"{facts['bytes']['stored']:,} bytes as stored, {facts['bytes']['exported']:,} in clips and labels"
        + (f", {facts['bytes']['teacher']:,} in the teacher's weights" if "teacher" in facts["bytes"] else ""),
        "made by": f"vidistill {facts['vidistill']}, artifact {facts['set']}",
    }
    scores = [
        f"| {one['student']} | {_training(one)} | {one['recipe']} | {one['seed']} | "
        f"{one['top1']:.1%} | {one['top5']:.1%} |"
        for one in facts["scores"]
    ]
    split = "held-out fifth of the training split" if facts["split"] == "validation" else "real test split"
    return "\n".join([
        f"# {_name(facts)}", "", f"A distilled video data set: {_description(facts)}", "",
        *(f"- {name}: {words}" for name, words in told.items()), "",
        f"## Scores on the {split}", "",
        "| student | trained | recipe | seed | top-1 | top-5 |", "|---" * 6 + "|",
        *(scores or ["| none in the store | | | | | |"]), "",
        "## Use", "",
        f"`vidistill train FOLDER --test DIR`, or `vidistill.Dataset(FOLDER)`; {EXPORT} says how clips are seen.", "",
        "## Licence", "", LICENCE.format(data=_data(facts)), "",
    ])  # fmt: skip


def _shared(facts: dict[str, Any]) -> str:
    """That files hold several clips, which other tools do not cut from them."""
    held = "mosaics" if facts["form"] == "regions" else "clips with their views"
    logits = f"; the teacher's outputs, a row a clip, are in {facts['logits']} alone" if facts["logits"] else ""
    return f"{held}, from each of which vidistill cuts {facts['clips_a_file']} clips{logits}"


def _training(score: dict[str, Any]) -> str:
    """How its student was trained, by the protocol's name and what differed from it."""
    return ", ".join(filter(None, [score["protocol"], in_words(score["training"])]))


def _data(facts: dict[str, Any]) -> str:
    return facts["dataset"] or "a data set whose name the store does not know"


def _name(facts: dict[str, Any]) -> str:
    budget = f"{facts['kb']:g}kb" if facts["ipc"] is None else f"ipc{facts['ipc']}"
    return f"{facts['dataset'] or 'data'}-{facts['method']['name']}-{budget}-seed{facts['seed']}"


def _description(facts: dict[str, Any]) -> str:
    many, classes = facts["shape"][0], len(facts["classes"])
    return f"{many} clips of {classes} classes, by {facts['method']['name']} from {_data(facts)}."


def write_croissant(out: Path, facts: dict[str, Any]) -> None:
    """`croissant.json`: the files with their checksums, and the labels as records."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    suffix = next((path.suffix for path in files if path.suffix in SUFFIXES), ".mkv")
    single = [path for path in files if path.parent == out and path.suffix != ".md"]
    distribution = [_file_object(path, out) for path in single]
    if not any(path.suffix == suffix for path in single):
        distribution.append({"@type": "cr:FileSet", "@id": "videos", "name": "videos", "includes": f"*/*{suffix}",
                             "encodingFormat": SUFFIXES[suffix]})  # fmt: skip
    fields = [
        {"@type": "cr:Field", "@id": f"clips/{name}", "name": name, "dataType": kind,
         "source": {"fileObject": {"@id": LABELS}, "extract": {"column": name}}}
        for name, kind in COLUMNS.items()
    ]  # fmt: skip
    document = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS,
        "name": _name(facts),
        "description": _description(facts),
        "license": LICENCE.format(data=_data(facts)),
        "url": "https://github.com/vidistill/vidistill",
        "version": "1.0.0",
        "datePublished": facts["created"],
        "citeAs": f"vidistill {facts['vidistill']}, {facts['set']}",
        "isLiveDataset": False,
        "distribution": distribution,
        "recordSet": [{"@type": "cr:RecordSet", "@id": "clips", "name": "clips", "field": fields}],
    }
    (out / CROISSANT).write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")


def _file_object(path: Path, out: Path) -> dict[str, Any]:
    kinds = SUFFIXES | {".csv": "text/csv", ".json": "application/json", ".jsonl": "application/jsonlines"}
    name = path.relative_to(out).as_posix()
    return {
        "@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name,
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": kinds.get(path.suffix, "application/octet-stream"),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip
