"""R(2+1)D in small against plain 3D convolutions, and its count of weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vidistill.models import NETWORKS, build
from vidistill.models.r2plus1d import Block, R2Plus1DSmall, SpaceConv, TimeConv


@pytest.fixture
def x_BCTHW() -> torch.Tensor:
    return torch.randn(2, 6, 5, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_space_convolution_is_a_1_k_k_convolution(x_BCTHW: torch.Tensor, stride: int) -> None:
    conv = SpaceConv(6, 4, 3, stride).double()
    expected = F.conv3d(x_BCTHW, conv.weight[:, :, None], stride=(1, stride, stride), padding=(0, 1, 1))
    torch.testing.assert_close(conv(x_BCTHW), expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_time_convolution_is_a_3_1_1_convolution(x_BCTHW: torch.Tensor, stride: int) -> None:
    conv = TimeConv(6, stride).double()
    expected = F.conv3d(x_BCTHW, conv.weight[..., None], stride=(stride, 1, 1), padding=(1, 0, 0))
    torch.testing.assert_close(conv(x_BCTHW), expected)


def test_clips_go_through_without_a_copy() -> None:
    x_BCTHW = torch.randn(2, 3, 4, 8, 8).to(memory_format=torch.channels_last_3d)
    flat = x_BCTHW.permute(0, 2, 3, 4, 1).flatten(0, 1)
    assert flat.data_ptr() == x_BCTHW.data_ptr()
    assert R2Plus1DSmall(3).stem[0](x_BCTHW).is_contiguous(memory_format=torch.channels_last_3d)


def test_a_block_adds_what_it_has_learnt(x_BCTHW: torch.Tensor) -> None:
    block = Block(6, 6, 1, 1, "batch").double().eval()
    nn.init.zeros_(block.time.weight)
    torch.testing.assert_close(block(x_BCTHW), F.relu(x_BCTHW))  # a branch of zeros: the shortcut alone


def test_weights() -> None:
    assert sum(p.numel() for p in R2Plus1DSmall(10).parameters()) == 104_578
    assert {name for name in NETWORKS if name.startswith("r2plus1d_small")} == {
        "r2plus1d_small", "r2plus1d_small_in", "r2plus1d_small_gn",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["r2plus1d_small_in", "r2plus1d_small_gn"])
def test_instance_and_group_norm_know_no_batch(name: str) -> None:
    network = build(name, classes=3, frames=4, size=16).double().train()
    network.dropout.p = 0
    x_BCTHW = torch.randn(3, 3, 4, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(network(x_BCTHW)[:1], network(x_BCTHW[:1]))


@pytest.mark.parametrize(("frames", "size"), [(1, 8), (4, 16), (8, 56), (16, 112), (5, 33)])
def test_it_takes_clips_of_any_size(frames: int, size: int) -> None:
    assert build("r2plus1d_small", classes=2, frames=frames, size=size)(
        torch.randn(2, 3, frames, size, size)
    ).shape == (2, 2)


def test_a_second_derivative_exists() -> None:
    """DC and MTT differentiate gradients."""
    network = build("r2plus1d_small_in", classes=2, frames=4, size=16).double()
    x_BCTHW = torch.randn(2, 3, 4, 16, 16, dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(network(x_BCTHW), torch.tensor([0, 1]))
    gradients = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    (found,) = torch.autograd.grad(sum(g.square().sum() for g in gradients), x_BCTHW)
    assert found.abs().max() > 0
