"""TSGF's equations against loops over plain floats (S3, Eq. 5–8), and Algorithm 1 as its readers would write it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from by_hand import variation
from method_contract import Bench
from resuming import killed_and_whole
from tiny import Tiny, difference_by_loops, saliency_by_loops
from torch import Tensor

from vidistill.models.ensemble import Ensemble
from vidistill.storage.errors import RequestError
from vidistill.tasks import tsgf
from vidistill.tasks.learning import streams
from vidistill.tasks.learning.pixels import total_variation
from vidistill.tasks.learning.saliency import SaliencyParameters, frame_difference, gradient_mask, saliency, threshold
from vidistill.tasks.learning.training import generator
from vidistill.tasks.methods import find_method

SHAPE_BCTHW = (2, 3, 6, 4, 5)


@pytest.fixture
def x_BCTHW() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=SHAPE_BCTHW))


def test_frame_difference_is_equation_6(x_BCTHW: torch.Tensor) -> None:
    expected = [difference_by_loops(x_CTHW) for x_CTHW in x_BCTHW.numpy()]
    np.testing.assert_allclose(frame_difference(x_BCTHW), expected, rtol=1e-12)


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


def test_a_clip_that_moves_evenly_has_no_salient_frame() -> None:
    """Its saliency is constant but for rounding."""
    frame = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 12, 12)).astype(np.float32))
    x_BCTHW = torch.stack([frame.roll(t, dims=3) for t in range(8)], dim=2)
    s_BT = saliency(x_BCTHW, SaliencyParameters())
    assert s_BT.amax() > s_BT.amin()
    assert gradient_mask(s_BT, threshold(s_BT, SaliencyParameters())).tolist() == [[1.0] * 8]


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


@pytest.mark.parametrize(
    ("classes", "sizes"), [(8, [8]), (10, [10]), (11, [6, 5]), (20, [10, 10]), (101, [10, 10] + 9 * [9])]
)
def test_groups_are_as_even_as_they_can_be(classes: int, sizes: list[int]) -> None:
    """L_reg sees the clips of a group together: one of a single class would see too few."""
    groups = tsgf.TSGF(tsgf.TSGFParameters()).groups(classes, 1)
    assert [len(group) for group in groups] == sizes
    assert [label for group in groups for label in group] == list(range(classes))


def test_a_network_without_batch_norm_is_refused() -> None:
    with (
        pytest.raises(RequestError, match=r"batch norm.*teacher.network=minic3d_bn"),
        tsgf.batch_norm_losses(torch.nn.Conv3d(3, 2, 1)),
    ):
        pass


# --- Algorithm 1 -------------------------------------------------------------------------------------------------


def statistics_gap(maps_BCTHW: Tensor, layer: torch.nn.BatchNorm3d) -> Tensor:
    """A layer's term of Eq. 5, channel by channel."""
    of_mean, of_variance = [], []
    for c in range(maps_BCTHW.shape[1]):
        values = maps_BCTHW[:, c].flatten()
        mean = values.sum() / len(values)
        of_mean.append((mean - layer.running_mean[c]) ** 2)
        of_variance.append((((values - mean) ** 2).sum() / len(values) - layer.running_var[c]) ** 2)
    return torch.stack(of_mean).sum().sqrt() + torch.stack(of_variance).sum().sqrt()


def at_rest(maps_BCTHW: Tensor, layer: torch.nn.BatchNorm3d) -> Tensor:
    """Batch norm by its running statistics."""
    mean, variance, weight, bias = (
        values[:, None, None, None] for values in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    )
    return (maps_BCTHW - mean) / (variance + layer.eps).sqrt() * weight + bias


def losses_of(x_BCTHW: Tensor, labels: list[int], teacher: tiny.TinyTeacher) -> tuple[Tensor, Tensor]:
    """L_ce and L_reg of a teacher at rest, layer by layer."""
    reg, maps = 0.0, x_BCTHW
    for conv, norm in ((teacher.conv1, teacher.norm1), (teacher.conv2, teacher.norm2)):
        maps = torch.nn.functional.conv3d(maps, conv.weight, conv.bias, padding=1)
        reg = reg + statistics_gap(maps, norm)
        maps = torch.tanh(at_rest(maps, norm))
    logits_BK = maps.mean((2, 3, 4)) @ teacher.head.weight.T + teacher.head.bias
    log_BK = logits_BK - logits_BK.exp().sum(1, keepdim=True).log()
    return -sum(log_BK[b, label] for b, label in enumerate(labels)) / len(labels), reg


