"""The common benchmark's protocol against a transcription of its own (methods sheet §1.4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from method_contract import Bench

from vidistill.models import build
from vidistill.tasks.learning import benchmark
from vidistill.tasks.learning.training import Order


def rates_by_epochs(epochs: int) -> list[float]:
    """Their loop: range(E + 1) passes, the rate divided by ten once, after pass E // 2 + 1."""
    lr, rates = 0.01, []
    for epoch in range(epochs + 1):
        rates.append(lr)
        if epoch == epochs // 2 + 1:
            lr *= 0.1
    return rates


def test_a_set_that_one_batch_holds_is_passed_over_501_times_at_their_rates() -> None:
    steps = benchmark.STUDENT.steps(50)
    assert steps == 501
    found = [benchmark.STUDENT.optimiser.lr_at(step, steps) for step in range(steps)]
    assert found == pytest.approx(rates_by_epochs(500))
    three = [benchmark.STUDENT.optimiser.lr_at(step, 3 * steps) for step in range(3 * steps)]
    assert three == pytest.approx([rate for rate in rates_by_epochs(500) for _ in range(3)]), "three batches a pass"


def test_larger_sets_are_passed_over_in_batches_of_at_most_256() -> None:
    assert benchmark.STUDENT.steps(300) == 2 * 501
    order = Order(300, benchmark.STUDENT.optimiser.batch_size, 0)
    assert max(len(order.rows(step)) for step in range(4)) <= 256


def test_a_batch_is_standardised_over_all_of_its_elements() -> None:
    x = np.random.default_rng(0).normal(3, 5, size=(2, 3, 4, 6, 6))
    found = benchmark.standardised(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, (x - x.mean()) / x.std(ddof=1), rtol=1e-9)


def test_each_test_video_counts_once_a_view(bench: Bench) -> None:
    network = build("minic3d", classes=len(bench.clips.classes), frames=bench.clips.shape_THWC[0],
                    size=bench.clips.shape_THWC[1])  # fmt: skip
    logits_NK, labels_N = benchmark.predict(network, bench.clips, 0, bench.device)
    views = bench.clips.table.views
    assert logits_NK.shape == (views * len(bench.clips), len(bench.clips.classes))
    assert labels_N.tolist() == bench.clips.labels_N.tolist() * views
