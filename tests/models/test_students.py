"""The students of the pool's paper: C3D, the published network at its size, and Video Swin-T, torchvision's."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.video import swin3d_t
from torchvision.ops import StochasticDepth

from vidistill.models import build, compute
from vidistill.models.c3d import C3D
from vidistill.models.dropout import SeededDropout, seed_dropout, with_seeds
from vidistill.models.minic3d import Conv3d
from vidistill.models.video_swin import VideoSwin

pytestmark = pytest.mark.usefixtures("one_thread")
STUDENTS = ("c3d", "video_swin_t")
CONVS = [(3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512)]


@pytest.fixture(scope="module", params=STUDENTS)
def small(request) -> nn.Module:
    """A student of clips of 8×56×56."""
    torch.manual_seed(0)
    return build(request.param, classes=8, frames=8, size=56)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def c3d_weights(left: int, classes: int) -> int:
    convolutions = sum(27 * c_in * c_out + c_out for c_in, c_out in CONVS)
    return convolutions + (512 * left + 1) * 4096 + 4097 * 4096 + 4097 * classes


@pytest.mark.parametrize(
    ("frames", "size", "left"), [(16, 112, 16), (8, 112, 16), (8, 56, 4), (32, 64, 8), (4, 32, 1), (1, 17, 1)]
)
def test_c3d_keeps_its_widths_and_reads_all_that_the_pools_leave(frames, size, left):
    with torch.device("meta"):
        model = C3D(101, frames, size)
        assert parameters(model) == c3d_weights(left, 101)
        assert model(torch.empty(2, 3, frames, size, size)).shape == (2, 101)


def test_c3d_is_the_published_network_at_its_size():
    assert c3d_weights(16, 101) == pytest.approx(78.41e6, rel=1e-4)
    with torch.device("meta"):
        model = C3D(101, 16, 112)
    assert compute.flops(model, (1, 3, 16, 112, 112)) == pytest.approx(2 * 38.5e9, rel=0.01)


def test_c3d_is_its_layers_written_out():
    torch.manual_seed(0)
    model = C3D(5, 4, 24).eval()
    x_BCTHW = want = torch.randn(2, 3, 4, 24, 24)
    convs = [conv for conv in model.modules() if isinstance(conv, nn.Conv3d)]
    assert [(conv.in_channels, conv.out_channels) for conv in convs] == CONVS
    pools = {0: (1, 2, 2), 1: 2, 3: 2, 5: 2, 7: 2}
    for number, conv in enumerate(convs):
        want = torch.relu(F.conv3d(want, conv.weight, conv.bias, padding=1))
        if number in pools:
            want = F.max_pool3d(want, pools[number], ceil_mode=True)
    want = torch.relu(F.linear(want.reshape(2, -1), model.fc6.weight, model.fc6.bias))
    with torch.no_grad():
        torch.testing.assert_close(model.embed(x_BCTHW), want)
        want = model.head(torch.relu(F.linear(want, model.fc7.weight, model.fc7.bias)))
        torch.testing.assert_close(model(x_BCTHW), want)


def test_c3d_says_the_same_when_the_pixels_need_a_gradient():
    """MiniC3D's faster form of its first convolution is for kernels of 3×7×7 alone."""
    torch.manual_seed(0)
    conv = Conv3d(3, 4, 3, padding=1)
    x_BCTHW = torch.randn(2, 3, 4, 9, 9)
    torch.testing.assert_close(
        conv(x_BCTHW.clone().requires_grad_()), F.conv3d(x_BCTHW, conv.weight, conv.bias, padding=1)
    )


def test_swin_is_torchvisions_with_the_published_count():
    torch.manual_seed(0)
    ours, theirs = VideoSwin(400, 112).eval(), swin3d_t(weights=None, num_classes=400).eval()
    assert parameters(ours) == 28_158_070  # torchvision's Swin3D_T_Weights
    theirs.load_state_dict(ours.swin.state_dict())
    features, clip_BCTHW = {}, torch.randn(1, 3, 16, 112, 112)  # 8×28×28 tokens: whole windows in its first stages
    with torch.no_grad():
        for name, swin in (("ours", ours.swin), ("theirs", theirs)):
            features[name] = swin.features[:3](swin.patch_embed(clip_BCTHW))
    torch.testing.assert_close(features["ours"], features["theirs"])


