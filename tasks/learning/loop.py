"""One loop for all that is learnt step by step, be it networks, pixels or memories.

It goes on from the last checkpoint, stops where the loss diverges, and records the loss.

A step draws everything from its number, so that a run which was killed and goes on takes the very same steps.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vidistill.storage.errors import DivergedError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STATE, CURVE = "state.pt", "curve.json"
SECONDS = 30.0  # between checkpoints, where a loop does not count steps
DIVERGED, WATCHED = 1e3, 10  # the loss may grow to so many times the largest of the first so many steps, mostly
log = logging.getLogger("vidistill")


class Keeper(Protocol):
    """Who keeps a loop's checkpoints and hears how far it is: a stage's `Work`, or a method's `Material`."""

    def progress(self, done: int, total: int, note: str = "", /) -> None: ...

    def checkpoint(self, step: int, write: Callable[[Path], None], /) -> None: ...

    def last_checkpoint(self) -> tuple[int, Path] | None: ...


class Stateful(Protocol):
    """A network, an optimiser, a schedule, whatever remembers: its state is made of tensors and plain values."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


State = Mapping[str, "Tensor | Stateful"]
"""By name, all that a step changes and the next one reads."""


def a_point(steps: int) -> int:
    """How many steps a point of a curve is the mean of; the last may be of fewer."""
    return max(1, steps // 50)


@dataclass
class Curve:
    """The loss, averaged over each fiftieth of the run.

    Attributes:
        steps: the steps done at each point.
        loss: its mean since the point before.
        pending: losses that are not averaged yet.
        largest: the largest of the first ten, by which a run is judged to diverge.
    """

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)
    largest: float = 0.0

    def add(self, step: int, steps: int, loss: float) -> None:
        if step < WATCHED:
            self.largest = max(self.largest, abs(loss))
        self.pending.append(loss)
        if (step + 1) % a_point(steps) == 0 or step + 1 == steps:
            self.steps.append(step + 1)
            self.loss.append(round(float(np.mean(self.pending)), 6))
            self.pending = []

    @property
    def facts(self) -> dict[str, list[Any]]:
        """Its points, as facts of a set and files hold them."""
        return {"steps": self.steps, "loss": self.loss}

    def write(self, folder: Path) -> None:
        (folder / CURVE).write_text(json.dumps(self.facts))

    def broken(self, step: int, loss: float, diverged: float) -> str:
        """What is wrong with the loss of a step; nothing, mostly."""
        if not math.isfinite(loss):
            return f"The loss is {loss}"
        grown = step >= WATCHED and abs(loss) > diverged * self.largest > 0
        return f"The loss grew from {self.largest:.3g} to {loss:.3g}" if grown else ""


def run(
    step: Callable[[int], float], steps: int, state: State, keeper: Keeper | None = None, *, every: int | None = None,
    diverged: float = DIVERGED,
) -> Curve:  # fmt: skip
    """Take all steps from the keeper's last checkpoint on.

    Args:
        step: takes the step of this number and returns its loss; changes nothing that lasts but `state`.
        steps: how many there are, those of the checkpoint included.
        state: what a checkpoint holds; a checkpoint's values are put into these very objects.
        keeper: nobody, and then there are no checkpoints.
        every: steps between checkpoints; by default the seconds count.
        diverged: the loss may grow to so many times the largest of its first ten values.

    Raises:
        DivergedError: the loss, or what is learnt when it would be kept, is not finite, or the loss diverges; the last
            checkpoint stays.
    """
    first, curve = (0, Curve()) if keeper is None else _resumed(state, keeper)
    saved = time.monotonic()
    for number in range(first, steps):
        loss = step(number)
        if said := curve.broken(number, loss, diverged):
            raise stopped(said, number, state)
        curve.add(number, steps, loss)
        due, last = (number + 1) % every == 0 if every else time.monotonic() - saved >= SECONDS, number + 1 == steps
        if (due or last) and (name := _not_finite(state)):
            raise stopped(f"The values of {name} are no longer finite", number, state)
        if keeper is not None:
            keeper.progress(number + 1, steps, f"loss {loss:.3f}")
            if due and not last:
                keeper.checkpoint(number + 1, lambda folder: _save(folder, state, curve))
        if due:
            saved = time.monotonic()
    return curve


def descend(optimiser: torch.optim.Optimizer, loss: Tensor, clip_norm: float | None = None) -> float:
    """One step of an optimiser down a loss, with gradients of at most this norm; the loss."""
    import torch

    loss.backward()  # type: ignore[no-untyped-call]
    if clip_norm is not None:
        weights = [weight for group in optimiser.param_groups for weight in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, clip_norm)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return float(loss.detach())


def stopped(said: str, step: int, state: State) -> DivergedError:
    """The error that ends a run whose numbers are no longer of use."""
    groups = [group for part in state.values() for group in getattr(part, "param_groups", [])]
    rates = f" (learning rate {', '.join(format(group['lr'], '.3g') for group in groups)})" if groups else ""
    advice = "try a learning rate ten times smaller, or precision=fp32"
    return DivergedError(f"{said} at step {step}{rates}: {advice}.")


def _not_finite(state: State) -> str:
    """The name of a tensor, or of a network by the weights that it learns, that is not finite; empty, mostly."""
    import torch

    for name, part in state.items():
        learnt = [part] if isinstance(part, torch.Tensor) else []
        if isinstance(part, torch.nn.Module):
            learnt = [weight for weight in part.parameters() if weight.requires_grad]
        if not all(bool(tensor.isfinite().all()) for tensor in learnt):
            return name
    return ""


def _save(folder: Path, state: State, curve: Curve) -> None:
    import torch

    content = io.BytesIO()  # a full disk is an OSError of ours, and an error of the archive without a number of torch's
    torch.save({"curve": asdict(curve), "state": _values(state)}, content)
    (folder / STATE).write_bytes(content.getbuffer())


def _resumed(state: State, keeper: Keeper) -> tuple[int, Curve]:
    """The step to go on from, and the curve so far; a checkpoint that cannot be read leaves no trace in the state."""
    import torch

    found = keeper.last_checkpoint()
    if found is None:
        return 0, Curve()
    step, folder = found
    begun = copy.deepcopy(_values(state))
    try:
        kept = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        _load(state, kept["state"])
        return step, Curve(**kept["curve"])
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the work can be done again
        log.warning(f"The checkpoint {folder} cannot be read ({type(error).__name__}): the work starts anew.")
        _load(state, begun)
        return 0, Curve()


def _values(state: State) -> dict[str, Any]:
    """Optimisers and networks by their own account; layouts in memory are kept, since rounding depends on them."""
    import torch

    return {
        name: part.detach() if isinstance(part, torch.Tensor) else part.state_dict() for name, part in state.items()
    }


def _load(state: State, values: Mapping[str, Any]) -> None:
    import torch

    with torch.no_grad():
        for name, part in state.items():
            if isinstance(part, torch.Tensor):
                part.copy_(values[name])
            else:
                part.load_state_dict(values[name])
