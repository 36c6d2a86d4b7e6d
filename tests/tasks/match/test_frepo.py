"""FRePo: kernel ridge regression against its normal equations, learnt labels, and a pool that resumes."""

from __future__ import annotations

import copy
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import by_hand
import numpy as np
import pytest
import torch
from method_contract import Bench, MethodContract
from resuming import killed_and_whole
from tiny import double

from vidistill.models.dropout import seed_dropout
from vidistill.storage.distilled import DistilledSet
from vidistill.tasks.learning import streams
from vidistill.tasks.learning.training import generator
from vidistill.tasks.match import core, frepo, sets
from vidistill.tasks.methods import find_method

OPTIONS: dict[str, Any] = {"iterations": 2, "pool": 2, "age": 3, "batch_real": 3, "precision": "fp32"}


class TestFRePo(MethodContract):
    spec = "frepo"
    options: ClassVar = OPTIONS

    def test_its_labels_are_kept_for_the_student(self, method: frepo.FRePo, bench: Bench, tmp_path: Path) -> None:
        made = self.distil(method, bench, ipc=2)
        assert made.logits_NK.argmax(1).tolist() == made.labels_N.tolist()
        np.testing.assert_allclose(np.exp(made.logits_NK).sum(1), 1, rtol=1e-5)
        made.save(tmp_path)
        np.testing.assert_array_equal(DistilledSet.load(tmp_path).logits_NK, made.logits_NK)
        assert method.recipes == ("learned",)


# --- losses ------------------------------------------------------------------------------------------------------


def ridge_in_feature_space(emb_SD: np.ndarray, y_SK: np.ndarray, emb_BD: np.ndarray, ridge: float) -> np.ndarray:
    """The primal: ψ_B (ψ_Sᵀψ_S + p·1)⁻¹ ψ_Sᵀ y, with p = ridge · mean ‖ψ_s‖²."""
    penalty = ridge * sum(row @ row for row in emb_SD) / len(emb_SD)
    return emb_BD @ np.linalg.inv(emb_SD.T @ emb_SD + penalty * np.eye(emb_SD.shape[1])) @ emb_SD.T @ y_SK


@pytest.mark.parametrize(("s", "d", "ridge"), [(4, 7, 1e-2), (9, 3, 1e-2), (1, 5, 1.0)])
def test_prediction_is_ridge_regression_with_its_gradients(s: int, d: int, ridge: float) -> None:
    emb_SD, y_SK, emb_BD = double(s, d, seed=1), double(s, 3, seed=2), double(5, d, seed=3)
    expected = ridge_in_feature_space(emb_SD.numpy(), y_SK.numpy(), emb_BD.numpy(), ridge)
    np.testing.assert_allclose(frepo.kernel_ridge(emb_SD, y_SK, emb_BD, ridge), expected, rtol=1e-9)
    leaves = [tensor.requires_grad_(True) for tensor in (emb_SD, y_SK, emb_BD)]
    assert torch.autograd.gradcheck(lambda *own: frepo.kernel_ridge(*own, ridge), leaves)


def test_prediction_by_hand() -> None:
    """One clip ψ = (3, 4), y = 2, λ = 1: K = 25, prediction for (1, 1) is 7 / (25 + 25) · 2."""
    made = frepo.kernel_ridge(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]]), torch.tensor([[1.0, 1.0]]), 1.0)
    assert made.item() == pytest.approx(0.28, rel=1e-15)


def test_fp32_features_of_clips_that_are_almost_alike_still_have_gradients_that_are_right() -> None:
    """The published λ of 10⁻⁶, and pairs that differ by a thousandth: float32 algebra would be off."""
    base = double(3, 64, seed=4)
    emb_SD = torch.cat([base, base + 1e-3 * double(3, 64, seed=5)]).float()
    y_SK, emb_BD, labels_B = double(6, 3, seed=6), double(8, 64, seed=7), torch.arange(8) % 3

    def gradient(emb: torch.Tensor) -> torch.Tensor:
        leaf = emb.clone().requires_grad_(True)
        predicted_BK = frepo.kernel_ridge(leaf, y_SK, emb_BD, 1e-6)
        return torch.autograd.grad(frepo.regression_loss(predicted_BK, labels_B), leaf)[0].double()

    exact = gradient(emb_SD.double())
    assert ((gradient(emb_SD) - exact).norm() / exact.norm()).item() < 1e-6


