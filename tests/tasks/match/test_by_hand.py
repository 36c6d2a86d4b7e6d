"""Every matching method beside the loop of its paper: the loss of each step, and where the set is after them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import by_hand
import numpy as np
import pytest
import tiny
import torch
from by_hand import Hand, the_clips

from vidistill.models.convnet2d import ConvNet2D
from vidistill.storage.distilled import DistilledSet
from vidistill.tasks.learning import streams
from vidistill.tasks.learning.training import generator
from vidistill.tasks.match import frepo
from vidistill.tasks.match.static_dc import StaticDC
from vidistill.tasks.match.vdsd import static_of
from vidistill.tasks.methods import find_method

SEED, IPC, FP32 = 3, 2, {"precision": "fp32"}
SGD = {"step": "published"}
LABELS = [0, 0, 1, 1]
both = pytest.mark.parametrize("augmentation", ["none", "dsa"])


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tiny.Tiny:
    """Data that allow flips, with two views a clip; every network is a tiny one."""
    tiny.networks(monkeypatch)
    (tmp_path / "images").mkdir()
    return tiny.Tiny(tiny.tiny_clips(tmp_path), {"images": [tmp_path / "images"]})


def distilled(given: tiny.Tiny, name: str, **options: Any) -> tuple[DistilledSet, Any]:
    """The set that the method returns, and its parameters."""
    method = find_method(name).method
    parameters = method.Parameters(**FP32 | options)
    if name.endswith("vdsd"):
        images = StaticDC(static_of(parameters)).distil(given.material(IPC * parameters.memories, SEED))
        images.save(given.folders["images"][0])
    return method(parameters).distil(given.material(IPC, SEED)), parameters


def same(made: DistilledSet, values: list[float], start: torch.Tensor, end: torch.Tensor) -> None:
    assert made.facts["loss"] == pytest.approx(values, rel=1e-3, abs=2e-6)
    assert len(set(np.round(values, 6))) == len(values)
    tiny.same_change(made.clips_NTHWC, tiny.pixels(start), tiny.pixels(end))


@pytest.mark.parametrize(("step", "lr", "reuse"), [("published", 400.0, 1), ("adam", 0.3, 2)])
@both
def test_dm(given: tiny.Tiny, augmentation: Any, step: Any, lr: float, reuse: int) -> None:
    made, p = distilled(given, "dm", iterations=5, batch_real=2, lr=lr, augmentation=augmentation, step=step,
                        reuse=reuse)  # fmt: skip
    hand = Hand(given, SEED, LABELS, augmentation)
    learnt = {"clips": hand.start()}
    loss = by_hand.dm(hand, the_clips, 2, reuse)
    values = by_hand.minimised(learnt, loss, {"clips": p.lr}, 5, momentum=None if step == "adam" else 0.5)
    same(made, values, hand.start(), learnt["clips"].detach())


def test_dm_with_a_rate(given: tiny.Tiny) -> None:
    made, p = distilled(given, "dm", iterations=3, batch_real=2, lr=400.0, rate=0.3, **SGD)
    hand = Hand(given, SEED, LABELS, "none")
    learnt = {"clips": hand.start()}
    values = by_hand.minimised(learnt, by_hand.rated(by_hand.dm(hand, the_clips, 2), 0.3), {"clips": p.lr}, 3)
    same(made, values, hand.start(), learnt["clips"].detach())


@both
def test_dc(given: tiny.Tiny, augmentation: Any) -> None:
    """Two networks, each for two steps and trained twice on the set between them."""
    made, p = distilled(given, "dc", iterations=2, outer=2, inner=2, lr_net=0.3, batch_real=2, lr=3.0,
                        augmentation=augmentation, batch_train=3, **SGD)  # fmt: skip
    hand = Hand(given, SEED, LABELS, augmentation)
    learnt = {"clips": hand.start()}
    loss = by_hand.DC(hand, 2, 2, 0.3, hand.fresh, lambda step, label: hand.real(step, [label], 2)[0], 3)
    values = by_hand.minimised(learnt, loss, {"clips": p.lr}, 4)
    same(made, values, hand.start(), learnt["clips"].detach())


def frames(x_BCTHW: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    drawn = random.integers(x_BCTHW.shape[2], size=len(x_BCTHW))
    return torch.stack([x[:, int(t)] for x, t in zip(x_BCTHW, drawn, strict=True)])[:, :, None]


@both
def test_static_dc(given: tiny.Tiny, augmentation: Any) -> None:
    """DC on single random frames by ConvNet, shown as still clips."""
    made, p = distilled(given, "static_dc", iterations=2, outer=2, inner=1, lr_net=0.1, batch_real=2, lr=3.0, depth=2,
                        augmentation=augmentation, **SGD)  # fmt: skip
    hand = Hand(given, SEED, LABELS, augmentation)

    def network(number: int) -> torch.nn.Module:
        torch.manual_seed(int(generator(SEED, number, streams.FRESH_NETWORK).integers(2**31)))
        return torch.nn.Sequential(torch.nn.Flatten(1, 2), ConvNet2D(2, tiny.SIZE, depth=2)).double()

    def real(step: int, label: int) -> torch.Tensor:
        return frames(hand.real(step, [label], 2)[0], generator(SEED, step, label, streams.STILL_FRAMES))

    random = generator(SEED, streams.STILL_START)
    begun = torch.stack([x[:, [int(random.permutation(tiny.FRAMES)[0])]] for x in hand.start()])
    learnt = {"clips": begun.clone()}
    values = by_hand.minimised(learnt, by_hand.DC(hand, 2, 1, 0.1, network, real), {"clips": p.lr}, 4)
    still = [x.detach().expand(-1, -1, tiny.FRAMES, -1, -1) for x in (begun, learnt["clips"])]
    same(made, values, *still)


# --- trajectories ------------------------------------------------------------------------------------------------

MATCHED = {"iterations": 4, "syn_steps": 3, "expert_epochs": 2, "max_start_epoch": 2, "lr_init": 0.5, **SGD}


def trajectories() -> np.ndarray:
    """Three experts' weights before and after each of three epochs, (E, S, P)."""
    random = np.random.default_rng(4)
    torch.manual_seed(1)
    begun_P = torch.cat([weight.detach().flatten() for weight in tiny.TinyNet().parameters()]).numpy()
    steps_ESP = 0.05 * random.normal(size=(3, 4, len(begun_P)))
    return begun_P + steps_ESP.cumsum(1)


