"""Experts: plain SGD written down by hand, snapshots that survive a kill, and reading them back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from method_contract import Bench

from vidistill.storage.errors import RunError
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.experts import ExpertParameters, Experts, expert_jobs, flat, unflat
from vidistill.tasks.learning.teacher import RealBatches
from vidistill.tasks.learning.training import Order
from vidistill.tasks.stage import listening, run_job

# this network has no dropout, so that its steps can be written down
TINY = ExpertParameters(network="cnn_gru", epochs=3, batch_size=4, lr=0.05, precision="fp32", checkpoint_epochs=1)


@pytest.fixture(scope="module")
def made(bench: Bench) -> list[ArtifactRef]:
    return [run_job(job, bench.runtime)[0] for job in expert_jobs(bench.given.train, TINY, 2)]


def test_a_trajectory_is_plain_gradient_descent(bench: Bench, made: list[ArtifactRef]) -> None:
    own = training.role_seed(1, streams.EXPERT_WEIGHTS)  # not what a teacher of this seed draws
    network = training.build_network("cnn_gru", 3, bench.clips.shape_THWC, own)
    draw = RealBatches(bench.clips, Order(6, 4, own), bench.device)
    experts = Experts([bench.store.folder(ref) for ref in made])
    begun_P = flat(network)
    np.testing.assert_array_equal(experts.weights(1, 0), begun_P)
    for epoch in range(3):
        for step in (2 * epoch, 2 * epoch + 1):
            x_BCTHW, targets_BK = draw(step)
            network.zero_grad()
            (-(targets_BK * network(x_BCTHW).log_softmax(1)).sum(1).mean()).backward()
            for weight in network.parameters():
                weight.data -= 0.05 * weight.grad
        error_P, moved_P = experts.weights(1, epoch + 1) - flat(network), flat(network) - begun_P
        assert np.abs(error_P).max() < 0.01 * np.abs(moved_P).max()  # a rounding that turns a ReLU makes 0.0003


def test_they_learn_in_fp32_where_others_would_in_bf16(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is matched are small differences of weights."""
    monkeypatch.setattr("vidistill.models.cpu.flags", lambda: frozenset({"amx_bf16"}))
    short = ExpertParameters(network="cnn_gru", epochs=1, batch_size=4, lr=0.05)
    (job,) = expert_jobs(bench.given.train, short, 1)
    assert bench.store.manifest(run_job(job, bench.runtime)[0]).record["precision"] == "fp32"


def test_all_experts_are_found_and_differ(bench: Bench, made: list[ArtifactRef]) -> None:
    experts = Experts([bench.store.folder(ref) for ref in made])
    assert (len(experts), experts.epochs) == (2, 3)
    starts = [experts.weights(number, 0) for number in range(2)]
    assert not np.array_equal(*starts)


def test_more_experts_reuse_the_first_ones(bench: Bench) -> None:
    fewer, more = (expert_jobs(bench.given.train, TINY, count) for count in (2, 4))
    assert [job.ref for job in more[:2]] == [job.ref for job in fewer]
    assert len({job.ref for job in more}) == 4


def test_a_vector_is_its_weights(bench: Bench) -> None:
    network = training.placed(training.build_network("minic3d", 3, bench.clips.shape_THWC, 0), bench.device)
    vector_P = flat(network)
    weights = unflat(vector_P + 1, network)
    for name, weight in network.named_parameters():
        assert torch.equal(weights[name], weight + 1)
        assert weights[name].stride() == weight.stride()


@pytest.mark.parametrize("network", ["cnn_gru", "minic3d"])  # the second has dropout
def test_a_killed_expert_goes_on_to_the_same_trajectory(bench: Bench, network: str) -> None:
    job = expert_jobs(bench.given.train, TINY.model_copy(update={"network": network}), 1)[0]
    run_job(job, bench.runtime)

    def snapshots() -> list[np.ndarray]:
        experts = Experts([bench.store.folder(job.ref)])
        return [experts.weights(0, epoch) for epoch in range(4)]

    def kill(_label: str, done: int, _total: int, _note: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    whole = snapshots()
    bench.store.discard(job.ref)
    with listening(kill), pytest.raises(KeyboardInterrupt):
        run_job(job, bench.runtime)
    done: list[int] = []
    with listening(lambda _label, epoch, _total, _note: done.append(epoch)):
        run_job(job, bench.runtime)
    assert done == [2, 3]
    for before, after in zip(whole, snapshots(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_an_expert_that_diverges_says_so(bench: Bench) -> None:
    wild = TINY.model_copy(update={"lr": 1e30})
    with pytest.raises(RunError, match=r"loss is (nan|inf) at step \d+: try a learning rate ten times smaller"):
        run_job(expert_jobs(bench.given.train, wild, 1)[0], bench.runtime)
