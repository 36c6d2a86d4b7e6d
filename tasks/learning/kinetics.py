"""Weights of R3D-18 (Tran et al. 2018), by torchvision's name or in a file: what a student of that network begins with.

The published ones were trained on Kinetics-400 at 16×112×112, RGB; clips of other sizes go through as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidistill.storage.clips import ClipTable
from vidistill.storage.errors import RequestError
from vidistill.storage.files import expanded
from vidistill.tasks.learning.weights import known_by

if TYPE_CHECKING:
    from torch import nn

NAMES = {"kinetics400": "KINETICS400_V1", "KINETICS400_V1": "KINETICS400_V1"}
ADVICE = "give student.pretrained the path of a file of them (.pt, .pth, .safetensors), or kinetics400"


def named(weights: str, advice: str = ADVICE) -> tuple[str, dict[str, str]]:
    """Weights as a key knows them, a file by its name and content, and where that file is.

    Raises:
        RequestError: there is no such file, and torchvision has no such name.
    """
    path = expanded(weights)
    if path.is_file():
        name = known_by(weights)
        return name, {name: str(path.absolute())}
    if weights not in NAMES:
        raise RequestError(f"R3D-18 has no weights {weights!r}: {advice}.")
    return NAMES[weights], {}


def begin(network: nn.Module, weights: str, table: ClipTable) -> None:
    """Begin with these weights, all but the classifier's, and with colours as they were normalised for them.

    Args:
        network: R3D-18 that sees RGB.
        weights: a file, or torchvision's name.
        table: of the clips, by whose mean and deviation `x_BCTHW` is normalised.

    Raises:
        RequestError: the weights cannot be had, or are another network's.
    """
    import torch
    from torchvision.models.video import R3D_18_Weights

    published = R3D_18_Weights.KINETICS400_V1.transforms()
    mean, std, own_mean, own_std = map(torch.tensor, (table.mean, table.std, published.mean, published.std))
    state = r3d_state(weights, ADVICE)
    try:
        network.begin_with(state, std / own_std, (mean - own_mean) / own_std)  # type: ignore[operator]
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise RequestError(f"The weights {Path(weights).name} do not fit R3D-18 ({why}): {ADVICE}.") from error


def r3d_state(weights: str, advice: str) -> dict[str, Any]:
    """R3D-18's weights, from a file (.pt, .pth, .safetensors) or by torchvision's name, which fetches them once.

    Raises:
        RequestError: there is no such file or name, or it cannot be fetched.
    """
    import torch
    from safetensors.torch import load_file
    from torchvision.models.video import R3D_18_Weights

    try:
        if Path(weights).is_file():
            plain = weights.endswith(".safetensors")
            loaded: dict[str, Any] = (
                load_file(weights) if plain else torch.load(weights, map_location="cpu", weights_only=True)
            )
            state: dict[str, Any] = loaded.get("state_dict", loaded)
        else:
            state = R3D_18_Weights[weights].get_state_dict(progress=False, check_hash=True, weights_only=True)
    except KeyError as error:
        raise RequestError(f"R3D-18 has no weights {weights!r}: {advice}.") from error
    except Exception as error:
        why = " ".join(str(error).split()).partition(". ")[0]
        raise RequestError(
            f"The weights {weights!r} cannot be had ({type(error).__name__}: {why}): {advice}."
        ) from error
    if "fc.bias" not in state:
        raise RequestError(f"The file {weights} does not hold R3D-18's weights: {advice}.")
    return state
