from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from method_contract import Bench, MethodContract

from vidistill.storage import coded
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError, Stopped
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.coded.keep import boxes
from vidistill.tasks.coded.method import Coded
from vidistill.tasks.coded.pick import by_median, losses, medoids, ordered
from vidistill.tasks.coded.search import best, load_grid
from vidistill.tasks.distil import distil_jobs
from vidistill.tasks.learning.relabel import mean_logits, relabel_job, teacher_logits
from vidistill.tasks.learning.rows import draw_rows
from vidistill.tasks.methods import HARD, Recipe, find_method
from vidistill.tasks.stage import Job, listening, run_job

QUICK: dict[str, Any] = {"preset": 10, "precision": "fp32"}
SEARCH: dict[str, Any] = {
    "crfs": [20, 63],
    "scales": [1.0, 0.5],
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
        ref, _ = run_job(relabel_job(ref, given.train, method.labellers(given), recipe, seed, ""), bench.runtime)
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


def test_a_budget_below_one_clip_names_the_least_that_fits(bench):
    with pytest.raises(
        RequestError, match=r"kb 0.05 is less than one clip a class takes at crf 63: ask for at least (.+)\.$"
    ) as e:
        made_of(bench, 0.05, search=None)
    least = float(str(e.value).rpartition(" ")[2].rstrip("."))
    assert made_of(bench, least, search=None)[1] <= least * 1000 * len(bench.clips.classes)
    with pytest.raises(RequestError, match=f"at least {least:g}"):
        made_of(bench, least - 0.1, search=None)
    with pytest.raises(RequestError, match="at crf 10: ask"):
        made_of(bench, least, crf=10)


def test_coarser_only_where_one_clip_does_not_fit(bench):
    def crf(kb: float) -> int:
        ref, _ = made_of(bench, kb, search=None)
        return DistilledSet.facts_of(bench.store.folder(ref))["coded"]["crf"]

    assert crf(50.0) == 50
    with pytest.raises(RequestError) as raised:
        made_of(bench, 0.01, search=None)
    assert crf(float(str(raised.value).rpartition(" ")[2].rstrip("."))) > 50


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


def test_several_teachers_give_the_mean_of_their_probabilities(bench):
    method = Coded(Coded.Parameters(teachers=2))
    refs = method.labellers(bench.given)
    assert len(set(refs)) == 2
    assert refs[0] == bench.teacher
    networks = [bench.material((0, 1, 2), 1, 0).teacher() for _ in range(2)]
    with torch.no_grad():
        for weight in networks[1].parameters():
            weight.mul_(0.7)
    made = find_method("random").method(None).distil(bench.material((0, 1, 2), 1, 0))
    each = [
        torch.from_numpy(teacher_logits(network, made, bench.clips, bench.device)).double().softmax(1)
        for network in networks
    ]
    found = torch.from_numpy(mean_logits(networks, made, bench.clips, bench.device)).double().exp()
    torch.testing.assert_close(found, (each[0] + each[1]) / 2, atol=1e-6, rtol=1e-5)


# Picks


def test_picks_are_orders_of_all_clips(bench):
    rows = bench.clips.rows_of(1)
    network = bench.material((1,), 1, 0).teacher
    for pick in ("random", "herding", "k_center", "medium", "cluster"):
        found = ordered(pick, bench.clips, rows, 0, network, bench.device)
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


def test_views_are_drawn_by_seed_and_row():
    drawn = boxes(np.array([4, 7]), 3, 0.4, seed=1)
    assert drawn.shape == (2, 2, 3)
    np.testing.assert_array_equal(boxes(np.array([7]), 3, 0.4, seed=1)[0], drawn[1])
    assert (drawn[..., 0] >= np.floor(255 * np.sqrt(0.4))).all()
    assert (boxes(np.array([7]), 3, 0.4, seed=2)[0] != drawn[1]).any()


# Search


def test_the_search_takes_what_scores_best_within_the_budget(bench):
    ref, size = made_of(bench, 2.0, SOFT, search=SEARCH)
    facts = DistilledSet.facts_of(bench.store.folder(ref))
    (search,) = [ref for ref in bench.store.refs("coded-search") if _asks(bench, ref, 2.0, "soft")]
    grid = load_grid(bench.store.folder(search))
    assert facts["search"] == [point.model_dump() for point in grid]
    assert (best(grid).crf, best(grid).scale) == (facts["coded"]["crf"], facts["coded"]["scale"])
    assert best(grid).top1 == max(point.top1 for point in grid)
    assert size <= 2000 * 3
    assert all(point.bytes <= 2000 * 3 and 0 <= point.top1 <= 1 for point in grid)
    assert {(point.crf, point.scale) for point in grid} <= {(20, 1.0), (63, 1.0), (20, 0.5), (63, 0.5)}


def _asks(bench: Bench, ref: ArtifactRef, kb: float, labels: str) -> bool:
    parameters = bench.store.manifest(ref).parameters
    return parameters["kb"] == kb and parameters["recipe"]["labels"] == labels


def test_coarser_points_that_keep_no_more_are_left_out(bench):
    made_of(bench, 500.0, search=SEARCH)
    (search,) = [ref for ref in bench.store.refs("coded-search") if _asks(bench, ref, 500.0, "hard")]
    assert [(point.crf, point.scale) for point in load_grid(bench.store.folder(search))] == [(20, 1.0), (20, 0.5)]


def test_a_search_that_nothing_fits_says_what_would(bench):
    with pytest.raises(RequestError, match=r"kb 0.05 is less than one clip .* at crf 63: ask for at least"):
        made_of(bench, 0.05, search=SEARCH)


def test_a_search_that_was_stopped_goes_on_from_its_last_point(bench, tmp_path):
    jobs: list[Job] = []
    given = replace(bench.given, kb=3.0, add=lambda job: (jobs.append(job), job.ref)[1])
    Coded(Coded.Parameters(**QUICK, search=SEARCH | {"crfs": [25, 50, 63]})).inputs(given)

    def stop(label: str, done: int, total: int, note: str) -> None:
        if total == 6 and done == 4:
            raise Stopped("stopped")

    with listening(stop), pytest.raises(Stopped):
        run_job(jobs[-1], bench.runtime)
    checkpoints = [ref for ref in bench.store.refs("coded-search-checkpoint") if ref.key.startswith(jobs[-1].ref.key)]
    assert [ref.key.rpartition("-")[2] for ref in checkpoints] == ["00000003"]
    kept = load_grid(bench.store.folder(checkpoints[0]))
    seen: list[int] = []
    with listening(lambda label, done, total, note: seen.append(done) if total == 6 else None):
        run_job(jobs[-1], bench.runtime)
    assert seen == [4, 5, 6]
    assert load_grid(bench.store.folder(jobs[-1].ref))[: len(kept)] == kept
