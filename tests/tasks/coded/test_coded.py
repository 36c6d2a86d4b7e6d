from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from method_contract import Bench, MethodContract
from pydantic import ValidationError

from vidistill.storage import coded, streams
from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError, Stopped
from vidistill.storage.store import ArtifactRef
from vidistill.storage.streams import decode
from vidistill.tasks.coded import keep
from vidistill.tasks.coded import search as search_module
from vidistill.tasks.coded.allocate import STEPS, allocated, lost
from vidistill.tasks.coded.keep import FINEST_CRF, Budget, Coder, Coding, Footage, _most_that_hold, boxes, kept
from vidistill.tasks.coded.method import Coded
from vidistill.tasks.coded.pick import by_median, losses, ordered
from vidistill.tasks.coded.search import Found, Point, SearchParameters, best, load_search
from vidistill.tasks.coreset.herding import herd
from vidistill.tasks.coreset.k_center import farthest_first
from vidistill.tasks.coreset.medoids import medoids
from vidistill.tasks.distil import distil_jobs
from vidistill.tasks.learning.relabel import relabel_job, teacher_logits
from vidistill.tasks.learning.rows import draw_rows
from vidistill.tasks.learning.training import predict, to_input
from vidistill.tasks.learning.trial import fifths
from vidistill.tasks.methods import HARD, Recipe, find_method
from vidistill.tasks.stage import Job, listening, run_job
from vidistill.tasks.videos.decode import block_jobs, clips_job

QUICK: dict[str, Any] = {"preset": 10, "precision": "fp32"}
SEARCH: dict[str, Any] = {
    "crfs": [20, 63],
    "scales": [1.0, 0.5],
    "steps": 8,
    "student": {"epochs": 1, "least_steps": 2, "precision": "fp32"},
}
SOFT = Recipe(labels="soft", temperature=2.0)


class TestCoded(MethodContract):
    spec = "coded"
    options = QUICK


class TestHerded(MethodContract):
    spec = "coded"
    options = QUICK | {"pick": "herding", "crf": 40}
    seeded = False


def made_of(bench: Bench, kb: float, recipe: Recipe = HARD, seed: int = 0, **options: Any) -> tuple[ArtifactRef, int]:
    """A set within a budget by the run's own stages, labelled where the recipe is soft, and its bytes."""
    source = find_method("coded")
    method = source.method(source.method.Parameters(**QUICK | options))
    given = replace(bench.given, kb=kb, recipe=recipe)
    inputs = {"clips": [given.train], **method.inputs(given)}
    soft = recipe.labels == "soft"
    (job,) = distil_jobs(source, method.parameters, 1, seed, len(bench.clips.classes), inputs, "", kb=kb, soft=soft)
    ref, _ = run_job(job, bench.runtime)
    if soft:
        ref, _ = run_job(relabel_job(ref, given.train, bench.teacher, recipe, seed, ""), bench.runtime)
    return ref, DistilledSet.training_bytes(bench.store.folder(ref))


