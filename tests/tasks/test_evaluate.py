from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from vidistill.tasks.evaluate import score, soft_targets


def test_scores_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels_N = random.integers(0, 7, 200)
    logits_NK = torch.from_numpy(random.normal(size=(200, 7)) + 1.5 * np.eye(7)[labels_N]).float()
    found = score(logits_NK, labels_N)
    guesses_N, probabilities_NK = logits_NK.argmax(1).numpy(), logits_NK.softmax(1).double().numpy()
    probabilities_NK /= probabilities_NK.sum(1, keepdims=True)
    ranks_N = (logits_NK.numpy() > logits_NK.numpy()[np.arange(200), labels_N][:, None]).sum(1)
    assert found["top1"] == pytest.approx((guesses_N == labels_N).mean())
    assert found["top5"] == pytest.approx((ranks_N < 5).mean())
    assert found["f1"] == pytest.approx(f1_score(labels_N, guesses_N, average="macro"), abs=1e-6)
    assert found["auc"] == pytest.approx(roc_auc_score(labels_N, probabilities_NK, multi_class="ovr"), abs=1e-4)
    expected = [(guesses_N[labels_N == k] == k).mean() for k in range(7)]
    assert found["per_class"] == pytest.approx(expected)


def test_two_classes_have_a_top_5_of_one() -> None:
    assert score(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))["top5"] == 1.0


def test_temperature_softens_without_moving_the_winner() -> None:
    logits_BK = torch.tensor([[4.0, 0.0, 0.0]])
    assert soft_targets(logits_BK, 4.0)[0].tolist() == pytest.approx([0.576, 0.212, 0.212], abs=1e-3)
    assert soft_targets(logits_BK, 1.0)[0, 0] > 0.96
