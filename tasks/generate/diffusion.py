"""Diffusion: Latte trained on the latents of the training split (S4, §4; methods §9), or fine-tuned from its release.

Shapes: B clips a batch, N clips, V views (mirrored ones too), C latent channels, T frames; latents are h×w.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from vidistill.storage.clips import Clips
from vidistill.storage.errors import RequestError, RunError
from vidistill.storage.files import expanded
from vidistill.storage.parameters import Parameters
from vidistill.storage.pool import open_latent_array
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.generate.optimising import AdamParameters, fit
from vidistill.tasks.generate.released import TuningParameters, metadata, read_checkpoint, settled, start_from
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.training import Device, Precision, generator
from vidistill.tasks.learning.weights import known_by, unchanged
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from torch import Tensor

    from vidistill.models.latte import Latte

WEIGHTS, FACTS, PLACE = "weights.safetensors", "latte.json", "latte"
LEAK = (
    "The Latte began with given weights. If these are the released class-conditional ones of UCF101, they were trained "
    "on all of its videos, without regard to splits: scores on its test videos, or on a subset's, are not clean."
)
PRELOAD_BYTES = 2 << 30
MIDDLE = (100, 450)
"""Steps of noise in which the shape of what moves is decided: before, all of it shows, and after, only where it is."""
log = logging.getLogger("vidistill")


class LatteParameters(Parameters):
    """The transformer and its training.

    Published (methods §9): XL, patches of 2, learned sigma, a constant 1e-4, EMA 0.9999, a million steps of 40 clips.
    The defaults are for small clips on two cores; those of a fine-tuning are the published ones but for what `tuning`
    says, and its size, patch, learned variance and prediction are the checkpoint's.
    """

    size: Literal["micro", "tiny", "mini", "S", "B", "L", "XL"] = Field(
        "micro", description="1.9 M to 674 M parameters; a checkpoint has its own, as its patch and learned variance."
    )
    patch: int = Field(1, ge=1, description="Side of a token in latents; published: 2, of latents of 32×32.")
    learned_sigma: bool = Field(False, description="Learn the variance too; the released checkpoint does.")
    velocity: bool | None = Field(
        None,
        description="Predict the velocity, not the noise; by default where training begins from nothing, as a released "
        "checkpoint predicts the noise, and one of vidistill what it says; an older one of vidistill says nothing, and "
        "is taken for one of noise where this is not given. Place and motion, which are decided where noise is strong, "
        "then weigh as much as detail: on sprites, after 2,000 steps of noise prediction the teacher knew 8 % of the "
        "clips, after 750 of this 29 %.",
    )
    frame_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        exclude_if=lambda share: not share,
        description="Share of clips whose frames each have a step of noise of their own (Diffusion Forcing, Chen et "
        "al. 2024), which teaches to carry over what clearer frames show; published: 0.",
    )
    middle_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        exclude_if=lambda share: not share,
        description=f"Share of the steps of noise that, while the rate falls, are drawn from {MIDDLE[0]} to "
        f"{MIDDLE[1] - 1}, where shapes are decided, and not from all alike; published: 0.",
    )
    label_dropout: float = Field(0.1, ge=0, lt=1, description="Share of clips trained without their label.")
    pretrained: str = Field("", description="A released checkpoint (.pt or .safetensors) to fine-tune from.")
    tuning: TuningParameters = Field(
        TuningParameters(),
        exclude_if=lambda tuning: tuning == TuningParameters(),
        description="How a checkpoint is fine-tuned: batch, average and rate, as published.",
    )
    new_labels: bool = Field(
        True,
        description="Fine-tune with a new label table; without: the classes are its own, a release's sorted by name.",
    )
    steps: int = Field(6000, ge=0, description="0: the checkpoint as it is.")
    batch_size: int = Field(16, ge=1, description="Clips a step.")
    at_once: int | None = Field(
        None,
        ge=1,
        exclude_if=lambda clips: clips is None,
        description="Clips of a step that go through the network at once, whose gradients add up; by default all.",
    )
    recompute: bool = Field(
        False,
        exclude_if=lambda recompute: not recompute,
        description="Keep no block's maps and make them again for the gradient: a third more time, far less memory.",
    )
    compile: bool = Field(
        False,
        exclude_if=lambda wanted: not wanted,
        description="Compile the network (torch.compile): steps are faster after the first, which takes a minute. On a "
        "CPU it needs a C++ compiler.",
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description="Of the averaged weights, which generate.")
    adam: AdamParameters = AdamParameters(lr=5e-4, decay_share=0.2)
    muon_lr: float = Field(
        0.0,
        ge=0,
        exclude_if=lambda rate: not rate,
        description="Rate of Muon (Jordan et al. 2024), which then trains the matrices of the blocks, AdamW the rest; "
        "0: AdamW trains all, as published.",
    )
    precision: Precision = "auto"
    seed: int = 0
    checkpoint_steps: int = Field(500, ge=1)

    @model_validator(mode="after")
    def _the_rate_falls(self) -> Self:
        if self.middle_noise and not self.adam.decay_share:
            raise ValueError("middle_noise acts while the rate falls: give adam.decay_share, such as 0.4")
        return self


class LatteJobParameters(LatteParameters):
    """Those, settled for data and checkpoint."""

    label_rows: tuple[int, ...] = Field(
        (),
        exclude_if=lambda rows: not rows,
        description="Of the checkpoint's table of labels, for the classes of the data, where its order is another.",
    )


def latte_job(
    clips: ArtifactRef, latents: ArtifactRef, parameters: LatteParameters, *, classes: Sequence[str], channels: int,
    side: int,
) -> Job:  # fmt: skip
    """The job that trains a transformer on latents of so many channels and this side.

    Raises:
        RequestError: the checkpoint to start from is not a file, does not fit, or predicts something else; without one
            there is nothing to train, or something is asked for that acts on a checkpoint alone.
    """
    inputs, usual = {"clips": clips, "latents": latents}, LatteParameters()
    if not parameters.pretrained:
        _check_new(parameters, usual, side)
        if parameters.velocity is None:
            parameters = parameters.model_copy(update={"velocity": True})
        return latte(parameters, inputs, label=f"latte {parameters.size}")
    if not parameters.steps and parameters.new_labels:
        raise RequestError("latte.steps=0 takes the checkpoint as it is, and a new table of labels would know no "
                           "class: give latte.new_labels=false, or steps.")  # fmt: skip
    if parameters.middle_noise and not parameters.tuning.adam.decay_share:
        raise RequestError("latte.middle_noise acts while the rate falls, and a released Latte is tuned at a "
                           "constant one: give latte.tuning.adam.decay_share, such as 0.4.")  # fmt: skip
    path = expanded(parameters.pretrained)
    if not path.is_file():
        raise RequestError(f"There is no checkpoint {path}: give the file of a released Latte, such as ucf101.pt.")
    changed = {name: value for name, value in parameters if value != getattr(usual, name)}
    own = settled(parameters.tuning, changed, path, classes, channels, side)
    own |= {"pretrained": known_by(parameters.pretrained), "tuning": usual.tuning}
    parameters = LatteJobParameters.model_validate(parameters.model_dump() | own)
    job = latte(parameters, inputs, label=f"latte {own['size']}")
    return job.model_copy(update={"places": {PLACE: str(path.absolute())}})


def _check_new(parameters: LatteParameters, usual: LatteParameters, side: int) -> None:
    for name in ("tuning", "new_labels"):
        if getattr(parameters, name) != getattr(usual, name):
            raise RequestError(
                f"latte.{name} is for a checkpoint to fine-tune: give latte.pretrained, or leave it out."
            )
    if not parameters.steps:
        raise RequestError("latte.steps=0 takes a checkpoint as it is: give latte.pretrained, or steps.")
    if side % parameters.patch:
        raise RequestError(f"Patches of {parameters.patch} do not fill latents of {side}×{side}: choose another "
                           "latte.patch or pool.size.")  # fmt: skip


@stage("latte", version=1, threads="all")
def latte(work: Work) -> None:
    from safetensors.torch import save_file

    parameters = LatteJobParameters.model_validate(work.job.parameters)
    device = Device.of(work, parameters.precision)
    clips = Clips(work.store, work.ref("clips"))
    batches = LatentBatches.of(work.input("latents"), clips, parameters, device)
    shape, classes = batches.shape_CTHW, len(clips.classes)
    network = built(parameters, classes, shape)
    network.recompute = parameters.recompute
    if parameters.compile and parameters.steps:
        compile_network(network, device)
    warnings = _start_from(network, work.job.places[PLACE], parameters) if parameters.pretrained else []
    weights, curve = fit(
        network, lambda step: batches.losses(network, step), parameters.steps, parameters.adam, device, work,
        checkpoint_every=parameters.checkpoint_steps, ema_decay=parameters.ema_decay, muon_lr=parameters.muon_lr,
    )  # fmt: skip
    save_file({name: weight.contiguous() for name, weight in weights.items()}, work.folder / WEIGHTS,
              metadata=metadata(velocity=bool(parameters.velocity), classes=clips.classes))  # fmt: skip
    curve.write(work.folder)
    facts = {"classes": classes, "shape_CTHW": shape, "warnings": warnings,
             "parameters": sum(weight.numel() for weight in weights.values())}  # fmt: skip
    (work.folder / FACTS).write_text(json.dumps(facts, indent=1))
    work.record(seeds=[parameters.seed], counts={"clips": len(clips)}, warnings=warnings, **device.facts())


@dataclass(frozen=True)
class LatentBatches:
    """What a step trains on, all of it drawn from (seed, step)."""

    views_NVCTHW: Any
    labels_N: NDArray[np.int64]
    classes: int
    parameters: LatteParameters
    device: Device

    @staticmethod
    def of(folder: Path, clips: Clips, parameters: LatteParameters, device: Device) -> LatentBatches:
        """Latents of at most 2 GiB are held in memory."""
        array = open_latent_array(folder)
        views = array[...] if array.nbytes <= PRELOAD_BYTES else array
        return LatentBatches(views, clips.labels_N, len(clips.classes), parameters, device)

    @property
    def shape_CTHW(self) -> tuple[int, int, int, int]:
        return tuple(self.views_NVCTHW.shape[2:])

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z_BCTHW, noise_BCTHW, steps_B (0…999) and labels_B, where a dropped label is `classes`: none.

        Where frames may have steps of their own, it is steps_BT.
        """
        import torch

        random = generator(self.parameters.seed, step, streams.DIFFUSION_BATCH)
        rows = random.integers(len(self.labels_N), size=self.parameters.batch_size)
        views = random.integers(self.views_NVCTHW.shape[1], size=len(rows))
        z_BCTHW = np.stack([self.views_NVCTHW[row, view] for row, view in zip(rows, views, strict=True)])
        noise_BCTHW = random.standard_normal(z_BCTHW.shape, dtype=np.float32)
        steps_B = self._noise_steps(random, (len(rows),), step)
        dropped = random.random(len(rows)) < self.parameters.label_dropout
        labels_B = np.where(dropped, self.classes, self.labels_N[rows])
        if share := self.parameters.frame_noise:
            own_B1 = random.random((len(rows), 1)) < share
            own_BT = self._noise_steps(random, (len(rows), self.shape_CTHW[1]), step)
            steps_B = np.where(own_B1, own_BT, steps_B[:, None])
        place = self.device.torch_device
        arrays = (z_BCTHW.astype(np.float32), noise_BCTHW, steps_B, labels_B)
        z, noise, steps, labels = (torch.from_numpy(array).to(place) for array in arrays)
        return z, noise, steps, labels

    def _noise_steps(self, random: np.random.Generator, shape: tuple[int, ...], step: int) -> NDArray[np.int64]:
        from vidistill.models.diffusion import STEPS

        p = self.parameters
        drawn = random.integers(STEPS, size=shape)
        if not (p.middle_noise and p.adam.falls_at(step, p.steps)):
            return drawn
        return np.where(random.random(shape) < p.middle_noise, random.integers(*MIDDLE, size=shape), drawn)

    def losses(self, network: Latte, step: int) -> Iterator[Tensor]:
        """The loss of a step, part by part: what each adds to the mean over the batch."""
        import torch

        from vidistill.models.diffusion import diffusion_loss, noised

        size, velocity = self.parameters.batch_size, bool(self.parameters.velocity)
        parts = [torch.split(tensor, self.parameters.at_once or size) for tensor in self(step)]
        for z_BCTHW, noise_BCTHW, steps_B, labels_B in zip(*parts, strict=True):
            with self.device.autocast():
                output = network(noised(z_BCTHW, noise_BCTHW, steps_B), steps_B, labels_B)
            loss = diffusion_loss(output, z_BCTHW, noise_BCTHW, steps_B, velocity=velocity)
            yield loss if len(z_BCTHW) == size else loss * (len(z_BCTHW) / size)