@pytest.mark.parametrize("recipe", [HARD, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("views", [1, 3])
def test_a_set_stays_within_its_budget_to_the_byte(bench, recipe, views):
    classes = len(bench.clips.classes)
    both, most = made_of(bench, 1e3, recipe, crf=40, views=views)
    assert np.bincount(DistilledSet.load(bench.store.folder(both)).labels_N).tolist() == [2 * views] * classes
    assert made_of(bench, most / classes / 1000, recipe, crf=40, views=views)[1] == most
    one, size = made_of(bench, (most - 1) / classes / 1000, recipe, crf=40, views=views)
    assert size < most
    assert np.bincount(DistilledSet.load(bench.store.folder(one)).labels_N).tolist() == [views] * classes


def least_of(bench: Bench, **options: Any) -> float:
    """The kilobytes that the clips of the first seed take, as the error of a smaller budget says."""
    said = r"kb 0.01 is less than one clip a class takes at crf 63: the clips of this draw take (\S+), those of other s"
    with pytest.raises(RequestError, match=said) as raised:
        made_of(bench, 0.01, **options)
    return float(re.search(said, str(raised.value))[1])


def test_a_budget_below_one_clip_says_what_these_clips_take(bench):
    least = least_of(bench, search=None)
    assert made_of(bench, least, search=None)[1] <= least * 1000 * len(bench.clips.classes)
    with pytest.raises(RequestError, match=f"this draw take {least:g},"):
        made_of(bench, least - 0.1, search=None)
    with pytest.raises(RequestError, match="at crf 10: the clips"):
        made_of(bench, least, crf=10)


def test_coarser_only_where_one_clip_does_not_fit(bench):
    def crf(kb: float) -> int:
        ref, _ = made_of(bench, kb, search=None)
        return DistilledSet.facts_of(bench.store.folder(ref))["coded"]["crf"]

    least = least_of(bench, search=None)
    assert crf(least) > crf(2 * least)


def test_random_keeps_the_clips_that_random_draws(bench):
    ref, _ = made_of(bench, 50.0, search=None, seed=3)
    made = DistilledSet.load(bench.store.folder(ref))
    rows = [bench.clips.table.videos[row].path for row in draw_rows(bench.clips, (0, 1, 2), 2, 3)]
    assert sorted(made.sources) == sorted(rows)
    assert made.labels_N.tolist() == sorted(made.labels_N.tolist())
    ordered_rows = {video.path: row for row, video in enumerate(bench.clips.table.videos)}
    real = bench.clips.read([ordered_rows[source] for source in made.sources])
    assert np.abs(made.clips_NTHWC.astype(int) - real).mean() < 25


def test_soft_labels_are_the_teachers_for_what_is_decoded(bench):
    ref, _ = made_of(bench, 50.0, SOFT, search=None, views=2, crf=40)
    made = DistilledSet.load(bench.store.folder(ref))
    network = bench.material((0, 1, 2), 1, 0).teacher()
    plain = replace(made, form="clips", stored={}, logits_NK=None)
    expected = teacher_logits(network, plain, bench.clips, bench.device)
    np.testing.assert_allclose(made.logits_NK, expected, atol=0.01)  # bf16 where the CPU has it
    np.testing.assert_array_equal(made.logits_NK, coded.rounded(made.logits_NK))
    assert len(made) == 2 * len(set(made.sources))


# Picks


def test_picks_are_orders_of_all_clips(bench):
    rows = bench.clips.rows_of(1)
    network = bench.material((1,), 1, 0).teacher
    emb_ND = np.random.default_rng(0).normal(size=(len(bench.clips), 5))
    for pick in ("random", "herding", "k_center", "medium", "cluster"):
        found = ordered(pick, bench.clips, rows, 0, network, lambda: emb_ND, bench.device)
        assert sorted(found.tolist()) == rows.tolist()


def test_medium_takes_the_median_first():
    assert by_median(np.array([9.0, 1.0, 3.0, 2.5, 100.0])).tolist()[:3] == [2, 3, 1]


def test_losses_are_the_teachers(bench):
    network = bench.material((0,), 1, 0).teacher()
    rows = np.arange(len(bench.clips))
    made = find_method("random").method(None).distil(bench.material((0, 1, 2), 2, 0))
    logits = torch.from_numpy(teacher_logits(network, made, bench.clips, bench.device)).double()
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(made.labels_N), reduction="none")
    found = losses(network, bench.clips, rows, bench.device)
    by_path = {video.path: found[row] for row, video in enumerate(bench.clips.table.videos)}
    np.testing.assert_allclose([by_path[source] for source in made.sources], expected.numpy(), rtol=1e-3, atol=1e-4)


def test_cluster_takes_the_middle_of_the_largest_cluster_then_the_next():
    emb = np.array([[0.0], [0.1], [0.2], [0.3], [0.4], [0.5], [10.0], [10.1], [10.2]])
    assert medoids(emb, 2).tolist() == [4, 7]
    assert sorted(medoids(emb, 9).tolist()) == list(range(9))


@pytest.mark.parametrize("seed", range(5))
def test_cluster_is_the_greedy_choice_by_loops(seed):
    emb = np.random.default_rng(seed).normal(size=(9, 4))
    chosen: list[int] = []
    for _ in range(6):
        left = [row for row in range(9) if row not in chosen]
        total = {row: sum(min(math.dist(one, emb[c]) for c in [*chosen, row]) for one in emb) for row in left}
        chosen.append(min(total, key=total.__getitem__))
    assert medoids(emb, 6).tolist() == chosen


@pytest.mark.parametrize("seed", range(5))
def test_medium_is_by_the_distance_from_the_median(seed):
    loss = np.random.default_rng(seed).exponential(size=7)
    middle = sorted(loss.tolist())[3]
    assert by_median(loss).tolist() == sorted(range(7), key=lambda row: abs(loss[row] - middle))


def test_views_are_drawn_by_seed_and_row():
    drawn = boxes(np.array([4, 7]), 3, 0.4, seed=1)
    assert drawn.shape == (2, 2, 3)
    np.testing.assert_array_equal(boxes(np.array([7]), 3, 0.4, seed=1)[0], drawn[1])
    assert (drawn[..., 0] >= np.floor(255 * np.sqrt(0.4))).all()
    assert (boxes(np.array([7]), 3, 0.4, seed=2)[0] != drawn[1]).any()


# Quantisers


def coded_facts(bench: Bench, kb: float, recipe: Recipe = HARD, **options: Any) -> dict[str, Any]:
    ref, _ = made_of(bench, kb, recipe, **options)
    return DistilledSet.facts_of(bench.store.folder(ref))["coded"]


def test_what_is_left_of_a_budget_is_spent_on_a_finer_quantiser(bench):
    """The same clips at the next finer one have no room, where there is one."""
    _, rough = made_of(bench, 1e3, crf=50, search=None)
    kb = 1.4 * rough / 3000
    facts = coded_facts(bench, kb, search=None)
    assert facts["clips"] == 6
    assert 20 < facts["crf"] < 50
    assert made_of(bench, 1e3, crf=facts["crf"])[1] <= kb * 3000 < made_of(bench, 1e3, crf=facts["crf"] - 1)[1]
    assert coded_facts(bench, 1e3, search=None)["crf"] == FINEST_CRF
    assert coded_facts(bench, kb, crf=50)["crf"] == 50


def test_every_frame_at_the_quantiser_is_asked_of_search_and_set_alike(bench, monkeypatch):
    asked = set()
    encode = Coding.encode
    monkeypatch.setattr(Coding, "encode", lambda self, clips: (asked.add(self.even), encode(self, clips))[1])
    facts = coded_facts(bench, 8, search=SEARCH, even=True)
    assert (asked, facts["even"]) == ({True}, True)


def test_clips_are_coded_once_at_each_quantiser(bench, monkeypatch):
    coder = Coder(Footage(bench.clips), Coding(preset=10))
    asked: list[tuple[int, int]] = []
    encode = Coding.encode
    monkeypatch.setattr(
        Coding, "encode", lambda self, clips: (asked.append((self.crf, len(clips))), encode(self, clips))[1]
    )
    mixed = coder.stream([0, 1, 2, 0], [40, 50, 40, 40])
    assert coder.stream([2, 1], [40, 50]).clips == (mixed.clips[2], mixed.clips[1])
    assert asked == [(40, 2), (50, 1)]
    assert mixed.clips[3] == mixed.clips[0]
    alone = [Coding(crf=crf, preset=10).encode(bench.clips.read([row])) for row, crf in ((0, 40), (1, 50), (2, 40))]
    np.testing.assert_array_equal(decode(mixed)[:3], np.concatenate([decode(one) for one in alone]))


def by_hand(rate: np.ndarray, loss: np.ndarray, limit: float) -> float:
    """The least loss within a limit of bytes, of all ways."""
    ways = itertools.product(range(len(rate)), repeat=rate.shape[1])
    every = np.arange(rate.shape[1])
    return min(loss[way, every].sum() for way in map(list, ways) if rate[way, every].sum() <= limit)


def test_a_quantiser_a_clip_loses_less_in_no_more_bytes(bench):
    """Beside every way of giving six clips one of six quantisers; what the teacher loses is its KL in float64."""
    material = bench.material((0, 1, 2), 1, 0)
    teacher, coder = material.teacher(), Coder(Footage(bench.clips), Coding(preset=10))
    budget = Budget(None, 2, 3, 1, False)
    found = kept(coder, [np.array([0, 1]), np.array([2, 3]), np.array([4, 5])], 44, budget)
    made = allocated(coder, found, budget, teacher, bench.device)
    crfs, rows = sorted({44 + step for step in STEPS}), found.rows_N.tolist()
    streams = [coder.stream(rows, crf) for crf in crfs]

    def probabilities(clips: np.ndarray) -> torch.Tensor:
        x = to_input(clips, bench.clips.table.mean, bench.clips.table.std, bench.device)
        return predict(teacher, iter([x]), bench.device).double().softmax(1)

    real = probabilities(bench.clips.read(rows))
    loss = np.stack([(real * (real / probabilities(decode(stream))).log()).sum(1).numpy() for stream in streams])
    np.testing.assert_allclose(lost(bench.clips, rows, streams, teacher, bench.device), loss, atol=1e-9)
    rate = np.array([[len(clip) for clip in stream.clips] for stream in streams])
    own = loss[np.searchsorted(crfs, made.crf_N), np.arange(6)].sum()
    assert budget.size(made.stream, 6) <= budget.size(found.stream, 6)
    assert made.rows_N.tolist() == rows
    same, least = loss[crfs.index(44)].sum(), by_hand(rate, loss, rate[crfs.index(44)].sum())
    assert least - 1e-12 <= own < (same + least) / 2
    free = allocated(coder, found, replace(budget, kb=1e3), teacher, bench.device)
    np.testing.assert_array_equal(free.crf_N, np.array(crfs)[loss.argmin(0)])


def test_a_quantiser_a_clip_keeps_to_the_budget(bench):
    plain = coded_facts(bench, 3.0, SOFT, search=None)
    ref, size = made_of(bench, 3.0, SOFT, search=None, per_clip=True)
    facts = DistilledSet.facts_of(bench.store.folder(ref))["coded"]
    assert facts["clips"] == plain["clips"]
    assert len(facts["crf"]) > 1
    assert size <= 3000 * 3


# Together


@pytest.mark.parametrize("recipe", [HARD, SOFT], ids=["hard", "soft"])
def test_clips_together_take_fewer_bytes_and_keep_to_the_budget(bench, recipe):
    (_, apart), (ref, most) = (made_of(bench, 1e3, recipe, crf=40, together=own, views=2) for own in (False, True))
    assert most < apart
    made = DistilledSet.load(bench.store.folder(ref))
    assert np.bincount(made.labels_N).tolist() == [4] * 3
    rows = {video.path: row for row, video in enumerate(bench.clips.table.videos)}
    raw = bench.clips.read([rows[source] for source in made.sources[::2]])
    assert np.abs(made.clips_NTHWC[::2].astype(int) - raw).mean() < 12
    assert coded_facts(bench, 1e3, recipe, crf=40, together=True, views=2)["together"]
    assert made_of(bench, most / 3000, recipe, crf=40, together=True, views=2)[1] == most
    one, size = made_of(bench, (most - 1) / 3000, recipe, crf=40, together=True, views=2)
    assert size < most
    assert len(DistilledSet.load(bench.store.folder(one))) == 6


def test_a_part_is_the_named_corner_of_the_picture():
    clip_THWC = np.zeros((1, 20, 40, 3), np.uint8)
    for row, column in itertools.product(range(2), range(2)):
        clip_THWC[:, 10 * row : 10 * row + 10, 20 * column : 20 * column + 20] = 50 * (2 * row + column + 1)
    corners = {(top, left): coded.part(clip_THWC, np.array([128, top, left])) for top in (0, 255) for left in (0, 255)}
    assert {place: np.unique(part).tolist() for place, part in corners.items()} == {
        (0, 0): [50], (0, 255): [100], (255, 0): [150], (255, 255): [200],
    }  # fmt: skip


def test_views_are_drawn_clip_by_clip_with_an_area_of_even_odds():
    rows_N = np.arange(200)
    drawn_NV3 = boxes(rows_N, 4, 0.4, 0)
    assert len({box.tobytes() for box in drawn_NV3}) == 200
    assert np.array_equal(drawn_NV3[7], boxes(np.array([7]), 4, 0.4, 0)[0])
    area = (drawn_NV3[..., 0] / 255.0) ** 2
    assert (area.min() >= 0.39, area.max() <= 1) == (True, True)
    assert np.quantile(area, [0.25, 0.5, 0.75]) == pytest.approx([0.55, 0.7, 0.85], abs=0.03)


def test_denser_footage_is_thinned_to_the_frames_that_are_kept(bench):
    """Of clips of four frames, made four times as dense: twice as many are every second of the sixteen."""
    videos = bench.clips.table.videos

    class Dense:
        shape_THWC = (16, *bench.clips.shape_THWC[1:])
        table = bench.clips.table.model_copy(update={"videos": videos[::-1]})

        def read(self, rows):
            return np.array(rows, np.uint8)[:, None] * 20 + np.arange(16, dtype=np.uint8)

    kept_N8 = Footage(bench.clips, 2.0, Dense()).read([1, 0])
    last = len(videos) - 1
    assert kept_N8.tolist() == [[20 * row + frame for frame in range(0, 16, 2)] for row in (last - 1, last)]


def test_a_video_that_was_lost_at_the_smaller_interval_is_in_no_set(bench):
    videos = bench.clips.table.videos

    class Dense:
        shape_THWC = (16, *bench.clips.shape_THWC[1:])
        table = bench.clips.table.model_copy(update={"videos": videos[1:]})

        def read(self, rows):
            return bench.clips.read([row + 1 for row in rows]).repeat(4, axis=1)

    options, tables = Coded.Parameters(**QUICK, search=None, frames=2.0, crf=50), iter([Dense()])  # it is read once
    made = Coded(options).distil(replace(bench.material((0, 1, 2), 1, 0), kb=50.0, more_clips=lambda _: next(tables)))
    assert set(made.sources) == {video.path for video in videos[1:]}


@pytest.mark.parametrize("together", [False, True])
def test_what_is_kept_is_compared_some_clips_at_a_time(bench, monkeypatch, together):
    monkeypatch.setattr(keep, "AT_ONCE", 2)
    coder = keep.Coder(Footage(bench.clips), keep.Coding(), together=together)
    found = keep.kept(coder, [bench.clips.rows_of(label) for label in range(3)], 40, keep.Budget(None, 1, 3, 1, False))
    whole_NTHWC = bench.clips.read(found.rows_N.tolist())
    decoded_NTHWC = streams.decode(found.stream).reshape(whole_NTHWC.shape)
    assert keep.loss_of(coder, found) == keep.psnr(whole_NTHWC, decoded_NTHWC) < 60


def test_psnr_is_the_mean_of_the_clips():
    clips_NTHWC = np.zeros((2, 1, 4, 4, 3), np.uint8)
    other_NTHWC = clips_NTHWC + np.array([1, 10], np.uint8)[:, None, None, None, None]
    assert keep.psnr(clips_NTHWC, other_NTHWC) == pytest.approx(20 * math.log10(255) - 10, abs=0.01)
    assert keep.psnr(clips_NTHWC, clips_NTHWC) == 99


@pytest.mark.parametrize(("pick", "of"), [("herding", herd), ("k_center", farthest_first), ("cluster", medoids)])
def test_clips_are_picked_as_their_coresets_choose(bench, pick, of):
    features_ND = np.random.default_rng(3).normal(size=(30, 5))
    rows_N = np.arange(10, 30)
    chosen_N = ordered(pick, bench.clips, rows_N, 0, lambda: None, lambda: features_ND, bench.device)
    assert chosen_N.tolist() == rows_N[of(features_ND[rows_N], 20)].tolist()
    assert chosen_N.tolist() != rows_N.tolist()


def test_together_keeps_no_more_than_a_stream_holds(bench, monkeypatch):
    for module in (keep, streams):
        monkeypatch.setattr(module, "MOST_FRAMES", 20)  # of 3 classes × 4 frames: one clip a class, where two have room
    ref, _ = made_of(bench, 1e3, crf=41, together=True)
    assert DistilledSet.facts_of(bench.store.folder(ref))["coded"]["clips"] == 3


def test_together_is_searched_alike_and_has_one_quantiser(bench):
    ref, _ = made_of(bench, 1.7, search=SEARCH, together=True, frames=0.5)
    assert DistilledSet.load(bench.store.folder(ref)).clips_NTHWC.shape[1] == 4
    assert all(point.bytes <= 1700 * 3 for point in searched(bench, 1.7, "hard").points)
    with pytest.raises(RequestError, match=r"together has one quantiser, and coded.per_clip one a clip: choose"):
        made_of(bench, 2.0, together=True, per_clip=True)
    assert "together" not in Coded.Parameters().model_dump(mode="json")


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 9, 53])
def test_as_many_as_hold_are_found_by_few_trials(most):
    for right in range(most + 1):
        tried: list[int] = []
        assert _most_that_hold(lambda count: (tried.append(count), count <= right)[1], most) == right  # noqa: B023
        assert max(tried) <= max(1, 2 * right)
        assert len(set(tried)) <= 2 * math.ceil(math.log2(most + 1)) + 1


