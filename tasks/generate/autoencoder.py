"""Autoencoder: trained on the training frames, or Stable Diffusion's; and the latents of the training clips.

Shapes: N clips, V views, X frames, C latent channels, T frames a clip, h, w latent height and width.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.clips import Clips
from vidistill.storage.errors import RequestError
from vidistill.storage.files import expanded
from vidistill.storage.parameters import Parameters
from vidistill.storage.pool import LATENTS, create_latent_array
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.generate.optimising import AdamParameters, fit
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.training import Device, Precision, generator
from vidistill.tasks.learning.weights import known_by, unchanged
from vidistill.tasks.piecewise import pieces, taken_over
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from torch import Tensor

    from vidistill.models.autoencoder import Codec, FrameAutoencoder, Pretrained, Turned

WEIGHTS, FACTS, DIFFUSERS = "weights.safetensors", "autoencoder.json", "diffusers"
PLACE = "autoencoder"
MEASURED_FRAMES = 512
"""At most so many training frames give the reconstruction error and the latents' mean and deviation."""


class AutoencoderParameters(Parameters):
    """The autoencoder: factor 8 and 4 channels, as Stable Diffusion's; trained here unless `pretrained` names one."""

    pretrained: str = Field("", description="AutoencoderKL of diffusers: a folder, or a name on the Hugging Face Hub.")
    channels: int = Field(4, ge=1, description="Channels of the latents.")
    factor: Literal[2, 4, 8] = Field(8, description="Pixels a latent, on each side.")
    width: int = Field(16, ge=8, multiple_of=8, description="Channels of the convolutions at full size.")
    steps: int = Field(3000, ge=1)
    batch_frames: int = Field(32, ge=1)
    kl_weight: float = Field(1e-4, ge=0, description="Of the divergence from a unit Gaussian.")
    equivariance: float = Field(
        0.0,
        ge=0,
        le=1,
        exclude_if=lambda share: not share,
        description="Share of steps in which latents and frames are made smaller, to a quarter at least, and turned "
        "before the latents are decoded (EQ-VAE, Kouzelis et al. 2025), so that latents look like the picture, which "
        "is easier to learn; published: 0.",
    )
    adam: AdamParameters = AdamParameters(lr=1e-3, decay_share=0.3)
    precision: Precision = "auto"
    seed: int = 0
    checkpoint_steps: int = Field(500, ge=1)


def autoencoder_job(clips: ArtifactRef, parameters: AutoencoderParameters) -> Job:
    """The job that trains an autoencoder on the clips, or takes the one that is named.

    Raises:
        RequestError: it is not there, or something is asked for that acts on training alone.
    """
    if not parameters.pretrained:
        return autoencoder(parameters, {"clips": clips}, label="autoencoder")
    usual = AutoencoderParameters()
    for name, value in parameters:
        if name not in ("pretrained", "precision") and value != getattr(usual, name):
            raise RequestError(f"autoencoder.{name} is for one that is trained here: leave it out, or "
                               "autoencoder.pretrained.")  # fmt: skip
    asked = {"pretrained": known_by(parameters.pretrained), "precision": parameters.precision}
    job = autoencoder(AutoencoderParameters.model_validate(asked), {"clips": clips}, label="autoencoder")
    path = expanded(parameters.pretrained)
    return job.model_copy(update={"places": {PLACE: str(path.absolute() if path.exists() else parameters.pretrained)}})


@stage("autoencoder", version=1, threads="all")
def autoencoder(work: Work) -> None:
    parameters = AutoencoderParameters.model_validate(work.job.parameters)
    clips = Clips(work.store, work.ref("clips")).preload()
    device = Device.of(work, parameters.precision)
    network = _given(work) if parameters.pretrained else _trained(clips, parameters, device, work)
    check_fit(clips.shape_THWC[1], network.factor)
    facts = {"factor": network.factor, "channels": network.channels} | measured(network, clips, device)
    (work.folder / FACTS).write_text(json.dumps(facts, indent=1))
    work.record(seeds=[parameters.seed], counts={"clips": len(clips)}, **device.facts())


def _given(work: Work) -> Pretrained:
    """The weights that were named, copied into the artifact so that it stands alone."""
    from vidistill.models.autoencoder import pretrained

    name = work.job.parameters["pretrained"]
    place = unchanged(work.job.places.get(PLACE, name), name)
    try:
        network = pretrained(place)
    except OSError as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(f"The autoencoder {place!r} cannot be loaded ({why}): give a folder that has it.") from error
    network.network.register_to_config(_name_or_path="")  # where the weights lay is no business of an artifact
    network.network.save_pretrained(work.folder / DIFFUSERS)
    return network


