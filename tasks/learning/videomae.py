"""VideoMAE of transformers, from a folder or from the Hub, as what clips are embedded by (S4, §3.2).

Shapes: N clips, B clips a batch, T frames, H height, W width, D features.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidistill.storage.clips import Clips
from vidistill.storage.errors import RequestError
from vidistill.tasks.learning.training import Device

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def videomae_features(network: Any, clips: Clips, rows_N: NDArray[np.int64], device: Device) -> NDArray[np.float64]:
    """The mean of VideoMAE's last tokens for the centre clips of these rows, normalised as its classifier's if it is
    one (VideoMAE v2's `forward_features`): float64 (N, D).

    Clips are resized to the network's frames (the nearest ones, evenly spread) and size, normalised as ImageNet.
    """
    import torch

    frames, size = network.config.num_frames, network.config.image_size
    found = []
    with torch.inference_mode(), device.autocast():
        for first in range(0, len(rows_N), BATCH):
            x_BTCHW = videomae_input(clips.read(rows_N[first : first + BATCH]), frames, size, device)
            emb_BD = network.fc_norm(network(pixel_values=x_BTCHW).last_hidden_state.mean(1))
            found.append(emb_BD.double().cpu().numpy())
    return np.concatenate(found)


def videomae_input(clips_NTHWC: NDArray[np.uint8], frames: int, size: int, device: Device) -> Tensor:
    """x_BTCHW float32, normalised by ImageNet's mean and deviation."""
    import torch

    places_T = np.linspace(0, clips_NTHWC.shape[1] - 1, frames).round().astype(int)
    x_BTCHW = torch.from_numpy(clips_NTHWC[:, places_T]).to(device.torch_device).permute(0, 1, 4, 2, 3).float() / 255
    x_FCHW = torch.nn.functional.interpolate(x_BTCHW.flatten(0, 1), size=(size, size), mode="bicubic", antialias=True)
    mean_C11, std_C11 = (
        torch.tensor(value, device=x_FCHW.device)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return ((x_FCHW.clamp(0, 1) - mean_C11) / std_C11).view(len(clips_NTHWC), frames, 3, size, size)


def load_videomae(place: str) -> Any:
    """VideoMAE with the weights of a folder or of a name on the Hub, all of them, in evaluation mode.

    Its `fc_norm` is that of a classifier over the mean of tokens, and nothing for other checkpoints.

    Raises:
        RequestError: the weights are not there or not VideoMAE's.
    """
    import torch

    transformers: Any = importlib.import_module("transformers")
    try:
        network, found = transformers.VideoMAEModel.from_pretrained(place, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(
            f"VideoMAE {place!r} cannot be loaded ({why}): give a folder that has it, or embedding=teacher."
        ) from error
    if absent := sorted(found["missing_keys"]):
        raise RequestError(
            f"The weights {place!r} do not fit VideoMAE ({len(absent)} are missing, such as {absent[0]}): give a "
            "checkpoint of VideoMAE, or embedding=teacher."
        )
    network.fc_norm = torch.nn.Identity()
    if "fc_norm.weight" in found["unexpected_keys"]:
        network.fc_norm = transformers.VideoMAEForVideoClassification.from_pretrained(place).fc_norm
    return network.eval().requires_grad_(False)
