"""Where and how precisely networks run: device, precision, memory, layout, cost.

Legend: N, B clips, T frames, H height, W width, C channels.
"""

from __future__ import annotations

import copy
import ctypes
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vidistill.models import cpu

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def resolve_device(device: Device) -> torch.device:
    """The device asked for; `auto` is CUDA where there is one.

    Raises:
        ValueError: CUDA was asked for and torch finds none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("Device 'cuda' was asked for, but torch finds no CUDA device here: use 'auto' or 'cpu'.")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision asked for; `auto` is bf16 where a GPU (Ampere and later) or a CPU multiplies it itself.

    Torch's own check says yes on every AVX-512 CPU, and bf16 without the instructions is slower than fp32. On CUDA fp32
    is torch's, whose convolutions multiply in TF32: as many bits of exponent, 10 of mantissa (bf16 has 7).
    """
    if precision != "auto":
        return precision
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu.has_bf16()
    return "bf16" if fast else "fp32"


def autocast(device: torch.device, precision: Literal["fp32", "bf16"]) -> AbstractContextManager[object]:
    """Convolutions and matrix products in bf16, or nothing at all for fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def keep_freed_memory() -> bool:
    """Tell glibc to keep what this process frees; True where it is glibc.

    By default every large activation is mapped afresh at every step and the kernel zeroes its pages, a sixth of a
    training step of MiniC3D at 16×112×112. The process shrinks only where `malloc_trim` is called (storage/measuring).
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def normalise(clips_NTHWC: Tensor, mean_C: Sequence[float], std_C: Sequence[float]) -> Tensor:
    """`x_BCTHW` float32 = (clips/255 − mean)/std, in `channels_last_3d`, which the clips' own layout already is.

    Args:
        clips_NTHWC: uint8, contiguous, 0…255.
        mean_C: of the data set, in units of 0…1.
        std_C: of the data set, in units of 0…1.
    """
    device, width = clips_NTHWC.device, clips_NTHWC.shape[3]
    mean, std = torch.tensor(mean_C, dtype=torch.float64), torch.tensor(std_C, dtype=torch.float64)
    scale_X = (1 / (255 * std)).float().repeat(width).to(device)
    shift_X = (mean / std).float().repeat(width).to(device)
    rows_NTHX = clips_NTHWC.flatten(3).float().mul_(scale_X).sub_(shift_X)  # X = W·C: rows long enough to vectorise
    return rows_NTHX.view(clips_NTHWC.shape).permute(0, 4, 1, 2, 3)


def flops(model: nn.Module, shape_BCTHW: tuple[int, int, int, int, int]) -> int:
    """Floating-point operations of one forward pass over clips of this shape; a multiply-add counts as two.

    Convolutions and matrix products only, counted on the meta device, where nothing is computed; on its own one where
    it makes tensors there, as networks of users may.
    """
    try:
        return _counted(copy.deepcopy(model).to("meta").eval(), shape_BCTHW)
    except RuntimeError:
        return _counted(copy.deepcopy(model).eval(), shape_BCTHW)


def _counted(model: nn.Module, shape_BCTHW: tuple[int, int, int, int, int]) -> int:
    first = next(model.parameters())
    counted = _FlopTotal()  # type: ignore[no-untyped-call]
    with counted, torch.no_grad():
        model(torch.zeros(shape_BCTHW, device=first.device, dtype=first.dtype))
    return int(counted.total)


class _FlopTotal(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The sum over this thread's operations. torch's FlopCounterMode also hooks every module of the process, and
    another thread's autograd.grad to a leaf then fails.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.total += int(count(*args, **(kwargs or {}), out_val=out))
        return out
