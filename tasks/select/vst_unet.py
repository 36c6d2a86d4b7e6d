"""VST-UNet: a network learns, without labels of what is worth it, which generated clips of a class to keep (S4, §3.1).

Shapes: N clips of a class (N_c), C channels of latents, T frames, h, w height and width of latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.clips import PRELOAD_BYTES
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.parameters import Parameters
from vidistill.storage.pool import Pool
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import loop, streams, training
from vidistill.tasks.learning.embedding import (
    EMBEDDINGS,
    TEACHER,
    EmbeddingParameters,
    Embeddings,
    embeddings_job,
    load_embeddings,
    placeless,
)
from vidistill.tasks.learning.training import Device, Precision, generator
from vidistill.tasks.methods import Given, Material, Method, chosen_of
from vidistill.tasks.select.embedding import embedded_by, highest

if TYPE_CHECKING:
    from torch import Tensor

    from vidistill.models.vst_unet import VSTUNet as Network


HARD = 0.99


class VSTUNetParameters(Parameters):
    """The network and its training; S4 states the two weights alone, DR-DSN (its parent) 60 epochs.

    Table 6 is `diversity=0, representativeness=0` (CE), `representativeness=0` (+Div), `diversity=0` (+Rep), and all.
    """

    diversity: float | None = Field(None, ge=0, description="λ_d; published: 0 for one clip a class, else 0.1.")
    representativeness: float | None = Field(
        None, ge=0, description="λ_r; published: 0.1 for one clip a class, else 1."
    )
    epochs: int = Field(60, ge=1, description="E_s: in each, every class is one step, in random order.")
    lr: float = Field(1e-3, gt=0, description="Of Adam.")
    widths: tuple[Annotated[int, Field(ge=4, multiple_of=4)], ...] = Field(
        (16, 32, 64), min_length=2, description="Channels of the U-Net's levels."
    )
    features: int = Field(64, ge=1, description="Length of f_c.")
    embedding: str = Field(TEACHER, description="What Eq. 1 and 2 compare videos by; as TAC-DT's.")
    precision: Precision = Field("fp32", description="Maps of latents are too small for bf16 to gain on a CPU.")

    def weights(self, ipc: int) -> tuple[float, float]:
        """λ_d and λ_r for so many clips a class (S4, §4); those of 5 and 10 for every number above one.

        One clip has no diversity: λ_d is 0 there, whatever is asked for.
        """
        div, rep = (0.0, 0.1) if ipc == 1 else (0.1, 1.0)
        if self.diversity is not None and ipc > 1:
            div = self.diversity
        return div, rep if self.representativeness is None else self.representativeness


class VSTUNet(Method):
    """Algorithm 1: one network for all classes; a step sees all latents of one; then the VPC highest p_c are kept.

    "A small subset of videos with the highest probabilities is chosen in each epoch" has no gradient by p_c. The losses
    are taken in expectation instead: every video is chosen independently with a probability in the order of p_c, and
    these sum to VPC. For L_ce and L_div that is a sum, for L_rep's minimum there is a closed form, so that nothing need
    be drawn: REINFORCE, by which the parent work estimates the same expectation from five draws, has a variance that
    grows with N_c, and a straight-through top-k tells a video which is not chosen nothing about what it would change.
    Training hardens them: the share of the choice that its VPC highest hold rises step by step from that of equal
    scores to `HARD`, where the loss is that of the choice which is kept in the end.

    The latents are those that were sampled; published: clips, encoded again.
    "x_t" of Eq. 2 and f_c of Eq. 1 are fixed vectors here, a class's embeddings less their mean, as unit vectors.
    """

    version = 2  # 2: fixed vectors in Eq. 1 and 2, and probabilities that become hard
    needs = ("pool",)
    Parameters = VSTUNetParameters

    def used(self, kb: float | None) -> Any:
        del kb
        return placeless(self.parameters)

    def inputs(self, given: Given) -> dict[str, list[ArtifactRef]]:
        made = super().inputs(given)
        own = EmbeddingParameters(embedding=self.parameters.embedding)
        return made | {EMBEDDINGS: [given.add(embeddings_job(given, made["pool"][0], own, "the pool"))]}

    def distil(self, material: Material) -> DistilledSet:
        from vidistill.models.vst_unet import hardened, inclusion, mass

        pool, emb_ND = material.pool(), load_embeddings(material.inputs(EMBEDDINGS)[0])
        latents = Latents(pool, material.device, hold=_size(pool) <= PRELOAD_BYTES)
        network, curve = self._trained(latents, emb_ND, material)
        rows, held = [], []
        for label in material.labels:
            score_N, _ = outputs(network, latents(label), material.device)
            rows.append(pool.rows_of(label)[highest(score_N.cpu().numpy(), material.ipc)])
            held.append(float(mass(inclusion(hardened(score_N, material.ipc, HARD), material.ipc), material.ipc)))
        diversity, representativeness = self.parameters.weights(material.ipc)
        facts = {**curve.facts, "diversity": diversity,
                 "representativeness": representativeness, "mass": float(np.mean(held)),
                 **embedded_by(self.parameters.embedding, emb_ND.shape[1])}  # fmt: skip
        return chosen_of(pool, np.concatenate(rows), facts)

    def _trained(self, latents: Latents, emb_ND: Embeddings, material: Material) -> tuple[Network, loop.Curve]:
        """Lines 2–10 of Algorithm 1, from the last checkpoint if there is one."""
        import torch

        from vidistill.models.vst_unet import VSTUNet as Network
        from vidistill.models.vst_unet import selection_loss

        p: VSTUNetParameters = self.parameters
        with training.seeded(material.seed):
            network = Network(latents.pool.shape_CTHW[0], len(material.clips.classes), p.widths, p.features)
        network.to(material.device.torch_device).train()
        labels, weights, steps = material.labels, p.weights(material.ipc), p.epochs * len(material.labels)
        vectors = {label: centred(emb_ND[latents.pool.rows_of(label)], material.device) for label in labels}
        adam = torch.optim.Adam(network.parameters(), lr=p.lr)

        def step(number: int) -> float:
            label = label_of(number, labels, material.seed)
            made = outputs(network, latents(label), material.device)
            share = share_at((number + 1) / steps, material.ipc / len(vectors[label]))
            return loop.descend(adam, selection_loss(made, vectors[label], label, material.ipc, share, *weights))

        curve = loop.run(step, steps, {"network": network, "optimiser": adam}, material)
        return network.eval().requires_grad_(False), curve


def share_at(progress: float, equal: float) -> float:
    """The share of the choice that the highest scores hold: from that of equal scores, in even steps, to `HARD`."""
    return equal + (HARD - equal) * progress


def centred(emb_ND: Embeddings, device: Device) -> Tensor:
    """A class's embeddings less their mean, as unit vectors: float32."""
    import torch

    x_ND = torch.from_numpy(emb_ND - emb_ND.mean(0)).float().to(device.torch_device)
    return torch.nn.functional.normalize(x_ND, dim=1)


