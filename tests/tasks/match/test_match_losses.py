"""Matching losses, MTT's sweep and DSA against loops, formulas by hand and unrolled graphs, in float64."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from held import held_by
from tiny import double

from vidistill.tasks.match import dsa, losses, sweep
from vidistill.tasks.match.core import Part, Valued


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are not worth waking another thread for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_mean_embedding_distance_is_equation_5_of_dm_with_its_gradient() -> None:
    real_BD, synthetic_BD = double(7, 3, seed=1), double(4, 3, seed=2).requires_grad_(True)
    real_slots, slots = [0, 1, 1, 0, 2, 2, 2], [1, 0, 2, 1]

    def distance(emb_BD: torch.Tensor) -> torch.Tensor:
        real_KD = losses.class_means(real_BD, torch.tensor(real_slots), 3)
        return losses.mean_embedding_distance(real_KD, losses.class_means(emb_BD, torch.tensor(slots), 3))

    expected, gradient = 0.0, np.zeros((4, 3))
    for k in range(3):
        own = [b for b in range(4) if slots[b] == k]
        for d in range(3):
            of_real = [float(real_BD[b, d]) for b in range(7) if real_slots[b] == k]
            gap = sum(of_real) / len(of_real) - sum(float(synthetic_BD[b, d].detach()) for b in own) / len(own)
            expected += gap**2
            for b in own:
                gradient[b, d] = -2 * gap / len(own)
    value = distance(synthetic_BD)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(torch.autograd.grad(value, synthetic_BD)[0], gradient, rtol=1e-12)


def cosine_distance_by_loops(real: list[np.ndarray], synthetic: list[np.ndarray]) -> float:
    total = 0.0
    for r, s in zip(real, synthetic, strict=True):
        if r.ndim == 1:
            continue
        for row, other in zip(r.reshape(len(r), -1).tolist(), s.reshape(len(s), -1).tolist(), strict=True):
            dot = math.fsum(a * b for a, b in zip(row, other, strict=True))
            total += 1 - dot / (math.hypot(*row) * math.hypot(*other) + 1e-6)
    return total


def test_gradient_distance_is_that_of_dc_with_its_gradient() -> None:
    shapes = [(2, 3, 1, 2, 2), (2,), (4, 3), (4,)]
    real, synthetic = ([double(*shape, seed=s + i) for i, shape in enumerate(shapes)] for s in (0, 10))
    expected = cosine_distance_by_loops([t.numpy() for t in real], [t.numpy() for t in synthetic])
    assert losses.gradient_distance(real, synthetic).item() == pytest.approx(expected, rel=1e-12)
    leaves = [tensor.requires_grad_(True) for tensor in synthetic]
    assert torch.autograd.gradcheck(lambda *own: losses.gradient_distance(real, own), leaves)
    assert losses.gradient_distance(real, real).item() == pytest.approx(0, abs=1e-5)


def test_trajectory_distance_is_equation_2_of_mtt_with_its_gradient() -> None:
    reached, target, start = ([double(2, 3, seed=s), double(4, seed=s + 1)] for s in (0, 2, 4))

    def square(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
        ones, others = ([v for t in ts for v in t.flatten().tolist()] for ts in (one, other))
        return math.fsum((a - b) ** 2 for a, b in zip(ones, others, strict=True))

    leaves = [tensor.requires_grad_(True) for tensor in reached]
    value = losses.trajectory_distance(leaves, target, start)
    assert value.item() == pytest.approx(square(reached, target) / square(start, target), rel=1e-12)
    for gradient, leaf, goal in zip(torch.autograd.grad(value, leaves), leaves, target, strict=True):
        expected = 2 * (leaf.detach() - goal) / square(start, target)
        np.testing.assert_allclose(gradient, expected, rtol=1e-12)


# --- MTT's sweep -------------------------------------------------------------------------------------------------


class Toy:
    """A small 3D network in float64 and its loss on clips that differ from step to step."""

    def __init__(self, batch: int = 3) -> None:
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(
            torch.nn.Conv3d(3, 2, 3, padding=1), torch.nn.Tanh(), torch.nn.AvgPool3d(2), torch.nn.Flatten(),
            torch.nn.Linear(2 * 1 * 2 * 2, 3),
        ).double()  # fmt: skip
        self.names = [name for name, _ in self.network.named_parameters()]
        self.start = [weight.detach().clone() for weight in self.network.parameters()]
        self.target = [weight + 0.1 * double(*weight.shape, seed=5) for weight in self.start]
        self.x = double(batch, 3, 2, 4, 4, seed=6)
        self.lr, self.calls = torch.tensor(0.3, dtype=torch.float64), 0

    def __call__(self, step: int, weights: Any, x: torch.Tensor) -> torch.Tensor:
        x_BCTHW = x * (1 + 0.1 * step)
        logits = torch.func.functional_call(
            self.network, dict(zip(self.names, weights, strict=True)), (x_BCTHW,)
        )  # fmt: skip
        return torch.nn.functional.cross_entropy(logits, torch.arange(len(x_BCTHW)) % 3)

    def parts(self, step: int, weights: Any, fixed: bool) -> Iterator[tuple[torch.Tensor, Part]]:
        """The same loss, clip by clip."""
        named = dict(zip(self.names, weights, strict=True))
        self.calls += 1
        for b in range(len(self.x)):
            part = Part({"x": self.x.clone().requires_grad_(True)}, fixed=fixed)
            x_1CTHW = part.rows("x", np.array([b])) * (1 + 0.1 * step)
            logits = torch.func.functional_call(self.network, named, (x_1CTHW,))
            yield torch.nn.functional.cross_entropy(logits, torch.tensor([b % 3])) / len(self.x), part

    def sweep(self, steps: int, gradient: sweep.Gradient = "exact", room: int = 0) -> Valued:
        self.calls = 0
        return sweep.sweep(self.parts, self.start, self.target, self.lr, steps, gradient, room)


def unrolled(toy: Toy, steps: int, *, hold: bool = False) -> tuple[torch.Tensor, ...]:
    """Eq. 2 of N steps in one graph: the loss, and its gradients by the clips and the learning rate."""
    x, lr = toy.x.clone().requires_grad_(True), toy.lr.clone().requires_grad_(True)
    theta = [weight.clone().requires_grad_(True) for weight in toy.start]
    moved = theta
    for step in range(steps):
        at = [weight.detach().requires_grad_(True) for weight in moved] if hold else moved
        g = torch.autograd.grad(toy(step, at, x), at, create_graph=True)
        moved = [weight - lr * gradient for weight, gradient in zip(moved, g, strict=True)]
    value = losses.trajectory_distance(moved, toy.target, toy.start)
    return (value.detach(), *torch.autograd.grad(value, [x, lr]))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("room", [0, 20_000, 10**9])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_the_sweep_is_the_naive_unroll(steps: int, room: int) -> None:
    toy = Toy()
    loss, by_x, by_lr = unrolled(toy, steps)
    value, gradients = toy.sweep(steps, room=room)
    assert value.item() == pytest.approx(loss.item(), rel=1e-12)
    assert relative(gradients["x"], by_x) < 1e-12
    assert relative(gradients["lr"], by_lr) < 1e-12


def test_weights_that_stay_anyway_take_no_room() -> None:
    kept, other, room = torch.ones(5, requires_grad=True), torch.ones(5, requires_grad=True), sweep.Room(1000)
    with room.counted([kept]):
        (kept * kept).sum()
        assert room.left == 1000
        (kept * other).sum()
    assert room.left == 1000 - 20


def test_steps_whose_graphs_have_room_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of a step takes some 7 kB here, of a part a third of that; no more than one has no room."""
    rooms: list[sweep.Room] = []

    class Seen(sweep.Room):
        def __init__(self, left: int) -> None:
            super().__init__(left)
            rooms.append(self)

    monkeypatch.setattr(sweep, "Room", Seen)
    toy, calls = Toy(), {}
    for room in (0, 20_000, 10**9):
        toy.sweep(6, room=room)
        calls[room] = toy.calls
    assert calls[0] == 12
    assert 6 < calls[20_000] < 12
    assert calls[10**9] == 6
    assert rooms[0].left == 0 > rooms[1].left > -5_000
    assert 10**9 - rooms[2].left > 40_000


