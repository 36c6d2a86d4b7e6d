"""The diffusion that Latte is trained under: 1,000 steps, linear betas, noise prediction (Ho et al. 2020) or velocity.

Legend: B clips, C latent channels, T frames, H, W latent height and width. `steps_B`, a step of each clip, may be
`steps_BT`, one of each of its frames (Diffusion Forcing, Chen et al. 2024).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS, BETA_FIRST, BETA_LAST = 1000, 1e-4, 0.02


def alphas_cumulated() -> Tensor:
    """ᾱ of each step: (1000,) float64."""
    return torch.cumprod(1 - torch.linspace(BETA_FIRST, BETA_LAST, STEPS, dtype=torch.float64), dim=0)


def noised(z_BCTHW: Tensor, noise_BCTHW: Tensor, steps_B: Tensor) -> Tensor:
    """√ᾱ·z + √(1 − ᾱ)·noise (Ho et al. 2020, Eq. 4)."""
    alpha = _of_step(alphas_cumulated(), steps_B, z_BCTHW)
    return alpha.sqrt() * z_BCTHW + (1 - alpha).sqrt() * noise_BCTHW


def velocity_of(z_BCTHW: Tensor, noise_BCTHW: Tensor, steps_B: Tensor) -> Tensor:
    """√ᾱ·noise − √(1 − ᾱ)·z (Salimans & Ho 2022, §4)."""
    alpha = _of_step(alphas_cumulated(), steps_B, z_BCTHW)
    return alpha.sqrt() * noise_BCTHW - (1 - alpha).sqrt() * z_BCTHW


def diffusion_loss(
    output: Tensor, z_BCTHW: Tensor, noise_BCTHW: Tensor, steps_B: Tensor, *, velocity: bool = False
) -> Tensor:
    """Squared error of the noise, or of the velocity; with 2·C outputs plus the variance's share of the bound.

    Args:
        output: (B, C, T, H, W), or (B, 2·C, T, H, W) with a learned variance.
        z_BCTHW: clean latents.
        noise_BCTHW: what was added.
        steps_B: 0…999.
        velocity: whether the first C outputs are the velocity, not the noise.
    """
    channels = z_BCTHW.shape[1]
    predicted = output[:, :channels].float()
    wanted = velocity_of(z_BCTHW, noise_BCTHW, steps_B) if velocity else noise_BCTHW
    loss = F.mse_loss(predicted, wanted)
    if output.shape[1] == channels:
        return loss
    off = (predicted - wanted).detach()
    if velocity:  # noise = √ᾱ·velocity + √(1 − ᾱ)·noised
        off = off * _of_step(alphas_cumulated(), steps_B, off).sqrt()
    return loss + variance_bound(noise_BCTHW + off, output[:, channels:].float(), z_BCTHW, noise_BCTHW, steps_B)


def variance_bound(predicted: Tensor, place: Tensor, z_BCTHW: Tensor, noise_BCTHW: Tensor, steps_B: Tensor) -> Tensor:
    """KL(q(z₋₁|z, z₀) ‖ p(z₋₁|z)) in bits a value, in which only the variance learns (Nichol & Dhariwal 2021, §3.1).

    `place` in [−1, 1] lies between the logarithms of the posterior's variance and of β (their Eq. 15). Steps that
    clean the last noise (0) have no posterior and count nothing. Their λ = 0.001 times the sum over 1,000 steps is the
    mean over uniformly drawn steps, so that this is added to the squared error as it is.
    """
    betas = torch.linspace(BETA_FIRST, BETA_LAST, STEPS, dtype=torch.float64)
    whole = alphas_cumulated()
    before = torch.cat([torch.ones(1, dtype=torch.float64), whole[:-1]])
    posterior = betas * (1 - before) / (1 - whole)
    posterior[0] = posterior[1]
    low, high = (_of_step(variance.log(), steps_B, z_BCTHW) for variance in (posterior, betas))
    share = (place + 1) / 2
    variance_log = share * high + (1 - share) * low
    to_mean = _of_step(betas / ((1 - whole).sqrt() * (1 - betas).sqrt()), steps_B, z_BCTHW)
    gap = to_mean * (predicted - noise_BCTHW)  # of the means, as both are linear in the noise
    divergence = 0.5 * (variance_log - low - 1 + (low - variance_log).exp() + gap**2 * (-variance_log).exp())
    counted = _of_step((torch.arange(STEPS) > 0).double(), steps_B, divergence)
    return (divergence * counted).mean() / torch.log(torch.tensor(2.0))


def _of_step(values: Tensor, steps_B: Tensor, like: Tensor) -> Tensor:
    """(B, 1, T, 1, 1), or (B, 1, 1, 1, 1) where all frames of a clip have its step."""
    return values.to(like.device)[by_frame(steps_B)].to(like.dtype)[:, None, :, None, None]


def by_frame(steps_B: Tensor) -> Tensor:
    """(B, T) as it is; (B,) as (B, 1)."""
    return steps_B.view(len(steps_B), -1)
