"""Frames to latents and back: a small variational autoencoder to be trained here, and Stable Diffusion's (diffusers).

Legend: N clips, X = N·T frames, C latent channels, T frames a clip, H, W pixels, h = H/f, w = W/f, f factor.
"""

from __future__ import annotations

import importlib
import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 8
"""Of the group norms; a width is a multiple of it."""


def to_frames(clips_NTHWC: Tensor) -> Tensor:
    """uint8 clips as frames in [−1, 1]: (X, 3, H, W) float32."""
    return clips_NTHWC.flatten(0, 1).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def to_clips(frames_XCHW: Tensor, frames: int) -> Tensor:
    """Frames in [−1, 1] as uint8 clips of so many frames: (N, T, H, W, 3)."""
    pixels = frames_XCHW.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    pixels_XHWC = pixels.permute(0, 2, 3, 1)
    return pixels_XHWC.reshape(-1, frames, *pixels_XHWC.shape[1:])


@dataclass(frozen=True)
class Turned:
    """Made smaller, to `side` latents, and turned by quarters (EQ-VAE, Kouzelis et al. 2025)."""

    side: int
    quarters: int

    def __call__(self, x_XCHW: Tensor, factor: int) -> Tensor:
        """Square maps of `factor` pixels a latent: (X, C, side·factor, side·factor)."""
        size = self.side * factor
        return F.interpolate(x_XCHW, (size, size), mode="bilinear", antialias=True).rot90(self.quarters, (2, 3))


class Residual(nn.Module):
    """Two normalised 3×3 convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        norms = (nn.GroupNorm(GROUPS, width) for _ in range(2))
        convs = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.layers = nn.Sequential(*(layer for n, c in zip(norms, convs, strict=True) for layer in (n, nn.SiLU(), c)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]


class FrameAutoencoder(nn.Module):
    """A variational autoencoder of single frames, `factor` times smaller on each side.

    Args:
        channels: C of the latents.
        width: channels at full size; they double with each halving, to four times at most.
        factor: a power of two.
    """

    def __init__(self, channels: int = 4, width: int = 32, factor: int = 8) -> None:
        super().__init__()
        self.channels, self.factor = channels, factor
        widths = [min(width << level, 4 * width) for level in range(factor.bit_length())]
        down = [
            layer
            for before, after in itertools.pairwise(widths)
            for layer in (nn.Conv2d(before, after, 3, stride=2, padding=1), Residual(after))
        ]
        up = [
            layer
            for before, after in zip(widths[:0:-1], widths[-2::-1], strict=True)
            for layer in (Residual(before), nn.Upsample(scale_factor=2.0), nn.Conv2d(before, after, 3, padding=1))
        ]
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), *down, nn.SiLU(), nn.Conv2d(widths[-1], 2 * channels, 1)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, widths[-1], 3, padding=1), *up, nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1)
        )

    def moments(self, frames_XCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of the variances of the latents: each (X, C, h, w)."""
        mean, log_variance = self.encoder(frames_XCHW).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def encode(self, frames_XCHW: Tensor) -> Tensor:
        """The latents' means: (X, C, h, w)."""
        return self.moments(frames_XCHW)[0]

    def decode(self, z_XCHW: Tensor) -> Tensor:
        """Frames of about [−1, 1]: (X, 3, H, W)."""
        return self.decoder(z_XCHW)  # type: ignore[no-any-return]


class Pretrained(nn.Module):
    """Stable Diffusion's `AutoencoderKL` behind the same two functions.

    Latents are means, so that a clip's are always the same; Latte's training samples around them.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.channels = int(network.config.latent_channels)
        self.factor = 2 ** (len(network.config.block_out_channels) - 1)
        self.published_shift = float(getattr(network.config, "shift_factor", None) or 0)  # Stable Diffusion 3's, FLUX's
        self.published_scale = float(network.config.scaling_factor)

    def encode(self, frames_XCHW: Tensor) -> Tensor:
        mean: Tensor = self.network.encode(frames_XCHW).latent_dist.mean
        return mean.float()

    def decode(self, z_XCHW: Tensor) -> Tensor:
        frames_XCHW: Tensor = self.network.decode(z_XCHW).sample
        return frames_XCHW


class Codec(nn.Module):
    """An autoencoder whose latents have mean zero and variance one a channel; a given one's are shifted and scaled as
    is published.

    Args:
        network: `FrameAutoencoder` or `Pretrained`.
        shift: the latents' mean a channel, (C,).
        scale: by which they are multiplied afterwards, (C,).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: FrameAutoencoder | Pretrained, shift: list[float], scale: list[float]) -> None:
        super().__init__()
        self.network, self.factor, self.channels = network, network.factor, network.channels
        self.register_buffer("shift", torch.tensor(shift)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(scale)[:, None, None], persistent=False)

    def encode(self, clips_NTHWC: Tensor) -> Tensor:
        """uint8 clips to latents: (N, C, T, h, w) float32."""
        z_XCHW = (self.network.encode(to_frames(clips_NTHWC)) - self.shift) * self.scale
        n, t = clips_NTHWC.shape[:2]
        return z_XCHW.view(n, t, *z_XCHW.shape[1:]).transpose(1, 2)

    def decode(self, z_NCTHW: Tensor) -> Tensor:
        """Latents to uint8 clips: (N, T, H, W, 3)."""
        z_XCHW = z_NCTHW.transpose(1, 2).flatten(0, 1) / self.scale + self.shift
        return to_clips(self.network.decode(z_XCHW), z_NCTHW.shape[2])


def autoencoder_loss(
    network: FrameAutoencoder, frames_XCHW: Tensor, noise: Tensor, kl_weight: float, turned: Turned | None = None
) -> Tensor:
    """Absolute error of the frames decoded from sampled latents, plus the latents' divergence from a unit Gaussian.

    Args:
        network: the autoencoder.
        frames_XCHW: in [−1, 1].
        noise: Gaussian, of the latents' shape.
        kl_weight: of the divergence, averaged over the latents' values.
        turned: what is done to the latents before they are decoded, and to the frames that they are to show.
    """
    mean, log_variance = network.moments(frames_XCHW)
    z_XCHW = mean + noise * (0.5 * log_variance).exp()
    if turned:
        z_XCHW, frames_XCHW = turned(z_XCHW, 1), turned(frames_XCHW, network.factor)
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    return F.l1_loss(network.decode(z_XCHW).float(), frames_XCHW) + kl_weight * divergence


def pretrained(place: str) -> Pretrained:
    """Stable Diffusion's autoencoder by diffusers: a local folder, or a name on the Hugging Face Hub.

    A folder or repository of a whole pipeline is looked into at `vae`.

    Raises:
        OSError: there are no such weights here and none can be fetched.
    """
    diffusers: Any = importlib.import_module("diffusers")
    try:
        return Pretrained(diffusers.AutoencoderKL.from_pretrained(place))
    except OSError:
        return Pretrained(diffusers.AutoencoderKL.from_pretrained(place, subfolder="vae"))
