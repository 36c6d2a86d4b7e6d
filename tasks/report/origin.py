"""Where a distilled set comes from and how it scored: everything that the store's manifests say of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from vidistill.storage.clips import Clips
from vidistill.storage.exported import TEACHER
from vidistill.storage.store import ArtifactRef, Manifest, Store
from vidistill.tasks.learning.evaluate import StudentParameters, load_score
from vidistill.tasks.methods import Recipe

SCORES = ("top1", "top5", "auc", "f1")
PREFERRED = ("soft", "learned", "hard", "online")


@dataclass(frozen=True)
class Origin:
    """The manifests that a set rests on.

    Attributes:
        made: of the set, as a method made it (one of its parts, where it was made in groups).
        relabelled: of the set with its soft labels, if it has any.
        scores: of its scores in this store, on the test clips of the first of them.
        teacher: whom the first of its online rows asked.
        reports: parameters of the reports in this store that show it.
    """

    store: Store
    ref: ArtifactRef
    made: Manifest
    relabelled: Manifest | None
    scores: list[Manifest]
    teacher: ArtifactRef | None
    reports: list[Manifest]

    @staticmethod
    def of(store: Store, ref: ArtifactRef) -> Origin:
        """Follow the inputs of a set's manifest, and find what was made from it."""
        *after, manifest = made_by(store, ref)
        relabelled = next((one for one in reversed(after) if one.kind == "relabelled"), None)
        found = [one for one in _manifests(store, "score") if ref in one.inputs.get("distilled", [])]
        first = min(found, key=lambda one: one.created, default=None)
        scores = [one for one in found if first and one.inputs["test"] == first.inputs["test"]]
        asked = [one for one in scores if one.inputs.get("teacher")]
        teacher = min(asked, key=lambda one: one.created).inputs["teacher"][0] if asked else None
        reports = [one for one in _manifests(store, "report") if ref in one.inputs.get("sets", [])]
        return Origin(store, ref, manifest, relabelled, scores, teacher, reports)

    @property
    def clips(self) -> Clips:
        """The training clips that the method was given."""
        return Clips(self.store, self.made.inputs["clips"][0])

    def facts(self, soft: bool) -> dict[str, Any]:
        """All that a student needs beside the clips, and under `from` the artifact that each fact was read from."""
        train = self.store.manifest(self.made.inputs["clips"][0])
        block = self.store.manifest(train.inputs["blocks"][0])
        table, sampling, asked = self.clips.table, block.parameters["sampling"], self.made.parameters
        recipe = self._recipe(soft)
        trained = self._trained(recipe)
        students: dict[str, Any] = {}
        for one in trained:
            students.setdefault(one.parameters["network"], dict(one.parameters["student"]))
        report = self.reports[0] if self.reports else None
        return {
            "vidistill": version("vidistill"),
            "set": str(self.ref),
            "dataset": report.parameters["dataset"] if report else None,
            "split": report.parameters["split"] if report else None,
            "method": {"name": asked["method"], "version": asked["method_version"], "digest": asked["method_digest"],
                       "options": asked["options"]},
            "ipc": asked["ipc"] if asked.get("kb") is None else None,
            "kb": asked.get("kb"),
            "seed": asked["seed"],
            "frames": sampling["frames"],
            "interval": sampling["interval"],
            "size": sampling["size"],
            "mean": list(table.mean),
            "std": list(table.std),
            "flips": table.flips,
            "crop": trained[0].parameters["student"]["crop_scale"] if trained else None,
            "students": students,
            "recipe": recipe.name,
            "labels": recipe.kind,
            "temperature": recipe.temperature,
            "recipe_settings": recipe.settings,
            "teacher": self._teacher_facts(),
            "scores": [self._score_facts(one) for one in self.scores],
            "from": self._places(train, block, trained),
        }  # fmt: skip

    def _recipe(self, soft: bool) -> Recipe:
        """How a student is to be trained: as the set was relabelled, or as it was scored."""
        if self.relabelled:
            return Recipe.model_validate(self.relabelled.parameters["recipe"])
        found = [Recipe.model_validate(one.parameters["recipe"]) for one in self.scores]
        found = [one for one in found if one.labels != "learned" or soft]
        return min(found, key=lambda one: PREFERRED.index(one.labels), default=Recipe())

    def _trained(self, recipe: Recipe) -> list[Manifest]:
        """The scores of our protocol as they tell how to train: those with this recipe first, then the earlier."""

        def late(score: Manifest) -> tuple[bool, str]:
            return Recipe.model_validate(score.parameters["recipe"]) != recipe, score.created

        return sorted((one for one in self.scores if _protocol(one) == "vidistill"), key=late)

    def _teacher_facts(self) -> dict[str, Any] | None:
        if self.teacher is None:
            return None
        recipes = {
            Recipe.model_validate(one.parameters["recipe"]).name
            for one in self.scores
            if self.teacher in one.inputs.get("teacher", [])
        }
        asked = self.store.manifest(self.teacher).parameters
        return {"network": asked["network"], "ensemble": asked.get("ensemble", 1), "weights": TEACHER,
                "recipes": sorted(recipes), "artifact": str(self.teacher)}  # fmt: skip

    def _score_facts(self, manifest: Manifest) -> dict[str, Any]:
        score, asked = load_score(self.store.folder(manifest.ref)), manifest.parameters
        recipe = Recipe.model_validate(asked["recipe"]).name
        usual = StudentParameters().of(asked["network"]).model_dump(mode="json")
        training = _differing(asked["student"], usual) if _protocol(manifest) == "vidistill" else {}
        told = {"student": asked["network"], "recipe": recipe, "protocol": _protocol(manifest), "training": training}
        values = {name: getattr(score, name) for name in SCORES}
        return told | values | {"seed": asked["seed"], "artifact": str(manifest.ref)}

    def _places(self, train: Manifest, block: Manifest, trained: list[Manifest]) -> dict[str, str | None]:
        places = {"mean std flips": train, "frames interval size": block, "method ipc seed": self.made,
                  "recipe labels temperature": self.relabelled or (trained[0] if trained else None),
                  "crop students": trained[0] if trained else None,
                  "dataset split": self.reports[0] if self.reports else None}  # fmt: skip
        return {name: str(manifest.ref) if manifest else None for name, manifest in places.items()}


def _differing(own: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _differing(value, usual[name]) if isinstance(value, dict) and usual.get(name) else value
        for name, value in own.items() if value != usual.get(name)
    }  # fmt: skip


def _protocol(score: Manifest) -> str:
    return str(score.parameters.get("protocol", "vidistill"))


def made_by(store: Store, ref: ArtifactRef) -> Iterator[Manifest]:
    """The manifest of a set and of those that it was made from, down to that which a method made."""
    yield (manifest := store.manifest(ref))
    while manifest.kind != "distilled":
        yield (manifest := store.manifest(manifest.inputs["parts" if manifest.kind == "joined" else "distilled"][0]))


def _manifests(store: Store, kind: str) -> list[Manifest]:
    return [look.manifest for look in store.survey(kind).values() if look.manifest and look.problem is None]
