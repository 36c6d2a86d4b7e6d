"""Which clips each selection takes from a tiny pool, beside the loop that a reader of its paper would write."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
import zarr
from torch import Tensor

from vidistill.models.csta import SetScorer
from vidistill.models.dropout import seed_dropout
from vidistill.models.vst_unet import VSTUNet
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.pool import Pool
from vidistill.storage.store import Store
from vidistill.tasks.learning import streams
from vidistill.tasks.learning.training import generator
from vidistill.tasks.methods import find_method
from vidistill.tasks.select import tac_dt

POOLED, REAL, D, SEED = 7, 8, 5, 3  # generated clips a class, real ones, dimensions of their embeddings
LABELS = (0, 1) * REAL


def grouped_embeddings() -> np.ndarray:
    """(2·POOLED, D): of each class four clips near a point, two near another and one alone."""
    random = np.random.default_rng(5)
    centres_KGD = random.normal(size=(2, 3, D)) * 4
    return np.concatenate(
        [
            centres_KGD[label, group] + random.normal(size=D)
            for label in (0, 1)
            for group in random.permutation([0, 0, 0, 0, 1, 1, 2])
        ]
    ).reshape(2 * POOLED, D)


class Bench:
    """A pool, its embeddings and those of real clips, and what a method chooses of them."""

    def __init__(self, folder: Path) -> None:
        self.given = tiny.Tiny(tiny.tiny_clips(folder, labels=LABELS))
        noise_NTHWC = np.random.default_rng(6).integers(
            0, 256, (2 * POOLED, *self.given.clips.shape_THWC), dtype=np.uint8
        )
        store = Store(folder)
        self.pool = Pool(store, tiny.tiny_pool(store, noise_NTHWC))
        random = np.random.default_rng(7)
        self.made_ND = grouped_embeddings().astype(np.float32).astype(np.float64)
        middles_KD = self.made_ND.reshape(2, POOLED, D).mean(1)
        real_ND = np.stack([middles_KD[label] + 3 * random.normal(size=D) for label in LABELS])
        self.real_ND = real_ND.astype(np.float32).astype(np.float64)
        for name, emb_ND in {"embeddings": self.made_ND, "real": self.real_ND}.items():
            zarr.create_array(folder / name, name="embeddings", data=emb_ND.astype(np.float32))
            self.given.folders[name] = [folder / name]

    def choose(self, name: str, ipc: int, **options: Any) -> DistilledSet:
        """By the registry's name, as a run finds it."""
        found = find_method(name).method
        made = found(found.Parameters(**options)).distil(self.given.material(ipc, SEED, pool=lambda: self.pool))
        rows = [int(source.split("/")[1]) * POOLED + int(source.split("/")[2]) for source in made.sources]
        np.testing.assert_array_equal(made.clips_NTHWC, self.pool.read(rows))
        assert made.labels_N.tolist() == [0] * ipc + [1] * ipc
        return made

    def of_class(self, label: int) -> np.ndarray:
        return self.made_ND[label * POOLED : (label + 1) * POOLED]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("pool"))


def sources(chosen: Callable[[int], list[int]]) -> tuple[str, ...]:
    return tuple(f"pool/{label}/{row}" for label in (0, 1) for row in chosen(label))


def test_pool_random_draws_without_replacement(bench: Bench) -> None:
    assert bench.choose("pool_random", 3).sources == sources(
        lambda label: generator(SEED, label, streams.CORESET).permutation(POOLED)[:3].tolist()
    )


def test_mae_score_takes_those_that_a_linear_classifier_of_real_clips_is_surest_of(bench: Bench) -> None:
    """Σ −log p / 10 + ‖w‖²/2 of standardised features, minimised by Newton steps."""
    mean_D, std_D = bench.real_ND.mean(0), bench.real_ND.std(0)
    x_ND, y_N = np.c_[(bench.real_ND - mean_D) / std_D, np.ones(len(LABELS))], np.array(LABELS)
    penalty = np.diag([1.0] * D + [0.0])
    w = np.zeros(D + 1)
    for _ in range(30):
        p_N = 1 / (1 + np.exp(-x_ND @ w))
        slope = 0.1 * x_ND.T @ (p_N - y_N) + penalty @ w
        w -= np.linalg.solve(0.1 * (x_ND.T * (p_N * (1 - p_N))) @ x_ND + penalty, slope)

    def chosen(label: int) -> list[int]:
        odds_N = np.c_[(bench.of_class(label) - mean_D) / std_D, np.ones(POOLED)] @ w
        return np.argsort(-odds_N if label else odds_N)[:3].tolist()

    assert bench.choose("mae_score", 3, precision="fp32").sources == sources(chosen)