@dataclass
class Latents:
    """All latents of a class on the device, held where they are few enough."""

    pool: Pool
    device: Device
    hold: bool

    def __post_init__(self) -> None:
        self._held: dict[int, Tensor] = {}

    def __call__(self, label: int) -> Tensor:
        """z_NCTHW, float32."""
        import torch

        if label in self._held:
            return self._held[label]
        z_NCTHW = torch.from_numpy(self.pool.latents(self.pool.rows_of(label))).to(self.device.torch_device)
        if self.hold:
            self._held[label] = z_NCTHW
        return z_NCTHW


def outputs(network: Network, z_NCTHW: Tensor, device: Device) -> tuple[Tensor, Tensor]:
    """Scores and logits in float32, whatever they were computed in."""
    with device.autocast():
        score_N, logits_NK = network(z_NCTHW)
    return score_N.float(), logits_NK.float()


def label_of(iteration: int, labels: tuple[int, ...], seed: int) -> int:
    """The class of a step: every epoch has all of them, in an order of its own."""
    epoch, place = divmod(iteration, len(labels))
    order: NDArray[np.int64] = generator(seed, epoch, streams.UNET_ORDER).permutation(len(labels))
    return labels[int(order[place])]


def _size(pool: Pool) -> int:
    """Bytes of all latents in float32."""
    return 4 * len(pool) * int(np.prod(pool.shape_CTHW))
