"""The methods that choose among a pool's clips by their embeddings.

Shapes: N clips, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.distilled import DistilledSet
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning.embedding import (
    EMBEDDINGS,
    FACTS,
    TEACHER,
    EmbeddingParameters,
    Embeddings,
    embeddings_job,
    load_embeddings,
    placeless,
)
from vidistill.tasks.methods import Given, Material, Method, chosen_of

Pick = Callable[[Embeddings, int], NDArray[np.int64]]
"""From the embeddings of a class's generated clips and the class to the indices of the chosen ones."""


class EmbeddingSelector(Method):
    """A method that chooses among a class's generated clips by their embeddings.

    Attributes:
        learns: whether it is also given the embeddings of the real training clips, to learn from them.
    """

    needs = ("pool",)
    learns: ClassVar[bool] = False
    Parameters = EmbeddingParameters

    def used(self, kb: float | None) -> Any:
        del kb
        return placeless(self.parameters)

    def inputs(self, given: Given) -> dict[str, list[ArtifactRef]]:
        made = super().inputs(given)
        own = EmbeddingParameters(embedding=self.parameters.embedding, precision=self.parameters.precision)
        made[EMBEDDINGS] = [given.add(embeddings_job(given, made["pool"][0], own, "the pool"))]
        if self.learns:
            made["real"] = [given.add(embeddings_job(given, given.train, own, "training clips"))]
        return made

    def distil(self, material: Material) -> DistilledSet:
        pool, emb_ND = material.pool(), load_embeddings(material.inputs(EMBEDDINGS)[0])
        pick, rows = self.picker(material), []
        for label in material.labels:
            own = pool.rows_of(label)
            rows.append(own[pick(emb_ND[own], label)])
        return chosen_of(pool, np.concatenate(rows), self.facts(emb_ND.shape[1]))

    @abstractmethod
    def picker(self, material: Material) -> Pick:
        """What chooses `material.ipc` clips of a class; trained here where there is anything to train."""

    def facts(self, dimensions: int) -> dict[str, Any]:
        """What embedded the clips, and what the row of a method with a head of its own says of it."""
        made = embedded_by(self.parameters.embedding, dimensions)
        if self.learns:
            made["mark"] = (
                f"no published weights: its head was trained here on real training clips, embedded by {made[FACTS]}"
            )
        return made


def embedded_by(embedding: str, dimensions: int) -> dict[str, Any]:
    """What a set's facts say of its embeddings."""
    name = Path(embedding).name.partition(":")[0]  # without the digest that a key has
    by = "the data set's own teacher" if embedding == TEACHER else f"VideoMAE {name}"
    return {FACTS: by, "dimensions": dimensions}


def real_embeddings(material: Material) -> Embeddings:
    """Those of the real training clips, in the order of their rows."""
    return load_embeddings(material.inputs("real")[0])


def highest(score_N: NDArray[np.floating[Any]], count: int) -> NDArray[np.int64]:
    """Indices of the highest scores, highest first; of equals the first."""
    return np.argsort(-score_N, kind="stable")[:count].astype(np.int64)
