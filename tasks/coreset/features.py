"""The features that coresets measure in: the teacher's, or those of a network that was never trained."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.distilled import DistilledSet
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import teacher, training
from vidistill.tasks.learning.embedding import EMBEDDINGS, load_embeddings, train_embeddings
from vidistill.tasks.learning.rows import enough
from vidistill.tasks.learning.training import Precision
from vidistill.tasks.methods import Given, Material, Method

if TYPE_CHECKING:
    from collections.abc import Callable


class FeatureParameters(Parameters):
    """`embed` of MiniC3D in evaluation mode (methods §2).

    VDSD's code takes a random initialisation unless a checkpoint is given, and its paper does not say which was used;
    the teacher is our default since its features separate the classes.
    """

    features: Literal["teacher", "random"] = "teacher"
    network: str = Field("minic3d", description="The network of random features.")
    precision: Precision = Field("auto", exclude_if=lambda precision: precision == "auto")


class FeatureCoreset(Method):
    """A method that picks rows of one class from the features of that class."""

    Parameters = FeatureParameters

    @property
    def network(self) -> str:
        return "" if self.parameters.features == "teacher" else super().network

    def inputs(self, given: Given) -> dict[str, list[ArtifactRef]]:
        """The teacher's features of all training clips, which every budget and seed of every coreset shares."""
        if self.parameters.features == "random":
            return {}
        return {EMBEDDINGS: [train_embeddings(given, self.parameters.precision)]}

    @abstractmethod
    def pick(self, emb_ND: NDArray[np.float64], count: int) -> NDArray[np.int64]:
        """Indices of `count` rows of `emb_ND`, in the order of choice."""

    def distil(self, material: Material) -> DistilledSet:
        embed, rows = self._features(material), []
        for done, label in enumerate(material.labels):
            own = enough(material.clips, label, material.ipc)
            rows.append(own[self.pick(embed(own), material.ipc)])
            material.progress(done + 1, len(material.labels))
        return material.chosen(np.concatenate(rows), features=self.parameters.features)

    def _features(self, material: Material) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
        """From rows of the clips to their features, (N, D)."""
        clips, device = material.clips, material.device
        if self.parameters.features == "teacher":
            return load_embeddings(material.inputs(EMBEDDINGS)[0]).__getitem__
        made = training.build_network(self.parameters.network, len(clips.classes), clips.shape_THWC, material.seed)
        network = training.settled(made, device)
        return lambda rows: teacher.features(network, clips, rows, device)
