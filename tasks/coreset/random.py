"""Random: clips drawn without replacement from each class; the row that every method is measured against."""

from __future__ import annotations

from vidistill.storage.distilled import DistilledSet
from vidistill.tasks.learning.rows import draw_rows
from vidistill.tasks.learning.rows import enough as enough  # a user's method finds it here
from vidistill.tasks.methods import Material, Method


class Random(Method):
    """Uniform without replacement within a class (methods §2)."""

    def distil(self, material: Material) -> DistilledSet:
        return material.chosen(draw_rows(material.clips, material.labels, material.ipc, material.seed))