def test_regression_loss_with_its_gradient() -> None:
    predicted_BK, labels = double(4, 3).requires_grad_(True), [2, 0, 0, 1]
    expected, gradient = Fraction(0), np.zeros((4, 3))
    for b, label in enumerate(labels):
        for k in range(3):
            gap = Fraction(float(predicted_BK[b, k].detach())) - ((k == label) - Fraction(1, 3))
            expected += gap**2 / 4
            gradient[b, k] = gap / 2
    value = frepo.regression_loss(predicted_BK, torch.tensor(labels))
    assert value.item() == pytest.approx(float(expected), rel=1e-12)
    np.testing.assert_allclose(torch.autograd.grad(value, predicted_BK)[0], gradient, rtol=1e-9)


def test_margin_rewards_a_clear_label_and_no_clearer_than_one_in_k() -> None:
    y_SK = torch.tensor([[0.5, 0.4, -1.0, 0.0], [0.9, 0.1, 0.0, 0.2]], dtype=torch.float64, requires_grad=True)
    value = frepo.margin_loss(y_SK)
    assert value.item() == pytest.approx(-(0.1 + 0.25) / 2, rel=1e-12)
    (gradient,) = torch.autograd.grad(value, y_SK)
    assert gradient.tolist() == [[-0.5, 0.5, 0, 0], [0, 0, 0, 0]]


# --- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [3, 10, 50])
def test_labels_begin_as_published_and_read_back_as_one_hot(bench: Bench, classes: int) -> None:
    labels_N = np.array([0, 2, 1])
    y_NK = frepo.initial_labels(labels_N, classes, bench.material((0,), 1, 0))
    for n, label in enumerate(labels_N):
        for k in range(classes):
            expected = ((k == label) - 1 / classes) / (classes / 10) ** 0.5
            assert y_NK[n, k].item() == pytest.approx(expected, abs=1e-6)
    p_NK = np.exp(frepo.as_logits(y_NK))
    assert p_NK.argmax(1).tolist() == labels_N.tolist()
    assert p_NK.max(1).min() > 0.99


def test_softer_labels_give_softer_targets(bench: Bench) -> None:
    y_NK = frepo.initial_labels(np.array([1]), 4, bench.material((0,), 1, 0))
    p_NK = np.exp(frepo.as_logits(0.5 * y_NK))
    np.testing.assert_allclose(p_NK[0], [0.125, 0.625, 0.125, 0.125], rtol=1e-5)


# --- the pool ----------------------------------------------------------------------------------------------------


def pool_of(bench: Bench, **changes: Any) -> frepo.Pool:
    return frepo.Pool(bench.material((0, 1, 2), 1, 5), frepo.FRePoParameters(**(OPTIONS | changes)))


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def test_networks_begin_anew_at_their_age_one_after_the_other(bench: Bench) -> None:
    pool = pool_of(bench, pool=2, age=4)
    assert pool.ages == [0, 2]
    x_BCTHW, y_BK = torch.randn(3, 3, 4, 48, 48), torch.randn(3, 3)
    fresh = weights(pool.networks[1])
    pool.train(1, 0, [(x_BCTHW, y_BK)])
    trained = weights(pool.networks[1])
    assert not torch.equal(fresh, trained)
    assert torch.equal(weights(pool_of(bench, pool=2, age=4).networks[1]), fresh)
    pool.train(1, 1, [(x_BCTHW, y_BK)])
    assert (pool.ages, pool.births) == ([0, 0], [0, 1])
    assert not torch.equal(weights(pool.networks[1]), trained)
    assert not torch.equal(weights(pool.networks[1]), fresh)
    assert {pool.pick(iteration) for iteration in range(20)} == {0, 1}


@pytest.mark.parametrize(("warmup", "age"), [(500, 100), (3, 20), (1, 2), (20, 20)])
def test_a_networks_rates_are_those_of_torchs_schedulers_chained(bench: Bench, warmup: int, age: int) -> None:
    pool = pool_of(bench, warmup=warmup, age=age, lr_network=0.3)
    chained = by_hand.chained_rates(pool.parameters)
    assert [pool.rate(step) for step in range(age)] == pytest.approx(chained, rel=1e-9)


def test_a_networks_step_is_adams_on_squared_errors(bench: Bench) -> None:
    """Adam's first step moves each weight by the learning rate, against the sign of its gradient."""
    pool = pool_of(bench, pool=1, lr_network=0.1, warmup=1)
    network, twin = pool.networks[0], copy.deepcopy(pool.networks[0]).train()
    before = weights(network)
    x_BCTHW, y_BK = torch.randn(3, 3, 4, 48, 48), torch.randn(3, 3)
    pool.train(0, 0, [(x_BCTHW, y_BK)])
    moved = weights(network) - before
    assert moved.abs().max().item() == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert ((moved.abs() < 1e-9) | (moved.abs() > 0.5e-3)).float().mean() > 0.9
    seed_dropout(twin, int(generator(5, 0, streams.FREPO_DROPOUT).integers(2**31)))
    gradients = torch.autograd.grad((twin(x_BCTHW) - y_BK).square().mean(), list(twin.parameters()))
    steep = torch.cat([gradient.flatten() for gradient in gradients])
    assert (moved.sign() == -steep.sign())[steep.abs() > 1e-6].float().mean() > 0.999
    assert not network.training


