from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from method_contract import Bench

from vidistill.storage.distilled import DistilledSet
from vidistill.tasks.learning.relabel import GuidedMix, derangement, draw_box, teacher_logits, videomix
from vidistill.tasks.learning.saliency import saliency, threshold


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
