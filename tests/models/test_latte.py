"""Latte: shapes, published sizes and names, adaLN-Zero, guidance, and a forward pass written out another way."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vidistill.models.autoencoder import Codec, FrameAutoencoder, Turned, autoencoder_loss, to_clips, to_frames
from vidistill.models.diffusion import STEPS, alphas_cumulated, diffusion_loss, noised, variance_bound, velocity_of
from vidistill.models.latte import LABELS, SIZES, Latte, Size, load_published

TINY = Size(4, 32, 2)


def tiny(**changes) -> Latte:
    torch.manual_seed(0)
    return Latte(3, 4, 4, TINY, **changes).eval()


def shaken(network: Latte) -> Latte:
    """With weights that are zero nowhere, so that everything has an effect."""
    torch.manual_seed(1)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return network.eval()


def latents(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(batch, 4, 4, 4, 4), torch.tensor([999, 3][:batch]), torch.tensor([0, 2][:batch])


def published(size: Size, classes: int, frames: int, side: int, patch: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released class-conditional checkpoint with learned sigma."""
    d, tokens = size.width, (side // patch) ** 2
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, tokens, d), "temp_embed": (1, frames, d)}
    shapes |= {"x_embedder.proj.weight": (d, 4, patch, patch), "x_embedder.proj.bias": (d,)}
    shapes |= {"y_embedder.embedding_table.weight": (classes + 1, d)}
    linears = {"t_embedder.mlp.0": (d, 256), "t_embedder.mlp.2": (d, d)}
    for block in range(size.depth):
        name = f"blocks.{block}"
        linears |= {f"{name}.attn.qkv": (3 * d, d), f"{name}.attn.proj": (d, d), f"{name}.mlp.fc1": (4 * d, d),
                    f"{name}.mlp.fc2": (d, 4 * d), f"{name}.adaLN_modulation.1": (6 * d, d)}  # fmt: skip
    linears |= {"final_layer.linear": (patch * patch * 8, d), "final_layer.adaLN_modulation.1": (2 * d, d)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


@pytest.mark.parametrize(("learned", "channels"), [(False, 4), (True, 8)])
@pytest.mark.parametrize("patch", [1, 2])
def test_shapes(learned, channels, patch):
    network = shaken(tiny(patch=patch, learned_sigma=learned))
    z, steps, labels = latents()
    assert network(z, steps, labels).shape == (2, channels, 4, 4, 4)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="patches of 3 do not fill latents of 4×4"):
        tiny(patch=3)


@pytest.mark.parametrize(("name", "millions"), [("S", 32.5), ("B", 129.6), ("L", 456.9), ("XL", 673.8)])
def test_published_sizes(name, millions):
    with torch.device("meta"):
        network = Latte(101, 16, 32, SIZES[name], learned_sigma=True)
    fixed = network.places_SD.numel() + network.times_TD.numel()  # counted as parameters by the published code
    assert (sum(p.numel() for p in network.parameters()) + fixed) / 1e6 == pytest.approx(millions, abs=0.4)


def test_a_block_is_the_identity_at_first_and_the_output_is_zero():
    network = tiny()
    x, condition = torch.randn(2, 4, 16, 32), torch.randn(2, 4, 32)
    for block in network.blocks:
        assert torch.equal(block(x, condition), x)
    assert network(*latents()).abs().max() == 0


def test_time_and_label_and_place_matter():
    network = shaken(tiny())
    z, steps, labels = latents()
    out = network(z, steps, labels)
    assert not torch.allclose(out, network(z, steps - 1, labels))
    assert not torch.allclose(out, network(z, steps, labels + 1))
    assert not torch.allclose(out.flip(2), network(z.flip(2), steps, labels))
    assert not torch.allclose(out.flip(4), network(z.flip(4), steps, labels))


def test_a_frame_of_its_own_step_is_that_of_a_clip_of_this_step():
    network = shaken(tiny(learned_sigma=True))
    z, steps, labels = latents()
    torch.testing.assert_close(network(z, steps[:, None].expand(2, 4), labels), network(z, steps, labels))
    for block in network.blocks[1::2]:
        block.forward = lambda x_BTSD, condition_BTD: x_BTSD  # so that frames do not mix
    steps_BT, noise = torch.tensor([[999, 3, 0, 500], [7, 0, 600, 2]]), torch.randn_like(z)
    for frame in range(4):
        of_clip = steps_BT[:, frame]
        for found, wanted in (
            (network(z, steps_BT, labels), network(z, of_clip, labels)),
            (noised(z, noise, steps_BT), noised(z, noise, of_clip)),
            (velocity_of(z, noise, steps_BT), velocity_of(z, noise, of_clip)),
        ):
            torch.testing.assert_close(found[:, :, frame], wanted[:, :, frame])
    place = torch.rand_like(z)
    parts = [variance_bound(*(v[:, :, [f]] for v in (z, place, z, noise)), steps_BT[:, f]) for f in range(4)]
    torch.testing.assert_close(variance_bound(z, place, z, noise, steps_BT), torch.stack(parts).mean())


