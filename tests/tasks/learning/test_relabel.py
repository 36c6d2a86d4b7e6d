from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from method_contract import Bench
from tiny import Tiny, saliency_by_loops

from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.learning import training
from vidistill.tasks.learning.pixels import to_pixels
from vidistill.tasks.learning.relabel import GuidedMix, derangement, mixed, relabel_job, teacher_logits, videomix
from vidistill.tasks.learning.saliency import saliency, threshold
from vidistill.tasks.learning.teacher import load_teacher
from vidistill.tasks.learning.views import draw_box
from vidistill.tasks.methods import Recipe
from vidistill.tasks.stage import Runtime, run_job


def moving_clips(clips: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(clips, 3, 8, 16, 16))).float()


def test_guided_mix_leaves_salient_frames_alone_and_pastes_one_box_of_one_partner() -> None:
    x_BCTHW, parameters = moving_clips(), GuidedMix(probability=1)
    mixed_BCTHW = videomix(x_BCTHW, parameters, "tsgf", 5)
    s_BT = saliency(x_BCTHW, parameters.saliency)
    salient_BT = s_BT > threshold(s_BT, parameters.saliency)
    assert salient_BT.any()
    changed_BTHW = (mixed_BCTHW != x_BCTHW).any(1)
    assert not changed_BTHW[salient_BT].any()
    assert changed_BTHW.any()
    for b in range(len(x_BCTHW)):
        open_frames = changed_BTHW[b][~salient_BT[b]]
        assert (open_frames == open_frames[0]).all(), "the box is the same in every frame"
        if not open_frames[0].any():
            continue
        rows, columns = open_frames[0].any(1).nonzero(), open_frames[0].any(0).nonzero()
        box = open_frames[0][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.all(), "a rectangle"
        where = changed_BTHW[b][None].expand(3, -1, -1, -1)
        partners = [p for p in range(len(x_BCTHW)) if torch.equal(mixed_BCTHW[b][where], x_BCTHW[p][where])]
        assert len(partners) == 1
        assert partners != [b]


def test_image_mix_draws_a_box_for_each_frame() -> None:
    x_BCTHW = moving_clips()
    changed_BTHW = (videomix(x_BCTHW, GuidedMix(probability=1), "image", 5) != x_BCTHW).any(1)
    boxes = {frame.numpy().tobytes() for frame in changed_BTHW[0]}
    assert len(boxes) > 4
    s_BT = saliency(x_BCTHW, GuidedMix().saliency)
    salient_BT = s_BT > threshold(s_BT, GuidedMix().saliency)
    assert changed_BTHW[salient_BT].any(), "salient frames have boxes, too"


def test_mix_is_seeded_and_probability_zero_changes_nothing() -> None:
    x_BCTHW = moving_clips()
    assert torch.equal(videomix(x_BCTHW, GuidedMix(), "tsgf", 5), videomix(x_BCTHW, GuidedMix(), "tsgf", 5))
    assert not torch.equal(videomix(x_BCTHW, GuidedMix(), "tsgf", 5), videomix(x_BCTHW, GuidedMix(), "tsgf", 6))
    assert torch.equal(videomix(x_BCTHW, GuidedMix(probability=0), "tsgf", 5), x_BCTHW)


def test_nobody_is_their_own_partner() -> None:
    for n in (2, 3, 10):
        partner = derangement(n, np.random.default_rng(n))
        assert sorted(partner) == list(range(n))
        assert (partner != np.arange(n)).all()


def test_box_area_follows_the_uniform_law() -> None:
    random = np.random.default_rng(0)
    areas = []
    for _ in range(2000):
        ys, xs = draw_box(random, 1.0, 100, 100)
        areas.append(len(range(*ys.indices(100))) * len(range(*xs.indices(100))) / 1e4)
    # 1 − λ is uniform; with side a² = 1 − λ a box at a uniform centre keeps a(1 − a/4) of each side: mean of the square
    side = np.sqrt(np.linspace(0, 1, 100_001))
    assert abs(np.mean(areas) - np.mean((side * (1 - side / 4)) ** 2)) < 0.02


def test_a_set_with_variants_is_labelled_by_the_mean_over_them(bench: Bench) -> None:
    table = bench.clips.table
    clips_NTHWC = bench.clips.read(range(4))
    made = DistilledSet(clips_NTHWC[:2], bench.clips.labels_N[:2], table.classes)
    teacher = bench.material((0,), 1, 0).teacher()
    one, other = (teacher_logits(teacher, replace(made, clips_NTHWC=part), bench.clips, bench.device)
                  for part in (clips_NTHWC[:2], clips_NTHWC[2:]))  # fmt: skip
    both = teacher_logits(teacher, replace(made, others_VNTHWC=clips_NTHWC[None, 2:]), bench.clips, bench.device)
    wanted = (np.exp(one) / np.exp(one).sum(1, keepdims=True) + np.exp(other) / np.exp(other).sum(1, keepdims=True)) / 2
    np.testing.assert_allclose(np.exp(both), wanted, rtol=1e-5)
    assert np.abs(one - other).max() > 1e-3


def test_mixed_clips_of_a_set_with_variants_are_refused(bench: Bench) -> None:
    clips_NTHWC = bench.clips.read(range(2))
    made = DistilledSet(clips_NTHWC[:1], bench.clips.labels_N[:1], bench.clips.table.classes)
    made = replace(made, form="memory", others_VNTHWC=clips_NTHWC[None, 1:])
    for augmentation in ("tsgf", "image"):
        with pytest.raises(RequestError, match=rf"has variants.*take the recipe soft, or online\+{augmentation}"):
            mixed(made, Recipe(labels="soft", augmentation=augmentation), 0, bench.clips, bench.device)


def test_classes_that_a_sure_teacher_rules_out_are_still_told_apart(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probabilities of these logits are zero in float32, and their logarithm is none."""
    made = DistilledSet(bench.clips.read(range(1)), bench.clips.labels_N[:1], bench.clips.table.classes)
    made = replace(made, others_VNTHWC=made.clips_NTHWC[None])
    monkeypatch.setattr(training, "predict", lambda *_: torch.tensor([[0.0, -200.0, -300.0]]))
    logits_NK = teacher_logits(torch.nn.Identity(), made, bench.clips, bench.device)
    np.testing.assert_allclose(logits_NK, [[0.0, -200.0, -300.0]], atol=1e-4)


# --- on tiny clips, written out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("quantile", [0.75, 0.25])
def test_guided_mix_is_a_box_of_another_clip_in_the_frames_that_are_not_salient(
    tmp_path: Path, quantile: float
) -> None:
    given = Tiny(tiny.tiny_clips(tmp_path))
    x_BCTHW = torch.stack([given.x(row, view) for row in range(6) for view in range(2)])
    parameters = GuidedMix(probability=0.7, saliency={"epsilon_quantile": quantile})
    changed = 0
    for seed in range(4):
        expected = tiny.videomix_by_loops(x_BCTHW, saliency_by_loops(x_BCTHW.numpy()), quantile, 0.7, seed, 9)
        np.testing.assert_array_equal(videomix(x_BCTHW, parameters, "tsgf", seed, 9), expected)
        changed += int((expected != x_BCTHW).sum())
    assert changed > 1000


@pytest.mark.parametrize("augmentation", ["none", "tsgf"])
def test_soft_labels_are_the_resting_teachers_for_the_clips_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augmentation: str
) -> None:
    """Algorithm 1's last lines: x ← D(x), then y ← φ(x)."""
    tiny.networks(monkeypatch, tiny.TinyTeacher)
    given, teacher = Tiny(tiny.tiny_clips(tmp_path)), tiny.tiny_teacher(5)
    store = Store(tmp_path)
    begun = given.material().chosen(np.arange(6))
    distilled = tiny.put(store, "distilled", "d", begun.save, {})
    recipe = Recipe(labels="soft", augmentation=augmentation, settings={"probability": 1.0})
    job = relabel_job(distilled, ArtifactRef(kind="clips", key="c"), tiny.kept_teacher(store, teacher), recipe, 3, "")
    job = job.model_copy(update={"parameters": job.parameters | {"precision": "fp32"}})
    run_job(job, Runtime(store=str(tmp_path), threads=1))
    made = DistilledSet.load(store.folder(job.ref))
    x_BCTHW = torch.stack([given.x(row) for row in range(6)])
    if augmentation == "tsgf":
        x_BCTHW = tiny.videomix_by_loops(x_BCTHW, saliency_by_loops(x_BCTHW.numpy()), 0.75, 1.0, 3)
        assert (made.clips_NTHWC != begun.clips_NTHWC).mean() > 0.05
    np.testing.assert_array_equal(made.clips_NTHWC, tiny.pixels(x_BCTHW).round())
    np.testing.assert_allclose(made.logits_NK, teacher.double()(x_BCTHW), atol=1e-4)
    assert np.ptp(made.logits_NK[:, 0]) > 0.01


def test_labelling_has_32_clips_on_the_device_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip of 16×112² takes 2.4 MB as float32, a set of ten thousand 24 GB."""
    seen, to_input = [], training.to_input

    def watched(clips_NTHWC: np.ndarray, *more: Any) -> torch.Tensor:
        seen.append(len(clips_NTHWC))
        return to_input(clips_NTHWC, *more)

    clips_NTHWC = np.resize(bench.clips.read([0, 1]), (70, *bench.clips.shape_THWC))
    made = DistilledSet(clips_NTHWC, np.zeros(70, dtype=np.int64), bench.clips.classes)
    teacher = load_teacher(bench.store, bench.teacher, bench.clips, bench.device)
    monkeypatch.setattr(training, "to_input", watched)
    assert teacher_logits(teacher, made, bench.clips, bench.device).shape == (70, len(bench.clips.classes))
    assert seen == [32, 32, 6]
    whole = videomix(to_input(clips_NTHWC, bench.clips.table.mean, bench.clips.table.std, bench.device), GuidedMix(),
                     "tsgf", 5)  # fmt: skip
    recipe = Recipe(labels="soft", augmentation="tsgf", settings=GuidedMix().model_dump(mode="json"))
    found = mixed(made, recipe, 5, bench.clips, bench.device)
    assert seen == [32, 32, 6] * 2
    np.testing.assert_array_equal(found.clips_NTHWC, to_pixels(whole, bench.clips))
    assert (found.clips_NTHWC != clips_NTHWC).any()
