from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning.evaluate import StudentParameters, evaluate_job, score, soft_targets
from vidistill.tasks.learning.training import OptimiserParameters
from vidistill.tasks.methods import HARD


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


def student_of(network: str, student: StudentParameters) -> dict[str, object]:
    clips = ArtifactRef(kind="clips", key="a")
    job = evaluate_job(network, student, HARD, 0, {"train": clips, "test": clips}, "score")
    return dict(job.parameters["student"])


def test_a_network_has_its_own_optimiser_and_no_other_student_is_touched_by_it() -> None:
    plain = student_of("minic3d_bn", StudentParameters())
    assert set(plain) == {"steps", "full_steps", "optimiser", "full_optimiser", "crop_scale", "precision"}
    assert plain == student_of("minic3d_bn", StudentParameters(networks={"c3d": OptimiserParameters(lr=1.0)}))
    own = OptimiserParameters(method="adamw", lr=1e-3)
    asked = student_of("video_swin_t", StudentParameters(networks={"video_swin_t": own}))
    assert asked["optimiser"] == asked["full_optimiser"] == own.model_dump(mode="json")
