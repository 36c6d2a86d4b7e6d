"""A released Latte: what its checkpoint says of itself, whether it fits, and how it is fine-tuned (methods §9)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.tasks.generate.optimising import AdamParameters

if TYPE_CHECKING:
    from torch import Tensor

    from vidistill.models.latte import Latte


TRAINED, VELOCITY, CLASSES = "vidistill", "velocity", "classes"
"""In the metadata of a Latte that was trained here: whether it predicts the velocity, and its classes in their order.
They are one entry, since safetensors writes several in an order of chance; older files have two. A release says
nothing: it predicts the noise, and its classes are sorted by name. What was trained here before may say nothing either,
and may predict the velocity."""


class TuningAdam(AdamParameters):
    """AdamW as published for Latte, without a warm-up."""

    warmup_steps: int = Field(0, ge=0, description="Steps over which the rate rises from zero.")


class TuningParameters(Parameters):
    """How a checkpoint is fine-tuned, as published: instead of the values of these names for training from nothing.

    Two departures: gradients are clipped at 1 from the first step on (published: at 0.1 after step 100,000), and the
    average begins over few steps (`averaged`).
    """

    batch_size: int = Field(40, ge=1, description="Clips a step.")
    at_once: int | None = Field(5, ge=1, description="Clips that go through at once; published: 5 on each of 8 GPUs.")
    recompute: bool = Field(True, description="Keep no block's maps and make them again for the gradient.")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="Of the averaged weights, which generate.")
    adam: TuningAdam = TuningAdam(lr=1e-4)


class Told(Parameters):
    """What a checkpoint's tensors say by their names and shapes, and its metadata of the rest."""

    size: str
    patch: int
    learned_sigma: bool
    channels: int
    velocity: bool | None
    classes: tuple[str, ...] | None


def settled(
    tuning: TuningParameters, changed: Mapping[str, Any], path: Path, classes: Sequence[str], channels: int, side: int
) -> dict[str, Any]:
    """The parameters of a fine-tuning: what the checkpoint says of itself, and how it is tuned.

    Args:
        tuning: how.
        changed: what the request has otherwise than by default.
        path: the checkpoint.
        classes: of the data.
        channels: of the latents.
        side: of the latents.

    Raises:
        RequestError: the checkpoint is no Latte's, or does not fit the request or the data; says in what.
    """
    for name in TuningParameters.model_fields:
        if name in changed:
            raise RequestError(f"latte.{name} is that of training from nothing: set latte.tuning.{name} to fine-tune.")
    state = read_checkpoint(path, shapes=True)
    found = told(state, path)
    own = found.model_dump(exclude={"channels", "classes"}, exclude_none=True)
    for name, value in own.items():
        if changed.get(name, value) != value:
            raise RequestError(f"The weights {path} have {name}={value}, not {changed[name]}: leave out latte.{name}.")
    if found.channels != channels or side % found.patch:
        raise RequestError(
            f"The weights {path} are of latents of {found.channels} channels in patches of {found.patch}, and these "
            f"latents have {channels} channels and a side of {side}: choose another autoencoder or pool.size."
        )
    new_labels = bool(changed.get("new_labels", True))
    _fits(found, state, path, len(classes), new_labels=new_labels)
    tuned = {name: getattr(tuning, name) for name in TuningParameters.model_fields}
    rows = () if new_labels else _rows(found, classes, path)
    return {VELOCITY: changed.get(VELOCITY, False)} | own | tuned | {"label_rows": rows}


def _rows(found: Told, classes: Sequence[str], path: Path) -> tuple[int, ...]:
    """Where the data's classes are in the checkpoint's table of labels; nothing where they are in its order.

    Raises:
        RequestError: it has other classes.
    """
    names = found.classes or tuple(classes if VELOCITY in _metadata(path) else sorted(classes))
    if unknown := sorted(set(classes) - set(names)):
        raise RequestError(f"The weights {path} know no class {unknown[0]!r}, but {', '.join(names[:5])}…: leave out "
                           "latte.new_labels, to fine-tune for the classes of the data.")  # fmt: skip
    return () if tuple(classes) == names else tuple(map(names.index, classes))


