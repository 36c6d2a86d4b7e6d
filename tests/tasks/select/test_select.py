"""Selection from the pool: every selector keeps the contract, losses are those of the paper, and the pool is one."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from method_contract import POOL, Bench, MethodContract, fingerprint
from resuming import killed_and_resumed, killed_and_whole
from torch import Tensor

from vidistill.flows.experiment import Graph, build
from vidistill.flows.parameters import Experiment, PoolRequest
from vidistill.flows.planning import _expected_sprites
from vidistill.flows.pools import build_pool
from vidistill.flows.rows import rows_of, within_budgets
from vidistill.models import vst_unet
from vidistill.models.csta import SetScorer
from vidistill.models.latte import Latte, Size
from vidistill.models.vst_unet import (
    VSTUNet,
    diversity_loss,
    forgetful,
    hardened,
    inclusion,
    mass,
    representativeness_loss,
    selection_loss,
)
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError, TransientError
from vidistill.storage.pool import Pool
from vidistill.tasks import piecewise
from vidistill.tasks.distil import distil_jobs
from vidistill.tasks.learning import embedding
from vidistill.tasks.learning.embedding import EmbeddingParameters, embeddings_job, load_embeddings
from vidistill.tasks.learning.videomae import load_videomae, videomae_features, videomae_input
from vidistill.tasks.methods import find_method, unnamed
from vidistill.tasks.select import csta
from vidistill.tasks.select.csta import CSTA, CSTAParameters, wanted
from vidistill.tasks.select.dm_mmd import clusters, gaussian_kernel, matching, mmd
from vidistill.tasks.select.tac_dt import TACDT, TACDTParameters, birch_clusters, nearest_to_centroids, reduced
from vidistill.tasks.select.vst_unet import VSTUNetParameters, label_of
from vidistill.tasks.stage import run_job
from vidistill.tasks.videos.index import IndexTable
from vidistill.tasks.videos.sprites import SpritesParameters

FP32 = {"precision": "fp32"}
UNET: dict[str, Any] = {"epochs": 2, "widths": [4, 8], "features": 8}
SELECTORS: dict[str, dict[str, Any]] = {
    "pool_random": {}, "mae_score": FP32, "csta": FP32 | {"iterations": 3}, "dm_mmd": FP32, "vst_unet": UNET,
    "tac_dt": FP32,
}  # fmt: skip


class TestPoolRandom(MethodContract):
    spec = "pool_random"


class TestMAEScore(MethodContract):
    spec = "mae_score"
    options: ClassVar = SELECTORS["mae_score"]
    seeded = False


class TestCSTA(MethodContract):
    spec = "csta"
    options: ClassVar = SELECTORS["csta"]


class TestDMMMD(MethodContract):
    spec = "dm_mmd"
    options: ClassVar = SELECTORS["dm_mmd"]
    seeded = False  # one cluster of all is the same from any start


class TestVSTUNet(MethodContract):
    spec = "vst_unet"
    options: ClassVar = SELECTORS["vst_unet"]


class TestTACDT(MethodContract):
    spec = "tac_dt"
    options: ClassVar = SELECTORS["tac_dt"]
    seeded = False  # four clips are far from any order that would change BIRCH's tree


def test_tac_dts_seed_draws_the_order_in_which_birch_meets_the_clips(bench: Bench) -> None:
    """Of two hundred there are orders enough that change its tree."""
    emb_ND = np.random.default_rng(0).normal(size=(200, 4))

    def chosen(seed: int) -> list[int]:
        pick = TACDT(TACDTParameters()).picker(bench.material((0,), 10, seed))
        return sorted(pick(emb_ND, 0).tolist())

    found = [chosen(seed) for seed in range(10)]
    assert len({*map(tuple, found)}) > 1
    assert chosen(3) == found[3]


def select(bench: Bench, name: str, ipc: int = 2, **options: Any) -> DistilledSet:
    found = find_method(name).method
    method = found(found.Parameters(**(SELECTORS[name] | options)))
    return method.distil(bench.material(tuple(range(len(bench.clips.classes))), ipc, 0, method))


@pytest.fixture(scope="module")
def pool(bench: Bench) -> Pool:
    return Pool(bench.store, bench.given.pool())


@pytest.mark.parametrize("name", SELECTORS)
def test_a_set_names_the_generated_clips_that_it_chose(bench: Bench, pool: Pool, name: str) -> None:
    made = select(bench, name)
    rows = {video.path: row for row, video in enumerate(pool.table.videos)}
    assert len(set(made.sources)) == len(made)
    assert np.array_equal(made.clips_NTHWC, pool.read([rows[source] for source in made.sources]))


@pytest.mark.parametrize("name", SELECTORS)
def test_all_of_the_pool_is_a_selection_too(bench: Bench, pool: Pool, name: str) -> None:
    made = select(bench, name, ipc=POOL.clips_a_class)
    assert sorted(made.sources) == sorted(video.path for video in pool.table.videos)


def test_rows_whose_heads_were_trained_here_say_so(bench: Bench) -> None:
    for name in ("mae_score", "csta"):
        facts = select(bench, name).facts
        assert facts["mark"].startswith("no published weights: its head was trained here on real training clips")
        assert facts["mark"].endswith("the data set's own teacher")
    facts = select(bench, "tac_dt").facts
    assert (facts["embedding"], facts["dimensions"]) == ("the data set's own teacher", 96)
    assert "mark" not in facts


# VST-UNet: Eq. 1–3 against sums over sets, in float64


def choices(n: int) -> list[tuple[int, ...]]:
    return [chosen for size in range(n + 1) for chosen in itertools.combinations(range(n), size)]


def expected(q_N: Tensor, value: Any) -> Tensor:
    """The mean of `value(S)` over all sets S, each video being in it independently."""
    total = torch.zeros((), dtype=q_N.dtype)
    for chosen in choices(len(q_N)):
        inside = torch.tensor([video in chosen for video in range(len(q_N))])
        total = total + torch.where(inside, q_N, 1 - q_N).prod() * value(chosen)
    return total


def printed_diversity(f_ND: Tensor, chosen: tuple[int, ...], count: int) -> Tensor:
    """Eq. 1."""
    pairs = [F.cosine_similarity(f_ND[t], f_ND[i], dim=0) for t in chosen for i in chosen if i != t]
    return sum(pairs, torch.zeros((), dtype=f_ND.dtype)) / (count * (count - 1))


def mean_nearest(f_ND: Tensor, chosen: tuple[int, ...]) -> Tensor:
    """The exponent of Eq. 2; where nothing is chosen, the distance to the farthest."""
    apart_NN = torch.stack([torch.stack([(a - b).pow(2).sum().sqrt() for b in f_ND]) for a in f_ND])
    return apart_NN[:, list(chosen)].min(1).values.mean() if chosen else apart_NN.max(1).values.mean()


@pytest.fixture
def sample() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    f_ND = torch.randn(5, 3, generator=random, dtype=torch.float64)
    return f_ND, torch.rand(5, generator=random, dtype=torch.float64).requires_grad_()


def test_of_a_choice_the_losses_are_those_printed(sample: tuple[Tensor, Tensor]) -> None:
    f_ND, _ = sample
    q_N = torch.tensor([1.0, 0, 1, 1, 0], dtype=torch.float64)
    assert torch.allclose(diversity_loss(f_ND, q_N, 3), printed_diversity(f_ND, (0, 2, 3), 3))
    assert torch.allclose(representativeness_loss(f_ND, q_N), 1 - torch.exp(-mean_nearest(f_ND, (0, 2, 3))))


def test_of_probabilities_the_losses_are_expectations_and_so_are_their_gradients(sample: tuple[Tensor, Tensor]) -> None:
    f_ND, q_N = sample
    pairs = [
        (diversity_loss(f_ND, q_N, 2), expected(q_N, lambda chosen: printed_diversity(f_ND, chosen, 2))),
        (representativeness_loss(f_ND, q_N), 1 - torch.exp(-expected(q_N, lambda chosen: mean_nearest(f_ND, chosen)))),
    ]
    for ours, reference in pairs:
        assert torch.allclose(ours, reference)
        assert torch.allclose(*(torch.autograd.grad(value, q_N)[0] for value in (ours, reference)))


def test_one_clip_has_no_diversity(sample: tuple[Tensor, Tensor]) -> None:
    f_ND, q_N = sample
    assert float(diversity_loss(f_ND, q_N, 1)) == 0


def test_the_representative_choice_has_the_smaller_loss() -> None:
    """Two groups: one of each represents all, two of one do not. As printed, Eq. 2 prefers the latter."""
    f_ND = torch.tensor([[0.0], [0.1], [5.0], [5.1]], dtype=torch.float64)
    good, bad = (torch.tensor(q, dtype=torch.float64) for q in ([1.0, 0, 1, 0], [1.0, 1, 0, 0]))
    assert representativeness_loss(f_ND, good) < representativeness_loss(f_ND, bad)
    assert torch.exp(-mean_nearest(f_ND, (0, 2))) > torch.exp(-mean_nearest(f_ND, (0, 1)))


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_inclusion_sums_to_the_budget_in_the_order_of_the_scores(count: int) -> None:
    score_N = torch.tensor([0.3, -2.0, 9.0, 0.1, 0.2], dtype=torch.float64, requires_grad=True)
    q_N = inclusion(score_N, count)
    assert torch.allclose(q_N.sum(), torch.tensor(float(count), dtype=torch.float64))
    if count < 5:
        assert q_N.argsort().tolist() == score_N.argsort().tolist()
        assert torch.autograd.gradcheck(lambda score: inclusion(score, count), score_N, atol=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.99])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_hardened_scores_give_the_highest_as_much_as_is_asked(share: float, count: int) -> None:
    score_N = torch.tensor([0.3, -2.0, 9.0, 0.1, 0.2], dtype=torch.float64)
    share = max(share, count / 5 + 0.05)  # equal scores give count / 5
    for scale in (1e-3, 1, 1e3):
        hard_N = hardened(scale * score_N, count, share)
        assert float(mass(inclusion(hard_N, count), count)) == pytest.approx(share, abs=1e-3)
        assert hard_N.argsort().tolist() == score_N.argsort().tolist()
    assert hardened(torch.ones(5), count, share).tolist() == [1] * 5
    assert hardened(score_N, 5, share) is score_N


def test_the_mass_of_the_highest_is_one_where_the_choice_is_theirs() -> None:
    assert float(mass(torch.tensor([1.0, 0, 1, 0]), 2)) == 1
    assert float(mass(torch.tensor([0.5, 0.5, 0.5, 0.5]), 2)) == 0.5


def test_the_whole_loss_has_the_gradient_of_its_differences() -> None:
    random = torch.Generator().manual_seed(1)
    f_ND, score_N, logits_NK = (torch.randn(*shape, generator=random, dtype=torch.float64) for shape in
                                ((5, 3), (5,), (5, 4)))  # fmt: skip
    unit_ND, weights = F.normalize(f_ND, dim=1), (2, 2, 0.6, 0.1, 1.0)
    loss = selection_loss((score_N.requires_grad_(), logits_NK.requires_grad_()), unit_ND, *weights)
    of_scores, of_logits = torch.autograd.grad(loss, [score_N, logits_NK])
    scale = (hardened(score_N, 2, 0.6) / score_N).detach()

    def by_hand(score_N: Tensor, logits_NK: Tensor) -> Tensor:
        q_N = inclusion(scale * score_N, 2)  # the scale is a number
        cross = sum(q_N[t] * -logits_NK.log_softmax(1)[t, 2] for t in range(5)) / 2
        return cross + 0.1 * diversity_loss(unit_ND, q_N, 2) + representativeness_loss(unit_ND, q_N)

    assert torch.allclose(loss, by_hand(score_N, logits_NK))
    again = torch.autograd.grad(by_hand(score_N, logits_NK), [score_N, logits_NK])
    assert torch.allclose(of_scores, again[0])
    assert torch.allclose(of_logits, again[1])
    assert torch.autograd.gradcheck(by_hand, (score_N, logits_NK), atol=1e-6)


def test_scores_alone_learn_to_choose_one_of_each_group() -> None:
    x_ND = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.05], [1.0, 0.1], [0.0, 1.0], [0.05, 1.0], [0.1, 1.0]]), dim=1)
    score_N = torch.linspace(0.5, -0.5, 6).requires_grad_()  # at first the best two are of one group
    adam = torch.optim.Adam([score_N], lr=0.1)
    for step in range(150):
        share = 1 / 3 + (0.99 - 1 / 3) * step / 149
        loss = selection_loss((score_N, torch.zeros(6, 2)), x_ND, 0, 2, share, 0.1, 1.0)
        adam.zero_grad()
        loss.backward()
        adam.step()
    best = score_N.detach().topk(2).indices
    assert sorted(int(one) // 3 for one in best) == [0, 1]


@pytest.mark.parametrize("shape_THW", [(4, 6, 6), (8, 7, 7), (1, 3, 3)], ids=str)
def test_renumbering_the_videos_renumbers_the_outputs(shape_THW: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = VSTUNet(4, 3, widths=(4, 8, 8), features=8).double()
    z_NCTHW = torch.randn(5, 4, *shape_THW, dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    for there, here in zip(network(z_NCTHW[order]), network(z_NCTHW), strict=True):
        assert torch.allclose(there, here[order])


def test_a_score_sees_how_a_video_differs_from_the_others_alone() -> None:
    """What all have in common gives no score: their mean is the bias."""
    torch.manual_seed(0)
    network = VSTUNet(4, 3, widths=(4, 8), features=8)
    score_N, _ = network(3 + torch.randn(6, 4, 4, 6, 6))
    assert torch.allclose(score_N.mean(), network.score.bias[0], atol=1e-5)
    assert float(score_N.detach().std()) > 0.1


def test_a_video_is_seen_among_the_others() -> None:
    torch.manual_seed(0)
    network = VSTUNet(4, 3, widths=(4, 8), features=8)
    z_NCTHW = torch.randn(5, 4, 4, 6, 6)
    for among, without in zip(network(z_NCTHW), network(z_NCTHW[:4]), strict=True):  # scores, and logits
        assert float((among[:4] - without).detach().abs().max()) > 1e-5


def test_maps_that_are_made_again_leave_torch_s_generator_to_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those draw the first weights of networks from it: a state that is set back gives them another seed's."""

    def set_back(state: Tensor) -> None:
        raise AssertionError("the state of the process's generator was set")

    x = torch.ones(2, 3, requires_grad=True)
    monkeypatch.setattr(torch, "set_rng_state", set_back)
    monkeypatch.setattr(torch.random, "set_rng_state", set_back)
    forgetful(lambda y: y.square().sin(), x).sum().backward()
    latte = Latte(3, 2, 4, Size(2, 16, 2), channels=4, patch=1)
    latte.recompute = True
    latte(torch.ones(1, 4, 2, 4, 4), torch.tensor([5]), torch.tensor([1])).sum().backward()


