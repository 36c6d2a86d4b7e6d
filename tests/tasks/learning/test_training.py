"""The training loop: its schedule, its order, its arithmetic, and that a resumed run is the run."""

from __future__ import annotations

import copy
import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from vidistill import models
from vidistill.models.dropout import SeededDropout, seed_dropout
from vidistill.models.ensemble import Ensemble
from vidistill.storage.errors import RequestError, RunError
from vidistill.storage.opening import open_store
from vidistill.tasks.learning import training
from vidistill.tasks.learning.experts import flat
from vidistill.tasks.learning.loop import Curve
from vidistill.tasks.learning.optimisers import OptimiserParameters
from vidistill.tasks.learning.training import Device, Order, TrainingParameters
from vidistill.tasks.learning.views import view
from vidistill.tasks.stage import Runtime, run_job

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE_THWC = (4, 48, 48, 3)
CPU = Device(torch.device("cpu"), "fp32", 1)

MODULE = '''
import json

import torch
from safetensors.torch import save_file

from vidistill.storage.parameters import Parameters
from vidistill.tasks.learning import optimisers, training
from vidistill.tasks.stage import Work, stage


class TrainingParameters(Parameters):
    network: str = "minic3d_bn"
    method: str = "sgd"
    steps: int = 8
    checkpoint_every: int = 3


class Stopped(Exception):
    pass


stop_at = set()
steps_taken = []


def draw(step):
    """Two clips of noise, a function of the step."""
    if step in stop_at:
        stop_at.remove(step)
        raise Stopped(step)
    steps_taken.append(step)
    random = training.generator(3, step)
    x_BCTHW = torch.from_numpy(random.normal(size=(2, 3, 4, 48, 48)).astype("float32"))
    return x_BCTHW, torch.nn.functional.one_hot(torch.from_numpy(random.integers(3, size=2)), 3).float()


@stage("tiny-training", version=1, threads="one")
def tiny_training(work: Work) -> None:
    parameters = TrainingParameters.model_validate(work.job.parameters)
    device = training.Device.of(work, "fp32")
    if parameters.network == "linear":
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 48 * 48, 3))
    else:
        network = training.build_network(parameters.network, 3, (4, 48, 48, 3), 0)
    curve = training.train(
        network, draw, parameters.steps,
        optimisers.OptimiserParameters(method=parameters.method, lr=0.05, warmup_share=0.2), device,
        seed=0, work=work, checkpoint_every=parameters.checkpoint_every,
    )
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, work.folder / "weights")
    (work.folder / "curve.json").write_text(json.dumps([curve.steps, curve.loss]))
'''


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("path")
    (folder / "tiny_training_stage.py").write_text(MODULE)
    return folder


@pytest.fixture
def stage_module(path, monkeypatch):
    monkeypatch.syspath_prepend(str(path))
    module = importlib.import_module("tiny_training_stage")
    module.stop_at.clear()
    module.steps_taken.clear()
    return module


# --- the learning rate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_cosine_is_torchs_cosine(steps):
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=steps)
    for step in range(steps):
        assert OptimiserParameters(lr=0.3).lr_at(step, steps) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        sgd.step()
        scheduler.step()


