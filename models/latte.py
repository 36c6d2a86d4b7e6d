"""Latte: a class-conditional latent video diffusion transformer (Ma et al. 2024), with the released model's names.

Legend: B clips, C latent channels, T frames, H, W latent height and width, p patch side, S = (H/p)·(W/p) tokens of a
frame, D width, G groups that attend within themselves, L tokens of a group, O outputs, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidistill.models.diffusion import by_frame

FREQUENCIES = 256
"""Values of the sinusoidal embedding of a timestep."""
LABELS = "y_embedder.embedding_table.weight"
FIXED = ("pos_embed", "temp_embed")
"""Tensors of a released checkpoint that are sines and cosines, and are computed here."""


@dataclass(frozen=True)
class Size:
    """Blocks (spatial and temporal ones in turn), width and heads."""

    depth: int
    width: int
    heads: int


SIZES: dict[str, Size] = {
    "micro": Size(6, 128, 2),  # 1.9 M parameters
    "tiny": Size(12, 128, 4),  # 3.7 M, as deep as S
    "mini": Size(8, 192, 3),  # 5.5 M
    "S": Size(12, 384, 6),  # 32.5 M at 101 classes and p = 2, as are the next
    "B": Size(12, 768, 12),  # 129.6 M
    "L": Size(24, 1024, 16),  # 456.9 M
    "XL": Size(28, 1152, 16),  # 673.8 M, the released UCF101 model
}


class Attention(nn.Module):
    """Self-attention of groups of tokens, x_GLD to x_GLD."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_GLD: Tensor) -> Tensor:
        heads = self.qkv(x_GLD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attended(*heads.unbind(0))
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def attended(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax(QKᵀ/√d)·V of (groups, heads, L, d), fused on CUDA, where that saves memory.

    On a CPU a step of training in bf16 takes 1.28 times as long with the fused one (`tests/benchmarks/latte_speed.py`).
    """
    if queries.is_cuda:
        return F.scaled_dot_product_attention(queries, keys, values)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    return scores.softmax(-1) @ values  # type: ignore[no-any-return]


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # type: ignore[no-any-return]


def modulated(norm: nn.Module, x_BTSD: Tensor, shift_BTD: Tensor, scale_BTD: Tensor) -> Tensor:
    """Layer norm whose shift and scale are the condition's."""
    out: Tensor = norm(x_BTSD) * (1 + scale_BTD[:, :, None]) + shift_BTD[:, :, None]
    return out


class Block(nn.Module):
    """A transformer block under adaLN-Zero: at initialisation its gates are zero, and it is the identity."""

    def __init__(self, width: int, heads: int, *, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = MLP(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x_BTSD: Tensor, condition_BTD: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(condition_BTD).chunk(6, dim=-1)
        x_BTSD = x_BTSD + gate[:, :, None] * self._attend(modulated(self.norm1, x_BTSD, shift, scale))
        mixed = self.mlp(modulated(self.norm2, x_BTSD, mlp_shift, mlp_scale))
        return x_BTSD + mlp_gate[:, :, None] * mixed  # type: ignore[no-any-return]

    def _attend(self, x_BTSD: Tensor) -> Tensor:
        """Among the tokens of a frame, or among the frames of a token."""
        if not self.temporal:
            spatial: Tensor = self.attn(x_BTSD.flatten(0, 1)).view(x_BTSD.shape)
            return spatial
        x_BSTD = x_BTSD.transpose(1, 2)
        return self.attn(x_BSTD.flatten(0, 1)).view(x_BSTD.shape).transpose(1, 2)  # type: ignore[no-any-return]


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, steps_B: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half, device=steps_B.device) / half)
        angles = steps_B.float()[:, None] * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))  # type: ignore[no-any-return]


