"""Coresets against brute force in float64, written by other formulas."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from listed import table

from vidistill.flows.experiment import build as build_graph
from vidistill.flows.fronts import with_front
from vidistill.flows.parameters import Experiment
from vidistill.models import build
from vidistill.storage.clips import TABLE, Clips, ClipTable, ClipVideo, create_clip_array
from vidistill.storage.errors import RequestError
from vidistill.storage.store import Manifest, Store
from vidistill.tasks.coreset.herding import Herding, herd
from vidistill.tasks.coreset.k_center import KCenter, farthest_first
from vidistill.tasks.coreset.random import Random
from vidistill.tasks.learning.rows import draw_rows
from vidistill.tasks.learning.training import Device
from vidistill.tasks.methods import Material

T, SIZE = 4, 32
LABELS = (0, 1, 0, 2, 1, 0, 1, 2, 0, 2, 1, 0, 2, 2)


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)[:, None]


def herd_by_means(points: list[list[float]], count: int) -> list[int]:
    """Each time the row with which the mean of the chosen ones comes nearest to the mean of all; exact fractions."""
    exact = [[Fraction(value) for value in point] for point in points]
    mean = [sum(values) / len(exact) for values in zip(*exact, strict=True)]
    chosen: list[int] = []
    for _ in range(count):

        def off(row: int) -> Fraction:
            own = [exact[index] for index in [*chosen, row]]
            return sum(
                (sum(values) / len(own) - centre) ** 2
                for values, centre in zip(zip(*own, strict=True), mean, strict=True)
            )

        chosen.append(min((row for row in range(len(exact)) if row not in chosen), key=off))
    return chosen


def spread_by_search(points: list[list[float]], count: int) -> list[int]:
    """Each time the row whose nearest chosen row is farthest, found by asking every pair anew."""
    centre = [math.fsum(values) / len(points) for values in zip(*points, strict=True)]
    chosen = [min(range(len(points)), key=lambda row: math.dist(points[row], centre))]
    while len(chosen) < count:
        left = [row for row in range(len(points)) if row not in chosen]
        chosen.append(max(left, key=lambda row: min(math.dist(points[row], points[own]) for own in chosen)))
    return chosen


PICKERS = [(herd, herd_by_means), (farthest_first, spread_by_search)]
pickers = pytest.mark.parametrize(("pick", "reference"), PICKERS, ids=["herding", "k-center"])


@pickers
@pytest.mark.parametrize(("n", "d"), [(1, 3), (9, 1), (12, 5), (20, 32)])
@pytest.mark.parametrize("seed", range(5))
def test_against_brute_force(pick, reference, n, d, seed):
    emb_ND = np.random.default_rng(seed).normal(size=(n, d)) * 10 + 3
    assert pick(emb_ND, n).tolist() == reference(emb_ND.tolist(), n)


@pickers
def test_fewer_are_the_first_of_more_and_none_comes_twice(pick, reference):
    emb_ND = np.random.default_rng(7).normal(size=(15, 4))
    whole = pick(emb_ND, 15).tolist()
    assert sorted(whole) == list(range(15))
    assert [pick(emb_ND, count).tolist() for count in (1, 4, 9)] == [whole[:1], whole[:4], whole[:9]]


@pickers
def test_rows_that_are_alike_are_still_different_rows(pick, reference):
    assert sorted(pick(np.ones((4, 3)), 4).tolist()) == [0, 1, 2, 3]


def test_herding_by_hand():
    """Mean 3. First 2 (nearest to 3); then 2·3 − 2 = 4, nearest left is 1; then 3·3 − 3 = 6, nearest left is 9."""
    assert herd(column(0, 1, 2, 9), 4).tolist() == [2, 1, 3, 0]


def test_k_center_by_hand():
    """Mean 0: first row 1, then −7, then 6, which is 6 from 0. A broadcast distance would take row 0 second."""
    assert farthest_first(column(1, 0, 6, -7), 4).tolist() == [1, 3, 2, 0]


def test_k_center_looks_at_the_nearest_centre_not_at_the_last():
    """After 0 and 10, the row farthest from 10 alone is 1, but 5 is farthest from both."""
    points = column(-15, 1, 0, 4.5, 9.5)  # mean 0
    assert farthest_first(points, 4).tolist() == spread_by_search(points.tolist(), 4) == [2, 0, 4, 3]


def test_k_center_covers_within_twice_the_best():
    """Gonzalez' bound, against every choice of three of ten."""
    from itertools import combinations

    emb_ND = np.random.default_rng(3).normal(size=(10, 2))
    pairs_NN = np.linalg.norm(emb_ND[:, None] - emb_ND[None], axis=2)

    def radius(rows) -> float:
        return pairs_NN[:, list(rows)].min(1).max()

    assert radius(farthest_first(emb_ND, 3)) <= 2 * min(radius(rows) for rows in combinations(range(10), 3))