@pytest.mark.parametrize("positions", [64, 1 << 17], ids=["part by part", "at once"])
def test_a_class_that_goes_through_part_by_part_gives_the_same(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, z_NCTHW = VSTUNet(4, 3, widths=(4, 8, 8), features=8).double(), torch.randn(5, 4, 2, 6, 6).double()
    score_N, logits_NK = network(z_NCTHW)
    (score_N.square().sum() + logits_NK.square().sum()).backward()
    whole = [weight.grad.clone() for weight in network.parameters() if weight.grad is not None]
    monkeypatch.setattr("vidistill.models.vst_unet.POSITIONS", positions)
    network.zero_grad()
    again_N, again_NK = network(z_NCTHW)
    assert torch.allclose(again_N, score_N)
    assert torch.allclose(again_NK, logits_NK)
    (again_N.square().sum() + again_NK.square().sum()).backward()
    for weight, gradient in zip((w for w in network.parameters() if w.grad is not None), whole, strict=True):
        assert torch.allclose(weight.grad, gradient)


def kept_bytes(network: VSTUNet, z_NCTHW: Tensor) -> int:
    """What the graph of a forward pass holds: each storage once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = network(z_NCTHW)
    assert outputs[0].requires_grad
    return sum(kept.values())


def test_a_large_class_keeps_a_fraction_of_its_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per video of 16×32×32 latents, two of them cut as a hundred are, S4's class, which stay at half a gigabyte."""
    network, z_NCTHW = VSTUNet(4, 10), torch.randn(2, 4, 16, 32, 32)
    monkeypatch.setattr("vidistill.models.vst_unet.POSITIONS", vst_unet.POSITIONS * 2 // 100)
    assert kept_bytes(network, z_NCTHW) / 2 < 6e6
    monkeypatch.setattr("vidistill.models.vst_unet.POSITIONS", 1 << 30)
    assert kept_bytes(network, z_NCTHW) / 2 > 20e6


def test_the_network_is_small() -> None:
    assert sum(weight.numel() for weight in VSTUNet(4, 101).parameters()) < 1_000_000


def test_published_weights_follow_the_budget_and_table_6_can_be_asked_for() -> None:
    plain = VSTUNetParameters()
    assert [plain.weights(ipc) for ipc in (1, 5, 10)] == [(0, 0.1), (0.1, 1), (0.1, 1)]
    assert VSTUNetParameters(diversity=0, representativeness=0).weights(5) == (0, 0)
    assert VSTUNetParameters(diversity=0).weights(5) == (0, 1)
    assert VSTUNetParameters(diversity=0.5).weights(1) == (0, 0.1)
    assert VSTUNetParameters(representativeness=0).weights(5) == (0.1, 0)


def test_every_epoch_has_every_class_once() -> None:
    labels = (2, 5, 7)
    epochs = [[label_of(3 * epoch + step, labels, 0) for step in range(3)] for epoch in range(6)]
    assert all(sorted(epoch) == [2, 5, 7] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_vst_unet_resumes_after_a_kill(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidistill.tasks.learning.loop.SECONDS", 0.0)  # a checkpoint a step
    again, whole, steps = killed_and_whole(bench, "vst_unet", UNET, kill_at=4, ipc=2)
    assert fingerprint(again) == fingerprint(whole)
    assert again.facts == whole.facts
    assert steps[0] == 4  # what was done at the third was kept


# TAC-DT, DM-MMD, CSTA


@pytest.mark.parametrize("count", [1, 3, 7, 20])
@pytest.mark.parametrize("kind", ["spread", "equal", "pairs"])
def test_tac_dt_gives_exactly_so_many(kind: str, count: int) -> None:
    random = np.random.default_rng(0)
    emb_ND = {
        "spread": random.normal(size=(20, 6)),
        "equal": np.ones((20, 6)),
        "pairs": random.normal(size=(10, 6)).repeat(2, axis=0),
    }[kind]
    reduced_NM = reduced(emb_ND, 4)
    cluster_N = birch_clusters(reduced_NM, count, 0.5, 50)
    chosen = nearest_to_centroids(reduced_NM, cluster_N)
    assert len(set(chosen.tolist())) == len(np.unique(cluster_N)) == count
    if kind == "pairs" and count <= 10:
        assert len(np.unique(emb_ND[chosen], axis=0)) == count


def test_tac_dt_takes_the_middle_of_each_group() -> None:
    middles_GD = np.array([[0.0, 0, 0], [9, 0, 0], [0, 9, 0]])
    around_XD = np.array([[0.0, 0, 0], [0.3, 0, 0], [-0.3, 0, 0], [0, 0.2, 0], [0, -0.2, 0]])
    emb_ND = (middles_GD[:, None] + around_XD).reshape(-1, 3)
    reduced_NM = reduced(emb_ND, 16)
    chosen = nearest_to_centroids(reduced_NM, birch_clusters(reduced_NM, 3, 0.5, 50))
    assert sorted(chosen.tolist()) == [0, 5, 10]


def test_pca_keeps_distances_where_it_drops_nothing() -> None:
    emb_ND = np.random.default_rng(0).normal(size=(8, 3))
    reduced_NM = reduced(emb_ND, 16)
    apart, kept = (np.linalg.norm(rows[:, None] - rows[None], axis=2) for rows in (emb_ND, reduced_NM))
    assert np.allclose(kept * np.sqrt(((emb_ND - emb_ND.mean(0)) ** 2).sum(1).mean()), apart)


def test_dm_mmd_takes_one_of_each_cluster_and_the_nearest_distribution() -> None:
    random = np.random.default_rng(0)
    emb_ND = np.concatenate([random.normal(centre, 0.3, size=(6, 2)) for centre in (0, 4, 8)])
    cluster_N = clusters(emb_ND, 3, (0, 0))
    chosen = matching(emb_ND, cluster_N, 3)
    assert sorted(chosen // 6) == [0, 1, 2]
    kernel_NN = gaussian_kernel(emb_ND)
    direct = [
        kernel_NN[np.ix_(rows, rows)].mean() - 2 * kernel_NN[rows].mean() + kernel_NN.mean()
        for rows in ([0], [3, 9], list(range(18)))
    ]
    ours = [mmd(kernel_NN, kernel_NN.mean(1), rows) + kernel_NN.mean() for rows in ([0], [3, 9], list(range(18)))]
    assert np.allclose(ours, direct)
    assert ours[-1] == pytest.approx(0, abs=1e-12)
    assert matching(np.ones((4, 2)), np.zeros(4, dtype=np.int64), 3).tolist() == [0, 1, 2]


def test_a_summary_is_the_greedy_one() -> None:
    emb_ND = np.random.default_rng(1).normal(size=(7, 2))
    chosen: list[int] = []
    for _ in range(7):
        left = [row for row in range(7) if row not in chosen]
        costs = [sum(min(np.linalg.norm(x - emb_ND[i]) for i in [*chosen, row]) for x in emb_ND) for row in left]
        chosen.append(left[int(np.argmin(costs))])
    assert np.argsort(-wanted(emb_ND)).tolist() == chosen
    assert wanted(emb_ND[:1]).tolist() == [1]


def csta_by_loops(head: SetScorer, x_ND: np.ndarray) -> np.ndarray:
    """Keys of the class row and the members, a map of them and of what a CNN sees in them, and weighed values."""
    own = {name: weight.numpy() for name, weight in head.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ own[f"{name}.weight"].T + own[f"{name}.bias"]

    def normed(x: np.ndarray) -> np.ndarray:
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5)

    key = linear("key", np.concatenate([own["class_row"], x_ND]))
    (n, d), rows, maps = x_ND.shape, len(key), key[None]
    for number, apart in enumerate((1, 2, 4, 8)):
        weight, made = own[f"cnn.{2 * number}.weight"], np.zeros((4, rows, d))
        for o, i, j in np.ndindex(made.shape):
            made[o, i, j] = own[f"cnn.{2 * number}.bias"][o]
            for a, b in itertools.product(range(3), repeat=2):
                y, x = i + (a - 1) * apart, j + (b - 1) * apart
                if 0 <= y < rows and 0 <= x < d:
                    made[o, i, j] += weight[o, :, a, b] @ maps[:, y, x]
        maps = np.maximum(made, 0)
    seen = np.tensordot(own["cnn.8.weight"][0, :, 0, 0], maps, 1) + own["cnn.8.bias"]
    e, value = np.exp(normed(seen + key) / np.sqrt(d))[1:], linear("value", x_ND)
    mixed = np.array([
        [value[i, j] * (n * e[i, j] / e[:, j].sum() + d * e[i, j] / e[i].sum()) for j in range(d)] for i in range(n)
    ])  # fmt: skip
    hidden = np.stack([normed(row) for row in np.maximum(linear("hidden.0", mixed), 0)])
    return 1 / (1 + np.exp(-linear("out", hidden * own["hidden.3.weight"] + own["hidden.3.bias"])[:, 0]))


def test_cstas_head_by_hand() -> None:
    torch.manual_seed(0)
    head, x_ND = SetScorer(5, 4).double().eval().requires_grad_(False), np.random.default_rng(0).normal(size=(6, 5))
    for weight in head.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    np.testing.assert_allclose(head(torch.from_numpy(x_ND)), csta_by_loops(head, x_ND), rtol=1e-9)


def test_cstas_head_learns_what_a_summary_wants(bench: Bench) -> None:
    rows = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    scorer = SetScorer(5, width=4).eval()
    adam, target = torch.optim.Adam(scorer.parameters(), lr=1e-2), torch.from_numpy(wanted(rows.double().numpy()))
    first = None
    for _ in range(60):
        loss = F.mse_loss(scorer(rows), target.float())
        first = first or float(loss)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert float(loss) < 0.3 * first
    assert scorer(rows[:1]).shape == (1,)


def test_a_feature_that_all_real_clips_have_alike_is_not_blown_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    class Scorer(torch.nn.Module):
        def forward(self, x_ND: Tensor) -> Tensor:
            seen.append(x_ND)
            return x_ND[:, 0]

    real_ND = np.stack([np.linspace(-1, 1, 6), np.full(6, 0.1)], axis=1)
    monkeypatch.setattr(csta, "real_embeddings", lambda _material: real_ND)
    monkeypatch.setattr(CSTA, "_trained", lambda *_: Scorer())
    pick = CSTA(CSTAParameters()).picker(bench.material((0,), 1, 0))
    assert pick(np.array([[-0.5, 0.2], [0.5, 0.3]]), 0).tolist() == [1]
    assert seen[0][:, 1].sort().values.tolist() == pytest.approx([0.1, 0.2])


# Embeddings


@pytest.fixture(scope="module")
def videomae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VideoMAE in the format of its release, tiny and untrained."""
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=8, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("weights") / "videomae"
    transformers.VideoMAEModel(config).save_pretrained(folder)
    return folder


def test_videomae_embeds_where_its_weights_are_given(bench: Bench, videomae: Path) -> None:
    made = select(bench, "tac_dt", embedding=str(videomae))
    assert made.facts["embedding"] == "VideoMAE videomae"
    assert made.facts["dimensions"] == 8
    (ref,) = [ref for ref in bench.store.refs("embeddings") if "videomae" in str(bench.store.manifest(ref).parameters)]
    assert load_embeddings(bench.store.folder(ref)).shape == (POOL.clips_a_class * 3, 8)
    assert str(videomae) not in bench.store.manifest(ref).model_dump_json()


@pytest.mark.parametrize("name", ["mae_score", "csta", "dm_mmd", "vst_unet", "tac_dt"])
def test_where_the_weights_of_embeddings_lie_is_in_no_key(
    bench: Bench, videomae: Path, tmp_path: Path, name: str
) -> None:
    refs, source = [], find_method(name)
    for place in (videomae, shutil.copytree(videomae, tmp_path / "videomae")):
        options = source.method.Parameters(embedding=str(place), **SELECTORS[name])
        inputs = {"clips": [bench.given.train], **source.method(options).inputs(bench.given)}
        (job,) = distil_jobs(source, options, 1, 0, len(bench.clips.classes), inputs, name)
        assert job.parameters["options"]["embedding"].startswith("videomae:")
        refs.append(run_job(job, bench.runtime)[0])
    assert len(set(refs)) == 1
    assert DistilledSet.load(bench.store.folder(refs[0])).facts["embedding"] == "VideoMAE videomae"


def test_weights_in_a_folder_called_teacher_are_not_the_data_sets_own(
    bench: Bench, videomae: Path, tmp_path: Path
) -> None:
    shutil.copytree(videomae, tmp_path / "teacher")
    assert select(bench, "tac_dt", embedding=str(tmp_path / "teacher")).facts["embedding"] == "VideoMAE teacher"


def test_weights_that_change_while_a_run_waits_embed_nothing(bench: Bench, videomae: Path, tmp_path: Path) -> None:
    parameters = EmbeddingParameters(embedding=str(shutil.copytree(videomae, tmp_path / "changing")))
    job = embeddings_job(bench.given, bench.given.train, parameters, "training clips")
    (tmp_path / "changing" / "more").write_text("than there was")
    with pytest.raises(TransientError, match="changing changed during the run: run again"):
        run_job(job, bench.runtime)


def test_embeddings_that_were_killed_go_on_with_the_next_piece(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = embeddings_job(bench.given, bench.given.train, EmbeddingParameters(precision="fp32"), "training clips")
    monkeypatch.setattr(embedding, "PIECE", 2)
    monkeypatch.setattr(piecewise, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(piecewise, "CHECKPOINT_SHARE", float("inf"))
    bench.store.discard(job.ref)  # of pieces of the usual size, if another test made it
    before = bench.store.manifest(run_job(job, bench.runtime)[0]).files
    bench.store.discard(job.ref)
    assert killed_and_resumed(job, bench.runtime, at=4)[0] == 4
    assert bench.store.manifest(job.ref).files == before


def test_without_transformers_nothing_is_embedded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else installed(name))
    with pytest.raises(RequestError, match=r"VideoMAE needs transformers: `pip install 'vidistill\[pool\]'`"):
        select(bench, "tac_dt", embedding="anything")


def test_its_features_are_the_mean_of_its_last_tokens(bench: Bench, videomae: Path) -> None:
    network = load_videomae(str(videomae)).eval()
    found_ND = videomae_features(network, bench.clips, np.arange(len(bench.clips)), bench.device)
    x_BTCHW = videomae_input(bench.clips.read([1]), network.config.num_frames, network.config.image_size, bench.device)
    with torch.inference_mode():
        tokens_BLD = network(pixel_values=x_BTCHW).last_hidden_state
    np.testing.assert_allclose(found_ND[1], tokens_BLD[0].mean(0), atol=1e-5)


def test_a_classifier_s_features_are_what_it_classifies(bench: Bench, videomae: Path, tmp_path: Path) -> None:
    """Normalised after the mean, by weights that VideoMAEModel has no place for."""
    import transformers

    whole = transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig.from_pretrained(videomae)).eval()
    torch.nn.init.uniform_(whole.fc_norm.weight, 0.5, 2)
    torch.nn.init.normal_(whole.fc_norm.bias)
    whole.save_pretrained(tmp_path / "classifier")
    network = load_videomae(str(tmp_path / "classifier"))
    found_ND = videomae_features(network, bench.clips, np.arange(3), bench.device)
    x_BTCHW = videomae_input(bench.clips.read(range(3)), whole.config.num_frames, 16, bench.device)
    with torch.inference_mode():
        logits_NK = whole(pixel_values=x_BTCHW).logits
        np.testing.assert_allclose(whole.classifier(torch.from_numpy(found_ND).float()), logits_NK, atol=1e-5)
    embedders = (EmbeddingParameters(embedding=str(tmp_path / "classifier")), EmbeddingParameters())
    norm, plain = (embeddings_job(bench.given, bench.given.train, one, "training clips").version for one in embedders)
    assert norm > plain


def test_it_sees_frames_evenly_spread(bench: Bench) -> None:
    clip_1THWC = (np.arange(9, dtype=np.uint8) * 20)[None, :, None, None, None] * np.ones((1, 9, 4, 4, 3), np.uint8)
    x_BTCHW = videomae_input(clip_1THWC, 3, 4, bench.device)
    levels_T = (x_BTCHW[0, :, 0, 0, 0] * 0.229 + 0.485) * 255
    assert levels_T.tolist() == pytest.approx([0, 80, 160], abs=0.01)


def test_its_input_is_normalised_as_imagenet_is(bench: Bench) -> None:
    grey_NTHWC = np.full((2, 3, 8, 8, 3), 255, dtype=np.uint8)
    grey_NTHWC[:, 1:] = 0
    x_BTCHW = videomae_input(grey_NTHWC, 5, 4, bench.device)
    assert x_BTCHW.shape == (2, 5, 3, 4, 4)
    assert x_BTCHW[0, 0, :, 0, 0].tolist() == pytest.approx(
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    )
    assert x_BTCHW[1, 4, :, 3, 3].tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])


def test_weights_that_are_not_there_or_do_not_fit_are_wrong_requests(
    bench: Bench, videomae: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="There are no weights at /nowhere"):
        select(bench, "tac_dt", embedding="/nowhere/videomae")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"VideoMAE .*empty' cannot be loaded \(.*\): give a folder"):
        select(bench, "tac_dt", embedding=str(tmp_path / "empty"))
    import transformers
    from safetensors.torch import load_file, save_file

    transformers.VideoMAEConfig.from_pretrained(videomae).save_pretrained(tmp_path / "other")
    weights = load_file(videomae / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "attention" not in name}
    save_file(kept, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"do not fit VideoMAE \(.* are missing"):
        select(bench, "tac_dt", embedding=str(tmp_path / "other"))


# One pool


SPRITES = SpritesParameters(size=48, frames=12, train_per_class=3, test_per_class=1)


def experiment(**changes: Any) -> Experiment:
    plain: dict[str, Any] = {
        "data": "sprites", "sprites": SPRITES, "pool": POOL, "seeds": 2, "ipc": [1, 2],
        "cells": [{"method": name} for name in SELECTORS],
    }  # fmt: skip
    return Experiment.model_validate(plain | changes)


@pytest.fixture(scope="module")
def table() -> IndexTable:
    return _expected_sprites(SPRITES)


def kinds(graph: Graph, kind: str) -> set[Any]:
    return {job.ref for job in graph.jobs.values() if job.stage == kind}


def test_all_selectors_budgets_and_seeds_read_one_pool_which_is_that_of_the_flow(table: IndexTable) -> None:
    graph = build(experiment(), table)
    (pool_ref,) = kinds(graph, "pool")
    assert len(kinds(graph, "embeddings")) == 2  # of the pool, and of the training clips
    sets = [job for job in graph.jobs.values() if job.parameters.get("method") in SELECTORS]
    assert len(sets) == len(SELECTORS) * 2 * 2
    assert {tuple(job.inputs["pool"]) for job in sets} == {(pool_ref,)}
    alone = build_pool(PoolRequest(data="sprites", sprites=SPRITES, pool=POOL), table)
    for kind in ("autoencoder", "latents", "latte", "pool-part", "pool", "pool-quality"):
        assert kinds(graph, kind) == kinds(alone, kind) != set()
    assert kinds(build(experiment(cells=[{"method": "herding"}]), table), "pool") == set()


def test_more_clips_than_the_pool_will_have_end_a_run_before_it_starts(table: IndexTable) -> None:
    with pytest.raises(
        RequestError, match=r"ipc 5 asks for more clips than the pool will have of a class \(4\): raise"
    ):
        build(experiment(ipc=[5]), table)


def test_the_whole_pool_may_be_more_than_the_real_clips_and_then_has_no_random_beside_it(table: IndexTable) -> None:
    asked = rows_of(experiment(ipc=[1, 4], cells=[{"method": "pool_random"}]))
    kept = within_budgets(asked, table, 4)
    assert [(row.cell.method, row.ipc) for row in kept] == [("pool_random", 1), ("random", 1), ("pool_random", 4)]
    both = rows_of(experiment(ipc=[4], cells=[{"method": "pool_random"}, {"method": "random"}]))
    with pytest.raises(RequestError, match=r"ipc 4 asks for more clips than the class .* has"):
        within_budgets(both, table, 4)


def test_a_method_that_does_not_name_the_pool_gets_none(bench: Bench) -> None:
    found = find_method("random").method
    assert found(found.Parameters()).inputs(bench.given) == {}
    with pytest.raises(RequestError, match="There is no pool"):
        replace(bench.given, pool=lambda: unnamed("pool")).pool()
