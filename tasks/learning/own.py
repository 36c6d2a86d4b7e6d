"""A user's own network or front: one file, one class or function, known in keys by its name and its file's content."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from vidistill.models import FRONT_NAMES, OWN, parted
from vidistill.storage.errors import RequestError, TransientError
from vidistill.storage.files import expanded
from vidistill.storage.keys import file_digest

if TYPE_CHECKING:
    from torch import nn

TORCHVISION, NAMED = "torchvision:", "torchvision."
"""How users ask for its networks, and how reports and keys name them."""
USERS = "vidistill_user_"
"""How the modules of users' files are called."""
FRONT = "|".join([*map(re.escape, FRONT_NAMES), r".+?\.py:\w+"])


def named(spec: str) -> tuple[str, dict[str, str]]:
    """The name of `FILE.py:CLASS`, `FILE.py:FUNCTION` or `torchvision:NAME`, and where workers find it, by name.

    The name holds the file's content: `net@1f2e3d4c`. A front may stand before a network: `rgb:net.py:Net`,
    `front.py:moving:net.py:Net`. Any other name is its own, as is `torchvision.NAME`.

    Raises:
        RequestError: no such file, class or network.
    """
    fronted = re.fullmatch(rf"({FRONT}):(.+)", spec)
    if fronted:
        (front, places), (name, more) = named(fronted[1]), named(fronted[2])
        return f"{front}:{name}", places | more
    if spec.startswith((TORCHVISION, NAMED)):
        return _of_torchvision(spec[len(NAMED) :])
    if ".py:" not in spec:
        return spec, {}
    file, _, called = spec.rpartition(":")
    path = expanded(file)
    if not path.is_file():
        raise RequestError(f"{spec!r} was not found: give an existing FILE.py:CLASS, e.g. net.py:Net.")
    found = getattr(imported(path), called, None)
    if not callable(found):
        raise RequestError(f"{path} has no class or function {called!r}.")
    name = f"{called.lower()}@{file_digest(path)[:8]}"
    OWN[name] = found
    return name, {name: f"{path.absolute()}:{called}"}


def _of_torchvision(called: str) -> tuple[str, dict[str, str]]:
    models = importlib.import_module("torchvision.models")  # whose functions its types do not export
    if called not in (known := models.list_models(module=models.video)):
        raise RequestError(f"torchvision has no video classifier {called!r}: choose from {', '.join(known)}.")
    name = f"{NAMED}{called}"
    OWN[name] = lambda classes: models.get_model(called, weights=None, num_classes=classes)
    return name, {name: f"{TORCHVISION}{called}"}


def register(places: Mapping[str, str]) -> None:
    """Have this process know users' networks by the names that the flow gave them.

    Raises:
        TransientError: a file has changed since.
    """
    for name, place in places.items():
        if name not in OWN and named(place)[0] != name:
            raise TransientError(f"The file of {name} ({place}) changed during the run: run again.")


def imported(path: Path) -> ModuleType:
    """A user's file as a module of a name that no other version of it has.

    Raises:
        RequestError: it cannot be imported.
    """
    module_spec = importlib.util.spec_from_file_location(f"{USERS}{path.stem}_{file_digest(path)[:8]}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module.__name__] = module  # where dataclasses and pydantic look for what annotations name
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise RequestError(f"{path} cannot be imported: {type(error).__name__}: {error}.") from error
    return module


def _has_own(name: str) -> bool:
    """Whether a network, or what it sees first, is a user's."""
    return not OWN.keys().isdisjoint(parted(name))


@contextmanager
def blamed(name: str, classes: int, shape_THWC: tuple[int, ...]) -> Iterator[None]:
    """Have what a user's network or front raises be one sentence that names the network, the clips and its own line.

    Raises:
        RequestError: the network cannot be made, or does not tell such classes of such clips.
    """
    try:
        yield
    except RequestError:
        raise
    except (Exception, SystemExit) as error:
        if not _has_own(name):
            if isinstance(error, ValueError):
                raise RequestError(str(error)) from error
            raise
        frames, height, width = shape_THWC[:3]
        own = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)
               if frame.f_globals.get("__name__", "").startswith(USERS)]  # fmt: skip
        where = f" ({Path(own[-1][0].f_code.co_filename).name}, line {own[-1][1]})" if own else ""
        raise RequestError(
            f"The network {name} cannot tell {classes} classes of clips of {frames} frames of {height}×{width}: "
            f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}{where}."
        ) from error


def try_out(name: str, network: nn.Module, classes: int, shape_THWC: tuple[int, ...]) -> None:
    """Show a copy of a network two clips in both modes, where it or its front is a user's, so that what is wrong is
    said before it is trained; one that draws from torch's own generator draws from its seed from then on.

    Raises:
        TypeError: it has nothing to train, or answers with something else than logits.
    """
    if not _has_own(name):
        return
    import torch

    from vidistill.models.dropout import seed_dropout, with_seeded_passes

    weights = list(network.parameters())
    if any(torch.nn.parameter.is_lazy(weight) for weight in weights):
        raise TypeError("its layers are lazy, give them their sizes")
    if not any(weight.requires_grad for weight in weights):
        raise TypeError("it has no weights to train")
    trial, draws = copy.deepcopy(network), False
    seed_dropout(trial, 0)
    for training in (True, False):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            before = torch.get_rng_state()
            answer = trial.train(training)(torch.zeros(2, 3, *shape_THWC[:3]))
            draws |= not torch.equal(before, torch.get_rng_state())
        found = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
        if found != (2, classes) or not answer.is_floating_point():
            mode = "training" if training else "evaluation"
            raise TypeError(f"two clips give {found} in {mode}, not logits {(2, classes)}")
    if draws:
        with_seeded_passes(network)
