"""The networks: their registry, their published sizes, their independence of the convolution's form."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vidistill.models import NETWORKS, build
from vidistill.models.frame_rnn import FrameRNN
from vidistill.models.minic3d import KERNEL, PADDING, STRIDE, Conv3d, MiniC3D, convolve_pixels


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def reference_minic3d(model: MiniC3D, x_BCTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """VDSD's order of operations, written out layer by layer; (embedding, logits) of 16×112² or 8×64² clips."""
    for conv, pool in zip(model.convs, ((1, 2, 2), (2, 2, 2), (2, 2, 2)), strict=True):
        x_BCTHW = F.conv3d(x_BCTHW, conv.weight, conv.bias, stride=(1, 2, 2), padding=(1, 3, 3))
        x_BCTHW = F.max_pool3d(torch.relu(x_BCTHW), pool)
    pooled = F.avg_pool3d(x_BCTHW, (2, 2, 2) if x_BCTHW.shape[-1] == 2 else (2, 1, 1), stride=1)
    logits = F.conv3d(pooled, model.head.weight, model.head.bias).squeeze(4).squeeze(3)
    return x_BCTHW.flatten(1), torch.max(logits, 2)[0]


def test_importing_the_registry_loads_no_torch():
    code = "import sys, vidistill.models; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_an_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'c4d'.*minic3d, minic3d_bn, cnn_gru, cnn_lstm"):
        build("c4d", classes=2, frames=4, size=32)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("frames", "size"), [(1, 8), (2, 16), (3, 16), (2, 17)])
def test_clips_that_are_too_small_for_a_network_are_refused_and_no_others(name, frames, size):
    if name != "r2plus1d_small_in" or frames > 2 or size > 16:
        build(name, classes=2, frames=frames, size=size)(torch.randn(2, 3, frames, size, size))
    else:
        with pytest.raises(ValueError, match=f"of {frames} frames of {size} pixels are too small for {name}: take"):
            build(f"centred:{name}", classes=2, frames=frames, size=size)


def features(name: str, frames: int, size: int) -> int:
    """D of an embedding."""
    if name == "minic3d":
        return {(8, 56): 256, (4, 32): 128, (1, 17): 128, (4, 16): 128}[frames, size]
    fixed = {"minic3d_bn": 128, "c3d": 4096, "video_swin_t": 768, "r3d_18": 512}
    return 16 * (size // 8) ** 2 if name.startswith("cnn_") else fixed.get(name, 96)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("frames", "size"), [(8, 56), (4, 32), (1, 17)])
def test_every_network_trains_at_small_sizes(name, frames, size):
    torch.manual_seed(0)
    model = build(name, classes=5, frames=frames, size=size).double()
    x_BCTHW = torch.randn(2, 3, frames, size, size, dtype=torch.float64)
    logits_BK = model(x_BCTHW)
    assert logits_BK.shape == (2, 5)
    assert model.embed(x_BCTHW).shape == (2, features(name, frames, size))
    F.cross_entropy(logits_BK, torch.tensor([0, 4])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("frames", "size", "features"), [(16, 112, 2048), (8, 64, 256)])
def test_minic3d_is_vdsds_network(frames, size, features):
    torch.manual_seed(0)
    model = MiniC3D(50, frames, size).double().eval()
    assert parameters(model) == 3_641_216 + 129 * 50
    x_BCTHW = torch.randn(1, 3, frames, size, size, dtype=torch.float64)
    with torch.no_grad():
        emb_BD, logits_BK = reference_minic3d(model, x_BCTHW)
        torch.testing.assert_close(model.embed(x_BCTHW), emb_BD)
        torch.testing.assert_close(model(x_BCTHW), logits_BK)
    assert emb_BD.shape == (1, features)


def test_minic3d_trains_as_if_relu_came_before_the_pool():
    torch.manual_seed(0)
    model = MiniC3D(4, 8, 64).double()
    model.dropout.p = 0.0
    x_BCTHW = torch.randn(2, 3, 8, 64, 64, dtype=torch.float64)
    ours = torch.autograd.grad(model(x_BCTHW).square().sum(), list(model.parameters()))
    theirs = torch.autograd.grad(reference_minic3d(model, x_BCTHW)[1].square().sum(), list(model.parameters()))
    torch.testing.assert_close(ours, theirs)


def test_minic3d_bn_is_video_dcs_network():
    torch.manual_seed(0)
    model = build("minic3d_bn", classes=50, frames=8, size=56).double()
    assert parameters(model) == 3_641_216 + 129 * 50 + 2 * (64 + 128 + 128)
    x_BCTHW = want = torch.randn(3, 3, 8, 56, 56, dtype=torch.float64)
    for conv, pool in zip(model.convs, ((1, 2, 2), (2, 2, 2), (2, 2, 2)), strict=True):
        maps = F.conv3d(want, conv.weight, conv.bias, stride=(1, 2, 2), padding=(1, 3, 3))
        maps = (maps - maps.mean((0, 2, 3, 4), keepdim=True)) / (
            maps.var((0, 2, 3, 4), False, keepdim=True) + 1e-5
        ).sqrt()
        want = F.max_pool3d(torch.relu(maps), pool)
    torch.testing.assert_close(model.embed(x_BCTHW), want.mean((2, 3, 4)))
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.convs[1].weight.std().item() == pytest.approx((2 / (128 * 147)) ** 0.5, rel=0.01)  # fan out, ReLU


@pytest.mark.parametrize(("height", "width"), [(12, 8), (12, 9), (13, 8), (13, 9)])
def test_the_convolution_by_blocks_is_the_plain_one_to_the_second_derivative(height, width):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 3, height, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 7, 7, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def derivatives(out):
        first = torch.autograd.grad(out.sin().sum(), (x, weight, bias), create_graph=True)
        return out, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight, bias))

    plain = derivatives(F.conv3d(x, weight, bias, (1, 2, 2), (1, 3, 3)))
    torch.testing.assert_close(derivatives(convolve_pixels(x, weight, bias)), plain)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_minic3d_says_the_same_when_the_pixels_need_a_gradient(layout):
    torch.manual_seed(0)
    model = MiniC3D(4, 4, 32).double().eval()
    x_BCTHW = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64).to(memory_format=layout)
    torch.testing.assert_close(model(x_BCTHW.clone().requires_grad_()), model(x_BCTHW))
    assert [name for name, _ in model.named_parameters()][:2] == ["convs.0.weight", "convs.0.bias"]
    assert model.convs[0].weight.shape == (64, 3, 3, 7, 7)