# --- on clips ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Clips:
    store = Store(tmp_path_factory.mktemp("store"))
    block = Manifest(kind="block", key="b", version=1, parameters={}, inputs={})
    shape_NTHWC = (len(LABELS), T, SIZE, SIZE, 3)
    with store.writing(block) as attempt:
        noise_NTHWC = np.random.default_rng(0).integers(0, 256, shape_NTHWC, dtype=np.uint8)
        create_clip_array(attempt.folder, shape_NTHWC)[:] = noise_NTHWC
    videos = tuple(
        ClipVideo(path=f"{label}/{row}.avi", label=label, group=None, duration_seconds=None, block=0, row=row)
        for row, label in enumerate(LABELS)
    )
    table = ClipTable(
        classes=("walk", "run", "jump"), flips=False, views=1, mean=(0.5, 0.5, 0.5),
        std=(0.29, 0.29, 0.29), videos=videos, rejected=(),
    )  # fmt: skip
    whole = Manifest(kind="clips", key="c", version=1, parameters={}, inputs={"blocks": [block.ref]})
    with store.writing(whole) as attempt:
        (attempt.folder / TABLE).write_text(table.model_dump_json())
    return Clips(store, whole.ref)


def network():
    torch.manual_seed(5)
    return build("minic3d_bn", classes=3, frames=T, size=SIZE).eval()


@pytest.fixture(scope="module")
def embedded(clips, tmp_path_factory) -> Path:
    """The teacher's features of all clips, as their stage keeps them."""
    x_BTHWC = torch.from_numpy((clips.read(range(len(LABELS))) / 255 - 0.5) / 0.29).float()
    with torch.no_grad():
        emb_ND = network().embed(x_BTHWC.permute(0, 4, 1, 2, 3)).numpy()
    folder = tmp_path_factory.mktemp("embedded")
    zarr.create_array(folder, name="embeddings", data=emb_ND)
    return folder


def material(clips, labels=(0, 1, 2), ipc=2, seed=0, embedded=None, told=None) -> Material:
    device = Device(torch.device("cpu"), "fp32", 1)
    progress = (lambda *_: None) if told is None else lambda *numbers: told.append(numbers)
    return Material(
        clips, ipc, seed, labels, device, no_teacher, lambda name: {"embeddings": [embedded]}.get(name, []), progress
    )


def no_teacher():
    raise AssertionError("nobody needs a teacher here")


def test_random_draws_each_class_without_replacement(clips):
    for ipc in (1, 3, 4):
        rows = draw_rows(clips, (0, 1, 2), ipc, seed=3)
        assert len(set(rows.tolist())) == 3 * ipc
        assert clips.labels_N[rows].tolist() == [label for label in (0, 1, 2) for _ in range(ipc)]


def test_random_is_its_seed(clips):
    draws = [tuple(draw_rows(clips, (0, 1, 2), 2, seed).tolist()) for seed in (*range(20), *range(20))]
    assert draws[:20] == draws[20:]
    assert len(set(draws)) > 15


def test_random_draws_every_clip_as_often(clips):
    """2 of 5 in 400 draws: 160 each, with a deviation of 9.8."""
    drawn = np.concatenate([draw_rows(clips, (0,), 2, seed) for seed in range(400)])
    counts = np.bincount(drawn, minlength=len(LABELS))
    assert (counts[clips.rows_of(0)] > 160 - 4 * 9.8).all()
    assert (counts[clips.rows_of(0)] < 160 + 4 * 9.8).all()
    assert counts.sum() == 800