def test_a_step_whose_graphs_had_no_room_is_freed() -> None:
    """Of MiniC3D it held 40 MB, an iteration."""

    def tensors() -> int:
        gc.collect()
        return sum(type(one) is torch.Tensor for one in gc.get_objects())

    toy = Toy()
    toy.sweep(6, room=20_000)
    before = tensors()
    toy.sweep(6, room=20_000)
    assert tensors() == before


def test_tesla_holds_the_weights_fixed_and_is_an_approximation() -> None:
    toy = Toy()
    for steps in (1, 4):
        exact, tesla = (toy.sweep(steps, kind)[1]["x"] for kind in ("exact", "tesla"))
        assert relative(tesla, unrolled(toy, steps, hold=True)[1]) < 1e-12
        assert (relative(tesla, exact) < 1e-12) == (steps == 1)


def test_the_graph_of_the_sweep_does_not_grow_with_the_steps() -> None:
    toy = Toy()
    swept = {n: held_by(lambda n=n: toy.sweep(n)) for n in (2, 8)}
    naive = {n: held_by(lambda n=n: unrolled(toy, n)) for n in (2, 8)}
    assert swept[8] <= 1.01 * swept[2]
    assert naive[8] > 3 * naive[2]
    assert naive[8] > 8 * swept[8]