def built(parameters: LatteParameters, classes: int, shape_CTHW: tuple[int, ...]) -> Latte:
    """A freshly initialised transformer for latents of this shape, drawn from the seed."""
    from vidistill.models.latte import SIZES, Latte

    channels, frames, side = shape_CTHW[:3]
    with training.seeded(parameters.seed):
        return Latte(classes, frames, side, SIZES[parameters.size], channels=channels, patch=parameters.patch,
                     learned_sigma=parameters.learned_sigma, velocity=bool(parameters.velocity))  # fmt: skip


def _start_from(network: Latte, place: str, parameters: LatteJobParameters) -> list[str]:
    """Load a released checkpoint into the network; what the report has to warn of."""
    path = Path(unchanged(place, parameters.pretrained))
    start_from(network, read_checkpoint(path), path, new_labels=parameters.new_labels, rows=parameters.label_rows)
    log.warning(LEAK)
    return [LEAK]


def compile_network(network: Latte, device: Device) -> None:
    """Have the network's passes compiled in place, at the first of them.

    Not in vectors of 512 bits: there torch 2.14 and g++ 12 make NaN of sums over transposed bf16, and so of gradients.

    Raises:
        RunError: this is a CPU without a C++ compiler.
    """
    import torch

    cpu, compiler = device.torch_device.type == "cpu", os.environ.get("CXX") or "g++"
    if cpu and not shutil.which(compiler):
        raise RunError(f"latte.compile needs a C++ compiler, and there is no {compiler} here: install it, name another "
                       "in CXX, or leave latte.compile out.")  # fmt: skip
    wide = cpu and torch.backends.cpu.get_cpu_capability() == "AVX512"
    network.compile(options={"cpp.simdlen": 256} if wide else None)


def load_latte(store: Store, ref: ArtifactRef, device: Device) -> Latte:
    """The transformer with its averaged weights, in evaluation mode on the device."""
    from safetensors.torch import load_file

    folder = store.folder(ref)
    facts = json.loads((folder / FACTS).read_text())
    parameters = LatteJobParameters.model_validate(store.manifest(ref).parameters)
    network = built(parameters, facts["classes"], tuple(facts["shape_CTHW"]))
    network.load_state_dict(load_file(folder / WEIGHTS))
    return network.to(device.torch_device).eval().requires_grad_(False)