def test_a_class_draws_the_same_in_any_group(clips):
    together = draw_rows(clips, (0, 1, 2), 2, seed=1).reshape(3, 2)
    for labels in ((1,), (2, 0), (1, 2)):
        np.testing.assert_array_equal(draw_rows(clips, labels, 2, seed=1).reshape(-1, 2), together[list(labels)])


def test_random_gives_the_clips_that_it_drew(clips):
    made = Random(Random.Parameters()).distil(material(clips, seed=4))
    rows = draw_rows(clips, (0, 1, 2), 2, 4)
    np.testing.assert_array_equal(made.clips_NTHWC, clips.read(rows))
    assert made.sources == tuple(f"{LABELS[row]}/{row}.avi" for row in rows)
    assert made.labels_N.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("method", [Random, Herding, KCenter])
def test_more_clips_than_a_class_has(clips, embedded, method):
    with pytest.raises(
        RequestError, match=r"^ipc 5 asks for more clips than the class 'run' has \(4 usable training videos\)\.$"
    ):
        method(method.Parameters()).distil(material(clips, labels=(0, 1), ipc=5, embedded=embedded))


@pytest.mark.parametrize(("method", "pick"), [(Herding, herd_by_means), (KCenter, spread_by_search)])
def test_a_coreset_is_picked_from_the_teachers_features_of_each_class(clips, embedded, method, pick):
    told: list[tuple[int, int]] = []
    made = method(method.Parameters()).distil(material(clips, labels=(2, 0), ipc=3, embedded=embedded, told=told))
    expected = []
    for label in (2, 0):
        own = [row for row, other in enumerate(LABELS) if other == label]
        x_BCTHW = torch.from_numpy((clips.read(own) / 255 - 0.5) / 0.29).float().permute(0, 4, 1, 2, 3)
        with torch.no_grad():
            emb_ND = network().embed(x_BCTHW).double()
        expected += [own[row] for row in pick(emb_ND.tolist(), 3)]
    assert made.sources == tuple(f"{LABELS[row]}/{row}.avi" for row in expected)
    assert made.labels_N.tolist() == [2, 2, 2, 0, 0, 0]
    np.testing.assert_array_equal(made.clips_NTHWC, clips.read(expected))
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("method", [Herding, KCenter])
def test_random_features_need_no_teacher_and_are_their_seed(clips, method):
    options = method.Parameters(features="random", network="minic3d_bn")

    def sources(seed: int):
        made = method(options).distil(material(clips, seed=seed))
        assert made.facts == {"features": "random"}
        return made.sources

    assert sources(1) == sources(1)
    assert len({sources(seed) for seed in (1, 2, 3)}) > 1


def test_every_coreset_budget_and_seed_reads_the_same_features() -> None:
    cells: list[dict[str, Any]] = [
        {"method": "herding"}, {"method": "k_center"},
        {"method": "coded", "options": {"pick": "cluster"}, "recipes": ["soft"], "kb": [2]},
        {"method": "herding", "variant": "random", "options": {"features": "random"}},
    ]  # fmt: skip
    asked = {"data": "videos", "cells": cells, "ipc": [1, 2], "seeds": 2, "decode": {"frames": 4, "size": 32}}
    jobs = build_graph(with_front(Experiment.model_validate(asked), "rgb"), table()).jobs
    (made,) = (ref for ref, job in jobs.items() if job.stage == "embeddings")
    sets = [job for job in jobs.values() if job.stage in ("distilled", "coded-search")]
    readers = [
        job.parameters.get("method", job.stage) for job in sets if list(job.inputs.get("embeddings", ())) == [made]
    ]
    assert {name: readers.count(name) for name in readers} == {
        "herding": 4,
        "k_center": 4,
        "coded": 2,
        "coded-search": 1,
    }
    assert not [job for job in sets if "teacher" in job.inputs and job.stage == "distilled"]