def mask_by_loops(x: np.ndarray, quantile: float, k: int, sign: str) -> np.ndarray:
    mask = np.ones((x.shape[0], x.shape[2]))
    for b, s in enumerate(saliency_by_loops(x, k)):
        room = np.quantile(s, quantile) - s
        mask[b] = (room if sign == "both" else np.maximum(room, 0)) / (s.max() - s.min())
    return mask


def algorithm_1(x: Tensor, labels: list[int], teacher: tiny.TinyTeacher, p: tsgf.TSGFParameters) -> Tensor:
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(p.iterations):
        leaf = x.clone().requires_grad_(True)
        ce, reg = losses_of(leaf, labels, teacher)
        (g,) = torch.autograd.grad(p.alpha_ce * ce + p.r_bn * reg + p.rate * variation(leaf), leaf)
        rate = p.lr * (1 + math.cos(math.pi * step / p.iterations)) / 2
        mask_BT = mask_by_loops(x.numpy(), p.saliency.epsilon_quantile, p.saliency.window, p.mask_sign)
        mask = torch.from_numpy(mask_BT)[:, None, :, None, None] if p.mask else 1.0
        if p.optimiser == "adam":
            first, second = 0.5 * first + 0.5 * g, 0.9 * second + 0.1 * g**2
            unbiased = first / (1 - 0.5 ** (step + 1)), second / (1 - 0.9 ** (step + 1))
            g = unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        x = tiny.in_range(x - rate * mask * g)
    return x


STEPS: dict[str, dict[str, Any]] = {
    "sgd": {"optimiser": "sgd", "lr": 600.0},
    "adam": {"optimiser": "adam", "lr": 0.2},
    "cross-entropy alone": {"optimiser": "sgd", "lr": 1500.0, "r_bn": 0.0},
    "statistics alone": {"optimiser": "sgd", "lr": 600.0, "alpha_ce": 0.0},
    "no mask": {"optimiser": "sgd", "lr": 200.0, "mask": False},
    "beyond black and white": {"optimiser": "sgd", "lr": 4000.0, "mask": False, "iterations": 3},
    "rate": {"optimiser": "sgd", "lr": 600.0, "rate": 0.8},
    "mask of both signs": {"optimiser": "sgd", "lr": 600.0, "mask_sign": "both"},
}


@pytest.mark.parametrize("name", STEPS)
def test_two_steps_are_those_of_algorithm_1(tmp_path: Path, name: str) -> None:
    """Two classes of two clips: gradients by loops, Eq. 8's mask of the clips as they are, a teacher at rest."""
    given = Tiny(tiny.tiny_clips(tmp_path))
    parameters = tsgf.TSGFParameters(**{"iterations": 2, "r_bn": 0.5, "precision": "fp32"} | STEPS[name])
    rows = [
        row for label in (0, 1)
        for row in generator(3, label, streams.CORESET).permutation(given.clips.rows_of(label))[:2]
    ]  # fmt: skip
    start = torch.stack([given.x(int(row)) for row in rows])
    made = tsgf.TSGF(parameters).distil(given.material(ipc=2, seed=3))
    assert made.sources == tuple(given.clips.table.videos[row].path for row in rows)
    expected = algorithm_1(start, [0, 0, 1, 1], copy.deepcopy(tiny.tiny_teacher()).double(), parameters)
    tiny.same_change(made.clips_NTHWC, tiny.pixels(start), tiny.pixels(expected))
    s_BT = saliency_by_loops(expected.numpy())
    np.testing.assert_allclose(made.extras["saliency"], s_BT, rtol=1e-3)
    np.testing.assert_allclose(made.extras["epsilon"][:, 0], np.quantile(s_BT, 0.75, axis=1), rtol=1e-3)
    mask_BT = np.ones_like(s_BT)
    if parameters.mask:
        mask_BT = mask_by_loops(expected.numpy(), 0.75, parameters.saliency.window, parameters.mask_sign)
    np.testing.assert_allclose(made.extras["mask"], mask_BT, rtol=1e-3, atol=1e-4)


