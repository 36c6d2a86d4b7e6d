"""What the matching methods share: real batches, a start, fresh networks, and one loop that resumes.

A method learns a dict of tensors (pixels, memories, a learning rate). A *parametrisation* turns it into clips, a *loss*
into a number; `optimise` does the rest. Every draw is a function of (seed, iteration, class), so that a run which was
killed and resumed takes the very same steps.

Shapes: B clips a batch, N clips of the set, C colours, T frames, H height, W width, K classes, P parameters.
`x_BCTHW` is float32 and normalised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet, materialised, variants
from vidistill.storage.errors import RunError
from vidistill.tasks.coreset.random import draw_rows
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.pixels import initial, pixel_range, to_pixels
from vidistill.tasks.learning.training import Curve, Device, generator
from vidistill.tasks.methods import Material

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Learnt = dict[str, "Tensor"]
Loss = Callable[[int, Learnt], "Tensor"]
"""From an iteration and what is learnt to a scalar that can be differentiated; see `with_gradients` for those that
make their own gradients."""

STATE, CURVE = "state.safetensors", "curve.json"
AT_ONCE, PIXELS_AT_ONCE = {"cpu": 8, "cuda": 256}, 8 * 8 * 56 * 56
"""Clips a pass: no graph holds the whole set, and on a CPU few clips stay in its caches (MiniC3D's embedding in bf16 at
8×56×56, one thread: 3.9 ms a clip by eights, 5.3 ms by sixty-fours). Smaller clips go together until they are as many
pixels: a pass costs the weights once (a step of MTT on 10 clips of 8×32×32: 320 ms in one pass, 430 ms as 8 and 2)."""
DIVERGED, WATCHED = 1e3, 10  # the loss may grow to so many times the largest of the first so many iterations


class Parametrisation(Protocol):
    """How clips are made from what is learnt."""

    def __call__(self, learnt: Learnt, slots_B: NDArray[np.int64], random: np.random.Generator) -> Tensor:
        """x_BCTHW of these clips of the set; `random` is for those that have variants."""
        ...


def pixels(learnt: Learnt, slots_B: NDArray[np.int64], random: np.random.Generator) -> Tensor:  # noqa: ARG001
    """The parametrisation of the methods that learn `clips` themselves."""
    import torch

    x_NCTHW = learnt["clips"]
    every = len(slots_B) == len(x_NCTHW) and bool((np.diff(slots_B) == 1).all())
    return x_NCTHW if every else x_NCTHW[torch.from_numpy(slots_B).to(x_NCTHW.device)]


@dataclass(frozen=True)
class RealClips:
    """Random real clips of a class, read from the array when they are needed.

    Attributes:
        clips: the training split.
        seed: with the iteration and the class it gives the rows, the views and, where the data allow them, the flips.
        device: where the clips go.
    """

    clips: Clips
    seed: int
    device: Device

    def rows(self, iteration: int, label: int, count: int) -> NDArray[np.int64]:
        """`count` rows of the class without replacement; all of them, in random order, where it has fewer."""
        return generator(self.seed, iteration, label, streams.REAL_ROWS).permutation(self.clips.rows_of(label))[:count]

    def batch(self, iteration: int, labels: Sequence[int], count: int) -> tuple[Tensor, NDArray[np.int64]]:
        """x_BCTHW of up to `count` clips of each of these classes, and their labels_B."""
        (whole,) = self.chunks(iteration, labels, count, count * len(labels))
        return whole

    def chunks(
        self, iteration: int, labels: Sequence[int], count: int, size: int
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """The same batch, at most `size` clips at a time."""
        table = self.clips.table
        rows_B = np.concatenate([self.rows(iteration, label, count) for label in labels])
        random = generator(self.seed, iteration, *labels, streams.REAL_VIEWS)
        views_B, flips_B = random.integers(table.views, size=len(rows_B)), random.random(len(rows_B)) < 0.5
        for first in range(0, len(rows_B), size):
            part = slice(first, first + size)
            clips_NTHWC = self.clips.read(rows_B[part], views_B[part])
            x_BCTHW = training.to_input(clips_NTHWC, table.mean, table.std, self.device)
            flipped = training.flip_some(x_BCTHW, flips_B[part]) if table.flips else x_BCTHW
            yield flipped, self.clips.labels_N[rows_B[part]]


@dataclass(frozen=True)
class Start:
    """Where a set begins: x_NCTHW, labels_N, and the paths of the real clips it began as ("" for noise)."""

    x_NCTHW: Tensor
    labels_N: NDArray[np.int64]
    sources: tuple[str, ...]


def start_clips(material: Material, init: Literal["real", "noise"], copies: int = 1) -> Start:
    """`material.ipc` random real clips of each class, or normal noise, each `copies` times over, in class order.

    Raises:
        RequestError: a class has fewer clips than that.
    """
    clips = material.clips
    rows_N = draw_rows(clips, material.labels, material.ipc, material.seed).repeat(copies)
    x_NCTHW = initial(clips, rows_N, init, material.seed, material.device)
    sources = tuple(clips.table.videos[row].path if init == "real" else "" for row in rows_N)
    return Start(x_NCTHW, clips.labels_N[rows_N], sources)


def leaf(tensor: Tensor) -> Tensor:
    """A copy that can be learnt."""
    return tensor.detach().clone().requires_grad_(True)


def fresh_network(material: Material, name: str, iteration: int, *, weights_learn: bool = False) -> nn.Module:
    """A network as it is initialised, another one for each iteration; in evaluation mode (no dropout)."""
    seed = int(generator(material.seed, iteration, streams.FRESH_NETWORK).integers(2**31))
    clips = material.clips
    network = training.build_network(name, len(clips.classes), clips.shape_THWC, seed)
    return training.settled(network, material.device).requires_grad_(weights_learn)


def a_pass(material: Material, size: int) -> int:
    """How many of `size` clips go through a network together, so that all passes but the last are of one size."""
    frames, height, width, _ = material.clips.shape_THWC
    wanted = max(AT_ONCE[material.device.torch_device.type], PIXELS_AT_ONCE // (frames * height * width))
    return math.ceil(size / max(1, round(size / wanted)))


def at_once(network: nn.Module, material: Material, size: int) -> int:
    """The same, but all of them where the network takes statistics over a batch."""
    over_batch = network.training and any("running_mean" in name for name, _ in network.named_buffers())
    return size if over_batch else a_pass(material, size)


def with_gradients(value: Tensor, learnt: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:
    """A scalar worth `value` whose derivative by `learnt[name]` is `gradients[name]`.

    For losses that work out their gradients piece by piece, so that no graph of the whole is ever held.
    """
    product = sum((learnt[name] * gradient.detach()).sum() for name, gradient in gradients.items())
    surrogate: Tensor = product - product.detach()  # type: ignore[union-attr]
    return value.detach() + surrogate


def add_gradients(gradients: dict[str, Tensor], value: Tensor, learnt: Learnt) -> None:
    """Add the derivatives of `value` by what is learnt to `gradients`."""
    import torch

    moved = {name: tensor for name, tensor in learnt.items() if tensor.requires_grad}
    found = torch.autograd.grad(value, list(moved.values()), materialize_grads=True, allow_unused=True)
    for name, gradient in zip(moved, found, strict=True):
        gradients[name] = gradients[name] + gradient if name in gradients else gradient


def keep_in_range(clips: Clips, device: Device, name: str = "clips") -> Callable[[Learnt], None]:
    """A projection onto what uint8 can hold, so that what is learnt is what is stored."""
    low_C, high_C = pixel_range(clips, device)

    def project(learnt: Learnt) -> None:
        learnt[name].clamp_(low_C, high_C)

    return project


class Remembers(Protocol):
    """What else a loop must keep to resume: a pool of networks, say."""

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Loop:
    """How `optimise` goes about it.

    Attributes:
        iterations: steps of the optimiser.
        checkpoint_every: iterations between checkpoints; by default a twentieth of all.
        project: called after each step, without gradients: keeps what is learnt where it must stay.
        schedule: the share of each group's learning rate at an iteration.
        memory: state beside what is learnt and the optimiser's.
    """

    iterations: int
    checkpoint_every: int | None = None
    project: Callable[[Learnt], None] = lambda _learnt: None
    schedule: Callable[[int], float] = lambda _iteration: 1.0
    memory: Remembers | None = None


def optimise(learnt: Learnt, loss: Loss, optimiser: torch.optim.Optimizer, material: Material, loop: Loop) -> Curve:
    """Minimise `loss` in place over the tensors of `learnt`, from the last checkpoint if there is one.

    Args:
        learnt: leaves; those that ask for no gradient are kept and not moved.
        loss: see `Loss`.
        optimiser: over tensors of `learnt`.
        material: seeds, checkpoints and progress.
        loop: see `Loop`.

    Returns:
        The loss, averaged over each fiftieth of the run.

    Raises:
        RunError: the loss diverges or something is not finite; the last good checkpoint stays.
    """
    import torch

    rates = [group["lr"] for group in optimiser.param_groups]
    first, watch = _resume(learnt, optimiser, material, loop)
    every = loop.checkpoint_every or max(1, loop.iterations // 20)
    moved = [name for name, tensor in learnt.items() if tensor.requires_grad]
    for iteration in range(first, loop.iterations):
        share = loop.schedule(iteration)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * share
        value = loss(iteration, learnt)
        watch.check(iteration, float(value.detach()), optimiser)
        gradients = torch.autograd.grad(value, [learnt[name] for name in moved], allow_unused=True)
        for name, gradient in zip(moved, gradients, strict=True):
            learnt[name].grad = gradient
        optimiser.step()
        with torch.no_grad():
            loop.project(learnt)
        watch.check_learnt(iteration, learnt, optimiser)
        watch.curve.add(iteration, loop.iterations, float(value.detach()))
        material.progress(iteration + 1, loop.iterations)
        if (iteration + 1) % every == 0 and iteration + 1 < loop.iterations:
            material.checkpoint(iteration + 1, lambda folder: _save(folder, learnt, optimiser, watch, loop))
    return watch.curve


@dataclass
class _Watch:
    """The curve, and the largest of the first losses, by which a run is judged to diverge."""

    curve: Curve
    largest: float = 0.0

    def check(self, iteration: int, loss: float, optimiser: torch.optim.Optimizer) -> None:
        if not math.isfinite(loss):
            raise _stopped(f"The loss is {loss}", iteration, optimiser)
        if iteration < WATCHED:
            self.largest = max(self.largest, abs(loss))
        elif abs(loss) > DIVERGED * self.largest > 0:
            raise _stopped(f"The loss grew from {self.largest:.3g} to {loss:.3g}", iteration, optimiser)

    def check_learnt(self, iteration: int, learnt: Learnt, optimiser: torch.optim.Optimizer) -> None:
        for name, tensor in learnt.items():
            if not bool(tensor.isfinite().all()):
                raise _stopped(f"The learnt {name} are no longer finite", iteration, optimiser)


def _stopped(what: str, iteration: int, optimiser: torch.optim.Optimizer) -> RunError:
    rates = ", ".join(f"{group['lr']:.3g}" for group in optimiser.param_groups)
    advice = "try a learning rate ten times smaller, or precision=fp32"
    return RunError(f"{what} at iteration {iteration} (learning rate {rates}): {advice}. The last checkpoint stays.")


def _save(folder: Path, learnt: Learnt, optimiser: torch.optim.Optimizer, watch: _Watch, loop: Loop) -> None:
    from safetensors.torch import save_file

    tensors = {f"learnt.{name}": tensor.detach() for name, tensor in learnt.items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items() if value is not None}
    if loop.memory is not None:
        tensors |= {f"memory.{name}": tensor for name, tensor in loop.memory.state().items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / STATE)
    (folder / CURVE).write_text(json.dumps(asdict(watch)))


def _resume(
    learnt: Learnt, optimiser: torch.optim.Optimizer, material: Material, loop: Loop
) -> tuple[int, _Watch]:  # fmt: skip
    import torch
    from safetensors.torch import load_file

    found = material.last_checkpoint()
    if found is None:
        return 0, _Watch(Curve())
    step, folder = found
    tensors = load_file(folder / STATE)
    with torch.no_grad():
        for name, tensor in learnt.items():
            tensor.copy_(tensors[f"learnt.{name}"])
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimiser":
            index, _, field = rest.partition(".")
            states.setdefault(int(index), {})[field] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": states})
    if loop.memory is not None:
        prefix = "memory."
        loop.memory.restore({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    facts = json.loads((folder / CURVE).read_text())
    return step, _Watch(Curve(**facts["curve"]), facts["largest"])


def kept(
    material: Material, form: str, stored: dict[str, NDArray[Any]], start: Start, curve: Curve, **facts: Any
) -> DistilledSet:
    """The set that keeps `stored` and makes its clips by a form, with the loss for the report."""
    shape_NTHWC = (len(start.labels_N), *material.clips.shape_THWC)
    return DistilledSet(
        **variants(materialised(form, stored, shape_NTHWC)),
        labels_N=start.labels_N,
        classes=material.clips.classes,
        sources=start.sources,
        facts={"steps": curve.steps, "loss": curve.loss, **facts},
        form=form,
        stored=stored,
    )


def norm_arrays(material: Material) -> dict[str, NDArray[np.float32]]:
    """What forms with networks keep to normalise."""
    table = material.clips.table
    return {"mean": np.array(table.mean, dtype=np.float32), "std": np.array(table.std, dtype=np.float32)}


def finished(material: Material, start: Start, x_NCTHW: Tensor, curve: Curve, **facts: Any) -> DistilledSet:
    """The set of these clips as uint8, with the loss for the report and how far the clips moved."""
    moved = float((x_NCTHW.detach() - start.x_NCTHW).abs().mean())
    return DistilledSet(
        clips_NTHWC=to_pixels(x_NCTHW.detach(), material.clips),
        labels_N=start.labels_N,
        classes=material.clips.classes,
        sources=start.sources,
        facts={"steps": curve.steps, "loss": curve.loss, "moved_in_std": moved, **facts},
    )