@pytest.mark.parametrize("name", ["minic3d", "cnn_gru"])
def test_torch_func_differentiates_through_the_weights(name):
    torch.manual_seed(0)
    model = build(name, classes=3, frames=4, size=32).double().eval()
    x_BCTHW = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, x_BCTHW):
        return torch.func.functional_call(model, weights, (x_BCTHW,)).square().sum()

    by_weight, by_pixel = torch.func.grad(loss, argnums=(0, 1))(weights, x_BCTHW)
    x_BCTHW.requires_grad_()
    *want, want_pixel = torch.autograd.grad(model(x_BCTHW).square().sum(), [*model.parameters(), x_BCTHW])
    torch.testing.assert_close(list(by_weight.values()), want)
    torch.testing.assert_close(by_pixel, want_pixel)


@pytest.mark.parametrize(("cell", "gates"), [("gru", 3), ("lstm", 4)])
def test_frame_rnn_has_an_eighth_of_a_frames_features(cell, gates):
    model = build(f"cnn_{cell}", classes=7, frames=4, size=32)
    features, hidden = 128 * 4 * 4, 256
    cnn = 3 * 128 * 9 + 2 * 128 * 128 * 9 + 3 * (128 + 2 * 128)
    rnn = gates * (hidden * (features + hidden) + 2 * hidden)
    assert parameters(model) == cnn + rnn + 7 * (hidden + 1)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_frame_rnn_averages_its_states_over_frames_in_order(cell):
    torch.manual_seed(0)
    model = FrameRNN(3, 16, cell=cell).double().eval()
    x_BCTHW = torch.randn(2, 3, 4, 16, 16, dtype=torch.float64)
    features_BTF = torch.stack([model.cnn(x_BCTHW[:, :, t]) for t in range(4)], dim=1)
    torch.testing.assert_close(model.embed(x_BCTHW), model.rnn(features_BTF)[0].mean(1))
    assert not torch.allclose(model(x_BCTHW), model(x_BCTHW.flip(2)))


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("frames", [1, 3])
def test_taps_that_meet_no_pixel_are_left_out_and_nothing_else(frames: int, size: int) -> None:
    """A convolution of MiniC3D is torch's, to the second derivative, at every size of its maps."""
    torch.manual_seed(size)
    conv = Conv3d(8, 3, (3, 7, 7), (1, 2, 2), (1, 3, 3)).double()
    x_BCTHW = torch.randn(2, 8, frames, size, size, dtype=torch.float64, requires_grad=True)

    def derivatives(convolve: Any) -> list[torch.Tensor]:
        y_BCTHW = convolve(x_BCTHW)
        leaves = [x_BCTHW, conv.weight, conv.bias]
        first = torch.autograd.grad(y_BCTHW.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(one.sin().sum() for one in first), leaves)
        return [y_BCTHW, *first, *second]

    plain = derivatives(lambda x: torch.nn.Conv3d.forward(conv, x))
    for made, expected in zip(derivatives(conv), plain, strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)


KINDS = [
    {}, {"stride": STRIDE}, {"padding": PADDING}, {"stride": STRIDE, "padding": PADDING, "groups": 2}, {"dilation": 2},
    {"padding": "same"}, {"padding": "valid", "stride": 2}, {"padding": PADDING, "padding_mode": "circular"},
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_convolution_of_any_kind_is_torch_s(kind: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = Conv3d(4, 6, KERNEL, **kind).double()
    x_BCTHW = torch.randn(2, 4, 5, 15, 15, dtype=torch.float64, requires_grad=True)
    for seen in (x_BCTHW, x_BCTHW[0]):
        torch.testing.assert_close(conv(seen), nn.Conv3d.forward(conv, seen))
    with pytest.raises(RuntimeError, match="Kernel size"):
        Conv3d(4, 6, KERNEL)(torch.randn(1, 4, 2, 6, 6))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_minic3d_drops_half_of_what_its_head_sees(norm):
    network = MiniC3D(4, 8, 56, norm=norm).train()
    seen = []
    network.head.register_forward_pre_hook(lambda _head, given: seen.append(given[0]))
    network(torch.rand(64, 3, 8, 56, 56) + 1)
    network.dropout.p = 0.0
    network(torch.rand(64, 3, 8, 56, 56) + 1)
    dropped, whole = ((maps == 0).double().mean().item() for maps in seen)
    assert (1 - dropped) / (1 - whole) == pytest.approx(0.5, abs=0.05)