# Frames


def test_denser_frames_are_drawn_with_a_shift(bench):
    ref, size = made_of(bench, 50.0, SOFT, frames=2, crf=30)
    made = DistilledSet.load(bench.store.folder(ref))
    assert size <= 150_000
    assert made.others_VNTHWC is not None
    assert made.others_VNTHWC.shape == (1, *made.clips_NTHWC.shape)
    every = (Clips(bench.store, one) for one in bench.store.refs("clips"))
    (clips,) = (one for one in every if one.shape_THWC == (8, 48, 48, 3))
    rows = {video.path: row for row, video in enumerate(clips.table.videos)}
    raw = clips.read([rows[source] for source in made.sources])
    for first, shown in enumerate((made.clips_NTHWC, made.others_VNTHWC[0])):
        errors = [np.abs(shown.astype(int) - raw[:, start::2]).mean() for start in (0, 1)]
        assert np.argmin(errors) == first
        assert min(errors) < 8
    assert DistilledSet.facts_of(bench.store.folder(ref))["coded"]["frames"] == 2


def test_half_of_the_frames_take_fewer_bytes_and_are_filled_in(bench):
    (whole, all_bytes), (half, bytes_of_half) = (made_of(bench, 50.0, frames=share, crf=30) for share in (1.0, 0.5))
    assert bytes_of_half < all_bytes
    made, other = (DistilledSet.load(bench.store.folder(ref)) for ref in (half, whole))
    assert made.clips_NTHWC.shape == other.clips_NTHWC.shape
    between = (made.clips_NTHWC[:, 0].astype(int) + made.clips_NTHWC[:, 2] + 1) // 2
    np.testing.assert_array_equal(made.clips_NTHWC[:, 1], between)
    np.testing.assert_array_equal(made.clips_NTHWC[:, 3], made.clips_NTHWC[:, 2])