def test_a_gradient_of_the_bias_is_the_same_each_time_on_two_threads():
    attention, before = VideoSwin(2, 56).swin.features[0][0].attn, torch.get_num_threads()
    weight = torch.randn(1, 3, 196, 196, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(2)
    try:
        found = {
            torch.autograd.grad(
                (attention.get_relative_position_bias([4, 7, 7]) * weight).sum(), attention.relative_position_bias_table
            )[0].numpy().tobytes()
            for _ in range(50)
        }  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


@pytest.mark.parametrize("window", [(4, 7, 7), (2, 4, 4), (1, 1, 1)])
def test_each_pair_of_tokens_of_a_small_window_has_the_bias_of_its_own_offset(window):
    attention = VideoSwin(2, 56).swin.features[0][0].attn
    table = attention.relative_position_bias_table  # (15·13·13, heads), row-major in the offsets from (-7, -6, -6)
    bias = attention.get_relative_position_bias(list(window))[0]
    tokens = list(itertools.product(*map(range, window)))
    for i, a in enumerate(tokens):
        for j, b in enumerate(tokens):
            dt, dy, dx = (p - q for p, q in zip(a, b, strict=True))
            assert torch.equal(bias[:, i, j], table[((dt + 7) * 13 + dy + 6) * 13 + dx + 6])


def test_small_clips_are_one_window_of_tokens():
    assert VideoSwin(2, 56).swin.patch_embed(torch.randn(1, 3, 8, 56, 56)).shape == (1, 4, 7, 7, 96)
    assert VideoSwin(2, 28).swin.patch_embed(torch.randn(1, 3, 8, 28, 28)).shape == (1, 4, 7, 7, 96)
    assert VideoSwin(2, 112).swin.patch_embed.proj.kernel_size == (2, 4, 4)


@pytest.mark.parametrize("name", STUDENTS)
def test_students_take_the_published_size_on_any_device(name):
    with torch.device("meta"):
        model = build(name, classes=11, frames=16, size=112)
        assert model(torch.empty(1, 3, 16, 112, 112)).shape == (1, 11)
        assert model.embed(torch.empty(1, 3, 16, 112, 112)).shape == (1, {"c3d": 4096, "video_swin_t": 768}[name])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_weight_has_a_finite_gradient(small, precision):
    torch.manual_seed(1)
    small.train().zero_grad()
    x_BCTHW = torch.randn(2, 8, 56, 56, 3).permute(0, 4, 1, 2, 3)  # channels-last, as clips are
    with compute.autocast(torch.device("cpu"), precision):
        logits_BK = small(x_BCTHW)
    loss = F.cross_entropy(logits_BK.float(), torch.tensor([0, 7]))
    assert loss.item() == pytest.approx(math.log(8), abs=1.2)
    loss.backward()
    for name, p in small.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


def test_the_order_of_frames_matters(small):
    x_BCTHW = torch.randn(1, 3, 8, 56, 56)
    with torch.no_grad():
        assert not torch.allclose(small.eval()(x_BCTHW), small(x_BCTHW.flip(2)), atol=1e-5)


def test_dropout_is_its_seed_whatever_torch_drew_before(small):
    x_BCTHW = torch.randn(1, 3, 8, 56, 56).expand(4, -1, -1, -1, -1)
    small.train()
    made = []
    for seed in (3, 3, 4):
        torch.rand(5)
        seed_dropout(small, seed)
        with torch.no_grad():
            made.append(small(x_BCTHW))
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=0)
    assert not torch.equal(made[0], made[2])


def test_no_two_dropouts_of_a_network_draw_the_same_mask():
    dropouts = nn.Sequential(SeededDropout(0.5), SeededDropout(0.5))
    seed_dropout(dropouts, 0)
    masks = [dropout(torch.ones(64)) for dropout in dropouts]
    assert not torch.equal(*masks)


def test_stochastic_depth_leaves_out_whole_clips_and_keeps_the_mean():
    depth = SeededDropout(0.25, axes=1)
    depth.generator.manual_seed(0)
    kept = depth(torch.ones(4000, 1, 2, 1, 1)).flatten(1)
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    depths = [m.p for m in VideoSwin(2, 56).modules() if isinstance(m, SeededDropout) and m.axes == 1]
    assert depths[-1] == pytest.approx(0.1)


def test_dropouts_of_others_are_seeded_and_drop_what_theirs_drop() -> None:
    plain = nn.Sequential(
        nn.Dropout(0.5), nn.Sequential(nn.Dropout3d(0.5), StochasticDepth(0.5, "row")), StochasticDepth(0.5, "batch")
    )
    seeded, x = with_seeds(plain), torch.ones(64, 8, 2, 4, 4)
    (features, (channels, clips), batch) = seeded
    seed_dropout(seeded, 0)
    assert 0.4 < (features(x) == 0).float().mean() < 0.6
    for dropout, axes in ((channels, 2), (clips, 1), (batch, 0)):
        whole = dropout(x).flatten(axes)
        assert torch.equal(whole, whole[..., :1].expand_as(whole)), "what lies along the other axes goes together"
    assert len({clips(x)[clip].mean().item() for clip in range(64)}) == 2
    assert {batch(x).mean().item() for _ in range(20)} == {0.0, 2.0}
    made = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        seed_dropout(seeded, 3)
        made.append(seeded(x))
    assert torch.equal(*made), "and nothing is drawn from the stream that all share"
