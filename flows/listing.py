"""What `ls` says of an artifact: which data set, method, budget, seed and recipe it is of, and what it scored.

All of it is in manifests: an artifact's own, those of what it was made from, and the reports' rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from vidistill.flows.housekeeping import console, counted, existing, short_key
from vidistill.flows.parameters import SPRITES
from vidistill.storage.errors import RequestError
from vidistill.storage.store import ArtifactRef, Found, Manifest, Store
from vidistill.tasks.learning.evaluate import SCORE
from vidistill.tasks.methods import Recipe
from vidistill.tasks.report.data import Named
from vidistill.tasks.report.tables import duration, size

FACTS = ("dataset", "split", "method", "variant", "ipc", "kb", "seed", "recipe", "student", "top1")
COLUMNS = ("artifact", "data set", "split", "method", "ipc", "kb", "seed", "recipe", "network", "top-1 %", "size",
           "took", "made")  # fmt: skip
USUAL = "1"
"""The split of most data sets, which is not shown."""
RIGHT = {"ipc", "kb", "seed", "top-1 %", "size", "took"}

WHOLE = {"score": "full", "teacher-score": "teacher", "expert-score": "expert"}
"""Kinds of scores, and the method of one that no set was made for."""

Facts = dict[str, Any]
"""One of each of `FACTS` that an artifact has; of a report, lists of methods, budgets and networks."""


def list_artifacts(kind: str | None, location: str | None, wanted: Facts, as_json: bool) -> None:
    """Print a line an artifact, or all of them as one JSON document.

    Raises:
        RequestError: there is no such store, or it has nothing of this kind, or of what else is wanted.
    """
    store = existing(location)
    survey = store.survey()
    kinds = {ref.kind for ref in survey}
    if kind and kind not in kinds:
        there = ", ".join(sorted(kinds)) or "nothing yet"
        raise RequestError(f"The store {store.location} has no artifact of the kind {kind!r}; it has {there}.")
    facts = Catalogue(store, survey).facts
    shown = [ref for ref in survey if kind in {None, ref.kind} and _matches(facts[ref], wanted)]
    if as_json:
        rows = [_document(ref, survey[ref], facts[ref]) for ref in shown]
        print(json.dumps({"store": store.location, "artifacts": rows}, indent=1, ensure_ascii=False))
        return
    if not shown:
        _check_names(store, facts.values(), wanted)
    shown.sort(key=lambda ref: (ref.kind, _made(survey[ref])))
    for line in _aligned([_cells(ref, survey[ref], facts[ref]) for ref in shown]):
        console.print(line, markup=False)
    console.print(f"{counted(shown, survey)}, in {store.location}", markup=False)


def _check_names(store: Store, facts: Iterable[Facts], wanted: Facts) -> None:
    for name, value in wanted.items():
        there = {one for own in facts for one in _several(own.get(name, []))}
        if value not in there:
            known = ", ".join(map(str, sorted(there))) or "none"
            raise RequestError(f"The store {store.location} has nothing of the {name} {value!r}; it has {known}.")


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _matches(facts: Facts, wanted: Facts) -> bool:
    return all(value in _several(facts.get(name)) for name, value in wanted.items())


class Catalogue:
    """The facts of every artifact of a store."""

    def __init__(self, store: Store, survey: Mapping[ArtifactRef, Found]) -> None:
        self._manifests = {ref: found.manifest for ref, found in survey.items() if found.manifest}
        scores = store.contents([ref for ref in self._manifests if ref.kind in WHOLE], SCORE)
        self._scored = {ref: _scored(content) for ref, content in scores.items()}
        self._rows = self._of_reports()
        self._known: dict[ArtifactRef, Facts] = {}
        self.facts = {ref: self._of(ref) for ref in survey}
        self._give_data_sets()

    def _of_reports(self) -> dict[ArtifactRef, Facts]:
        """What reports say of their rows' sets and scores, and of their indices; the newest has the last word."""
        said: dict[ArtifactRef, Facts] = {}
        reports = [manifest for manifest in self._manifests.values() if manifest.kind == "report"]
        for report in sorted(reports, key=lambda report: report.created):
            for ref in report.inputs.get("index", []):
                said[ref] = {"dataset": report.parameters["dataset"]}
            for row in report.parameters["rows"]:
                variant = {"variant": row["variant"]}
                made = {"variant": Named.of(row).set_variant}
                said |= {ArtifactRef.model_validate(ref): made for ref in row["sets"]}
                said |= {
                    ArtifactRef.model_validate(ref): variant | {"student": row["student"]} for ref in row["scores"]
                }
        return said

    def _of(self, ref: ArtifactRef) -> Facts:
        """The facts of what it was made from, its reports', and its own, in this order."""
        if ref not in self._known:
            manifest = self._manifests.get(ref)
            inherited: Facts = {}
            for need in manifest.needs if manifest and manifest.kind != "report" else ():
                inherited |= _passed_on(self._of(need))
            own = _own(manifest) if manifest else {}
            self._known[ref] = inherited | self._rows.get(ref, {}) | own | self._scored.get(ref, {})
        return self._known[ref]

    def _give_data_sets(self) -> None:
        """Blocks know no index: those that read them do."""
        left = [ref for ref, facts in self.facts.items() if "dataset" in facts]
        while left:
            ref = left.pop()
            manifest = self._manifests.get(ref)
            for need in manifest.needs if manifest else ():
                if "dataset" not in self.facts.get(need, {"dataset": ""}):
                    self.facts[need]["dataset"] = self.facts[ref]["dataset"]
                    left.append(need)