@pytest.mark.parametrize("frames", [0.3, 0.75, 4 / 3, 3, 8])
def test_a_share_that_divides_no_frames_is_a_wrong_request(bench, frames):
    with pytest.raises(RequestError, match=rf"coded.frames {frames:g} does not divide 4 frames at an interval of 4"):
        made_of(bench, 5.0, frames=frames, search=None)


@pytest.mark.parametrize("search", [None, SEARCH], ids=["as told", "searched"])
def test_parts_of_a_picture_are_as_large_as_asked(bench, monkeypatch, search):
    asked = []

    def noted(rows_N, views, view_scale, seed):
        asked.append(view_scale)
        return boxes(rows_N, views, view_scale, seed)

    monkeypatch.setattr(keep, "boxes", noted)
    ref, _ = made_of(bench, 5.0, search=search, views=3, view_scale=0.9)
    shares_NV = DistilledSet.load(bench.store.folder(ref)).stored["boxes"][..., 0]
    assert (shares_NV >= np.round(255 * 0.9**0.5)).all()
    assert set(asked) == {0.9}
    assert (len(asked) > 1) == (search is not None)


# Search


def test_the_search_takes_what_scores_best_within_the_budget(bench):
    ref, size = made_of(bench, 2.0, SOFT, search=SEARCH)
    facts = DistilledSet.facts_of(bench.store.folder(ref))
    found = searched(bench, 2.0, "soft")
    assert facts["search"] == [point.model_dump() for point in found.points]
    assert found.best in found.points
    assert found.best.top1 == max(point.top1 for point in found.points if point.students == found.best.students)
    assert (found.best.scale, found.best.frames) == (facts["coded"]["scale"], facts["coded"]["frames"])
    assert facts["coded"]["crf"] <= found.best.crf
    assert size <= 2000 * 3
    assert all(point.bytes <= 2000 * 3 and 0 <= point.top1 <= 1 for point in found.points)
    assert {(point.crf, point.scale) for point in found.points} <= {(20, 1.0), (63, 1.0), (20, 0.5), (63, 0.5)}