def reference(network: Latte, z_BCTHW: Tensor, steps: Tensor, labels: Tensor) -> Tensor:
    """The published order of operations, token by token group, with the softmax written out (patch of 2)."""
    w = network.state_dict()
    b, _, t, side, _ = z_BCTHW.shape
    grid, d, heads = side // 2, TINY.width, TINY.heads

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def sincos(place: int, width: int) -> list[float]:
        angles = [place / 10_000 ** (2 * i / width) for i in range(width // 2)]
        return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]

    rates = torch.exp(-math.log(10_000) * torch.arange(128) / 128)
    angles = steps[:, None] * rates
    embedded = linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))
    c = linear("t_embedder.mlp.2", F.silu(embedded)) + w[LABELS][labels]
    frames = z_BCTHW.transpose(1, 2).flatten(0, 1)
    kernel = w["x_embedder.proj.weight"].flatten(1)
    tokens = [frames[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1) @ kernel.T
              for i in range(grid) for j in range(grid)]  # fmt: skip
    places = torch.tensor([sincos(j, d // 2) + sincos(i, d // 2) for i in range(grid) for j in range(grid)])
    x = torch.stack(tokens, 1) + w["x_embedder.proj.bias"] + places
    times = torch.tensor([sincos(time, d) for time in range(t)])
    for number in range(TINY.depth):
        name = f"blocks.{number}"
        if number % 2:
            x = x.view(b, t, -1, d).transpose(1, 2).flatten(0, 1)
            x = x + times if number == 1 else x
        repeated = c.repeat_interleave(len(x) // b, 0)
        parts = linear(f"{name}.adaLN_modulation.1", F.silu(repeated)).chunk(6, 1)
        shift, scale, gate, shift2, scale2, gate2 = (part[:, None] for part in parts)
        h = F.layer_norm(x, (d,), eps=1e-6) * (1 + scale) + shift
        q, k, v = linear(f"{name}.attn.qkv", h).view(*h.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(2, 3)) / (d / heads) ** 0.5).softmax(-1) @ v
        x = x + gate * linear(f"{name}.attn.proj", mixed.transpose(1, 2).flatten(2))
        h = F.layer_norm(x, (d,), eps=1e-6) * (1 + scale2) + shift2
        x = x + gate2 * linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", h), approximate="tanh"))
        if number % 2:
            x = x.view(b, -1, t, d).transpose(1, 2).flatten(0, 1)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c.repeat_interleave(t, 0)))[:, None].chunk(2, 2)
    x = linear("final_layer.linear", F.layer_norm(x, (d,), eps=1e-6) * (1 + scale) + shift)
    out = torch.empty(b * t, network.outputs, side, side)
    for token in range(grid * grid):
        i, j = 2 * (token // grid), 2 * (token % grid)
        out[:, :, i : i + 2, j : j + 2] = x[:, token].view(-1, 2, 2, network.outputs).permute(0, 3, 1, 2)
    return out.view(b, t, -1, side, side).transpose(1, 2)


def test_forward_is_the_published_one():
    network = shaken(tiny(patch=2, learned_sigma=True))
    with torch.no_grad():
        ours, theirs = network(*latents()), reference(network, *latents())
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_guidance_is_of_the_noise_channels_alone():
    network = shaken(tiny(learned_sigma=True))
    z, steps, labels = latents()
    with torch.no_grad():
        classed, free = network(z, steps, labels), network(z, steps, torch.full_like(labels, network.no_class))
        guided = network.guided(z, steps, labels, 4.0)
        by_frame = network.guided(z, steps[:, None].expand(-1, network.frames), labels, 4.0)
        assert torch.equal(network.guided(z, steps, labels, 1.0), classed)
    torch.testing.assert_close(guided[:, :4], free[:, :4] + 4 * (classed - free)[:, :4], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(guided[:, 4:], classed[:, 4:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_frame, guided, rtol=1e-4, atol=1e-4)


def test_bf16_is_close():
    network = shaken(tiny())
    with torch.no_grad():
        exact = network(*latents())
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(*latents()).float()
    assert (exact - rough).norm() < 0.05 * exact.norm()


def test_the_released_xl_has_our_names_and_shapes():
    with torch.device("meta"):
        network = Latte(101, 16, 32, SIZES["XL"], learned_sigma=True)
        state = {name: torch.empty(shape) for name, shape in published(SIZES["XL"], 101, 16, 32, 2).items()}
    load_published(network, state, new_labels=False)


def random_state(classes: int, prefix: str = "") -> dict[str, Tensor]:
    torch.manual_seed(5)
    shapes = published(TINY, classes, 16, 32, 2)
    return {prefix + name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_is_loaded_and_its_fixed_embeddings_are_not(prefix):
    network, state = tiny(learned_sigma=True), random_state(3, prefix)
    load_published(network, state, new_labels=False)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, state[prefix + name])


def test_fine_tuning_takes_all_but_the_labels():
    network, state = tiny(learned_sigma=True), random_state(101)
    table = network.state_dict()[LABELS].clone()
    load_published(network, state, new_labels=True)
    loaded = network.state_dict()
    assert torch.equal(loaded[LABELS][:-1], table[:-1])
    assert torch.equal(loaded[LABELS][-1], state[LABELS][-1])
    assert torch.equal(loaded["blocks.3.mlp.fc2.weight"], state["blocks.3.mlp.fc2.weight"])


def test_a_checkpoint_that_does_not_fit_says_where():
    with pytest.raises(ValueError, match=r"y_embedder.embedding_table.weight 4×32 ← 102×32"):
        load_published(tiny(learned_sigma=True), random_state(101), new_labels=False)
    with pytest.raises(ValueError, match=r"2 tensors: final_layer.linear.bias 16 ← 32"):
        load_published(tiny(), random_state(3), new_labels=False)
    state = random_state(3)
    del state["blocks.1.attn.proj.bias"]
    with pytest.raises(ValueError, match=r"blocks.1.attn.proj.bias 32 ← nothing"):
        load_published(tiny(learned_sigma=True), state, new_labels=False)


def test_noise_is_added_as_diffusers_adds_it():
    diffusers = pytest.importorskip("diffusers")
    z, steps, _ = latents()
    noise = torch.randn_like(z)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=STEPS, beta_schedule="linear")
    torch.testing.assert_close(noised(z, noise, steps), scheduler.add_noise(z, noise, steps))
    torch.testing.assert_close(alphas_cumulated().float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)


def test_the_variance_bound_is_the_divergence_of_two_gaussians():
    z, _, _ = latents()
    steps, noise, predicted = torch.tensor([500, 0]), torch.randn_like(z), torch.randn_like(z)
    place = torch.rand_like(z) * 2 - 1
    betas = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)
    alpha, before, beta = (float(v) for v in (alphas_cumulated()[500], alphas_cumulated()[499], betas[500]))
    posterior = beta * (1 - before) / (1 - alpha)

    def mean(noise_of: Tensor) -> Tensor:
        x = noised(z, noise, torch.tensor([500, 500]))[0].double()
        clean = (x - (1 - alpha) ** 0.5 * noise_of[0].double()) / alpha**0.5
        return (before**0.5 * beta * clean + (1 - beta) ** 0.5 * (1 - before) * x) / (1 - alpha)

    share = (place[0].double() + 1) / 2
    variance = (share * math.log(beta) + (1 - share) * math.log(posterior)).exp()
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean(noise), posterior**0.5),
        torch.distributions.Normal(mean(predicted), variance**0.5),
    )
    found = variance_bound(predicted, place, z, noise, steps)
    assert float(found) == pytest.approx(float(kl.mean()) / 2 / math.log(2), rel=1e-3)