def _scored(content: bytes) -> Facts:
    """What a score's file says; nothing where that is damaged."""
    try:
        return {"top1": float(json.loads(content)["top1"])}
    except (ValueError, KeyError, TypeError):
        return {}


def _passed_on(facts: Facts) -> Facts:
    """What an artifact's facts say of those that are made from it: the data, and all that a set is of."""
    names = ("dataset", "split", *(("method", "variant", "ipc", "kb", "seed") if "method" in facts else ()))
    return {name: facts[name] for name in names if name in facts}


def _own(manifest: Manifest) -> Facts:
    """What an artifact's own manifest says."""
    given = manifest.parameters
    budget = "kb" if "kb" in given else "ipc"
    facts: Facts = {name: given[name] for name in ("dataset", "method", budget, "seed") if name in given}
    if manifest.kind == "report":
        rows = given["rows"]
        facts |= {"split": given["split"]} if "split" in given else {}
        lists = {name: _each(row.get(name) for row in rows) for name in ("method", "ipc", "kb", "student")}
        return facts | {name: values for name, values in lists.items() if values}
    if manifest.kind == "index" and "index" in given:
        facts["split"] = "validation" if given["index"]["holdout"] else str(given["index"]["split"])
    if manifest.kind == "sprites":
        return {"dataset": SPRITES, "seed": given["seed"]}
    if manifest.kind in WHOLE and "distilled" not in manifest.inputs:
        facts["method"] = WHOLE[manifest.kind]
    if "recipe" in given:
        facts["recipe"] = _recipe(given["recipe"])
    elif given.get("soft"):  # a budget in bytes that logits take a part of
        facts["recipe"] = "soft"
    network = given.get("network", given.get("expert", {}).get("network"))
    named = {"student": network, "dataset": manifest.record.get("dataset")}
    return facts | {name: value for name, value in named.items() if value}


def _each(values: Iterable[Any]) -> list[Any]:
    return [value for value in dict.fromkeys(values) if value is not None]


def _recipe(given: Mapping[str, Any]) -> str:
    try:
        return Recipe.model_validate(given).name
    except ValidationError:  # of another version of vidistill
        return str(given.get("labels", ""))


def _made(found: Found) -> str:
    return found.manifest.created if found.manifest else ""


def _document(ref: ArtifactRef, found: Found, facts: Facts) -> dict[str, Any]:
    plain = found.manifest.model_dump(mode="json", exclude={"files"}) if found.manifest else ref.model_dump()
    files = {"files": len(found.manifest.files)} if found.manifest else {}
    known = {name: facts.get(name) for name in FACTS}
    return plain | known | files | {"bytes": found.bytes, "problem": found.problem}


def _cells(ref: ArtifactRef, found: Found, facts: Facts) -> list[str]:
    def told(name: str) -> str:
        return ",".join(f"{one:g} kB" if name == "kb" else str(one) for one in _several(facts.get(name, [])))

    made = f"damaged: {found.problem}" if found.problem or not found.manifest else _local(found.manifest.created)
    return [
        f"{ref.kind}/{short_key(ref)}",
        told("dataset"),
        "" if told("split") == USUAL else told("split"),
        f"{told('method')} {told('variant')}".strip(),
        *map(told, ("ipc", "kb", "seed", "recipe", "student")),
        f"{100 * facts['top1']:.1f}" if "top1" in facts else "",
        size(found.bytes),
        duration(found.manifest.seconds) if found.manifest else "",
        made,
    ]


def _local(created: str) -> str:
    return f"{datetime.fromisoformat(created).astimezone():%Y-%m-%d %H:%M}"


def _aligned(rows: Iterable[list[str]]) -> list[str]:
    """Lines of a table, without the columns that hold nothing."""
    rows = list(rows)
    columns = [cells for cells in zip(COLUMNS, *rows, strict=True) if any(cells[1:])]
    widths = [max(map(len, cells)) for cells in columns]
    return [
        "  ".join(
            cell.rjust(width) if name in RIGHT else cell.ljust(width)
            for (name, *_), cell, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in zip(*columns, strict=True)
    ]
