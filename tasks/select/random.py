"""Random from the pool: what selections are measured against; the whole pool where ipc is all of it (S4, §4)."""

from __future__ import annotations

from vidistill.storage.distilled import DistilledSet
from vidistill.tasks.learning.rows import draw_rows
from vidistill.tasks.methods import Material, Method, chosen_of


class PoolRandom(Method):
    """Uniform without replacement among a class's generated clips (S4, §4.2 (a))."""

    needs = ("pool",)

    def distil(self, material: Material) -> DistilledSet:
        pool = material.pool()
        return chosen_of(pool, draw_rows(pool, material.labels, material.ipc, material.seed), {})