def test_warmup_rises_in_even_steps_to_the_peak():
    optimiser = OptimiserParameters(lr=0.5, warmup_share=0.04)
    rates = [optimiser.lr_at(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert max(rates) == rates[4]
    assert rates[52] == pytest.approx(0.25)  # half-way from step 4 to step 100
    assert 0 < rates[99] < 0.001


# --- the order -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5), st.integers(0, 4))
def test_an_epoch_has_each_row_once(n, batch_size, seed, epoch):
    order = Order(n, batch_size, seed)
    steps = order.steps_an_epoch
    batches = [order.rows(epoch * steps + step) for step in range(steps)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))
    assert steps == math.ceil(n / batch_size)
    sizes = {len(batch) for batch in batches}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch_size


def test_an_epoch_is_drawn_once_for_all_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, draw = [], training.generator
    monkeypatch.setattr(training, "generator", lambda *seed: (drawn.append(seed), draw(*seed))[1])
    order = Order(1_000, 10, 71)
    for step in range(300):
        order.rows(step)
    assert [seed[:2] for seed in drawn] == [(71, 0), (71, 1), (71, 2)]


def test_every_epoch_and_seed_has_an_order_of_its_own():
    orders = [tuple(Order(30, 30, seed).rows(epoch).tolist()) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert orders[4] == tuple(Order(30, 30, 1).rows(1).tolist())


# --- the arithmetic ------------------------------------------------------------------------------------------------


def make_network(name: str = "minic3d_bn") -> nn.Module:
    return training.build_network(name, 3, SHAPE_THWC, 0)


def draw(step: int, classes: int = 3):
    random = training.generator(3, step)
    x_BCTHW = torch.from_numpy(random.normal(size=(2, 3, 4, 48, 48)).astype(np.float32))
    return x_BCTHW, torch.from_numpy(random.dirichlet(np.ones(classes), size=2).astype(np.float32))


def weights(network: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in network.state_dict().items()}


def test_a_step_is_sgd_with_momentum_and_decay_on_soft_cross_entropy():
    """Against the update written out, in float64: v ← 0.9 v + g + λ w, w ← w − lr v."""
    network, steps = make_network("minic3d"), 4
    for module in network.modules():
        if isinstance(module, SeededDropout):
            module.p = 0.0
    exact = copy.deepcopy(network).double()
    optimiser = OptimiserParameters(lr=0.05, weight_decay=0.01)
    curve = training.train(network, draw, steps, optimiser, CPU, seed=0)

    velocity = [torch.zeros_like(parameter) for parameter in exact.parameters()]
    losses = []
    for step in range(steps):
        x_BCTHW, targets_BK = draw(step)
        loss = -(targets_BK.double() * exact(x_BCTHW.double()).log_softmax(1)).sum(1).mean()
        losses.append(loss.item())
        lr = 0.05 * (1 + math.cos(math.pi * step / steps)) / 2
        gradients = torch.autograd.grad(loss, list(exact.parameters()))
        with torch.no_grad():
            for v, w, g in zip(velocity, exact.parameters(), gradients, strict=True):
                v.mul_(0.9).add_(g + 0.01 * w)
                w.sub_(lr * v)
    assert curve.steps == [1, 2, 3, 4]
    assert curve.loss == pytest.approx(losses, abs=2e-5)
    for ours, reference in zip(network.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=1e-3, atol=2e-6)


def test_each_member_of_an_ensemble_takes_the_step_that_it_would_take_alone():
    """A CNN+RNN has no dropout to tell them apart."""
    members = [training.build_network("cnn_gru", 3, SHAPE_THWC, seed) for seed in (0, 1)]
    before = [copy.deepcopy(member) for member in members]
    batch = torch.randn(2, 3, 4, 48, 48, generator=torch.Generator().manual_seed(0)), torch.eye(3)[[0, 2]]

    def step(network):
        plain = OptimiserParameters(lr=0.1, momentum=0, weight_decay=0)
        training.train(network, lambda _: batch, 1, plain, CPU, seed=0)
        return network

    for member, start in zip(step(Ensemble(members)).members, before, strict=True):
        alone = flat(step(copy.deepcopy(start))) - flat(start)
        assert np.abs(alone).max() > 1e-3
        np.testing.assert_allclose(flat(member) - flat(start), alone, rtol=1e-3, atol=1e-6)


def test_adamw_is_torchs_with_decay_and_no_momentum_of_ours():
    network = make_network()
    reference, steps = copy.deepcopy(network), 3
    training.train(
        network, draw, steps, OptimiserParameters(method="adamw", lr=0.01, weight_decay=0.1, momentum=0), CPU, seed=0
    )
    training.placed(reference, CPU).train()
    adamw = torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    for step in range(steps):
        adamw.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * step / steps)) / 2
        seed_dropout(reference, int(training.generator(0, step, 2).integers(2**31)))
        x_BCTHW, targets_BK = draw(step)
        adamw.zero_grad()
        torch.nn.functional.cross_entropy(reference(x_BCTHW), targets_BK).backward()
        adamw.step()
    for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_clipped_and_the_mean_of_the_weights_is_what_is_left():
    """All gradients together have the norm asked for at most; the mean forgets as min(decay, (n + 1)/(n + 10))."""
    network, steps, decay = make_network(), 4, 0.3
    reference = copy.deepcopy(network)
    optimiser = OptimiserParameters(lr=0.5, momentum=0, weight_decay=0, clip_norm=0.01)
    training.train(network, draw, steps, optimiser, CPU, seed=0, average=decay)
    training.placed(reference, CPU).train()
    mean: list[torch.Tensor] = []
    for step in range(steps):
        seed_dropout(reference, int(training.generator(0, step, 2).integers(2**31)))
        x_BCTHW, targets_BK = draw(step)
        loss = torch.nn.functional.cross_entropy(reference(x_BCTHW), targets_BK)
        gradients = torch.autograd.grad(loss, list(reference.parameters()))
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        assert norm > 0.01
        rate = 0.5 * (1 + math.cos(math.pi * step / steps)) / 2
        for weight, gradient in zip(reference.parameters(), gradients, strict=True):
            weight.data -= rate * gradient * (0.01 / norm)
        now = [weight.detach().clone() for weight in reference.parameters()]
        kept = min(decay, (step + 1) / (step + 10))
        mean = [kept * old + (1 - kept) * new for old, new in zip(mean, now, strict=True)] if mean else now
    for ours, theirs in zip(network.parameters(), mean, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_what_is_not_asked_for_is_in_no_key():
    """Scores and teachers that were made before there was another optimiser are found again."""
    assert "method" not in OptimiserParameters().model_dump(mode="json")
    assert OptimiserParameters(method="adamw").model_dump(mode="json")["method"] == "adamw"


def test_training_twice_gives_the_same_bits_whatever_torch_drew_before():
    made = []
    for seed in (1, 2):
        network = make_network()
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        curve = training.train(network, draw, 3, OptimiserParameters(), CPU, seed=0)
        made.append((curve.loss, weights(network)))
    assert made[0][0] == made[1][0]
    for name, array in made[0][1].items():
        np.testing.assert_array_equal(array, made[1][1][name])


def test_the_seed_of_training_moves_the_dropout():
    losses = [training.train(make_network(), draw, 2, OptimiserParameters(), CPU, seed=seed).loss for seed in (0, 1)]
    assert losses[0] != losses[1]


def test_a_loss_that_is_not_finite_ends_the_run():
    def broken(step: int):
        x_BCTHW, targets_BK = draw(step)
        return (x_BCTHW * math.inf if step == 2 else x_BCTHW), targets_BK

    said = r"^The loss is nan at step 2 \(learning rate 0\.025\): try a learning rate ten times smaller"
    with pytest.raises(RunError, match=said):
        training.train(make_network(), broken, 4, OptimiserParameters(lr=0.05), CPU, seed=0)


def test_a_curve_averages_fiftieths():
    curve = Curve()
    for step in range(125):
        curve.add(step, 125, float(step))
    assert curve.steps == [*range(2, 125, 2), 125]
    assert curve.loss == [step - 1.5 for step in range(2, 125, 2)] + [124.0]
    assert curve.pending == []


# --- resuming ------------------------------------------------------------------------------------------------------


def files_of(job, runtime) -> dict[str, bytes]:
    folder = open_store(runtime.store).folder(job.ref)
    return {name: (folder / name).read_bytes() for name in ("weights", "curve.json")}


@pytest.mark.parametrize(
    ("name", "method"), [("minic3d_bn", "sgd"), ("minic3d", "sgd"), ("cnn_lstm", "sgd"), ("minic3d_bn", "adamw")]
)
def test_a_resumed_run_is_the_run(stage_module, tmp_path, name, method):
    job = stage_module.tiny_training(stage_module.TrainingParameters(network=name, method=method))
    whole, broken = (Runtime(store=str(tmp_path / folder), threads=1, device="cpu") for folder in ("whole", "broken"))
    run_job(job, whole)
    assert stage_module.steps_taken == [*range(8)]
    stage_module.steps_taken.clear()
    for stop in (2, 5, 6):  # before the first checkpoint, between two, right after the second
        stage_module.stop_at.add(stop)
        with pytest.raises(stage_module.Stopped):
            run_job(job, broken)
    run_job(job, broken)
    assert stage_module.steps_taken == [0, 1, *range(5), 3, 4, 5, 6, 7]
    assert files_of(job, broken) == files_of(job, whole)
    assert json.loads(files_of(job, whole)["curve.json"])[0] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert open_store(broken.store).refs() == [job.ref]


def test_a_resumed_run_keeps_the_losses_that_were_not_averaged_yet(stage_module, tmp_path):
    """100 steps are averaged in pairs, and the checkpoint after step 35 is in the middle of one."""
    job = stage_module.tiny_training(stage_module.TrainingParameters(network="linear", steps=100, checkpoint_every=35))
    whole, broken = (Runtime(store=str(tmp_path / folder), threads=1, device="cpu") for folder in ("whole", "broken"))
    run_job(job, whole)
    stage_module.stop_at.add(50)
    with pytest.raises(stage_module.Stopped):
        run_job(job, broken)
    run_job(job, broken)
    assert files_of(job, broken) == files_of(job, whole)


# --- the rest ------------------------------------------------------------------------------------------------------


def test_a_network_is_its_seed_whatever_was_drawn_before():
    one = weights(make_network())
    torch.rand(5)
    other = weights(make_network())
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])
    third = training.build_network("minic3d_bn", 3, SHAPE_THWC, 1)
    assert not np.array_equal(weights(third)["head.weight"], one["head.weight"])