# --- DSA ---------------------------------------------------------------------------------------------------------

KINDS = ("color", "crop", "cutout", "flip", "scale", "rotate")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_all_frames_and_all_clips_are_augmented_alike(kind: dsa.Kind, seed: int) -> None:
    omega = dsa.Augmentation(kind, tuple(np.random.default_rng(seed).random(3)))
    frame_C1HW = double(3, 1, 12, 12, seed=seed)
    made = dsa.apply(omega, frame_C1HW.expand(2, 3, 4, 12, 12))
    assert made.shape == (2, 3, 4, 12, 12)
    for clip in made:
        for t in range(4):
            torch.testing.assert_close(clip[:, t], made[0, :, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_augmentations_can_be_differentiated_and_do_something(kind: dsa.Kind) -> None:
    omega = dsa.Augmentation(kind, (0.2, 0.9, 0.4))
    x_BCTHW = double(1, 3, 2, 6, 6).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: dsa.apply(omega, x), (x_BCTHW,))
    assert not torch.equal(dsa.apply(omega, x_BCTHW), x_BCTHW)


def test_augmentations_by_hand() -> None:
    x = double(1, 3, 2, 8, 8)
    flipped = dsa.Augmentation("flip", (0.1, 0, 0))(x)
    assert torch.equal(flipped, x[..., range(7, -1, -1)])
    assert torch.equal(dsa.Augmentation("flip", (0.9, 0, 0))(x), x)
    cut = dsa.Augmentation("cutout", (0.5, 0.5, 0))(x)
    assert (cut[..., 2:6, 2:6] == 0).all()
    assert int((cut == 0).sum()) == 3 * 2 * 16
    odd = dsa.Augmentation("cutout", (0.5, 0.9, 0))(torch.ones(1, 1, 1, 10, 10))[0, 0, 0]  # five, cut off at the edge
    assert odd.eq(0).sum(0).tolist() == [0] * 7 + [5] * 3
    assert odd.eq(0).sum(1).tolist() == [0] * 3 + [3] * 5 + [0] * 2
    shifted = dsa.Augmentation("crop", (0.0, 0.99, 0))(x)  # one row down, one column to the left
    torch.testing.assert_close(shifted[..., 1:, :-1], x[..., :-1, 1:])
    assert (shifted[..., 0, :] == 0).all()
    torch.testing.assert_close(dsa.Augmentation("rotate", (0.5, 0, 0))(x), x)


def test_a_crop_moves_by_up_to_an_eighth_of_the_side() -> None:
    x = double(1, 3, 2, 32, 32)
    down, up = (dsa.Augmentation("crop", (u, u, 0))(x) for u in (0, 0.99))
    torch.testing.assert_close(down[..., 4:, 4:], x[..., :-4, :-4])
    torch.testing.assert_close(up[..., :-4, :-4], x[..., 4:, 4:])


@pytest.mark.parametrize(("side", "box"), [(8, 4), (10, 5)])
def test_a_cutout_lies_at_each_published_offset_alike(side: int, box: int) -> None:
    """randint(0, H + (1 − box % 2)): of an even box there is one more than there are rows."""
    count = side + (1 - box % 2)
    for offset in range(count):
        rows = [row for row in range(side) if 0 <= row - offset + box // 2 < box]
        for u in ((offset + 0.01) / count, (offset + 0.99) / count):
            tall, wide = (dsa.Augmentation("cutout", place)(torch.ones(1, 1, 1, side, side))[0, 0, 0].eq(0)
                          for place in ((u, 0.5, 0), (0.5, u, 0)))  # fmt: skip
            assert tall.any(1).nonzero().flatten().tolist() == wide.any(0).nonzero().flatten().tolist() == rows


def test_colours_by_hand() -> None:
    """Each step about what the step before left: +0.2; half as colourful; 1.4 times about the clip's own mean."""
    x_BCTHW = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 5)) + np.array([0.0, 3.0])[:, None, None, None, None]
    made = dsa.Augmentation("color", (0.7, 0.25, 0.9))(torch.tensor(x_BCTHW)).numpy()
    bright = x_BCTHW + 0.2
    grey = bright.mean(1, keepdims=True)
    dull = grey + 0.5 * (bright - grey)
    mean = dull.mean((1, 2, 3, 4), keepdims=True)
    np.testing.assert_allclose(made, mean + 1.4 * (dull - mean), rtol=1e-12)