def _trained(clips: Clips, parameters: AutoencoderParameters, device: Device, work: Work) -> FrameAutoencoder:
    from safetensors.torch import save_file

    from vidistill.models.autoencoder import autoencoder_loss

    network = _built(parameters)
    batches = FrameBatches(clips, parameters, device)

    def losses_of(step: int) -> list[Tensor]:
        frames_XCHW, noise, turned = batches(step)
        with device.autocast():
            return [autoencoder_loss(network, frames_XCHW, noise, parameters.kl_weight, turned)]

    every = parameters.checkpoint_steps
    weights, curve = fit(network, losses_of, parameters.steps, parameters.adam, device, work, checkpoint_every=every)
    save_file(weights, work.folder / WEIGHTS)
    curve.write(work.folder)
    return network


def _built(parameters: AutoencoderParameters) -> FrameAutoencoder:
    from vidistill.models.autoencoder import FrameAutoencoder

    with training.seeded(parameters.seed):
        return FrameAutoencoder(parameters.channels, parameters.width, parameters.factor)


def made_of(parameters: AutoencoderParameters) -> tuple[int, int]:
    """Pixels a latent on each side, and channels: those of a folder are read there, of a name on the Hub taken to be
    Stable Diffusion's.

    Raises:
        RequestError: the folder is of another network.
    """
    folder = expanded(parameters.pretrained)
    config = next((path for path in (folder / "config.json", folder / "vae/config.json") if path.is_file()), None)
    if not parameters.pretrained or config is None:
        return parameters.factor, parameters.channels
    try:
        found = json.loads(config.read_text())
        return 2 ** (len(found["block_out_channels"]) - 1), found["latent_channels"]
    except (KeyError, ValueError) as error:
        raise RequestError(f"{config} is not of an AutoencoderKL: give the folder that one was saved to.") from error


def check_fit(size: int, factor: int) -> None:
    """That clips of so many pixels a side can be encoded.

    Raises:
        RequestError: the factor does not divide it.
    """
    if size % factor:
        raise RequestError(f"Clips of {size} pixels do not divide by the autoencoder's {factor}: try "
                           f"{size // factor * factor or factor} pixels.")  # fmt: skip


