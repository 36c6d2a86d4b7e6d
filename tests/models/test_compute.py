"""Device, precision, layout and cost."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from vidistill.models import build, compute, cpu


def test_auto_precision_follows_the_cpus_flags(monkeypatch):
    device = torch.device("cpu")
    for flags, want in (
        ({"avx512f", "avx512_bf16"}, "bf16"),
        ({"amx_bf16"}, "bf16"),
        ({"avx512f", "avx512bw"}, "fp32"),
    ):
        monkeypatch.setattr(cpu, "flags", lambda flags=frozenset(flags): flags)
        assert compute.resolve_precision("auto", device) == want
        for native in (True, False):  # an older GPU emulates it, without cuDNN
            monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: (
                native or including_emulation
            ))  # fmt: skip
            assert compute.resolve_precision("auto", torch.device("cuda")) == ("bf16" if native else "fp32")
        assert compute.resolve_precision("fp32", device) == "fp32"


def test_cpu_flags_are_those_that_linux_lists():
    if not Path("/proc/cpuinfo").exists() or "\nflags" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this system lists no CPU flags")
    assert "sse2" in cpu.flags()


def test_cuda_is_refused_where_there_is_none():
    assert compute.resolve_device("cpu") == torch.device("cpu")
    if torch.cuda.is_available():
        assert compute.resolve_device("auto").type == compute.resolve_device("cuda").type == "cuda"
        return
    assert compute.resolve_device("auto").type == "cpu"
    with pytest.raises(ValueError, match="no CUDA device"):
        compute.resolve_device("cuda")


def test_autocast_multiplies_in_the_precision_asked_for():
    weight = torch.randn(8, 8)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with compute.autocast(torch.device("cpu"), precision):
            assert (weight @ weight).dtype is dtype


def test_normalised_clips_are_channels_last_and_right():
    clips_NTHWC = torch.randint(0, 256, (2, 3, 5, 7, 3), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.3), (0.2, 0.25, 0.3)
    before = clips_NTHWC.clone()
    x_BCTHW = compute.normalise(clips_NTHWC, mean, std)
    want = (clips_NTHWC.double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
    torch.testing.assert_close(x_BCTHW.double(), want.permute(0, 4, 1, 2, 3), rtol=1e-5, atol=2e-6)
    assert x_BCTHW.dtype is torch.float32
    assert x_BCTHW.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(clips_NTHWC, before)


@pytest.mark.parametrize(("frames", "size", "giga_macs"), [(16, 112, 5.50), (8, 112, 2.75), (8, 64, 0.886)])
def test_flops_of_minic3d_are_the_published_ones(frames, size, giga_macs):
    model = build("minic3d", classes=50, frames=frames, size=size).train()
    assert compute.flops(model, (1, 3, frames, size, size)) == pytest.approx(2e9 * giga_macs, rel=2e-3)
    assert model.training
    assert next(model.parameters()).device.type == "cpu"


def test_counting_leaves_the_gradients_of_another_thread_alone():
    def to_pixels():
        x_BC = torch.ones(2, 3, requires_grad=True)
        return torch.autograd.grad(torch.nn.Linear(3, 1)(x_BC).sum(), x_BC)[0].shape

    class Counted(torch.nn.Linear):
        def forward(self, x_BCTHW):
            with ThreadPoolExecutor(1) as other:
                assert other.submit(to_pixels).result() == (2, 3)
            return super().forward(x_BCTHW)

    assert compute.flops(Counted(5, 7), (1, 1, 1, 2, 5)) == 2 * 2 * 5 * 7


def test_a_network_may_make_tensors_on_its_own_device():
    class Placed(torch.nn.Linear):
        def forward(self, x_BCTHW):
            return super().forward(x_BCTHW + torch.linspace(0, 1, 5))

    assert compute.flops(Placed(5, 7), (1, 1, 1, 2, 5)) == 2 * 2 * 5 * 7


@pytest.mark.parametrize(("name", "gates"), [("cnn_gru", 3), ("cnn_lstm", 4)])
def test_flops_count_the_recurrent_layer(name, gates):
    frames, size, features, hidden, classes = 4, 32, 128 * 16, 256, 5
    cnn = frames * sum(9 * 128 * c_in * side**2 for c_in, side in ((3, 32), (128, 16), (128, 8)))
    macs = cnn + frames * gates * hidden * (features + hidden) + hidden * classes
    assert compute.flops(build(name, classes=classes, frames=frames, size=size), (1, 3, frames, size, size)) == 2 * macs


def test_freed_memory_is_kept_and_used_again():
    """In a process of its own: the setting lasts, and pages that are kept soon fault no more."""
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("this C library has no mallopt")
    code = (
        "import resource, torch; from vidistill.models.compute import keep_freed_memory\n"
        "assert keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(8): torch.zeros(25_000_000).add_(1)\n"
        "before = faults()\n"
        "for _ in range(4): torch.zeros(25_000_000).add_(1)\n"
        "print(faults() - before)"
    )
    pages_of_one = 100_000_000 // resource.getpagesize()
    assert int(subprocess.check_output([sys.executable, "-c", code], text=True)) < pages_of_one / 10
