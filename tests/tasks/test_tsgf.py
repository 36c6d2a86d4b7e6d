"""TSGF's equations against loops over plain floats (S3, Eq. 5–8)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vidistill.storage.errors import RequestError
from vidistill.tasks import tsgf
from vidistill.tasks.learning.saliency import SaliencyParameters, frame_difference, gradient_mask, saliency, threshold

SHAPE_BCTHW = (2, 3, 6, 4, 5)


@pytest.fixture
def x_BCTHW() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=SHAPE_BCTHW))


def difference_by_loops(x: np.ndarray) -> np.ndarray:
    frames = x.shape[2]
    d = np.zeros((x.shape[0], frames))
    for b in range(x.shape[0]):
        for i in range(frames):
            sides = [np.mean(np.abs(x[b, :, j] - x[b, :, i])) for j in (i - 1, i + 1) if 0 <= j < frames]
            d[b, i] = sum(sides) / len(sides)
    return d


def saliency_by_loops(x: np.ndarray, k: int, weights: str) -> np.ndarray:
    d, s = difference_by_loops(x), np.zeros((x.shape[0], x.shape[2]))
    alpha = [1 if weights == "uniform" else k + 1 - j for j in range(k + 1)]
    for b in range(s.shape[0]):
        for i in range(s.shape[1]):
            there = [j for j in range(k + 1) if i - j >= 0]
            s[b, i] = sum(alpha[j] * d[b, i - j] for j in there) / sum(alpha[j] for j in there)
    return s


def test_frame_difference_is_equation_6(x_BCTHW: torch.Tensor) -> None:
    np.testing.assert_allclose(frame_difference(x_BCTHW), difference_by_loops(x_BCTHW.numpy()), rtol=1e-12)


def test_one_frame_does_not_move() -> None:
    assert frame_difference(torch.ones(2, 3, 1, 4, 4)).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("weights", ["uniform", "triangular"])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_saliency_is_equation_7(x_BCTHW: torch.Tensor, k: int, weights: str) -> None:
    s_BT = saliency(x_BCTHW, SaliencyParameters(window=k, weights=weights))
    np.testing.assert_allclose(s_BT, saliency_by_loops(x_BCTHW.numpy(), k, weights), rtol=1e-12)


def test_saliency_is_causal(x_BCTHW: torch.Tensor) -> None:
    parameters = SaliencyParameters(window=2)
    changed_BCTHW = x_BCTHW.clone()
    changed_BCTHW[:, :, 5] += 3.0  # d_4 and d_5 see frame 5, s_0 … s_3 do not
    before_BT, after_BT = saliency(x_BCTHW, parameters), saliency(changed_BCTHW, parameters)
    assert torch.equal(before_BT[:, :4], after_BT[:, :4])
    assert not torch.equal(before_BT[:, 4:], after_BT[:, 4:])


@pytest.mark.parametrize("sign", ["magnitude", "both"])
def test_mask_is_equation_8(x_BCTHW: torch.Tensor, sign: str) -> None:
    parameters = SaliencyParameters(epsilon_quantile=0.5)
    s_BT = saliency(x_BCTHW, parameters)
    epsilon_B1 = threshold(s_BT, parameters)
    mask_BT = gradient_mask(s_BT, epsilon_B1, sign)
    for b in range(len(s_BT)):
        s = s_BT[b].tolist()
        ordered = sorted(s)
        epsilon = (ordered[2] + ordered[3]) / 2
        assert epsilon_B1[b].item() == pytest.approx(epsilon, rel=1e-12)
        for t, s_t in enumerate(s):
            room = epsilon - s_t if sign == "both" else max(epsilon - s_t, 0)
            assert mask_BT[b, t].item() == pytest.approx(room / (max(s) - min(s)), rel=1e-9, abs=1e-12)
    assert (mask_BT < 0).any() == (sign == "both")


def test_salient_frames_are_frozen_and_a_still_clip_is_not() -> None:
    s_BT = torch.tensor([[1.0, 2.0, 5.0], [3.0, 3.0, 3.0]], dtype=torch.float64)
    mask_BT = gradient_mask(s_BT, torch.tensor([[2.0], [3.0]], dtype=torch.float64))
    assert mask_BT.tolist() == [[0.25, 0.0, 0.0], [1.0, 1.0, 1.0]]


def test_batch_norm_loss_is_equation_5_with_its_gradient(x_BCTHW: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.BatchNorm3d(3), torch.nn.Conv3d(3, 2, 1), torch.nn.BatchNorm3d(2), torch.nn.Flatten()
    ).double()
    for layer in (network[0], network[2]):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    network.eval().requires_grad_(False)

    def loss(x: torch.Tensor) -> torch.Tensor:
        with tsgf.batch_norm_losses(network) as terms:
            network(x)
            return torch.stack(terms).sum()

    x = x_BCTHW.clone().requires_grad_(True)
    expected, activation = 0.0, x_BCTHW.numpy()
    for number in (0, 2):
        layer = network[number]
        flat = np.moveaxis(activation, 1, 0).reshape(activation.shape[1], -1)
        expected += math.sqrt(sum((flat[c].mean() - float(layer.running_mean[c])) ** 2 for c in range(len(flat))))
        expected += math.sqrt(sum((flat[c].var() - float(layer.running_var[c])) ** 2 for c in range(len(flat))))
        activation = network[number + 1](layer(torch.from_numpy(activation))).numpy()
    assert loss(x).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(loss, (x,))


def test_a_network_without_batch_norm_is_refused() -> None:
    with (
        pytest.raises(RequestError, match=r"batch norm.*teacher.network=minic3d_bn"),
        tsgf.batch_norm_losses(torch.nn.Conv3d(3, 2, 1)),
    ):
        pass