def test_a_dropout_of_a_user_s_network_draws_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other networks train in the same process, and a run that goes on draws what the one before would have drawn."""
    layers = nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 4 * 48 * 48, 3)
    monkeypatch.setitem(models.OWN, "dropping", lambda classes: nn.Sequential(*layers))
    made = []
    for noise in (0, 1):
        network = training.build_network("dropping", 3, SHAPE_THWC, 0)
        network.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()})
        torch.manual_seed(noise)
        training.train(network, draw, 3, OptimiserParameters(lr=0.05), CPU, seed=0)
        made.append(weights(network))
    for name, array in made[0].items():
        np.testing.assert_array_equal(array, made[1][name])


def test_an_unknown_network_is_a_wrong_request():
    with pytest.raises(RequestError, match=r"'resnet'.*choose one of r2plus1d_small"):
        training.build_network("resnet", 3, SHAPE_THWC, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
def test_an_artifact_says_which_gpu_it_was_made_on() -> None:
    facts = Device(torch.device("cuda"), "fp32", 1).facts()
    assert facts["gpu"] == torch.cuda.get_device_name()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_a_wrong_request(stage_module, tmp_path):
    job = stage_module.tiny_training(stage_module.TrainingParameters())
    with pytest.raises(RequestError, match=r"The device 'cuda' cannot be used: .* Try --device cpu\."):
        run_job(job, Runtime(store=str(tmp_path), threads=1, device="cuda"))


def test_input_is_normalised_and_channels_first():
    clips_NTHWC = np.random.default_rng(0).integers(0, 256, (2, *SHAPE_THWC), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    x_BCTHW = training.to_input(clips_NTHWC, mean, std, CPU)
    expected = ((clips_NTHWC / 255 - mean) / std).transpose(0, 4, 1, 2, 3)
    assert x_BCTHW.dtype == torch.float32
    np.testing.assert_allclose(x_BCTHW.numpy(), expected, atol=1e-5)


def test_flips_mirror_whole_clips():
    x_BCTHW = torch.randn(3, 3, 2, 4, 5)
    flipped = training.flip_some(x_BCTHW, np.array([True, False, True]))
    np.testing.assert_array_equal(flipped[0], x_BCTHW[0].numpy()[..., ::-1])
    np.testing.assert_array_equal(flipped[1], x_BCTHW[1])
    np.testing.assert_array_equal(flipped[2], x_BCTHW[2].numpy()[..., ::-1])


def test_crops_zoom_into_an_upright_square_of_a_clip_the_same_in_all_of_its_frames():
    """Clips whose colours are the place: a crop is that ramp again, flatter by the side of the square."""
    side, clips = 32, 400
    ramp = torch.linspace(0, 1, side, dtype=torch.float64)
    x_BCTHW = torch.stack([ramp[:, None].expand(side, side), ramp.expand(side, side), torch.zeros(side, side)])
    x_BCTHW = x_BCTHW[None, :, None].expand(clips, 3, 2, side, side)
    made = view(x_BCTHW, TrainingParameters(crop_scale=0.25), False, np.random.default_rng(0))
    assert torch.equal(made[:, :, 0], made[:, :, 1])
    inner = slice(1, -1)  # beyond the outermost centres there is nothing to interpolate
    down = made[:, 0, 0, inner, inner].diff(dim=1) * (side - 1)
    right = made[:, 1, 0, inner, inner].diff(dim=2) * (side - 1)
    for step in (down, right.transpose(1, 2)):
        assert (step.amax((1, 2)) - step.amin((1, 2))).max() < 1e-9
    share_B = down[:, 0, 0] ** 2
    torch.testing.assert_close(down[:, 0, 0], right[:, 0, 0])  # one side, upright, not mirrored
    assert share_B.min() >= 0.25
    assert share_B.max() <= 1
    assert share_B.mean().item() == pytest.approx(0.625, abs=0.04)  # of the area, uniform
    middles = made[:, :2, 0].mean((2, 3))
    assert middles.std(0).min() > 0.05
    assert middles.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert made.amin() >= 0
    assert made.amax() <= 1


def test_prediction_is_in_evaluation_mode_and_in_order():
    network = make_network().train()
    batches = [draw(step)[0] for step in range(3)]
    logits_NK = training.predict(network, iter(batches), CPU)
    assert (logits_NK.shape, logits_NK.dtype) == ((6, 3), torch.float32)
    with torch.no_grad():
        expected = network.eval()(torch.cat(batches))
    torch.testing.assert_close(logits_NK, expected)


def test_a_settled_network_is_not_trained():
    network = training.settled(make_network(), CPU)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    np.testing.assert_array_equal(training.one_hot(np.array([2, 0]), 3, CPU), [[0, 0, 1], [1, 0, 0]])


def test_weights_that_two_layers_share_are_kept_for_both_in_the_same_bytes_each_time(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv3d(2, 2, 1))
    network.to(memory_format=torch.channels_last_3d)
    network[1].weight = network[0].weight
    kept = set()
    for name in "abcdefgh":
        training.save_weights(network, tmp_path / name)
        kept.add((tmp_path / name).read_bytes())
    assert len(kept) == 1
    assert load_file(tmp_path / "a").keys() == network.state_dict().keys()
    network.load_state_dict(load_file(tmp_path / "a"))