@pytest.fixture
def expert(given: tiny.Tiny, tmp_path: Path) -> tiny.Tiny:
    given.experts(tmp_path, trajectories())
    return given


def test_the_steps_below_meet_several_experts_and_starts() -> None:
    drawn = [generator(SEED, iteration, streams.EXPERT_START).integers([3, 2]).tolist() for iteration in range(4)]
    assert {expert for expert, _ in drawn} - {0}
    assert {start for _, start in drawn} == {0, 1}


@pytest.mark.parametrize(("batch_syn", "step", "lr", "lr_lr", "gradient"), [
    (None, "published", 4000.0, 0.1, "exact"), (3, "published", 4000.0, 0.1, "exact"), (3, "adam", 0.3, 0.02, "exact"),
    (None, "adam", 0.3, 0.0, "exact"), (None, "published", 4000.0, 0.1, "tesla"),
])  # fmt: skip
@both
def test_mtt(
    expert: tiny.Tiny, augmentation: Any, batch_syn: int | None, step: Any, lr: float, lr_lr: float, gradient: Any
) -> None:  # fmt: skip
    """Three experts, students of three steps, and a rate that is learnt with the clips, or held; by TESLA, too."""
    made, p = distilled(expert, "mtt", **MATCHED | {"step": step}, lr=lr, lr_lr=lr_lr, batch_syn=batch_syn,
                        augmentation=augmentation, gradient=gradient, momentum_lr=0.2)  # fmt: skip
    hand = Hand(expert, SEED, LABELS, augmentation)
    learnt = {"clips": hand.start(), "lr": torch.tensor(0.5, dtype=torch.float64)}
    loss, alphas = by_hand.mtt(hand, the_clips, trajectories(), p), []

    def watched(iteration: int, now: dict[str, torch.Tensor]) -> torch.Tensor:
        alphas.append(float(now["lr"].detach()))
        return loss(iteration, now)

    momentum = None if step == "adam" else 0.5
    values = by_hand.minimised(learnt, watched, {"clips": p.lr, "lr": p.lr_lr}, 4, momentum=momentum, lr_min=p.lr_min,
                               momentum_lr=0.2)  # fmt: skip
    same(made, values, hand.start(), learnt["clips"].detach())
    alpha = float(learnt["lr"].detach())
    assert made.facts["lr"] - 0.5 == pytest.approx(alpha - 0.5, rel=1e-2)
    assert made.facts["alpha"] == pytest.approx(alphas, rel=1e-4)
    assert (abs(alpha - 0.5) > 1e-4) == bool(lr_lr)


