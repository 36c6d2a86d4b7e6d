"""bf16 gradients on the CPU, with memory that was freed full of NaN: what is not written shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.video import mc3_18, s3d

from vidistill.flows.grid import Benchmark
from vidistill.flows.parameters import PRESETS, load_preset
from vidistill.models import OWN, build, compute, cpu, parted
from vidistill.models.minic3d import Conv3d


def channels_last(network: torch.nn.Module) -> torch.nn.Module:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in network.parameters():
        weight.data = weight.data.to(memory_format=formats.get(weight.dim(), torch.preserve_format))
    return network


def affordable(frames: int, size: int) -> None:
    """Skip what takes minutes where bf16 is emulated; there `auto` is fp32."""
    if compute.resolve_precision("auto", torch.device("cpu")) == "fp32" and frames * size**2 > 8 * 32**2:
        pytest.skip("this CPU has no bf16 units, and emulates clips of this size for minutes")


SHAPES = [("minic3d_bn", 4, 48), ("minic3d_bn", 8, 32), ("minic3d_bn", 8, 56), ("minic3d_bn", 2, 64)]
SHAPES += [("r2plus1d_small", 8, 32), ("r2plus1d_small", 8, 56), ("r2plus1d_small", 2, 16), ("r3d_18", 16, 32)]


@pytest.mark.parametrize(("name", "frames", "size"), SHAPES)
def test_bf16_gradients_are_finite_and_near_those_of_fp32(name: str, frames: int, size: int) -> None:
    affordable(frames, size)
    torch.manual_seed(0)
    network = channels_last(build(name, classes=3, frames=frames, size=size)).eval()
    for batch in (2,) if name == "r3d_18" else (2, 3, 8) * 3:
        x_BCTHW = torch.randn(batch, frames, size, size, 3).permute(0, 4, 1, 2, 3)
        gradients = []
        for precision in ("bf16", "fp32"):
            poison = torch.full((300_000,), float("nan"))
            del poison
            network.zero_grad()
            with compute.autocast(torch.device("cpu"), precision):
                logits_BK = network(x_BCTHW)
            logits_BK.float().square().sum().backward()
            gradients.append(torch.cat([weight.grad.flatten() for weight in network.parameters()]))
        assert torch.isfinite(gradients[0]).all()
        assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[1].norm()


@pytest.mark.parametrize("flags", [frozenset(), cpu.flags()], ids=["no units", "here"])
def test_a_recurrent_layer_that_a_cpu_has_not_in_bf16_is_fp32(monkeypatch: pytest.MonkeyPatch, flags: Any) -> None:
    monkeypatch.setattr(cpu, "flags", lambda: flags)
    network = build("cnn_lstm", classes=2, frames=3, size=8)
    with compute.autocast(torch.device("cpu"), "bf16"):
        emb_BD = network.embed(torch.randn(2, 3, 3, 8, 8))
    assert emb_BD.dtype == (torch.bfloat16 if cpu.has_bf16() else torch.float32)
    emb_BD.float().sum().backward()
    assert all(weight.grad is not None for weight in network.rnn.parameters())


def of_presets() -> list[tuple[str, int, int]]:
    """Every teacher, student and matched network of the shipped presets, with the frames and pixels that it sees."""
    found = set()
    for path in PRESETS.glob("*.yaml"):
        plain = {"data": "videos", "front": "rgb"} | load_preset(path.stem)
        if "cells" not in plain:
            continue
        experiment = Benchmark.model_validate(plain)
        students = {*experiment.students, *(name for cell in experiment.cells for name in cell.students or ())}
        own = {cell.options["network"] for cell in experiment.cells if "network" in cell.options}
        for name in {experiment.teacher.network, "minic3d", *students, *own}:
            found.add((parted(name)[1], experiment.decode.frames, experiment.decode.size))
    return sorted(found)


@pytest.mark.parametrize(("name", "frames", "size"), of_presets())
def test_bf16_is_near_fp32_for_what_presets_use(name: str, frames: int, size: int) -> None:
    affordable(frames, size)
    torch.manual_seed(0)
    network = channels_last(build(name, classes=3, frames=frames, size=size)).eval()
    x_BCTHW = torch.randn(4, frames, size, size, 3).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        exact_BD = network.embed(x_BCTHW)
        with compute.autocast(torch.device("cpu"), "bf16"):
            near_BD = network.embed(x_BCTHW).float()
    assert (near_BD - exact_BD).norm() < 0.03 * exact_BD.norm()


@pytest.mark.parametrize("size", [16, 32, 40, 44, 48, 56, 64, 112])
def test_bf16_convolutions_are_near_those_of_fp32_at_every_size(size: int) -> None:
    """On AMX units torch's bf16 conv3d is wrong where the output is one pixel wide and the stride more than one."""
    affordable(8, size)
    torch.manual_seed(0)
    network = channels_last(build("minic3d_bn", classes=3, frames=8, size=size)).eval()
    x_BCTHW = torch.randn(4, 8, size, size, 3).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        exact_BD = network.embed(x_BCTHW)
        with compute.autocast(torch.device("cpu"), "bf16"):
            near_BD = network.embed(x_BCTHW).float()
    assert (near_BD - exact_BD).norm() < 0.03 * exact_BD.norm()


@pytest.mark.parametrize("size", [7, 8])
def test_a_convolution_to_one_pixel_is_not_done_in_bf16(size: int) -> None:
    conv = Conv3d(4, 4, (3, 7, 7), (1, 8, 8), (1, 3, 3))
    with compute.autocast(torch.device("cpu"), "bf16"):
        assert conv(torch.randn(1, 4, 4, size, size)).dtype == torch.float32
        assert conv(torch.randn(1, 4, 4, 32, 32)).dtype == torch.bfloat16


@pytest.mark.parametrize("made", [mc3_18, s3d, lambda num_classes: nn.Sequential(nn.Conv3d(3, num_classes, 3))])
def test_convolutions_of_others_are_guarded_too(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OWN, "theirs", lambda classes: made(num_classes=classes))
    with torch.device("meta"):
        network = build("theirs", classes=3, frames=8, size=56)
    convs = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    assert convs
    assert all(type(conv) is Conv3d for conv in convs)


@pytest.mark.parametrize("kind", [{"dilation": 2}, {"padding": "same"}, {"padding": 1, "padding_mode": "circular"}])
def test_a_convolution_of_another_kind_is_not_done_in_bf16(kind: Any) -> None:
    with compute.autocast(torch.device("cpu"), "bf16"):
        assert Conv3d(4, 4, 3, **kind)(torch.randn(1, 4, 8, 8, 8)).dtype == torch.float32