def searched(bench: Bench, kb: float, labels: str) -> Found:
    """The search of this budget."""
    found = {ref: bench.store.manifest(ref).parameters for ref in bench.store.refs("coded-search")}
    (ref,) = [one for one, own in found.items() if (own["kb"], own["recipe"]["labels"]) == (kb, labels)]
    return load_search(bench.store.folder(ref))


def test_points_that_keep_the_same_clips_are_tried_once(bench):
    made_of(bench, 500.0, search=SEARCH)
    points = searched(bench, 500.0, "hard").points
    assert sorted((point.crf, point.coarsest, point.scale) for point in points) == [(20, 63, 0.5), (20, 63, 1.0)]


def test_of_quantisers_that_tied_the_one_is_taken_that_keeps_more_of_all_clips(bench):
    """Four fifths have one clip a class, with room at 20 as at 63; all of them have two, with room at 63 alone."""
    fine, coarse = (made_of(bench, 1e3, crf=crf, search=None)[1] for crf in (20, 63))
    assert coarse < 0.7 * fine
    ref, _ = made_of(bench, 0.7 * fine / 3000, search=SEARCH | {"scales": [1.0]})
    facts = DistilledSet.facts_of(bench.store.folder(ref))
    assert [(one["crf"], one["coarsest"], one["clips"]) for one in facts["search"]] == [(20, 63, 3)]
    assert facts["coded"]["clips"] == 6
    assert 20 < facts["coded"]["crf"] < 63


