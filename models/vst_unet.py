"""VST-UNet: a U-Net over the videos of a class, their frames, height and width (S4, §3.1), and its losses (Eq. 1–3).

Legend: N videos of one class, C channels, T frames, H, W height and width (of latents), D features, K classes,
P = T·H·W positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

HEADS = 4
GROUPS = 4
BISECTIONS = 50
POSITIONS = 1 << 17
"""Of maps that are convolved at once: a class with more goes through part by part, and its maps are made again on the
way back, so that the graph of a hundred videos of 16×32×32 latents takes half a gigabyte, not two and a half."""


class VideoAttention(nn.Module):
    """Attention over the videos, at each place of their frames on its own: the fourth axis of a 4-D convolution.

    The videos of a class have no order, so that a kernel over their index would make a choice depend on how they are
    numbered; attention without positions gives every video the same whatever the others are called.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        x_PNC = self.norm(x_NCTHW).flatten(2).permute(2, 0, 1)
        heads = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x_PNC).chunk(3, dim=2))
        mixed_PNC = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        moved: Tensor = self.out(mixed_PNC).permute(1, 2, 0).unflatten(2, x_NCTHW.shape[2:])
        return x_NCTHW + moved


class Block(nn.Module):
    """Two 3×3×3 convolutions with a shortcut, each video on its own, then attention over the videos."""

    def __init__(self, c_in: int, c_out: int, *, attention: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv3d(c_in, c_out, 3, padding=1), nn.GroupNorm(GROUPS, c_out), nn.SiLU(),
        )  # fmt: skip
        self.second = nn.Sequential(nn.Conv3d(c_out, c_out, 3, padding=1), nn.GroupNorm(GROUPS, c_out))
        self.shortcut = nn.Conv3d(c_in, c_out, 1)
        self.attention = VideoAttention(c_out) if attention else nn.Identity()

    def forward(self, x_NCTHW: Tensor, skip_NCTHW: Tensor | None = None) -> Tensor:
        """Maps of all videos; with a skip, x is enlarged to its size and comes before it."""
        outer_NCTHW = x_NCTHW if skip_NCTHW is None else skip_NCTHW
        size = max(1, POSITIONS // math.prod(outer_NCTHW.shape[2:]))
        if size >= len(x_NCTHW):
            attended: Tensor = self.attention(self._convolved(x_NCTHW, skip_NCTHW))
            return attended
        parts = zip(torch.split(x_NCTHW, size), torch.split(outer_NCTHW, size), strict=True)
        made = [forgetful(self._convolved, x, None if skip_NCTHW is None else skip) for x, skip in parts]
        return forgetful(self.attention, torch.cat(made))

    def _convolved(self, x_NCTHW: Tensor, skip_NCTHW: Tensor | None) -> Tensor:
        if skip_NCTHW is not None:
            x_NCTHW = torch.cat([F.interpolate(x_NCTHW, size=skip_NCTHW.shape[2:]), skip_NCTHW], dim=1)
        return F.silu(self.second(self.first(x_NCTHW)) + self.shortcut(x_NCTHW))


def forgetful(function: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
    """`function(*arguments)`, whose intermediate maps are made again for the gradient instead of being kept.

    Nothing is drawn in it, and to keep torch's one generator for it would set that of other threads back.
    """
    if not torch.is_grad_enabled():
        return function(*arguments)
    made: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return made


class VSTUNet(nn.Module):
    """From all the videos of a class to a score each, and logits (S4, Fig. 1 and Algorithm 1).

    S4 states neither levels nor widths nor kernels. Its 4-D convolution is factored (torch has none): a 3-D one over
    T, H, W with the videos as the batch, and attention over the videos where maps are halved already, since at full
    size it would cost N² a place and see single latents. Each video is normalised on its own (groups of channels), so
    renumbering the videos renumbers the outputs and does nothing else.

    Args:
        channels: C of the latents.
        classes: K.
        widths: channels of each level, all divisible by 4; every level halves T, H and W.
        features: D.
    """

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...] = (16, 32, 64), features: int = 64) -> None:
        super().__init__()
        inward = list(zip((channels, *widths), widths, strict=False))
        outward = [(below + own, own) for own, below in reversed(list(itertools.pairwise(widths)))]
        self.down = nn.ModuleList(Block(*pair, attention=level > 0) for level, pair in enumerate(inward))
        self.up = nn.ModuleList(Block(*pair, attention=level + 1 < len(outward)) for level, pair in enumerate(outward))
        self.features = nn.Linear(widths[0] + widths[-1], features)
        self.score = nn.Linear(features, 1)
        self.classify = nn.Linear(features, classes)

    def forward(self, z_NCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """`score_N`, whose sigmoid is p_c, and `logits_NK`.

        A score sees by how much a video differs from its class's others in each feature of f_c: means over whole maps
        are nearly equal for all of them.
        """
        x_NCTHW, skips = z_NCTHW, []
        for level, block in enumerate(self.down):
            x_NCTHW = block(halved(x_NCTHW) if level else x_NCTHW)
            skips.append(x_NCTHW)
        bottom_NC = skips.pop().mean((2, 3, 4))
        for block, skip_NCTHW in zip(self.up, reversed(skips), strict=True):
            x_NCTHW = block(x_NCTHW, skip_NCTHW)
        f_ND = F.silu(self.features(torch.cat([x_NCTHW.mean((2, 3, 4)), bottom_NC], dim=1)))
        return self.score(standardised(f_ND))[:, 0], self.classify(f_ND)


def standardised(x_ND: Tensor) -> Tensor:
    """Each column with mean 0 and variance 1."""
    centred_ND = x_ND - x_ND.mean(0)
    return centred_ND / (centred_ND.square().mean(0) + 1e-10).sqrt()


def halved(x_NCTHW: Tensor) -> Tensor:
    """Means of 2×2×2 places, of fewer at an odd edge; a side of one stays."""
    return F.avg_pool3d(x_NCTHW, [min(2, side) for side in x_NCTHW.shape[2:]], ceil_mode=True)


def inclusion(score_N: Tensor, count: int) -> Tensor:
    """q_N: probabilities in the order of the scores that sum to `count`: sigmoid(score + b), differentiable in scores.

    The common b is found by bisection, and its derivative by the scores by one step of Newton from there.
    """
    if count >= len(score_N):
        return torch.ones_like(score_N)
    scores = score_N.detach()
    low, high = -scores.max() - 40, -scores.min() + 40
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        few = torch.sigmoid(scores + middle).sum() < count
        low, high = torch.where(few, middle, low), torch.where(few, high, middle)
    q_N = torch.sigmoid(score_N + high)
    slope = (q_N * (1 - q_N)).sum().detach()
    return torch.sigmoid(score_N + high - (q_N.sum() - count) / slope.clamp_min(1e-12))


def mass(q_N: Tensor, count: int) -> Tensor:
    """Which part of the choice the `count` likeliest videos are: 1 where the choice is theirs alone."""
    return q_N.topk(min(count, len(q_N))).values.sum() / count


def hardened(score_N: Tensor, count: int, share: float) -> Tensor:
    """The scores, scaled so that the mass of their `count` highest is `share`; equal ones stay equal.

    The scale is a number, found by bisection: nothing learns through it.
    """
    spread = float(score_N.detach().std(correction=0))
    if count >= len(score_N) or spread == 0:
        return score_N
    unit_N = score_N / spread
    low, high = -8.0, 12.0
    for _ in range(BISECTIONS // 2):
        middle = (low + high) / 2
        held = float(mass(inclusion(unit_N.detach() * math.exp(middle), count), count))
        low, high = (middle, high) if held < share else (low, middle)
    return unit_N * math.exp(high)


def diversity_loss(f_ND: Tensor, q_N: Tensor, count: int) -> Tensor:
    """L_div (Eq. 1): mean cosine similarity of two videos of the choice; 0 where one is chosen.

    With q in {0, 1} it is the printed sum over S_c; with probabilities its expectation, each video being chosen
    independently of the others.
    """
    if count < 2:
        return q_N.sum() * 0
    unit_ND = F.normalize(f_ND, dim=1)
    alike_NN = (unit_ND @ unit_ND.T).fill_diagonal_(0)
    return q_N @ alike_NN @ q_N / (count * (count - 1))


def representativeness_loss(f_ND: Tensor, q_N: Tensor) -> Tensor:
    """1 − exp(−(1/N_c) Σ_t E min_{i∈S} ‖x_t − x_i‖₂), after Eq. 2, whose norm S4's prose calls a mean square error: the
    formula is followed.

    As printed, exp(−distance) is to be minimised, which drives the choice away from the videos that it is to represent:
    in the parent work (DR-DSN, arXiv 1801.00054, Eq. 5) it is a reward. 1 − it has the same optimum as its negative and
    lies in [0, 1).

    With q in {0, 1} the expectation is the minimum over S. With probabilities it is exact too: going from the nearest
    video to the farthest, each is the minimum where it is chosen and none before it is; where none at all is, the
    distance is that to the farthest.
    """
    near_NN, order_NN = distances(f_ND).sort(dim=1)
    q_NN = q_N[order_NN]
    none_NN = (1 - q_NN).cumprod(dim=1)
    none_before_NN = torch.cat([torch.ones_like(none_NN[:, :1]), none_NN[:, :-1]], dim=1)
    expected_N = (near_NN * q_NN * none_before_NN).sum(1) + near_NN[:, -1] * none_NN[:, -1]
    return 1 - torch.exp(-expected_N.mean())


def distances(f_ND: Tensor) -> Tensor:
    """Euclidean distances of all pairs (N, N), exact rather than by products, so that a video is 0 from itself."""
    return torch.cdist(f_ND, f_ND, compute_mode="donot_use_mm_for_euclid_dist")


def selection_loss(
    outputs: tuple[Tensor, Tensor], x_ND: Tensor, label: int, count: int, share: float, diversity: float,
    representativeness: float,
) -> Tensor:  # fmt: skip
    """L = L_ce + λ_d·L_div + λ_r·L_rep (Eq. 3) of one class, in expectation over a choice of `count` videos.

    L_ce is the mean over the choice, which trains the features and prefers videos that are surely of the class. The
    other two see the videos as fixed vectors: features of the network that learns could be equal all over (L_rep = 0)
    or spread without regard to the videos, and no choice would be learnt.

    Args:
        outputs: of the network.
        x_ND: what the videos are alike and apart by, unit vectors.
        label: c.
        count: |S_c|.
        share: the mass that the `count` highest scores hold.
        diversity: λ_d.
        representativeness: λ_r.
    """
    score_N, logits_NK = outputs
    q_N = inclusion(hardened(score_N, count, share), count)
    target_N = torch.full((len(logits_NK),), label, device=logits_NK.device)
    loss = (q_N * F.cross_entropy(logits_NK, target_N, reduction="none")).sum() / count
    if diversity:
        loss = loss + diversity * diversity_loss(x_ND, q_N, count)
    if representativeness:
        loss = loss + representativeness * representativeness_loss(x_ND, q_N)
    return loss