class LabelEmbedder(nn.Module):
    """A row a class, and one, the last, for no class."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, labels_B: Tensor) -> Tensor:
        return self.embedding_table(labels_B)  # type: ignore[no-any-return]


class PatchEmbedder(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, z_BCTHW: Tensor) -> Tensor:
        """(B, T, S, D), patches row by row."""
        b, c, t, h, w = z_BCTHW.shape
        tokens = self.proj(z_BCTHW.transpose(1, 2).reshape(b * t, c, h, w))
        return tokens.flatten(2).transpose(1, 2).unflatten(0, (b, t))  # type: ignore[no-any-return]


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_BTSD: Tensor, condition_BTD: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition_BTD).chunk(2, dim=-1)
        return self.linear(modulated(self.norm_final, x_BTSD, shift, scale))  # type: ignore[no-any-return]


class Latte(nn.Module):
    """Predicts the noise in latent clips, z_BCTHW to (B, C, T, H, W), or 2·C channels with a learned variance.

    Args:
        classes: K; label K stands for no class.
        frames: T.
        side: H = W of the latents.
        size: depth, width and heads.
        channels: C of the latents.
        patch: p, which must divide `side`.
        learned_sigma: whether C more outputs place the variance between its bounds (Nichol & Dhariwal 2021, Eq. 15).
        velocity: whether the first C outputs are the velocity (`diffusion.velocity_of`) and not the noise.

    Attributes:
        recompute: whether blocks keep none of their maps and make them again for the gradient.

    Raises:
        ValueError: the patch does not divide the side, or blocks do not come in pairs.
    """

    places_SD: Tensor
    times_TD: Tensor

    def __init__(
        self, classes: int, frames: int, side: int, size: Size, *,
        channels: int = 4, patch: int = 2, learned_sigma: bool = False, velocity: bool = False,
    ) -> None:  # fmt: skip
        if side % patch:
            raise ValueError(f"patches of {patch} do not fill latents of {side}×{side}: choose a divisor of {side}")
        if size.depth % 2:
            raise ValueError(f"spatial and temporal blocks come in pairs; got a depth of {size.depth}")
        super().__init__()
        self.channels, self.frames, self.side, self.no_class = channels, frames, side, classes
        self.patch, self.learned_sigma, self.velocity = patch, learned_sigma, velocity
        self.outputs = 2 * channels if learned_sigma else channels
        self.recompute = False
        self.x_embedder = PatchEmbedder(channels, size.width, patch)
        self.t_embedder = TimestepEmbedder(size.width)
        self.y_embedder = LabelEmbedder(classes, size.width)
        blocks = [Block(size.width, size.heads, temporal=bool(place % 2)) for place in range(size.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.final_layer = FinalLayer(size.width, patch * patch * self.outputs)
        self.register_buffer("places_SD", plane_sines(side // patch, size.width), persistent=False)
        self.register_buffer("times_TD", sines(torch.arange(frames), size.width), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.data.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)  # type: ignore[arg-type]
        for module in (self.y_embedder.embedding_table, *self.t_embedder.mlp):
            if isinstance(module, nn.Embedding | nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for name, weight in self.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer.linear"):
                nn.init.zeros_(weight)

    def forward(self, z_BCTHW: Tensor, steps_B: Tensor, labels_B: Tensor) -> Tensor:
        """The noise in `z_BCTHW`, or its velocity, at diffusion steps 0…999, for classes 0…K, of which K is none.

        `steps_B` may be `steps_BT`, the step of each frame.
        """
        steps_BT = by_frame(steps_B)
        times_BTD = self.t_embedder(steps_BT.flatten()).unflatten(0, steps_BT.shape)
        condition_BTD = times_BTD + self.y_embedder(labels_B)[:, None]
        x_BTSD = self.x_embedder(z_BCTHW) + self.places_SD
        for place, block in enumerate(self.blocks):
            if place == 1:
                x_BTSD = x_BTSD + self.times_TD[:, None]
            if self.recompute and torch.is_grad_enabled():
                x_BTSD = checkpoint(block, x_BTSD, condition_BTD, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BTSD = block(x_BTSD, condition_BTD)
        return self._unpatched(self.final_layer(x_BTSD, condition_BTD), z_BCTHW.shape[-1])

    def _unpatched(self, x_BTSO: Tensor, width: int) -> Tensor:
        """Each token's p·p·outputs values at their place: (B, outputs, T, H, W)."""
        p = self.patch
        b, t, s, _ = x_BTSO.shape
        patches = x_BTSO.view(b, t, s * p // width, width // p, p, p, self.outputs)
        return patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)

    def guided(
        self, z_BCTHW: Tensor, steps_B: Tensor, labels_B: Tensor, scale: float, *,
        blind: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """Classifier-free guidance of the C noise channels: none + scale·(class − none); variances are the class's.

        `blind` are the clips and steps that the pass of no class sees, if others: without the frames that the class's
        is shown, guidance leads to what goes with them too (Song et al. 2025, history guidance).
        """
        if scale == 1:
            return self(z_BCTHW, steps_B, labels_B)  # type: ignore[no-any-return]
        blind_BCTHW, blind_B = blind or (z_BCTHW, steps_B)
        labels = torch.cat([labels_B, torch.full_like(labels_B, self.no_class)])
        classed, free = self(torch.cat([z_BCTHW, blind_BCTHW]), torch.cat([steps_B, blind_B]), labels).chunk(2)
        noise, none = classed[:, : self.channels], free[:, : self.channels]
        return torch.cat([none + scale * (noise - none), classed[:, self.channels :]], dim=1)


def sines(places: Tensor, width: int) -> Tensor:
    """(len(places), width): sines, then cosines, of the places at frequencies from 1 down to 1/10,000."""
    rates = 10_000 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = places.double().flatten()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def plane_sines(side: int, width: int) -> Tensor:
    """(side², width): for each place, row by row, the sines of its column, then those of its row."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.cat([sines(columns, width // 2), sines(rows, width // 2)], dim=1)


def load_published(network: Latte, state: Mapping[str, Tensor], *, new_labels: bool, rows: Sequence[int] = ()) -> None:
    """Load the weights of a released class-conditional checkpoint (`Latte-XL/2`, UCF101: 101 classes and none).

    Args:
        network: of the same size; frames and latents may differ, since their embeddings are computed.
        state: names and tensors of the checkpoint, those of a distributed model (`module.…`) too.
        new_labels: keep the network's own label table, for other classes; its row of no class is the checkpoint's.
        rows: of the checkpoint's label table, those of the network's classes, where these are in another order.

    Raises:
        ValueError: names or shapes differ; says which.
    """
    given = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    given = {name: tensor for name, tensor in given.items() if name not in FIXED}
    if new_labels and LABELS in given:
        table = network.state_dict()[LABELS].clone()
        if table.shape[1] == given[LABELS].shape[1]:
            table[-1] = given[LABELS][-1]
        given[LABELS] = table
    elif LABELS in given and len(given[LABELS]) == len(rows) + 1:
        given[LABELS] = given[LABELS][[*rows, -1]]
    own = network.state_dict()
    wrong = [f"{name} {_shape(own, name)} ← {_shape(given, name)}" for name in sorted({*own, *given})
             if _shape(own, name) != _shape(given, name)]  # fmt: skip
    if wrong:
        raise ValueError(f"the checkpoint does not fit in {len(wrong)} tensors: {'; '.join(wrong[:3])}")
    network.load_state_dict(given)


def _shape(state: Mapping[str, Tensor], name: str) -> str:
    return "×".join(map(str, state[name].shape)) if name in state else "nothing"