def test_where_the_quantiser_of_a_tie_has_no_room_for_this_draw_a_coarser_one_is_taken(bench, monkeypatch):
    fine, coarse = (made_of(bench, 1e3, crf=crf, search=None)[1] for crf in (20, 63))
    tied = Point(crf=20, coarsest=40, scale=1, frames=1, clips=3, bytes=9)
    monkeypatch.setattr("vidistill.tasks.coded.method.load_search", lambda folder: Found(points=(tied,), best=tied))
    assert coarse < 0.45 * fine
    facts = coded_facts(bench, 0.45 * fine / 3000, search=SEARCH | {"scales": [1.0]})
    assert facts["crf"] > 20
    assert facts["clips"] >= 3


def test_what_is_given_is_not_searched(bench):
    made_of(bench, 501.0, search=SEARCH, scale=0.75, frames=0.5)
    assert {(point.scale, point.frames) for point in searched(bench, 501.0, "hard").points} == {(0.75, 0.5)}


def test_a_class_of_one_video_is_said_before_the_search_and_needs_none(bench):
    videos = tuple(video for video in bench.given.table.videos if video.label or video.split == "test")
    alone = next(video for video in bench.given.table.videos if not video.label and video.split == "train")
    given = replace(bench.given, table=bench.given.table.model_copy(update={"videos": (alone, *videos)}), kb=50.0)
    with pytest.raises(RequestError, match=r"a fifth of the training split, and class .* one .*coded\.search=null"):
        Coded(Coded.Parameters(**QUICK)).inputs(given)
    Coded(Coded.Parameters(**QUICK, search=None)).inputs(given)


def test_the_search_uses_the_recipes_labels_and_every_stored_view(bench, monkeypatch):
    """A student is trained on the teacher's outputs for what is decoded, and scored on held-out clips alone."""
    seen: list[tuple[Any, ...]] = []
    plain = search_module.DistilledBatches
    monkeypatch.setattr(search_module, "DistilledBatches", lambda *given: (seen.append(given), plain(*given))[1])
    train, asked = search_module.training.train, []
    monkeypatch.setattr(
        search_module.training, "train", lambda *given, **more: (asked.append(more), train(*given, **more))[1]
    )
    averaged = SEARCH | {"student": SEARCH["student"] | {"average": 0.5}}
    made_of(bench, 7.0, SOFT, search=averaged)
    assert {(more["temperature"], more["average"]) for more in asked} == {(SOFT.temperature, 0.5)}
    asked.clear()
    made_of(bench, 7.5, search=SEARCH)
    assert {(more["temperature"], more["average"]) for more in asked} == {(1.0, 0.0)}
    soft, hard = ([given for given in seen if given[2].labels == labels] for labels in ("soft", "hard"))
    teacher = bench.material((0, 1, 2), 1, 0).teacher()
    made = soft[0][0]
    expected = teacher_logits(teacher, replace(made, logits_NK=None), bench.clips, bench.device)
    np.testing.assert_allclose(made.logits_NK, expected, atol=0.01)
    assert all(given[0].logits_NK is None for given in hard)
    _, held = fifths(bench.clips.table.videos, bench.clips.classes)
    kept_out = {bench.clips.table.videos[row].path for row in held}
    assert not kept_out & {source for given in seen for source in given[0].sources}