def test_scaling_and_turning_by_hand() -> None:
    """Planes stay planes: what a pixel at (X, Y) of the middle shows is the plane's value where the matrix sends it."""
    axis = torch.linspace(-1, 1, 21, dtype=torch.float64)
    y_HW, x_HW = torch.meshgrid(axis, axis, indexing="ij")
    plane = (x_HW + 10 * y_HW).expand(1, 3, 2, 21, 21)
    middle = (x_HW.abs() < 0.7) & (y_HW.abs() < 0.7)

    def check(kind: dsa.Kind, u: tuple[float, ...], x_to: torch.Tensor, y_to: torch.Tensor) -> None:
        made = dsa.Augmentation(kind, (*u, 0.0, 0.0)[:3])(plane)
        torch.testing.assert_close(made[0, 1, 1][middle], (x_to + 10 * y_to)[middle])

    check("scale", (0.25, 1.0), 1.2 * x_HW, (1 / 1.2 + 0.25 * (1.2 - 1 / 1.2)) * y_HW)
    angle = np.radians(0.8 * 15)  # of 0.9: four fifths of the way from no turn to the largest
    check("rotate", (0.9,), np.cos(angle) * x_HW - np.sin(angle) * y_HW, np.sin(angle) * x_HW + np.cos(angle) * y_HW)


def test_flips_are_drawn_only_where_the_data_allow_them() -> None:
    drawn = {flips: [dsa.draw("dsa", flips, seed, 1) for seed in range(200)] for flips in (False, True)}
    assert {omega.kind for omega in drawn[True]} == set(KINDS)
    assert {omega.kind for omega in drawn[False]} == set(KINDS) - {"flip"}
    assert drawn[True] == [dsa.draw("dsa", True, seed, 1) for seed in range(200)]
    assert all(len({*one.u}) == 3 for one in drawn[True])
    assert dsa.draw("none", True, 0, 1) is None