def test_only_the_variance_learns_from_the_bound():
    z, steps, _ = latents()
    noise = torch.randn_like(z)
    output = torch.randn(2, 8, 4, 4, 4, requires_grad=True)
    diffusion_loss(output, z, noise, steps).backward()
    plain = output.detach()[:, :4].clone().requires_grad_()
    diffusion_loss(plain, z, noise, steps).backward()
    assert torch.equal(output.grad[:, :4], plain.grad)
    assert output.grad[:, 4:].abs().max() > 0


def test_velocity_is_that_of_the_schedulers():
    diffusers = pytest.importorskip("diffusers")
    z, steps, _ = latents()
    noise = torch.randn_like(z)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=STEPS, beta_schedule="linear")
    torch.testing.assert_close(velocity_of(z, noise, steps), scheduler.get_velocity(z, noise, steps))
    assert diffusion_loss(velocity_of(z, noise, steps), z, noise, steps, velocity=True) == 0


def test_the_bound_is_the_same_whether_noise_or_velocity_is_learned():
    z, steps, _ = latents()
    noise, off, place = torch.randn_like(z), torch.randn_like(z), torch.rand_like(z)
    root = alphas_cumulated()[steps].float().sqrt()[:, None, None, None, None]
    velocity = torch.cat([velocity_of(z, noise, steps) + off, place], dim=1)
    bound = variance_bound(noise + root * off, place, z, noise, steps)
    found = diffusion_loss(velocity, z, noise, steps, velocity=True)
    torch.testing.assert_close(found, F.mse_loss(off, torch.zeros_like(off)) + bound)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_autoencoder_shapes(factor):
    codec = Codec(FrameAutoencoder(4, 8, factor), [0.5] * 4, [2.0] * 4)
    clips = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8)
    z = codec.encode(clips)
    assert z.shape == (2, 4, 3, 16 // factor, 16 // factor)
    assert codec.decode(z).shape == clips.shape
    assert codec.decode(z).dtype == torch.uint8


def test_frames_and_clips_are_each_others_inverse():
    clips = torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8)
    frames = to_frames(clips)
    assert frames.min() >= -1
    assert frames.max() <= 1
    assert torch.equal(to_clips(frames, 3), clips)


