from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny

from vidistill.storage import coded
from vidistill.storage.distilled import VARIANTS, DistilledSet
from vidistill.tasks.coded.keep import Coding
from vidistill.tasks.coded.recode import RAW_BYTES, recode_job, recoded
from vidistill.tasks.distil import distil_jobs
from vidistill.tasks.learning.evaluate import StudentParameters, evaluate_job, load_score
from vidistill.tasks.learning.optimisers import OptimiserParameters
from vidistill.tasks.methods import HARD, find_method
from vidistill.tasks.report.bytes import coded_bytes
from vidistill.tasks.stage import run_job


def test_a_set_is_kept_as_its_clips_are_decoded(bench):
    source = find_method("random")
    inputs = {"clips": [bench.given.train]}
    (job,) = distil_jobs(source, source.method.Parameters(), 1, 5, len(bench.clips.classes), inputs, "")
    raw, _ = run_job(job, bench.runtime)
    ref, _ = run_job(recode_job(raw, Coding(crf=30, preset=10), "code"), bench.runtime)
    before, after = (DistilledSet.load(bench.store.folder(one)) for one in (raw, ref))
    assert after.form == "coded"
    assert after.sources == before.sources
    assert after.labels_N.tolist() == before.labels_N.tolist()
    assert 0 < np.abs(after.clips_NTHWC.astype(int) - before.clips_NTHWC).mean() < 12
    assert after.facts[RAW_BYTES] == DistilledSet.training_bytes(bench.store.folder(raw))
    assert DistilledSet.training_bytes(bench.store.folder(ref)) < after.facts[RAW_BYTES] / 10
    assert after.facts["coded"]["crf"] == 30
    assert VARIANTS not in after.facts


@pytest.mark.parametrize("recipe", ["hard", "soft+tsgf", "learned"])
def test_only_rows_whose_students_read_logits_count_them(bench, recipe):
    made = find_method("random").method(None).distil(bench.material((0, 1, 2), 1, 0))
    logits = np.random.default_rng(1).normal(0, 3, (3, 3)).astype(np.float32)
    raw = tiny.put(bench.store, "distilled", f"logits{recipe}", made.with_logits(logits).save, {})
    coded_ref, _ = run_job(recode_job(raw, Coding(crf=30, preset=10), "code"), bench.runtime)
    read = recipe != "hard"
    raw_size, size = (DistilledSet.training_bytes(bench.store.folder(one), logits=read) for one in (raw, coded_ref))
    plan: Any = SimpleNamespace(sets=(coded_ref,), scores=("score",), recipe=recipe)
    scores: Any = {"score": SimpleNamespace(training_bytes=size + 100)}  # a teacher's, say
    assert coded_bytes(bench.store, plan, scores) == {"bytes_coded": size + 100, "bytes": raw_size + 100}


def test_variants_become_clips_and_keep_their_instances_labels(bench):
    made = find_method("random").method(None).distil(bench.material((0, 1, 2), 1, 0))
    logits = np.random.default_rng(0).normal(0, 3, (3, 3)).astype(np.float32)
    others = np.stack([255 - made.clips_NTHWC])
    whole = replace(made, form="still", stored={"images": made.clips_NTHWC[:, 0]}, others_VNTHWC=others,
                    logits_NK=logits, extras={"saliency": np.ones((3, 2))}, facts={"loss": [1.0]})  # fmt: skip
    found = recoded(whole, Coding(crf=20, preset=10))
    assert found.labels_N.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.facts["loss"] == [1.0]
    assert found.extras == {}
    np.testing.assert_array_equal(found.logits_NK, coded.rounded(logits).repeat(2, axis=0))
    for number, clip in enumerate(found.clips_NTHWC):
        raw = [made.clips_NTHWC, others[0]][number % 2][number // 2]
        assert np.abs(clip.astype(int) - raw).mean() < 8
    assert found.facts["coded"]["psnr"] > 25
    assert found.facts[VARIANTS] == 2


def test_students_of_variants_that_became_clips_take_the_steps_of_the_set(bench):
    """Two instances of three variants in batches of one: two steps an epoch, not six."""
    made = find_method("random").method(None).distil(bench.material((0, 1), 1, 0))
    others = np.stack([255 - made.clips_NTHWC, made.clips_NTHWC // 2])
    whole = replace(made, form="still", stored={"images": made.clips_NTHWC[:, 0]}, others_VNTHWC=others)
    ref = tiny.put(bench.store, "distilled", "variants", recoded(whole, Coding(crf=40, preset=10)).save, {})
    student = StudentParameters(epochs=2, least_steps=1, optimiser=OptimiserParameters(batch_size=1), networks={})
    inputs = {"train": bench.given.train, "test": bench.given.train, "distilled": ref}
    scored, _ = run_job(evaluate_job("minic3d", student, HARD, 0, inputs, "score"), bench.runtime)
    score = load_score(bench.store.folder(scored))
    assert (score.steps[-1], score.clips) == (4, 6)