class EmbeddedTeacher(torch.nn.Sequential):
    features = 1

    def __init__(self) -> None:
        super().__init__(tiny.tiny_teacher())


def test_l_reg_of_an_ensemble_is_its_members_mean(tmp_path: Path) -> None:
    """So that one network twice teaches what it teaches alone."""
    given, parameters = Tiny(tiny.tiny_clips(tmp_path)), tsgf.TSGFParameters(iterations=3, r_bn=0.5, precision="fp32")
    twice = Ensemble([EmbeddedTeacher(), EmbeddedTeacher()]).eval()
    alone = tsgf.TSGF(parameters).distil(given.material(ipc=2, seed=3))
    together = tsgf.TSGF(parameters).distil(given.material(ipc=2, seed=3, teacher=lambda: twice))
    assert together.facts["loss"] == pytest.approx(alone.facts["loss"], rel=1e-5)


@pytest.mark.parametrize("shape_BCTHW", [SHAPE_BCTHW, (1, 3, 1, 4, 4), (2, 3, 1, 1, 1)])
def test_the_rate_is_the_total_variation_with_its_gradient(shape_BCTHW: tuple[int, ...]) -> None:
    x_BCTHW = torch.from_numpy(np.random.default_rng(0).normal(size=shape_BCTHW)).requires_grad_(True)
    expected = sum(
        np.abs(np.diff(x_BCTHW.detach().numpy(), axis=axis)).mean() for axis in (2, 3, 4) if shape_BCTHW[axis] > 1
    )
    assert total_variation(x_BCTHW).item() == pytest.approx(expected, rel=1e-12, abs=0)
    if max(shape_BCTHW[2:]) > 1:
        assert torch.autograd.gradcheck(total_variation, (x_BCTHW,))


@pytest.mark.parametrize("name", ["tsgf", "dm", "mtt"])
def test_without_a_rate_parameters_are_those_of_before(name: str) -> None:
    """So that their artifacts are found again."""
    parameters = find_method(name).method.Parameters
    assert "rate" not in parameters().model_dump(mode="json")
    assert parameters(rate=0.1).model_dump(mode="json")["rate"] == 0.1


def test_salient_frames_do_not_move_and_the_stillest_does(tmp_path: Path) -> None:
    """Through the method, one step: frames with s ≥ ε stay to the last level."""
    given = Tiny(tiny.tiny_clips(tmp_path))
    made = tsgf.TSGF(tsgf.TSGFParameters(iterations=1, lr=0.3, precision="fp32")).distil(given.material(ipc=2))
    rows = [int(source.split("/")[1].removesuffix(".avi")) for source in made.sources]
    for clip_THWC, row in zip(made.clips_NTHWC, rows, strict=True):
        begun_THWC = given.clips.read([row])[0]
        (s,) = saliency_by_loops(given.x(row)[None].numpy())
        moved_T = np.abs(clip_THWC.astype(int) - begun_THWC).mean((1, 2, 3))
        assert (moved_T[s >= np.quantile(s, 0.75)] == 0).all()
        assert moved_T[s.argmin()] == moved_T.max() > 5


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_it_resumes_after_a_kill(bench: Bench, monkeypatch: pytest.MonkeyPatch, optimiser: str) -> None:
    monkeypatch.setattr("vidistill.tasks.learning.loop.SECONDS", 0.0)  # a checkpoint a step
    options = {"iterations": 5, "group_classes": 3, "lr": 0.2, "optimiser": optimiser, "precision": "fp32"}
    again, whole, steps = killed_and_whole(bench, "tsgf", options, kill_at=3)
    assert np.array_equal(again.clips_NTHWC, whole.clips_NTHWC)
    assert again.facts == whole.facts
    assert steps[0] == 3