def test_an_autoencoder_learns_by_absolute_error_and_divergence():
    torch.manual_seed(0)
    network = FrameAutoencoder(4, 8, 4)
    frames, noise = torch.rand(3, 3, 16, 16) * 2 - 1, torch.randn(3, 4, 4, 4)
    mean, log_variance = network.encoder(frames).split(4, dim=1)
    latents = torch.distributions.Normal(mean, log_variance.exp().sqrt())
    error = (network.decode(latents.mean + noise * latents.stddev) - frames).abs().mean()
    divergence = torch.distributions.kl_divergence(latents, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(autoencoder_loss(network, frames, noise, 0.1), error + 0.1 * divergence)


def test_turned_latents_are_to_show_the_turned_frames():
    """EQ-VAE (Kouzelis et al. 2025): the error of τ(x) against the decoded τ(E(x)), τ a smaller size and quarters."""
    torch.manual_seed(0)
    network = FrameAutoencoder(4, 8, 4)
    frames, noise = torch.rand(3, 3, 16, 16) * 2 - 1, torch.randn(3, 4, 4, 4)
    mean, log_variance = network.moments(frames)
    z = mean + noise * (0.5 * log_variance).exp()
    halves = [torch.nn.functional.avg_pool2d(map_, 2).detach() for map_ in (z, frames)]
    assert Turned(2, 0)(frames, 4).shape == (3, 3, 8, 8)
    for turned, (latents, shown) in {
        Turned(4, 0): (z, frames),
        Turned(4, 1): (z.transpose(2, 3).flip(2), frames.transpose(2, 3).flip(2)),
        Turned(2, 2): (Turned(2, 0)(z, 1).flip(2, 3), Turned(2, 0)(frames, 4).flip(2, 3)),
    }.items():
        divergence = autoencoder_loss(network, frames, noise, 1.0) - autoencoder_loss(network, frames, noise, 0.0)
        error = (network.decode(latents) - shown).abs().mean()
        torch.testing.assert_close(autoencoder_loss(network, frames, noise, 0.1, turned), error + 0.1 * divergence)
    for map_, half, factor in zip((z, frames), halves, (1, 4), strict=True):
        smaller = Turned(2, 0)(map_, factor).detach()
        assert float((smaller - half).abs().mean()) < 0.5 * float(half.abs().mean())


def test_a_codecs_latents_are_standardised_and_decoded_as_they_were():
    torch.manual_seed(0)
    network = FrameAutoencoder(4, 8, 4)
    clips = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8)
    raw = network.encode(to_frames(clips))
    codec = Codec(network, raw.mean((0, 2, 3)).tolist(), (1 / raw.std((0, 2, 3), correction=0)).tolist())
    z = codec.encode(clips)
    torch.testing.assert_close(z.mean((0, 2, 3, 4)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3, 4), correction=0), torch.ones(4), atol=1e-4, rtol=0)
    plain = Codec(network, [0.0] * 4, [1.0] * 4)
    assert (codec.decode(z).int() - plain.decode(plain.encode(clips)).int()).abs().max() <= 1
