"""Fronts against loops over plain floats, and what every network owes under each of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vidistill.models import FRONT_NAMES, NETWORKS, build, fronted, known, parted
from vidistill.models.fronts import FRONTS, centred, difference, rgb_and_difference


@pytest.fixture
def x_BCTHW() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 5, 4, 6)))


def test_centred_is_the_clip_minus_its_mean_over_time(x_BCTHW: torch.Tensor) -> None:
    x, seen = x_BCTHW.numpy(), centred(x_BCTHW).numpy()
    for t in range(5):
        np.testing.assert_allclose(seen[:, :, t], x[:, :, t] - sum(x[:, :, s] for s in range(5)) / 5, rtol=1e-12)


def test_what_stands_still_is_not_there(x_BCTHW: torch.Tensor) -> None:
    still_BCTHW = x_BCTHW[:, :, :1].expand(-1, -1, 5, -1, -1)
    assert centred(still_BCTHW).abs().max() < 1e-12
    assert difference(still_BCTHW).abs().max() == 0


def test_difference_looks_one_frame_ahead(x_BCTHW: torch.Tensor) -> None:
    x, seen = x_BCTHW.numpy(), difference(x_BCTHW).numpy()
    for t, later in enumerate((1, 2, 3, 4, 4)):
        np.testing.assert_allclose(seen[:, :, t], x[:, :, later] - x[:, :, later - 1], rtol=1e-12)
    assert difference(x_BCTHW[:, :, :1]).abs().max() == 0


def test_rgb_and_difference_are_six_channels(x_BCTHW: torch.Tensor) -> None:
    seen = rgb_and_difference(x_BCTHW)
    assert torch.equal(seen[:, :3], x_BCTHW)
    assert torch.equal(seen[:, 3:], difference(x_BCTHW))


@pytest.mark.parametrize("front", FRONTS)
def test_gradients_flow_through_a_front(front: str, x_BCTHW: torch.Tensor) -> None:
    function, channels = FRONTS[front]
    assert function(x_BCTHW).shape[1] == channels
    torch.autograd.gradcheck(function, x_BCTHW.requires_grad_())


@pytest.mark.parametrize("front", FRONT_NAMES)
@pytest.mark.parametrize("body", [name for name in NETWORKS if name not in ("video_swin_t", "r3d_18", "c3d")])
def test_every_network_takes_every_front(front: str, body: str) -> None:
    network = build(fronted(body, front), classes=3, frames=4, size=16).eval()
    x_BCTHW = torch.randn(2, 3, 4, 16, 16)
    assert network(x_BCTHW).shape == (2, 3)
    assert network.embed(x_BCTHW).shape == (2, {"cnn_gru": 64, "cnn_lstm": 64}.get(body, 96 if "r2" in body else 128))
    if front == "centred":
        shifted = network(x_BCTHW + torch.randn(2, 3, 1, 16, 16))  # another background
        torch.testing.assert_close(shifted, network(x_BCTHW), rtol=1e-3, atol=1e-4)


def test_names() -> None:
    assert parted("centred:minic3d_bn") == ("centred", "minic3d_bn")
    assert parted("minic3d_bn") == ("rgb", "minic3d_bn")
    assert fronted("minic3d_bn", "rgb") == "minic3d_bn"
    assert fronted("rgb+difference:minic3d", "centred") == "rgb+difference:minic3d"
    assert known("centred:c3d")
    assert not known("sideways:c3d")
    with pytest.raises(ValueError, match="No front is called 'sideways'"):
        build("sideways:minic3d", classes=2, frames=2, size=16)