class Watched(tiny.TinyNet):
    """Notes whether it trains whenever it is asked for outputs."""

    training_seen: list[bool]

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        self.training_seen.append(self.training)
        return super().forward(x_BCTHW)


@pytest.mark.parametrize("name", ["mtt", "frepo"])
def test_students_and_networks_of_the_pool_drop_out_as_they_learn(
    expert: tiny.Tiny, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """MTT's students train, as its experts did; FRePo's networks as they learn the set, and rest when they embed it."""
    Watched.training_seen = []
    tiny.networks(monkeypatch, Watched)
    options = MATCHED | {"lr": 1.0} if name == "mtt" else {"iterations": 3, "pool": 2}
    distilled(expert, name, **options)
    assert len(Watched.training_seen) >= 2
    assert all(Watched.training_seen)


def test_mtt_with_a_rate(expert: tiny.Tiny) -> None:
    made, p = distilled(expert, "mtt", **MATCHED, lr=400.0, lr_lr=0.1, rate=0.5)
    hand = Hand(expert, SEED, LABELS, "none")
    learnt = {"clips": hand.start(), "lr": torch.tensor(0.5, dtype=torch.float64)}
    loss = by_hand.rated(by_hand.mtt(hand, the_clips, trajectories(), p), 0.5)
    values = by_hand.minimised(learnt, loss, {"clips": p.lr, "lr": p.lr_lr}, 4, lr_min=p.lr_min)
    same(made, values, hand.start(), learnt["clips"].detach())


def still(learnt: dict[str, torch.Tensor], slots: np.ndarray, _random: Any) -> torch.Tensor:
    """g: key frames evenly spread, linear in between."""
    keys = learnt["keys"][slots]
    count, made = keys.shape[2], []
    for t in range(tiny.FRAMES):
        place = t * (count - 1) / (tiny.FRAMES - 1)
        low = min(int(place), max(0, count - 2))
        high = min(low + 1, count - 1)
        made.append((1 - (place - low)) * keys[:, :, low] + (place - low) * keys[:, :, high])
    return torch.stack(made, dim=2)


def first_keys(start: torch.Tensor, count: int) -> torch.Tensor:
    if count == 1:
        return frames(start, generator(SEED, streams.STILL_START))
    return start[:, :, [round(k * (tiny.FRAMES - 1) / (count - 1)) for k in range(count)]]


@pytest.mark.parametrize("keys", [1, 3])
def test_sfvd(expert: tiny.Tiny, keys: int) -> None:
    """MTT on clips that are an image standing still, or linear between a few."""
    made, p = distilled(expert, "sfvd", **MATCHED, lr=2000.0, lr_lr=0.1, keys=keys, augmentation="dsa")
    hand = Hand(expert, SEED, LABELS, "dsa")
    begun = first_keys(hand.start(), keys)
    learnt = {"keys": begun.clone(), "lr": torch.tensor(0.5, dtype=torch.float64)}
    loss = by_hand.mtt(hand, still, trajectories(), p)
    values = by_hand.minimised(learnt, loss, {"keys": p.lr, "lr": p.lr_lr}, 4, keep="keys", lr_min=p.lr_min)
    assert made.facts["loss"] == pytest.approx(values, rel=1e-3)
    tiny.same_change(made.stored["images"], tiny.pixels(begun), tiny.pixels(learnt["keys"].detach()))
    every = np.arange(4)
    tiny.same_change(made.clips_NTHWC, tiny.pixels(still({"keys": begun}, every, None)),
                     tiny.pixels(still(learnt, every, None).detach()), slack=1)  # fmt: skip


def test_sfvd_t(expert: tiny.Tiny) -> None:
    """A layer over the image and a real clip of its class learns with the image."""
    made, p = distilled(expert, "sfvd_t", **MATCHED, lr=2000.0, lr_lr=0.1, lr_layer=0.3)
    hand = Hand(expert, SEED, LABELS)
    random = generator(SEED, streams.COMPANIONS)
    rows = [int(random.choice(expert.clips.rows_of(label))) for label in LABELS]
    real = torch.stack([expert.x(row) for row in rows])
    weight = torch.zeros(3, 6, 3, 3, 3, dtype=torch.float64)
    for colour in range(3):
        weight[colour, colour, 1, 1, 1] = weight[colour, colour + 3, 1, 1, 1] = 0.5
    begun = first_keys(hand.start(), 1)
    learnt = {"keys": begun.clone(), "lr": torch.tensor(0.5, dtype=torch.float64), "weight": weight.clone(),
              "bias": torch.zeros(3, dtype=torch.float64)}  # fmt: skip

    def clips(now: dict[str, torch.Tensor], slots: np.ndarray, random: Any) -> torch.Tensor:
        six = torch.cat([still(now, slots, random), real[slots]], dim=1)
        return tiny.in_range(torch.nn.functional.conv3d(six, now["weight"], now["bias"], padding=1))

    rates = {"keys": p.lr, "lr": p.lr_lr, "weight": 0.3, "bias": 0.3}
    loss = by_hand.mtt(hand, clips, trajectories(), p)
    values = by_hand.minimised(learnt, loss, rates, 4, keep="keys", lr_min=p.lr_min)
    assert made.facts["loss"] == pytest.approx(values, rel=1e-3)
    tiny.same_change(made.stored["images"], tiny.pixels(begun), tiny.pixels(learnt["keys"].detach()))
    moved = (learnt["weight"].detach() - weight).numpy()
    np.testing.assert_allclose(made.stored["weight"] - weight.numpy(), moved, atol=1e-2 * np.abs(moved).max())
    np.testing.assert_array_equal(made.stored["real"], expert.clips.read(rows))


# --- FRePo -------------------------------------------------------------------------------------------------------

REGRESSED = {"iterations": 7, "pool": 2, "age": 3, "batch_real": 4, "warmup": 2, "lr_network": 0.05, "ridge": 1e-3}


def to_a_tenth(iterations: int, of: float | None = None) -> by_hand.Schedule:
    """Along a cosine to a tenth of each rate, or of this one."""

    def rate_at(iteration: int, rate: float) -> float:
        along, last = (1 - math.cos(math.pi * iteration / iterations)) / 2, (of or rate) / 10
        return (1 - along) * rate + along * last

    return rate_at


def first_labels() -> torch.Tensor:
    return (torch.eye(2, dtype=torch.float64)[LABELS] - 0.5) / (2 / 10) ** 0.5


def same_labels(made: DistilledSet, y: torch.Tensor) -> None:
    p_NK = (y.detach() * 0.2**0.5 + 0.5).clamp(min=1e-4)
    np.testing.assert_allclose(made.logits_NK, (p_NK / p_NK.sum(1, keepdim=True)).log(), rtol=2e-3, atol=2e-3)
    assert (p_NK - torch.eye(2)[LABELS]).abs().max() > 0.02


@pytest.mark.parametrize(("batch_network", "chunk"), [(500, 64), (3, 64), (500, 2)])
def test_frepo(given: tiny.Tiny, batch_network: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips and labels; networks of two ages that learn the set between the steps and are born anew.

    Two real clips are those of one class: classes are drawn one after another.
    """
    monkeypatch.setattr(frepo, "CHUNK", chunk)
    made, p = distilled(given, "frepo", **REGRESSED, lr=0.1, lr_labels=0.05, batch_network=batch_network)
    hand = Hand(given, SEED, LABELS)
    learnt = {"clips": hand.start(), "labels": first_labels()}
    loss = by_hand.FRePo(hand, the_clips, p, [[0], [1]] if chunk == 2 else [[0, 1]])
    values = by_hand.minimised(learnt, loss, {"clips": p.lr, "labels": p.lr_labels}, 7, momentum=None,
                               schedule=to_a_tenth(7), eps=1e-8)  # fmt: skip
    assert max(loss.births) > 0
    same(made, values, hand.start(), learnt["clips"].detach())
    same_labels(made, learnt["labels"])


# --- IDTD --------------------------------------------------------------------------------------------------------


def test_idtd(given: tiny.Tiny) -> None:
    """DM on clips fused of what selectors select of a class's pool, plus λ times the likeness of the segments."""
    made, p = distilled(given, "idtd", iterations=3, batch_real=2, features=3, segments=2, diversity=0.5,
                        sharpness=1.0, lr=0.1, lr_selector=0.1, lr_fusor=0.01)  # fmt: skip
    hand = Hand(given, SEED, LABELS)
    begun = hand.start()
    pool = torch.stack([torch.cat([begun[2 * k + i][:, [0, 2, 3]] for i in (0, 1)], dim=1) for k in (0, 1)])
    choice = torch.zeros(4, 2, 6, dtype=torch.float64)
    for n in range(4):
        choice[n, 0, n % 2 * 3] = choice[n, 1, n % 2 * 3 + 2] = 1.0
    learnt = {"pool": pool.clone(), "choice": choice.clone(), "bias": torch.zeros(3, dtype=torch.float64),
              "weight": torch.zeros(3, 3, 3, 3, 3, dtype=torch.float64)}  # fmt: skip

    def segments(now: dict[str, torch.Tensor], n: int) -> torch.Tensor:
        shares = now["choice"][n].exp() / now["choice"][n].exp().sum(1, keepdim=True)
        return torch.stack([sum(share * now["pool"][n // 2][:, i] for i, share in enumerate(row)) for row in shares], 1)

    def fused(now: dict[str, torch.Tensor], slots: np.ndarray, some: dict[int, list[int]]) -> torch.Tensor:
        each = [still({"keys": segments(now, int(n))[None][:, :, some[n // 2]]}, np.arange(1), None) for n in slots]
        x = torch.cat(each)
        return tiny.in_range(x + torch.nn.functional.conv3d(x, now["weight"], now["bias"], padding=1))

    def drawn(random: np.random.Generator) -> list[int]:
        order = random.permutation(2)
        return sorted(order[: random.integers(2) + 1].tolist())

    def shown(now: dict[str, torch.Tensor], slots: np.ndarray, draw: by_hand.Draw) -> torch.Tensor:
        return fused(now, slots, {label: drawn(draw(label)) for label in (0, 1)})

    matching = by_hand.dm(hand, shown, 2)

    def loss(iteration: int, now: dict[str, torch.Tensor]) -> torch.Tensor:
        alike = []
        for k in (0, 1):
            own = [segments(now, n)[:, f].flatten() for n in (2 * k, 2 * k + 1) for f in (0, 1)]
            alike += [a @ b / (a.norm() * b.norm()) for a in own for b in own if a is not b]
        return matching(iteration, now) + 0.5 * torch.stack(alike).mean()

    rates = {"pool": p.lr, "choice": p.lr_selector, "weight": p.lr_fusor, "bias": p.lr_fusor}
    values = by_hand.minimised(learnt, loss, rates, 3, momentum=None, keep="pool")
    assert made.facts["loss"] == pytest.approx(values, rel=1e-3)
    tiny.same_change(made.stored["pool"], tiny.pixels(pool), tiny.pixels(learnt["pool"].detach()))
    for name, first in {"choice": choice, "weight": torch.zeros(1), "bias": torch.zeros(1)}.items():
        moved = (learnt[name].detach() - first).numpy()
        np.testing.assert_allclose(made.stored[name] - first.numpy(), moved, atol=1e-2 * np.abs(moved).max())
    every = fused(learnt, np.arange(4), {0: [0, 1], 1: [0, 1]}).detach()
    tiny.same_change(made.clips_NTHWC, tiny.pixels(begun), tiny.pixels(every), slack=1)


# --- VDSD --------------------------------------------------------------------------------------------------------

M = 2  # images, and motion maps, an instance
STATIC = {"iterations": 1, "batch_real": 2, "depth": 2, "lr": 3.0, **SGD, **FP32}
VDSD: dict[str, Any] = {"iterations": 4, "memories": M, "static": STATIC, **SGD}


def begun_memory() -> dict[str, torch.Tensor]:
    """Motion N(0, 1), and a layer from four channels to three as torch begins one."""
    random = torch.Generator().manual_seed(int(generator(SEED, streams.HALLUCINATOR).integers(2**31)))
    motion = torch.randn((4 * M, tiny.FRAMES, tiny.SIZE, tiny.SIZE), generator=random)
    uniform = [2 * torch.rand(shape, generator=random) - 1 for shape in ((3, 4, 3, 3, 3), (3,))]
    tensors = {"motion": motion, "weight": uniform[0] * 108**-0.5, "bias": uniform[1] * 108**-0.5}
    return {name: tensor.double() for name, tensor in tensors.items()}


def hallucinated(made: DistilledSet) -> by_hand.ClipsOf:
    """Clips of random pairs of an instance's images, which stage 1 made, and its motion maps."""
    images_NHWC = made.stored["images"].astype(np.float64)
    images = torch.from_numpy((images_NHWC / 255 - tiny.MEAN) / tiny.STD).permute(0, 3, 1, 2)

    def clips(now: dict[str, torch.Tensor], slots: np.ndarray, draw: by_hand.Draw) -> torch.Tensor:
        made = []
        for slot in slots.tolist():
            image, motion = draw(slot).integers(M, size=2)
            four = [
                images[slot * M + image][:, None].expand(-1, tiny.FRAMES, -1, -1),
                now["motion"][None, slot * M + motion],
            ]
            made.append(torch.nn.functional.conv3d(torch.cat(four)[None], now["weight"], now["bias"], padding=1)[0])
        return tiny.in_range(torch.stack(made))

    return clips


def same_memory(made: DistilledSet, values: list[float], learnt: dict[str, torch.Tensor]) -> None:
    assert made.facts["loss"] == pytest.approx(values, rel=1e-3)
    for name, begun in begun_memory().items():
        moved = (learnt[name].detach() - begun).numpy()
        assert np.abs(moved).mean() > 1e-3
        np.testing.assert_allclose(made.stored[name] - begun.numpy(), moved, atol=2e-2 * np.abs(moved).max())


def test_dm_vdsd(given: tiny.Tiny) -> None:
    made, _ = distilled(
        given, "dm_vdsd", **VDSD, momentum=0.9, batch_real=2, lr_dynamic=200.0, lr_hallucinator=0.5, augmentation="dsa"
    )
    hand, learnt = Hand(given, SEED, LABELS, "dsa"), begun_memory()
    rates = {"motion": 200.0, "weight": 0.5, "bias": 0.5}
    values = by_hand.minimised(learnt, by_hand.dm(hand, hallucinated(made), 2), rates, 4, momentum=0.9, keep=None)
    same_memory(made, values, learnt)


def test_mtt_vdsd(expert: tiny.Tiny) -> None:
    """α has a momentum of its own, and so has the rest."""
    made, p = distilled(expert, "mtt_vdsd", **MATCHED | VDSD, lr_dynamic=2000.0, lr_hallucinator=5.0, lr_lr=0.1,
                        momentum=0.9, momentum_lr=0.3, augmentation="dsa")  # fmt: skip
    hand = Hand(expert, SEED, LABELS, "dsa")
    learnt = begun_memory() | {"lr": torch.tensor(0.5, dtype=torch.float64)}
    rates = {"motion": 2000.0, "weight": 5.0, "bias": 5.0, "lr": 0.1}
    loss = by_hand.mtt(hand, hallucinated(made), trajectories(), p)
    values = by_hand.minimised(learnt, loss, rates, 4, momentum=0.9, keep=None, lr_min=p.lr_min, momentum_lr=0.3)
    same_memory(made, values, learnt)
    assert made.facts["lr"] - 0.5 == pytest.approx(float(learnt["lr"].detach()) - 0.5, rel=1e-2)


def test_frepo_vdsd(given: tiny.Tiny) -> None:
    made, p = distilled(given, "frepo_vdsd", **REGRESSED | VDSD, lr_dynamic=0.1, lr_hallucinator=0.02, lr_labels=0.05)
    hand, learnt = Hand(given, SEED, LABELS), begun_memory() | {"labels": first_labels()}
    rates = {"motion": 0.1, "weight": 0.02, "bias": 0.02, "labels": 0.05}
    loss = by_hand.FRePo(hand, hallucinated(made), p)
    values = by_hand.minimised(learnt, loss, rates, 4, momentum=None, schedule=to_a_tenth(4, of=0.02), keep=None,
                               eps=1e-8)  # fmt: skip
    same_memory(made, values, learnt)
    same_labels(made, learnt["labels"])
