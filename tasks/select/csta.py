"""CSTA: a network for the summary of a video, made to score the clips of a class (S4, §4.2 (c); Son et al., CVPR 2024).

Shapes: N clips, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.tasks.coreset.medoids import medoids
from vidistill.tasks.learning import loop, streams, training
from vidistill.tasks.learning.embedding import EmbeddingParameters, Embeddings
from vidistill.tasks.learning.training import generator, role_seed
from vidistill.tasks.methods import Material
from vidistill.tasks.select.embedding import EmbeddingSelector, Pick, highest, real_embeddings

if TYPE_CHECKING:
    from vidistill.models.csta import SetScorer


class CSTAParameters(EmbeddingParameters):
    """The head's training; published (methods §10): Adam, 1e-3, weight decay 1e-7, 100 epochs of one video a step."""

    iterations: int = Field(400, ge=1, description="Steps, each on a random part of one class's real clips.")
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-7, ge=0)
    width: int = Field(16, ge=1, description="Channels of the CNN.")


class CSTA(EmbeddingSelector):
    """The VPC clips with the highest scores, which is what the knapsack keeps where every clip weighs the same.

    The published weights are lost and scored frames by how much people wanted them in a summary; nobody has said so of
    clips. What stands in for them is the place of a clip in the summary of its class that has no parameter: greedy
    facility location, which at every step takes the clip that most lowers the distance of all to their nearest chosen
    one. Its first k clips are the summary of size k, so that a score by rank orders clips for every VPC at once, and
    it depends on the whole set, which a score such as the class's probability (MAE-Score) does not. The head learns it
    from random parts of the real training clips of each class, by squared error as published.
    """

    version = 2  # since a feature that all real clips have alike is not divided by next to nothing
    learns = True
    Parameters = CSTAParameters

    def picker(self, material: Material) -> Pick:
        import torch
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler()
        network = self._trained(scaler.fit_transform(real_embeddings(material)), material).eval()
        device = material.device.torch_device

        def pick(emb_ND: Embeddings, label: int) -> NDArray[np.int64]:
            order_N = generator(material.seed, label, streams.CSTA_ORDER).permutation(
                len(emb_ND)
            )  # a class has none of its own
            x_ND = torch.from_numpy(scaler.transform(emb_ND)[order_N]).float().to(device)
            with torch.inference_mode():
                return order_N[highest(network(x_ND).cpu().numpy(), material.ipc)]

        return pick

    def _trained(self, real_ND: Embeddings, material: Material) -> SetScorer:
        import torch

        from vidistill.models.csta import SetScorer
        from vidistill.models.dropout import seed_dropout

        p: CSTAParameters = self.parameters
        with training.seeded(material.seed):
            network = SetScorer(real_ND.shape[1], p.width)
        network.to(material.device.torch_device).train()
        classes = [real_ND[material.clips.rows_of(label)] for label in material.labels]
        adam = torch.optim.Adam(network.parameters(), lr=p.lr, weight_decay=p.weight_decay)

        def step(number: int) -> float:
            emb_ND, rank_N = drawn(classes[number % len(classes)], material.seed, number)
            seed_dropout(network, role_seed(material.seed, number, streams.CSTA_DROPOUT))
            x_ND, wanted_N = (torch.from_numpy(array).float().to(material.device.torch_device)
                              for array in (emb_ND, rank_N))  # fmt: skip
            return loop.descend(adam, torch.nn.functional.mse_loss(network(x_ND), wanted_N))

        loop.run(step, p.iterations, {"network": network, "optimiser": adam}, material)
        return network


def drawn(emb_ND: Embeddings, seed: int, iteration: int) -> tuple[Embeddings, Embeddings]:
    """Half to all of a class's clips in random order, and how much each is wanted in their summary."""
    random = generator(seed, iteration, streams.CSTA_DRAW)
    size = int(random.integers(max(1, len(emb_ND) // 2), len(emb_ND) + 1))
    part_ND = emb_ND[random.permutation(len(emb_ND))[:size]]
    return part_ND, wanted(part_ND)


def wanted(emb_ND: Embeddings) -> Embeddings:
    """1 for the first clip of the summary down to 0 for the last, in even steps: (N,)."""
    order_N, score_N = medoids(emb_ND, len(emb_ND)), np.empty(len(emb_ND))
    score_N[order_N] = np.linspace(1, 0, len(emb_ND))
    return score_N