@pytest.mark.parametrize(
    ("points", "steps", "rounds"),
    [
        (8, 4800, [(8, 2), (4, 4), (2, 8)]),
        (10, 1, [(10, 2), (5, 1), (3, 1), (2, 1)]),
        (2, 4000, [(2, 20)]),
        (1, 4000, []),
    ],
)
def test_each_round_has_the_better_half_and_as_many_steps(points, steps, rounds):
    found = SearchParameters(student={"epochs": 1, "least_steps": 100}, steps=steps).rounds(points)
    assert found == rounds


def test_students_go_to_the_points_that_score_best(bench, monkeypatch):
    """Two students for each of four points, then four for each of the better two."""
    tops = {(20, 1.0): 0.2, (63, 1.0): 0.5, (20, 0.5): 0.9, (63, 0.5): 0.3}
    seeds: list[tuple[int, float, int]] = []

    def score(_: Any, point: Point, seed: int) -> float:
        seeds.append((point.crf, point.scale, seed))
        return tops[point.crf, point.scale]

    grid = [Point(crf=crf, coarsest=crf, scale=scale, frames=1, clips=3, bytes=9) for crf, scale in tops]
    monkeypatch.setattr(search_module.Trials, "points", lambda _: grid)
    monkeypatch.setattr(search_module.Trials, "score", score)
    made_of(bench, 1.9, search=SEARCH | {"steps": 32})
    found = searched(bench, 1.9, "hard")
    assert {(point.crf, point.scale): point.students for point in found.points} == {
        (20, 1.0): 2, (63, 1.0): 6, (20, 0.5): 6, (63, 0.5): 2,
    }  # fmt: skip
    assert (found.best.crf, found.best.scale, found.best.top1) == (20, 0.5, pytest.approx(0.9))
    assert [seed for crf, scale, seed in seeds if (crf, scale) == (20, 0.5)] == list(range(6))


@pytest.fixture
def twice(bench) -> ArtifactRef:
    """The training clips with two stored views each."""
    decode_twice = bench.given.decode.model_copy(update={"views": 2, "interval": 1})
    blocks = block_jobs(bench.given.table, decode_twice, "train")
    for job in (*blocks, last := clips_job(bench.given.index, decode_twice, "train", blocks)):
        run_job(job, bench.runtime)
    return last.ref


def test_a_student_s_score_is_the_share_of_views_of_held_out_clips_that_it_tells(bench, twice, monkeypatch):
    """Of three clips with two views each it takes one view for another class."""
    clips, shown = Clips(bench.store, twice), []
    _, held_N = fifths(clips.table.videos, clips.classes)
    told_N = [*clips.labels_N[held_N], *clips.labels_N[held_N]]
    told_N[-1] = told_N[-2]

    def predict(_network: Any, batches: Any, _device: Any) -> torch.Tensor:
        shown.append(torch.cat(list(batches)))
        return torch.eye(len(clips.classes))[told_N]

    monkeypatch.setattr(search_module.training, "train", lambda *_, **__: None)
    monkeypatch.setattr(search_module.training, "predict", predict)
    made_of(replace(bench, given=replace(bench.given, train=twice)), 502.0, search=SEARCH | {"crfs": [63]})
    points = searched(bench, 502.0, "hard").points
    assert [point.top1 for point in points] == pytest.approx([5 / 6] * 2)
    raw = np.concatenate([clips.read(held_N, 0), clips.read(held_N, 1)])
    assert len(shown) == sum(point.students for point in points) > 0
    for x_BCTHW in shown:
        torch.testing.assert_close(x_BCTHW, to_input(raw, clips.table.mean, clips.table.std, bench.device))


def test_every_stored_view_of_a_clip_is_looked_at(bench, twice):
    clips, rows = Clips(bench.store, twice), np.array([1, 4])
    found = torch.cat(list(search_module.every_view(clips, rows, bench.device)))
    raw = np.concatenate([clips.read(rows, 0), clips.read(rows, 1)])
    torch.testing.assert_close(found, to_input(raw, clips.table.mean, clips.table.std, bench.device))
    assert (raw[:2] != raw[2:]).any()


def test_the_better_half_goes_on_and_ties_go_to_more_clips():
    def point(crf: int, clips: int, students: int, top1: float) -> Point:
        return Point(crf=crf, coarsest=crf, scale=1, frames=1, clips=clips, bytes=9, students=students, top1=top1)

    points = [point(40, 3, 4, 0.50), point(46, 6, 4, 0.495), point(52, 9, 4, 0.48), point(58, 99, 2, 0.9)]
    assert best(points, held=100).crf == 46
    assert best(points, held=1000).crf == 40
    assert best(points, held=10).crf == 52
    assert point(40, 3, 1, 0.5).scored(0.8).top1 == pytest.approx(0.65)
    assert point(40, 3, 3, 0.5).scored(0.9) == point(40, 3, 4, 0.6)