@dataclass(frozen=True)
class FrameBatches:
    """Random frames of random clips, the noise of their latents and how both are turned: functions of the step."""

    clips: Clips
    parameters: AutoencoderParameters
    device: Device

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Turned | None]:
        import torch

        from vidistill.models.autoencoder import Turned, to_frames

        random, table = generator(self.parameters.seed, step, streams.AUTOENCODER_FRAMES), self.clips.table
        rows = random.integers(len(self.clips), size=self.parameters.batch_frames)
        clips_NTHWC = self.clips.read(rows, random.integers(table.views, size=len(rows)))
        picked = random.integers(clips_NTHWC.shape[1], size=len(rows))
        frames_NTHWC = clips_NTHWC[np.arange(len(rows)), picked][:, None]
        if table.flips:
            flips = random.random(len(rows)) < 0.5
            frames_NTHWC[flips] = frames_NTHWC[flips][:, :, :, ::-1]
        frames_XCHW = to_frames(torch.from_numpy(frames_NTHWC).to(self.device.torch_device))
        side = frames_XCHW.shape[-1] // self.parameters.factor
        noise = random.standard_normal((len(rows), self.parameters.channels, side, side), dtype=np.float32)
        turned = None
        if random.random() < self.parameters.equivariance:
            turned = Turned(int(random.integers(-(-side // 4), side + 1)), int(random.integers(4)))
        return frames_XCHW, torch.from_numpy(noise).to(self.device.torch_device), turned


def measured(network: FrameAutoencoder | Pretrained, clips: Clips, device: Device) -> dict[str, Any]:
    """Over centre clips of the training split: reconstruction error, and the shift and scale of the latents.

    The error is that of uint8 pixels: mean absolute in levels of 255, and PSNR in dB of the mean squared error.
    """
    import torch

    from vidistill.models.autoencoder import Codec, Pretrained, to_frames

    count = max(1, min(len(clips), MEASURED_FRAMES // clips.shape_THWC[0]))
    rows = np.linspace(0, len(clips) - 1, count).astype(np.int64)
    network.to(device.torch_device).eval()
    with torch.inference_mode(), device.autocast():
        read = (torch.from_numpy(clips.read([row])).to(device.torch_device) for row in rows)
        latents = torch.cat([network.encode(to_frames(clip_NTHWC)).cpu() for clip_NTHWC in read])
    shift, scale = latents.mean((0, 2, 3)).tolist(), (1 / latents.std((0, 2, 3)).clamp(min=1e-6)).tolist()
    if isinstance(network, Pretrained):  # what a released transformer expects
        published = (network.published_shift, network.published_scale)
        shift, scale = ([value] * network.channels for value in published)
    codec = Codec(network, shift, scale).to(device.torch_device)
    absolute, squared = _errors(codec, clips, rows, device)
    psnr = 10 * math.log10(255**2 / max(squared, 1e-9))
    return {"shift": shift, "scale": scale, "error": round(absolute, 4), "psnr": round(psnr, 3), "clips": count}


def _errors(codec: Codec, clips: Clips, rows: NDArray[np.int64], device: Device) -> tuple[float, float]:
    """Mean absolute and mean squared error of these clips, encoded and decoded, in levels of 0…255."""
    errors = []
    for row in rows:
        clips_NTHWC = clips.read([row])
        difference = decoded(codec, encoded(codec, clips_NTHWC, device), device).astype(np.float64) - clips_NTHWC
        errors.append([np.abs(difference).mean(), (difference**2).mean()])
    absolute, squared = np.mean(errors, axis=0)
    return float(absolute), float(squared)


def encoded(codec: Codec, clips_NTHWC: NDArray[np.uint8], device: Device) -> Tensor:
    """The clips' latents on the device: (N, C, T, h, w) float32."""
    import torch

    with torch.inference_mode(), device.autocast():
        return codec.encode(torch.from_numpy(clips_NTHWC).to(device.torch_device)).float()


def decoded(codec: Codec, z_NCTHW: Tensor, device: Device) -> NDArray[np.uint8]:
    """Latents as uint8 clips, one clip at a time, since pixels take the memory: (N, T, H, W, 3)."""
    import torch

    with torch.inference_mode(), device.autocast():
        return torch.cat([codec.decode(z_NCTHW[n : n + 1]).cpu() for n in range(len(z_NCTHW))]).numpy()


def load_codec(store: Store, ref: ArtifactRef, device: Device) -> Codec:
    """A trained autoencoder with its latents' shift and scale, in evaluation mode on the device."""
    from safetensors.torch import load_file

    from vidistill.models.autoencoder import Codec, pretrained

    folder = store.folder(ref)
    facts = json.loads((folder / FACTS).read_text())
    network: FrameAutoencoder | Pretrained
    if (folder / DIFFUSERS).is_dir():
        network = pretrained(str(folder / DIFFUSERS))
    else:
        network = _built(AutoencoderParameters.model_validate(store.manifest(ref).parameters))
        network.load_state_dict(load_file(folder / WEIGHTS))
    codec = Codec(network, facts["shift"], facts["scale"])
    return codec.to(device.torch_device).eval().requires_grad_(False)


class LatentsParameters(Parameters):
    precision: Precision


def latents_job(clips: ArtifactRef, codec: ArtifactRef, precision: Precision) -> Job:
    return latents(LatentsParameters(precision=precision), {"clips": clips, "autoencoder": codec}, label="latents")


@stage("latents", version=1, threads="all")
def latents(work: Work) -> None:
    """Every view of every training clip as latents, mirrored too where the data set allows it: each encoded once."""
    clips = Clips(work.store, work.ref("clips"))
    device = Device.of(work, LatentsParameters.model_validate(work.job.parameters).precision)
    codec = load_codec(work.store, work.ref("autoencoder"), device)
    t, size = clips.shape_THWC[:2]
    side, mirrors = size // codec.factor, 2 if clips.table.flips else 1
    shape = (len(clips), clips.table.views * mirrors, codec.channels, t, side, side)
    first = taken_over(work)
    array = zarr.open_array(work.folder, path=LATENTS, mode="r+") if first else create_latent_array(work.folder, shape)
    for row in pieces(work, first, len(clips)):
        views = [clips.read([row], view) for view in range(clips.table.views)]
        if mirrors == 2:
            views += [np.ascontiguousarray(view[:, :, :, ::-1]) for view in views]
        z_VCTHW = [encoded(codec, view, device)[0].cpu().numpy() for view in views]  # one by one: pixels take memory
        array[row] = np.stack(z_VCTHW).astype(np.float16)
        work.progress(row + 1, len(clips))
    work.record(counts={"clips": len(clips), "views": shape[1]}, **device.facts())