def test_dm_mmd_takes_of_each_cluster_what_brings_the_kernel_means_together(bench: Bench) -> None:
    """Largest cluster first; MMD² = mean k(S, S) − 2 mean k(S, all) + mean k(all, all), pair by pair."""

    def chosen(label: int) -> list[int]:
        emb_ND = bench.of_class(label)
        square = [[float(((a - b) ** 2).sum()) for b in emb_ND] for a in emb_ND]
        scale = np.median([square[i][j] for i in range(POOLED) for j in range(POOLED) if i != j])

        def k(rows: list[int], others: list[int]) -> float:
            return float(np.mean([math.exp(-square[i][j] / scale) for i in rows for j in others]))

        near = [[j for j in range(POOLED) if square[i][j] < 25] for i in range(POOLED)]
        clusters = sorted({tuple(rows) for rows in near}, key=len, reverse=True)
        assert [len(rows) for rows in clusters] == [4, 2, 1]
        picked: list[int] = []
        for rows in clusters:
            every = list(range(POOLED))
            picked.append(min(rows, key=lambda row: k([*picked, row], [*picked, row]) - 2 * k([*picked, row], every)))
        return picked

    assert bench.choose("dm_mmd", 3, precision="fp32").sources == sources(chosen)


def ward(points_NM: np.ndarray, count: int) -> list[list[int]]:
    """Always join the two clusters whose union adds the least to the squares within."""
    clusters = [[row] for row in range(len(points_NM))]

    def cost(pair: tuple[int, int]) -> float:
        a, b = (clusters[number] for number in pair)
        apart = ((points_NM[a].mean(0) - points_NM[b].mean(0)) ** 2).sum()
        return float(len(a) * len(b) / (len(a) + len(b)) * apart)

    while len(clusters) > count:
        i, j = min(itertools.combinations(range(len(clusters)), 2), key=cost)
        clusters[i] += clusters.pop(j)
    return clusters


@pytest.mark.parametrize("ipc", [2, 4])
def test_tac_dt_takes_the_middle_of_each_cluster_of_principal_components(bench: Bench, ipc: int) -> None:
    """BIRCH with a radius of nearly 0 keeps every clip apart, so that Ward's joining is all there is."""

    def chosen(label: int) -> set[int]:
        centred_ND = bench.of_class(label) - bench.of_class(label).mean(0)
        _, _, axes_DD = np.linalg.svd(centred_ND, full_matrices=False)
        reduced_NM = centred_ND @ axes_DD[:2].T
        middles = set()
        for rows in ward(reduced_NM, ipc):
            away = ((reduced_NM[rows] - reduced_NM[rows].mean(0)) ** 2).sum(1)
            middles.add(rows[int(away.argmin())])
        return middles

    made = bench.choose("tac_dt", ipc, dimensions=2, threshold=1e-6, precision="fp32")
    assert set(made.sources) == set(sources(lambda label: sorted(chosen(label))))


def test_tac_dt_s_tree_is_of_the_radius_and_the_branches_that_are_asked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, cluster = [], tac_dt.birch_clusters
    monkeypatch.setattr(tac_dt, "birch_clusters", lambda *given: asked.append(given[1:]) or cluster(*given))
    bench.choose("tac_dt", 2, threshold=0.7, branching_factor=3, precision="fp32")
    assert set(asked) == {(2, 0.7, 3)}


# --- those that learn --------------------------------------------------------------------------------------------


def adam_by_hand(
    weights: list[Tensor], loss: Callable[[int], Tensor], steps: int, lr: float, decay: float = 0.0
) -> list[float]:
    """The loss of each step."""
    first, second, values = [0.0] * len(weights), [0.0] * len(weights), []
    for step in range(steps):
        value = loss(step)
        gradients = torch.autograd.grad(value, weights, allow_unused=True)
        for i, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            g = torch.zeros_like(weight) if gradient is None else gradient
            g = g + decay * weight.detach()
            first[i], second[i] = 0.9 * first[i] + 0.1 * g, 0.999 * second[i] + 0.001 * g**2
            unbiased = first[i] / (1 - 0.9 ** (step + 1)), second[i] / (1 - 0.999 ** (step + 1))
            weight.data -= lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        values.append(float(value.detach()))
    return values