def test_a_search_that_nothing_fits_says_what_would(bench):
    assert 0.1 <= least_of(bench, search=SEARCH) < 2


def test_a_seed_whose_clips_take_more_is_tried_coarser(bench, monkeypatch):
    """The first student's clips are the smallest of their classes and just fit; the second's are the largest."""
    coder = Coder(Footage(bench.clips), Coding(preset=10))
    orders = [sorted(bench.clips.rows_of(label), key=lambda row: len(coder.stream([int(row)], 40).clips[0]))
              for label in range(3)]  # fmt: skip
    smallest = coder.stream([int(rows[0]) for rows in orders], 40)
    kb = Budget(None, 1, 3, 1, False).size(smallest, 3) / 3000
    every = np.arange(len(bench.clips))
    monkeypatch.setattr(search_module, "fifths", lambda *_: (every, every[:3]))

    def by_size(_pick: str, _clips: Clips, rows_N: np.ndarray, seed: int, *_: Any) -> np.ndarray:
        return np.array(orders[bench.clips.labels_N[rows_N[0]]][:: -1 if seed else 1])

    monkeypatch.setattr(search_module, "ordered", by_size)
    made_of(bench, kb, search=SEARCH | {"crfs": [40, 63], "scales": [1.0]})
    assert {(point.crf, point.students) for point in searched(bench, kb, "hard").points} == {(40, 2), (63, 2)}


@pytest.mark.parametrize(("pick", "once"), [("medium", True), ("random", False)])
def test_an_order_that_no_seed_changes_is_found_once(bench, monkeypatch, pick, once):
    asked: list[int] = []
    monkeypatch.setattr(search_module, "ordered", lambda *given: (asked.append(given[3]), ordered(*given))[1])
    made_of(bench, 3.1, pick=pick, search=SEARCH | {"crfs": [25, 63]})
    assert (len(asked) == 3) == once  # of each class; each seed has its own where they are drawn


def test_a_class_that_the_denser_clips_lost_is_said(bench, monkeypatch):
    videos = bench.clips.table.videos

    class Dense:
        table = bench.clips.table.model_copy(update={"videos": videos[2:]})

    said = f"more clips than the class {bench.clips.classes[0]!r} has \\(0 usable"
    options = Coded.Parameters(**QUICK, search=None, frames=2.0)
    with pytest.raises(RequestError, match=said):
        Coded(options).distil(replace(bench.material((0, 1, 2), 1, 0), more_clips=lambda _: Dense()))
    monkeypatch.setattr(search_module, "dense_clips", lambda _: Dense())
    with pytest.raises(RequestError, match=said):
        made_of(bench, 9.0, search=SEARCH)


def test_a_set_whose_budget_searches_nothing_is_the_same_whatever_would_be_searched(bench):
    def key(kb: float | None, crf: int | None, network: str) -> str:
        source = find_method("coded")
        options = source.method.Parameters(**QUICK, crf=crf, search=SEARCH | {"network": network})
        return distil_jobs(source, options, 1, 0, 3, {"clips": [bench.given.train]}, "", kb=kb)[0].ref.key

    for kb, crf, alike in ((None, None, True), (5.0, 40, True), (5.0, None, False)):
        keys = {key(kb, crf, network) for network in ("minic3d", "centred:minic3d")}
        assert (len(keys) == 1) == alike


def test_a_search_that_was_stopped_goes_on_from_its_last_student(bench):
    jobs: list[Job] = []
    given = replace(bench.given, kb=3.0, add=lambda job: (jobs.append(job), job.ref)[1])
    Coded(Coded.Parameters(**QUICK, search=SEARCH | {"crfs": [25, 63]})).inputs(given)

    def stop(label: str, done: int, total: int, note: str) -> None:
        if label == jobs[-1].label and done == 4:
            raise Stopped("stopped")

    with listening(stop), pytest.raises(Stopped):
        run_job(jobs[-1], bench.runtime)
    checkpoints = [ref for ref in bench.store.refs("coded-search-checkpoint") if ref.key.startswith(jobs[-1].ref.key)]
    assert [ref.key.rpartition("-")[2] for ref in checkpoints] == ["00000004"]
    trained: list[int] = []
    plain = search_module.Trials.score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module.Trials, "score", lambda *given: (trained.append(given[2]), plain(*given))[1])
        run_job(jobs[-1], bench.runtime)
    found = load_search(bench.store.folder(jobs[-1].ref))
    assert len(trained) == sum(point.students for point in found.points) - 4


@pytest.mark.parametrize("changed", [{"scales": [2.0]}, {"scales": [0]}, {"frames": [-1]}, {"frames": [0]}], ids=str)
def test_a_grid_of_shares_that_no_clip_can_have_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"greater than|less than"):
        Coded.Parameters(search=SEARCH | changed)
