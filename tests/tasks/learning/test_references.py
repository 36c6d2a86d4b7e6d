"""What experts know themselves: the weights after their last epoch, and statistics that a trajectory does not keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from method_contract import Bench

from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import training
from vidistill.tasks.learning.evaluate import CONFUSION, Score, load_score
from vidistill.tasks.learning.experts import ExpertParameters, Experts, expert_jobs, unflat
from vidistill.tasks.learning.references import expert_score_job
from vidistill.tasks.stage import run_job


def scored(bench: Bench, **parameters: object) -> tuple[ArtifactRef, Score, np.ndarray]:
    """An expert, and how it scores on the very clips that it was trained on."""
    (job,) = expert_jobs(bench.given.train, ExpertParameters.model_validate({"precision": "fp32"} | parameters), 1)
    expert, _ = run_job(job, bench.runtime)
    ref, _ = run_job(expert_score_job(expert, bench.given.train, bench.given.train, 0), bench.runtime)
    folder = bench.store.folder(ref)
    return expert, load_score(folder), np.load(folder / CONFUSION)


def test_an_expert_is_scored_after_its_last_epoch(bench: Bench) -> None:
    expert, made, confusion_KK = scored(bench, network="cnn_gru", epochs=2, batch_size=4, lr=0.5)
    kept = Experts([bench.store.folder(expert)])
    network = training.build_network("cnn_gru", 3, bench.clips.shape_THWC, 0)

    def guessed(epoch: int) -> np.ndarray:
        network.load_state_dict(unflat(kept.weights(0, epoch), network))
        network.eval()
        table, clips_NTHWC = bench.clips.table, bench.clips.read(range(6))
        with torch.no_grad():
            logits_NK = network(training.to_input(clips_NTHWC, table.mean, table.std, bench.device))
        return np.asarray(logits_NK.argmax(1))

    assert made.top1 == pytest.approx((guessed(2) == bench.clips.labels_N).mean())
    assert confusion_KK.sum(0).tolist() == np.bincount(guessed(2), minlength=3).tolist()
    assert confusion_KK.sum(0).tolist() != np.bincount(guessed(0), minlength=3).tolist(), "training changed answers"
    assert made.steps == (2, 4)
    assert len(made.loss) == 2
    assert made.training_bytes == bench.store.manifest(expert).bytes


def test_its_loss_stands_at_the_steps_where_it_was(bench: Bench) -> None:
    """Fiftieths of its epochs, of two steps each here."""
    _, made, _ = scored(bench, network="r2plus1d_small", epochs=101, batch_size=4, lr=0.01)
    assert made.steps == (*(4 * (point + 1) for point in range(50)), 202)
    assert len(made.loss) == 51


def test_batch_norm_gets_the_training_clips_statistics(bench: Bench) -> None:
    _, made, _ = scored(bench, network="r2plus1d_small", epochs=25, batch_size=6, lr=0.1)
    assert made.loss[-1] < 0.2
    assert made.top1 == 1.0, "it answers by statistics that it was not trained with"