def summary_by_loops(emb_ND: np.ndarray) -> list[int]:
    """Greedy facility location."""
    order: list[int] = []
    while len(order) < len(emb_ND):
        left = [row for row in range(len(emb_ND)) if row not in order]
        order.append(
            min(left, key=lambda row: sum(min(math.dist(x, emb_ND[i]) for i in [*order, row]) for x in emb_ND))
        )
    return order


def test_csta_takes_the_highest_scores_of_a_head_that_learnt_summaries(bench: Bench) -> None:
    steps, rate, width = 12, 0.02, 4
    mean_D, std_D = bench.real_ND.mean(0), bench.real_ND.std(0) + 1e-6
    torch.manual_seed(SEED)
    head = SetScorer(D, width).double().train()

    def loss(step: int) -> Tensor:
        own_ND = ((bench.real_ND - mean_D) / std_D)[np.array(LABELS) == step % 2]
        random = generator(SEED, step, streams.CSTA_DRAW)
        size = int(random.integers(REAL // 2, REAL + 1))
        part_ND = own_ND[random.permutation(REAL)[:size]]
        wanted_N = np.empty(size)
        wanted_N[summary_by_loops(part_ND)] = 1 - np.arange(size) / (size - 1)
        seed_dropout(head, int(generator(SEED, step, streams.CSTA_DROPOUT).integers(2**31)))
        return ((head(torch.from_numpy(part_ND)) - torch.from_numpy(wanted_N)) ** 2).mean()

    def chosen(label: int) -> list[int]:
        order_N = generator(SEED, label, streams.CSTA_ORDER).permutation(POOLED)
        score_N = head(torch.from_numpy(((bench.of_class(label) - mean_D) / std_D)[order_N])).detach().numpy()
        return order_N[np.argsort(-score_N)[:3]].tolist()

    before = sources(lambda label: (head.eval(), chosen(label))[1])
    head.train()
    adam_by_hand(list(head.parameters()), loss, steps, rate, 1e-7)
    head.eval()
    assert sources(chosen) != before, "an untrained head would choose the same"
    made = bench.choose("csta", 3, iterations=steps, lr=rate, width=width, precision="fp32")
    assert made.sources == sources(chosen)


def inclusion_by_bisection(score_N: Tensor, count: int) -> Tensor:
    """σ(score + b), b such that these sum to `count`; b's derivative by the implicit function theorem."""
    low, high = -100.0, 100.0
    for _ in range(200):
        b = (low + high) / 2
        low, high = (b, high) if torch.sigmoid(score_N.detach() + b).sum() < count else (low, b)
    q_N = torch.sigmoid(score_N.detach() + b)
    share_N = q_N * (1 - q_N) / (q_N * (1 - q_N)).sum()
    return torch.sigmoid(score_N + b - (share_N * (score_N - score_N.detach())).sum())


def expected_losses(f_ND: Tensor, q_N: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Eq. 1, and the exponent of Eq. 2, in the mean over every set of videos."""
    apart = [[(a - b).norm() for b in f_ND] for a in f_ND]
    n, diversity, nearest = len(f_ND), torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for inside in itertools.product((False, True), repeat=n):
        chosen = [i for i in range(n) if inside[i]]
        p = torch.stack([q if i else 1 - q for i, q in zip(inside, q_N, strict=True)]).prod()
        pairs = [F.cosine_similarity(f_ND[i], f_ND[j], dim=0) for i in chosen for j in chosen if i != j]
        if pairs and count > 1:
            diversity = diversity + p * sum(pairs) / (count * (count - 1))
        reach = [min(row[i] for i in chosen) if chosen else max(row) for row in apart]
        nearest = nearest + p * torch.stack(reach).mean()
    return diversity, nearest


def hard_by_bisection(score_N: Tensor, count: int, share: float) -> Tensor:
    """The scores times the number by which the `count` highest of `inclusion_by_bisection` hold this share."""
    low, high = 1e-3, 1e5
    for _ in range(60):
        scale = (low * high) ** 0.5
        held = inclusion_by_bisection(score_N.detach() * scale, count).topk(count).values.sum() / count
        low, high = (scale, high) if held < share else (low, scale)
    return score_N * scale


@pytest.mark.parametrize("ipc", [1, 2])
def test_vst_unet_takes_the_highest_scores_after_eq_3_was_minimised(bench: Bench, ipc: int) -> None:
    epochs, rate = 3, 0.02
    torch.manual_seed(SEED)
    network = VSTUNet(4, 2, (4, 8), 8).double()
    weight_div, weight_rep = (0.0, 0.1) if ipc == 1 else (0.1, 1.0)

    def latents(label: int) -> Tensor:
        return torch.from_numpy(bench.pool.latents(bench.pool.rows_of(label))).double()

    def loss(step: int) -> Tensor:
        epoch, place = divmod(step, 2)
        label = int(generator(SEED, epoch, streams.UNET_ORDER).permutation(2)[place])
        score_N, logits_NK = network(latents(label))
        share = ipc / POOLED + (0.99 - ipc / POOLED) * (step + 1) / (2 * epochs)
        q_N = inclusion_by_bisection(hard_by_bisection(score_N, ipc, share), ipc)
        ce = -(q_N * logits_NK.log_softmax(1)[:, label]).sum() / ipc
        x_ND = torch.from_numpy(bench.of_class(label) - bench.of_class(label).mean(0))
        diversity, nearest = expected_losses(x_ND / x_ND.norm(dim=1, keepdim=True), q_N, ipc)
        return ce + weight_div * diversity + weight_rep * (1 - torch.exp(-nearest))

    def chosen(label: int) -> list[int]:
        return network(latents(label))[0].detach().argsort(descending=True)[:ipc].tolist()

    before = sources(chosen)
    values = adam_by_hand(list(network.parameters()), loss, 2 * epochs, rate)
    assert sources(chosen) != before, "an untrained network would choose the same"
    made = bench.choose("vst_unet", ipc, epochs=epochs, lr=rate, widths=(4, 8), features=8)
    assert made.facts["loss"] == pytest.approx(values, rel=1e-3)
    assert made.sources == sources(chosen)
    assert made.facts["mass"] == pytest.approx(0.99, abs=1e-3)


def test_the_trained_network_chooses_better_than_chance_by_its_own_losses(tmp_path: Path) -> None:
    """Of 24 clips a class four, in five groups: Eq. 1 and 2 of the choice beside those of 500 random ones."""
    random, count, pooled = np.random.default_rng(1), 4, 24
    given = tiny.Tiny(tiny.tiny_clips(tmp_path, labels=LABELS))
    noise_NTHWC = random.integers(0, 256, (2 * pooled, *given.clips.shape_THWC), dtype=np.uint8)
    pool = Pool(Store(tmp_path), tiny.tiny_pool(Store(tmp_path), noise_NTHWC))
    emb_ND = 3 * random.normal(size=(5, 8))[random.integers(5, size=2 * pooled)] + random.normal(size=(2 * pooled, 8))
    zarr.create_array(tmp_path / "embeddings", name="embeddings", data=emb_ND.astype(np.float32))
    given.folders["embeddings"] = [tmp_path / "embeddings"]
    found = find_method("vst_unet").method
    options = found.Parameters(epochs=40, widths=(8, 16), features=32, lr=3e-3)
    made = found(options).distil(given.material(count, SEED, pool=lambda: pool))
    assert made.facts["mass"] == pytest.approx(0.99, abs=1e-2)
    assert len(made) == 2 * count
    for label in (0, 1):
        own_ND = emb_ND[pool.rows_of(label)] - emb_ND[pool.rows_of(label)].mean(0)
        own_ND /= np.linalg.norm(own_ND, axis=1, keepdims=True)
        apart_NN = np.linalg.norm(own_ND[:, None] - own_ND[None], axis=2)

        def losses(rows: list[int], own_ND: np.ndarray = own_ND, apart_NN: np.ndarray = apart_NN) -> np.ndarray:
            alike = (own_ND[rows] @ own_ND[rows].T).sum() - len(rows)
            return np.array([alike / (count * (count - 1)), 1 - math.exp(-apart_NN[:, rows].min(1).mean())])

        chosen = [int(source.split("/")[2]) for source in made.sources if source.split("/")[1] == str(label)]
        by_chance = np.array([losses(random.choice(pooled, count, replace=False).tolist()) for _ in range(500)])
        assert (losses(chosen) < by_chance.mean(0)).all()
        assert (by_chance[:, 1] < losses(chosen)[1]).mean() < 0.1  # Eq. 2 weighs ten times as much as Eq. 1