@pytest.mark.slow
def test_a_network_has_learnt_the_set_before_its_life_is_half_over(bench: Bench) -> None:
    """And has not at the rate of the published scripts."""
    material = bench.material((0, 1, 2), 1, 5)
    start = sets.start_clips(material, "real")
    y_NK = frepo.initial_labels(start.labels_N, 3, material)

    def left(**rate: float) -> float:
        """The share of the error after forty steps."""
        pool = frepo.Pool(material, frepo.FRePoParameters(pool=1, precision="fp32", **rate))
        errors = []
        for steps in (0, 40):
            for step in range(steps):
                pool.train(0, step, [(start.x_NCTHW, y_NK)])
            with torch.no_grad():
                errors.append(float((pool.networks[0](start.x_NCTHW) - y_NK).square().mean()))
        return errors[1] / errors[0]

    assert left() < 0.1
    assert left(lr_network=1e-4) > 0.5


def test_a_networks_step_is_the_same_in_parts(bench: Bench) -> None:
    x_BCTHW, y_BK = torch.randn(3, 3, 4, 48, 48), torch.randn(3, 3)
    whole, parted = (pool_of(bench, pool=1, lr_network=0.1, warmup=1, precision="fp32") for _ in range(2))
    begun = weights(whole.networks[0])
    whole.train(0, 0, [(x_BCTHW, y_BK)])
    parted.train(0, 0, zip(x_BCTHW.split(2), y_BK.split(2), strict=True))
    moved, alike = weights(whole.networks[0]) - begun, weights(parted.networks[0]) - begun
    assert torch.nn.functional.cosine_similarity(moved, alike, dim=0) > 0.999


def test_a_pool_is_restored_with_its_ages_and_its_adams(bench: Bench) -> None:
    x_BCTHW, y_BK = torch.randn(3, 3, 4, 48, 48), torch.randn(3, 3)
    pool, other = (pool_of(bench, pool=2, age=3) for _ in range(2))
    for step in range(2):
        pool.train(step, step, [(x_BCTHW, y_BK)])
    other.load_state_dict(copy.deepcopy(pool.state_dict()))
    for one in (pool, other):
        one.train(0, 2, [(x_BCTHW, y_BK)])
        one.train(1, 3, [(x_BCTHW, y_BK)])
    assert (pool.ages, pool.births) == (other.ages, other.births)
    assert torch.equal(weights(pool.networks[0]), weights(other.networks[0]))
    assert torch.equal(weights(pool.networks[1]), weights(other.networks[1]))


def test_a_killed_run_goes_on_to_the_same_set(bench: Bench) -> None:
    again, whole, steps = killed_and_whole(bench, "frepo", OPTIONS | {"iterations": 5}, 4)
    assert steps == [4, 5]
    np.testing.assert_array_equal(again.clips_NTHWC, whole.clips_NTHWC)
    np.testing.assert_array_equal(again.logits_NK, whole.logits_NK)
    assert again.facts == whole.facts


def test_the_network_used_last_is_trained_before_the_next_is_drawn(bench: Bench) -> None:
    material = bench.material((0, 1, 2), 1, 5)
    pool = pool_of(bench, pool=3, age=100)
    start = sets.start_clips(material, "real")
    labels_NK = frepo.initial_labels(start.labels_N, 3, material)
    learnt = {"clips": core.leaf(start.x_NCTHW), "labels": core.leaf(labels_NK)}
    loss = frepo.frepo_loss(material, core.pixels, frepo.FRePoParameters(**OPTIONS), pool)
    for iteration in range(4):
        loss(iteration, learnt)
    assert pool.steps == np.bincount([pool.pick(iteration) for iteration in range(3)], minlength=3).tolist()


def test_the_loss_falls(bench: Bench) -> None:
    method = find_method("frepo").method
    made = method(
        method.Parameters(**(OPTIONS | {"iterations": 12, "pool": 1, "age": 100, "batch_real": 6, "lr": 0.05}))
    )
    loss = made.distil(bench.material((0, 1, 2), 1, 0)).facts["loss"]
    assert np.mean(loss[-3:]) < np.mean(loss[:3])