def told(state: Mapping[str, Tensor], path: Path) -> Told:
    """Size, patch, learned variance, channels, prediction and classes of a checkpoint.

    Raises:
        RequestError: it is no Latte's, or of no size that has a name.
    """
    from vidistill.models.latte import SIZES

    try:
        shapes = {name.removeprefix("module."): tuple(tensor.shape) for name, tensor in state.items()}
        width, channels, patch, _ = shapes["x_embedder.proj.weight"]
        (outputs,) = shapes["final_layer.linear.bias"]
        depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
    except (AttributeError, KeyError, ValueError) as error:
        raise RequestError(f"The weights {path} are not a Latte's: give the file of a release.") from error
    size = next((name for name, one in SIZES.items() if (one.depth, one.width) == (depth, width)), None)
    if size is None:
        known = ", ".join(f"{name} {one.depth}×{one.width}" for name, one in SIZES.items())
        raise RequestError(f"The weights {path} have {depth} blocks of width {width}: known are {known}.")
    said = _metadata(path)
    silent = None if path.suffix == ".safetensors" else False
    return Told(size=size, patch=patch, learned_sigma=outputs == 2 * channels * patch**2, channels=channels,
                velocity=said.get(VELOCITY, silent), classes=said.get(CLASSES))  # fmt: skip


def metadata(*, velocity: bool, classes: Sequence[str]) -> dict[str, str]:
    """What the file of a Latte that was trained here says of it."""
    return {TRAINED: json.dumps({VELOCITY: velocity, CLASSES: classes})}


def _metadata(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        said = file.metadata() or {}
    if TRAINED in said:
        return dict(json.loads(said[TRAINED]))
    older: dict[str, Any] = {VELOCITY: said[VELOCITY] == str(True)} if VELOCITY in said else {}
    return older | ({CLASSES: json.loads(said[CLASSES])} if CLASSES in said else {})


def _fits(found: Told, state: Mapping[str, Tensor], path: Path, classes: int, *, new_labels: bool) -> None:
    """Every name and shape, before anything is made for it; frames and latents may differ."""
    import torch

    from vidistill.models.latte import SIZES, Latte

    with torch.device("meta"):
        network = Latte(classes, 1, found.patch, SIZES[found.size], channels=found.channels, patch=found.patch,
                        learned_sigma=found.learned_sigma)  # fmt: skip
        start_from(network, state, path, new_labels=new_labels)


def start_from(
    network: Latte, state: Mapping[str, Tensor], path: Path, *, new_labels: bool, rows: Sequence[int] = ()
) -> None:
    """Load a checkpoint into a network of its size; `rows` as in `load_published`.

    Raises:
        RequestError: names or shapes differ.
    """
    from vidistill.models.latte import load_published

    try:
        load_published(network, state, new_labels=new_labels, rows=rows)
    except ValueError as error:
        raise RequestError(f"The weights {path} do not fit: {error}.") from error


def read_checkpoint(path: Path, *, shapes: bool = False) -> dict[str, Tensor]:
    """The names and tensors of a checkpoint file: its averaged weights where it has them, otherwise its last ones.

    Args:
        path: a .pt or .safetensors file.
        shapes: tensors of `meta` alone, so that nothing is held in memory.

    Raises:
        RequestError: it cannot be read as weights.
    """
    import torch
    from safetensors import safe_open

    place: Literal["meta", "cpu"] = "meta" if shapes else "cpu"
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                if shapes:
                    return {name: torch.empty(file.get_slice(name).get_shape(), device=place) for name in names}
                return {name: file.get_tensor(name) for name in names}
        found = torch.load(path, map_location=place, weights_only=True)
        state = found.get("ema", found.get("model", found))
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise RequestError(f"The weights {path} cannot be read ({why}): give a .pt or .safetensors file.") from error
    return cast("dict[str, Tensor]", state)
