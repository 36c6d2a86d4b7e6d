"""What a step of a matching method holds at a time: the graph of a pass of a few clips, however large the set is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from held import held_by, peak_of
from torch.utils._python_dispatch import TorchDispatchMode

from vidistill.models.forms import fused
from vidistill.tasks.match import core, dc, frepo, idtd, mtt, static_dc
from vidistill.tasks.match.real import RealClips

PASS = 2  # clips


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tiny.Tiny:
    tiny.networks(monkeypatch)
    monkeypatch.setattr(core, "a_pass", lambda _material, _size: PASS)
    monkeypatch.setitem(mtt.KEPT_BYTES, "cpu", 0)
    made = tiny.Tiny(tiny.tiny_clips(tmp_path))
    vector_P = torch.cat([weight.detach().flatten() for weight in tiny.TinyNet().parameters()]).numpy()
    made.experts(tmp_path, np.stack([vector_P, vector_P + 0.1])[None])
    return made


def a_set(clips: int) -> tuple[core.Learnt, np.ndarray]:
    x_NCTHW = torch.randn(clips, 3, tiny.FRAMES, tiny.SIZE, tiny.SIZE)
    labels_N = np.arange(clips) * 2 // clips
    learnt = {"clips": x_NCTHW, "labels": torch.randn(clips, 2), "lr": torch.tensor(0.1)}
    return {name: core.leaf(tensor) for name, tensor in learnt.items()}, labels_N


def of_frepo(given: tiny.Tiny, clips: int) -> Callable[[], Any]:
    learnt, _ = a_set(clips)
    parameters = frepo.FRePoParameters(pool=1, batch_real=2, precision="fp32")
    pool = frepo.Pool(given.material(), parameters)
    loss = frepo.frepo_loss(given.material(), core.pixels, parameters, pool)
    return lambda: loss(1, learnt)


def of_mtt(given: tiny.Tiny, clips: int) -> Callable[[], Any]:
    learnt, labels_N = a_set(clips)
    del learnt["labels"]
    parameters = mtt.MTTParameters(syn_steps=2, max_start_epoch=1)
    loss = mtt.mtt_loss(given.material(), labels_N, core.pixels, parameters)
    return lambda: loss(0, learnt)


def of_dc(given: tiny.Tiny, clips: int) -> Callable[[], Any]:
    """Its inner loop; the matching step holds the graph of a class."""
    learnt, labels_N = a_set(clips)
    parameters, network = dc.DCParameters(inner=1), tiny.TinyNet()
    return lambda: dc._train(network, given.material(), labels_N, core.pixels, learnt, parameters, 0)


def of_rate(given: tiny.Tiny, clips: int) -> Callable[[], Any]:
    learnt, _ = a_set(clips)
    loss = core.with_rate(lambda _iteration, _learnt: (torch.zeros(()), {}), 0.5, given.material())
    return lambda: loss(0, learnt)


@pytest.mark.parametrize("step", [of_frepo, of_mtt, of_dc, of_rate])
def test_no_graph_holds_the_set(
    given: tiny.Tiny, step: Callable[[tiny.Tiny, int], Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eighty clips a step by twos holds little more than of two; FRePo's kernel in float64 is what is left."""
    clips = 40 * PASS
    few, many = (held_by(step(given, count)) for count in (PASS, clips))
    monkeypatch.setattr(core, "a_pass", lambda _material, size: size)
    whole = held_by(step(given, clips))
    kernel = 8 * 3 * clips * (clips + 128) if step is of_frepo else 0
    assert many <= few + kernel + 0.02 * whole < 0.5 * whole


class Watch(TorchDispatchMode):
    """The numbers in the largest tensor that torch makes, those that share the memory of given ones left out."""

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.given, self.largest = {tensor.untyped_storage().data_ptr() for tensor in given}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if torch.is_tensor(made) and made.untyped_storage().data_ptr() not in self.given:
            self.largest = max(self.largest, made.untyped_storage().nbytes() // made.element_size())
        return made


@pytest.mark.parametrize("init", ["real", "noise"])
def test_what_begins_as_a_few_frames_takes_no_memory_for_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: Any
) -> None:
    """Two images of each of 160 clips of 64 frames: a few clips at a time, of which the images alone become floats."""
    monkeypatch.setattr(tiny, "FRAMES", 64)
    material = tiny.Tiny(tiny.tiny_clips(tmp_path, labels=(0, 1) * 80)).material(ipc=160)
    parameters = static_dc.StaticDCParameters(images=2, init=init)
    size = 320 * tiny.FRAMES * 3 * tiny.SIZE**2
    with Watch() as made:
        start = static_dc.first_images(material, parameters)
    _, peak = peak_of(lambda: static_dc.first_images(material, parameters))
    assert made.largest <= start.x_NCTHW.numel() == size // tiny.FRAMES
    assert peak < size * (4 if init == "noise" else 1) / 3


def test_a_batch_of_single_frames_takes_no_memory_for_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "FRAMES", 16)
    given = tiny.Tiny(tiny.tiny_clips(tmp_path, labels=(0, 1) * 8))
    real = RealClips(given.clips, 0, given.material(ipc=1).device)
    with Watch() as made:
        x_BC1HW, _ = real.batch(3, [1], 8, np.random.default_rng(5))
    assert made.largest <= x_BC1HW.numel() == 8 * 3 * tiny.SIZE**2
    frames_B = np.random.default_rng(5).integers(16, size=8)
    x_BCTHW, _ = real.batch(3, [1], 8)
    assert torch.equal(x_BC1HW[:, :, 0], x_BCTHW[range(8), :, frames_B])


def test_idtd_copies_no_pool_for_an_instance() -> None:
    """50 instances of a class read one pool; at 50 classes of 16×112² their copies would have taken 70 GB."""
    ipc, features, segments, side = 50, 2, 2, 8
    pool = torch.randn(2, 3, ipc * features, side, side)
    learnt = {"pool": core.leaf(pool), "choice": core.leaf(torch.randn(2 * ipc, segments, ipc * features))}
    reading = idtd.Fused(ipc, 4, torch.tensor(-9.0), torch.tensor(9.0))
    with Watch() as reads:
        reading.keys(core.Part(learnt), np.arange(2 * ipc))
    stored = {"pool": (pool.permute(0, 2, 3, 4, 1).clamp(0, 1) * 255).byte().numpy(), "mean": np.zeros(3, np.float32),
              "choice": learnt["choice"].detach().numpy(), "std": np.ones(3, np.float32),
              "weight": np.zeros((3, 3, 3, 3, 3), np.float32), "bias": np.zeros(3, np.float32)}  # fmt: skip
    with Watch() as shows:
        fused(stored, (2 * ipc, 4, side, side, 3))
    assert max(reads.largest, shows.largest) <= 2 * pool.numel()


def test_a_part_makes_no_gradient_of_the_rows_that_it_did_not_read() -> None:
    learnt, totals = {"clips": core.leaf(torch.randn(500, 64))}, {"clips": torch.zeros(500, 64)}
    with Watch(learnt["clips"], totals["clips"]) as made:
        for rows in (np.array([3, 4]), np.array([9, 7])):
            part = core.Part(learnt)
            part.differentiate(core.pixels(part, rows, np.random.default_rng(0)).square().sum(), totals)
    assert made.largest == 2 * 64
    assert totals["clips"].abs().sum(1).count_nonzero() == 4
