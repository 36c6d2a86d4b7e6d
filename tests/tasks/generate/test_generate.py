"""The generator's stages: the autoencoder, the latents, the transformer, and what a killed run leaves of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import tiny
import torch
from method_contract import Bench
from resuming import killed_and_resumed
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vidistill.flows.parameters import PoolRequest, checked, override
from vidistill.models import autoencoder as models_autoencoder
from vidistill.models import latte as models_latte
from vidistill.models.autoencoder import Codec, Turned, pretrained, to_frames
from vidistill.models.diffusion import diffusion_loss, noised
from vidistill.models.latte import LABELS, SIZES, Latte, Size
from vidistill.storage.errors import RequestError, RunError, TransientError
from vidistill.storage.pool import open_latent_array
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks import piecewise
from vidistill.tasks.generate.autoencoder import (
    AutoencoderParameters,
    FrameBatches,
    autoencoder_job,
    decoded,
    encoded,
    latents_job,
    load_codec,
    made_of,
    measured,
)
from vidistill.tasks.generate.diffusion import (
    LEAK,
    LatentBatches,
    LatteParameters,
    compile_network,
    latte_job,
    load_latte,
)
from vidistill.tasks.generate.optimising import AdamParameters, averaged, fit
from vidistill.tasks.generate.released import TuningAdam, TuningParameters
from vidistill.tasks.learning import training
from vidistill.tasks.stage import Job, Runtime, run_job

pytestmark = pytest.mark.usefixtures("tiny_transformer")
FAST = AdamParameters(lr=3e-3, warmup_steps=2)
CODEC = AutoencoderParameters(width=8, steps=8, batch_frames=4, adam=FAST, precision="fp32", checkpoint_steps=3)
LATTE = LatteParameters(steps=8, batch_size=4, adam=FAST, precision="fp32", checkpoint_steps=3)

TUNING = TuningParameters(batch_size=4, adam=TuningAdam(**FAST.model_dump()))
TUNED = LatteParameters(steps=8, tuning=TUNING, precision="fp32", checkpoint_steps=3)


@dataclass(frozen=True)
class Made:
    store: Store
    runtime: Runtime
    bench: Bench
    codec: ArtifactRef
    latents: ArtifactRef

    def do(self, job: Job) -> ArtifactRef:
        return run_job(job, self.runtime)[0]

    def latte(self, parameters: LatteParameters) -> Job:
        return self.latte_of(self.bench.clips.classes, parameters)

    def latte_of(self, classes: Sequence[str], parameters: LatteParameters) -> Job:
        """For data of these classes, in this order."""
        return latte_job(self.bench.given.train, self.latents, parameters, classes=classes, channels=4, side=6)

    def asked(self, path: Path, *settings: str) -> Job:
        """As the command line asks for a fine-tuning."""
        own = (f"pool.latte.{setting}" for setting in (f"pretrained={path}", *settings))
        request = checked(PoolRequest, override({"data": "sprites"}, [*own], PoolRequest), "a request")
        return self.latte(request.pool.latte)

    def facts(self, ref: ArtifactRef, name: str) -> Any:
        return json.loads((self.store.folder(ref) / name).read_text())


@pytest.fixture(scope="module")
def made(bench: Bench) -> Made:
    codec = run_job(autoencoder_job(bench.given.train, CODEC), bench.runtime)[0]
    latents = run_job(latents_job(bench.given.train, codec, "fp32"), bench.runtime)[0]
    return Made(bench.store, bench.runtime, bench, codec, latents)


def test_the_autoencoder_s_divergence_has_the_weight_that_is_asked_for(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, loss = [], models_autoencoder.autoencoder_loss
    monkeypatch.setattr(models_autoencoder, "autoencoder_loss", lambda *given: weights.append(given[3]) or loss(*given))
    made.do(autoencoder_job(made.bench.given.train, CODEC.model_copy(update={"steps": 2, "kl_weight": 0.3})))
    assert set(weights) == {0.3}


@pytest.mark.parametrize("kind", ["autoencoder", "latte", "latte by Muon"])
def test_a_killed_training_ends_with_the_same_bytes(made: Made, kind: str) -> None:
    train = made.bench.given.train
    latte = LATTE.model_copy(update={"muon_lr": 0.02 if "Muon" in kind else 0.0})
    job = autoencoder_job(train, CODEC) if kind == "autoencoder" else made.latte(latte)
    whole = load_file(made.store.folder(made.do(job)) / "weights.safetensors")
    curve = made.facts(job.ref, "curve.json")
    made.store.discard(job.ref)
    steps = killed_and_resumed(job, made.runtime, at=5)
    assert steps[0] == 4  # the checkpoint is of step 3
    again = load_file(made.store.folder(job.ref) / "weights.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())
    assert made.facts(job.ref, "curve.json") == curve
    assert curve["steps"][-1] == 8


def test_the_autoencoder_learns_and_its_error_is_recorded(made: Made) -> None:
    longer = CODEC.model_copy(update={"steps": 60})
    short, long = (made.facts(ref, "autoencoder.json") for ref in
                   (made.codec, made.do(autoencoder_job(made.bench.given.train, longer))))  # fmt: skip
    assert long["error"] < short["error"]
    assert long["psnr"] > short["psnr"]
    device, clips_NTHWC = made.bench.device, made.bench.clips.read(range(len(made.bench.clips)))
    codec = load_codec(made.store, made.codec, device)
    round_trip = decoded(codec, encoded(codec, clips_NTHWC, device), device).astype(float)
    assert np.abs(round_trip - clips_NTHWC).mean() == pytest.approx(short["error"], rel=0.02)
    assert 10 * np.log10(255**2 / ((round_trip - clips_NTHWC) ** 2).mean()) == pytest.approx(short["psnr"], rel=0.02)


@pytest.mark.slow
def test_an_autoencoder_of_turned_latents_shows_turned_frames(made: Made) -> None:
    frames_XCHW = to_frames(torch.from_numpy(made.bench.clips.read(range(4))))
    half, errors = Turned(frames_XCHW.shape[-1] // 16, 1), []
    for share in (0, 1):
        learned = CODEC.model_copy(update={"steps": 200, "equivariance": share})
        ref = made.do(autoencoder_job(made.bench.given.train, learned))
        network = load_codec(made.store, ref, made.bench.device).network
        with torch.inference_mode():
            shown = network.decode(half(network.encode(frames_XCHW), 1))
        errors.append(float((shown - half(frames_XCHW, network.factor)).abs().mean()))
    assert errors[1] < 0.95 * errors[0]


def test_latents_are_normalised_and_hold_every_view_and_its_mirror(made: Made) -> None:
    array = open_latent_array(made.store.folder(made.latents))
    clips = made.bench.clips
    mirrors = 2 if clips.table.flips else 1
    assert array.shape == (len(clips), mirrors * clips.table.views, 4, 4, 6, 6)
    z = np.asarray(array[:, 0], dtype=np.float64)
    assert np.abs(z.mean((0, 2, 3, 4))).max() < 0.1
    assert z.std((0, 2, 3, 4)) == pytest.approx(1, abs=0.1)
    expected = encoded(load_codec(made.store, made.codec, made.bench.device), clips.read([1]), made.bench.device)
    assert np.abs(z[1] - expected[0].numpy()).max() < 0.01


def test_latents_that_were_killed_go_on_with_the_next_clip(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    job, before = latents_job(made.bench.given.train, made.codec, "fp32"), made.store.manifest(made.latents).files
    made.store.discard(made.latents)
    monkeypatch.setattr(piecewise, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(piecewise, "CHECKPOINT_SHARE", float("inf"))
    assert killed_and_resumed(job, made.runtime, at=3)[0] == 3
    assert made.store.manifest(job.ref).files == before


def test_labels_are_dropped_as_often_as_asked_and_steps_and_noise_are_drawn_anew(made: Made) -> None:
    parameters = LATTE.model_copy(update={"label_dropout": 0.25, "batch_size": 200})
    batches = LatentBatches.of(made.store.folder(made.latents), made.bench.clips, parameters, made.bench.device)
    _, noise, steps, labels = batches(0)
    none = len(made.bench.clips.classes)
    assert float((labels == none).float().mean()) == pytest.approx(0.25, abs=0.1)
    assert set(labels.tolist()) == set(range(none + 1))
    assert (int(steps.min()) < 100, int(steps.max()) > 900) == (True, True)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert torch.equal(batches(0)[1], noise)
    assert not torch.equal(batches(1)[1], noise)


def test_frames_have_steps_of_their_own_in_as_many_clips_as_asked(made: Made) -> None:
    parameters = LATTE.model_copy(update={"batch_size": 200})
    plain, own = (
        LatentBatches.of(made.store.folder(made.latents), made.bench.clips, changed, made.bench.device)
        for changed in (parameters, parameters.model_copy(update={"frame_noise": 0.25}))
    )
    (z, noise, steps_B, labels), (own_z, own_noise, steps_BT, own_labels) = plain(0), own(0)
    assert torch.equal(own_z, z)
    assert torch.equal(own_noise, noise)
    assert torch.equal(own_labels, labels)
    assert steps_BT.shape == (200, z.shape[2])
    differ = (steps_BT != steps_B[:, None]).any(1)
    assert float(differ.float().mean()) == pytest.approx(0.25, abs=0.1)
    assert all(len({*row.tolist()}) > 1 for row in steps_BT[differ])
    assert (int(steps_BT[differ].min()) < 100, int(steps_BT[differ].max()) > 900) == (True, True)


def test_steps_of_middle_noise_are_drawn_more_often_while_the_rate_falls(made: Made) -> None:
    def drawn(step: int, **changed: Any) -> torch.Tensor:
        own = {"batch_size": 400, "steps": 10, "adam": AdamParameters(decay_share=0.4)} | changed
        parameters = LATTE.model_copy(update=own)
        batches = LatentBatches.of(made.store.folder(made.latents), made.bench.clips, parameters, made.bench.device)
        return batches(step)[2]

    def middle(steps: torch.Tensor) -> float:
        return float(((steps >= 100) & (steps < 450)).float().mean())

    assert torch.equal(drawn(6, middle_noise=0.6), drawn(6))
    assert middle(drawn(7)) == pytest.approx(0.35, abs=0.08)
    assert middle(drawn(7, middle_noise=0.6)) == pytest.approx(0.6 + 0.4 * 0.35, abs=0.08)
    framed = drawn(7, middle_noise=0.6, frame_noise=0.5)
    own = (framed != framed[:, :1]).any(1)
    assert float(own.float().mean()) == pytest.approx(0.5, abs=0.1)
    assert middle(framed[own]) == pytest.approx(0.74, abs=0.05)
    assert middle(framed[~own]) == pytest.approx(0.74, abs=0.1)


def test_middle_noise_needs_a_rate_that_falls() -> None:
    with pytest.raises(ValueError, match="middle_noise acts while the rate falls"):
        LatteParameters(middle_noise=0.5, adam=AdamParameters())


def test_a_batch_has_each_clips_own_label_and_all_of_its_views() -> None:
    labels_N = np.array([0, 2, 1, 1, 0])
    views_NVCTHW = (10 * np.arange(5)[:, None] + np.arange(3))[:, :, None, None, None, None] * np.ones(
        (1, 1, 4, 2, 3, 3)
    )
    own = LATTE.model_copy(update={"label_dropout": 0.0, "batch_size": 60})
    z_BCTHW, _, _, labels_B = LatentBatches(views_NVCTHW, labels_N, 3, own, tiny.CPU)(0)
    rows_B, views_B = np.divmod(z_BCTHW[:, 0, 0, 0, 0].numpy().astype(int), 10)
    assert labels_B.tolist() == labels_N[rows_B].tolist()
    assert len({*zip(rows_B.tolist(), views_B.tolist(), strict=True)}) == 15


def test_adamw_decays_clips_and_comes_to_rest() -> None:
    """Against torch's own: weights decay, gradients have a norm of at most `clip_norm`, the rate rises and falls."""
    adam = AdamParameters(lr=0.1, weight_decay=0.5, warmup_steps=2, decay_share=0.5, clip_norm=0.2)
    rates = [adam.lr_at(step, 8) for step in range(8)]
    assert rates == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1, 0.075, 0.05, 0.025])
    ours, theirs = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    theirs.load_state_dict(ours.state_dict())
    x_BD = torch.randn(8, 5, 3)
    made, curve = fit(
        ours, lambda step: [ours(x_BD[step]).square().mean()], 8, adam, tiny.CPU, None, checkpoint_every=9
    )
    stepper = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.5, fused=True)
    for step, rate in enumerate(rates):
        stepper.param_groups[0]["lr"] = rate
        stepper.zero_grad()
        theirs(x_BD[step]).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.2)
        stepper.step()
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(made[name], weight)
    assert len(curve.loss) == 8


def test_muon_trains_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    """Against torch's own, each at its rate, which rise and fall together."""
    adam = AdamParameters(lr=0.1, weight_decay=0.5, warmup_steps=2, decay_share=0.5, clip_norm=0.2)
    ours, theirs = (torch.nn.ModuleDict({"blocks": torch.nn.Linear(3, 4), "head": torch.nn.Linear(4, 2)}) for _ in "ab")
    theirs.load_state_dict(ours.state_dict())
    x_BD = torch.randn(8, 5, 3)

    def loss(network: torch.nn.ModuleDict, step: int) -> torch.Tensor:
        return network["head"](network["blocks"](x_BD[step])).square().mean()

    made, _ = fit(ours, lambda step: [loss(ours, step)], 8, adam, tiny.CPU, None, checkpoint_every=9, muon_lr=0.02)
    muon = torch.optim.Muon([theirs["blocks"].weight], weight_decay=0.5)
    rest = torch.optim.AdamW([theirs["blocks"].bias, *theirs["head"].parameters()], weight_decay=0.5, fused=True)
    for step in range(8):
        muon.param_groups[0]["lr"], rest.param_groups[0]["lr"] = 0.2 * adam.lr_at(step, 8), adam.lr_at(step, 8)
        theirs.zero_grad()
        loss(theirs, step).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.2)
        muon.step()
        rest.step()
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(made[name], weight)


def test_mirrors_of_every_view_are_learned_where_the_data_allow_them(tmp_path: Path) -> None:
    clips, store = tiny.tiny_clips(tmp_path), Store(tmp_path)
    codec = tiny.kept_autoencoder(store, tiny.tiny_autoencoder(clips, 1))
    runtime = Runtime(store=str(tmp_path), device="cpu", threads=1)
    ref = run_job(latents_job(ArtifactRef(kind="clips", key="c"), codec, "fp32"), runtime)[0]
    array = open_latent_array(store.folder(ref))
    assert array.shape[1] == 2 * tiny.VIEWS
    network = load_codec(store, codec, tiny.CPU)
    for view in range(tiny.VIEWS):
        mirrored = np.ascontiguousarray(clips.read([2], view)[:, :, :, ::-1])
        assert np.abs(array[2, tiny.VIEWS + view] - encoded(network, mirrored, tiny.CPU)[0].numpy()).max() < 0.01
    shown = CODEC.model_copy(update={"batch_frames": 64, "factor": 2})
    frames_XCHW, *_ = FrameBatches(clips, shown, tiny.CPU)(0)
    own = to_frames(torch.from_numpy(np.concatenate([clips.read(range(6), view) for view in range(tiny.VIEWS)])))
    plain, flipped = (
        [bool((frame == kind).flatten(1).all(1).any()) for frame in frames_XCHW] for kind in (own, own.flip(-1))
    )
    assert all(one != other for one, other in zip(plain, flipped, strict=True))
    assert 16 < sum(flipped) < 48


def test_latents_are_turned_in_as_many_steps_as_asked(tmp_path: Path) -> None:
    clips = tiny.tiny_clips(tmp_path)
    plain, some = (
        FrameBatches(clips, CODEC.model_copy(update={"factor": 2, "equivariance": share}), tiny.CPU)
        for share in (0, 0.25)
    )
    drawn = [some(step)[2] for step in range(400)]
    assert [some(step)[2] for step in range(9)] == drawn[:9]
    assert sum(turned is not None for turned in drawn) == pytest.approx(100, abs=30)
    side = clips.shape_THWC[1] // 2
    assert {turned.side for turned in drawn if turned} == set(range(-(-side // 4), side + 1))
    assert {turned.quarters for turned in drawn if turned} == {0, 1, 2, 3}
    for step in range(9):
        frames_XCHW, noise, turned = plain(step)
        assert turned is None
        assert torch.equal(some(step)[0], frames_XCHW)
        assert torch.equal(some(step)[1], noise)


def test_the_average_of_the_weights_follows_its_formula() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    average = {"weight": torch.zeros(1, 1)}
    expected, decays = 0.0, [min(0.3, (1 + step) / (10 + step)) for step in range(6)]
    for step, decay in enumerate(decays):
        with torch.no_grad():
            network.weight.fill_(step)
        averaged(average, network, step, 0.3)
        expected = decay * expected + (1 - decay) * step
    assert decays[0] == 0.1
    assert decays[-1] == 0.3
    assert float(average["weight"]) == pytest.approx(expected, rel=1e-5)


def test_what_generates_is_the_average(made: Made) -> None:
    last, mean = (made.do(made.latte(LATTE.model_copy(update={"ema_decay": decay}))) for decay in (0.0, 0.999))
    name = "final_layer.linear.weight"
    weights = [load_latte(made.store, ref, made.bench.device).state_dict()[name] for ref in (last, mean)]
    assert weights[0].abs().mean() > weights[1].abs().mean() > 0  # from zero; the average lags behind


def test_the_transformer_learns(made: Made) -> None:
    ref = made.do(made.latte(LATTE.model_copy(update={"steps": 80, "batch_size": 8})))
    loss = made.facts(ref, "curve.json")["loss"]
    assert np.mean(loss[-10:]) < 0.9 * np.mean(loss[:3])


def test_every_size_can_be_asked_for() -> None:
    assert set(get_args(LatteParameters.model_fields["size"].annotation)) == set(SIZES)


def test_a_patch_that_does_not_fit_is_a_wrong_request(made: Made) -> None:
    with pytest.raises(RequestError, match="Patches of 4 do not fill latents of 6×6"):
        made.latte(LATTE.model_copy(update={"patch": 4}))


def test_what_is_for_a_checkpoint_is_refused_without_one(made: Made) -> None:
    for changed, said in (
        ({"steps": 0}, "steps=0 takes a checkpoint as it is: give latte.pretrained"),
        ({"new_labels": False}, "latte.new_labels is for a checkpoint"),
        ({"tuning": TUNED.tuning}, "latte.tuning is for a checkpoint"),
    ):
        with pytest.raises(RequestError, match=said):
            made.latte(LATTE.model_copy(update=changed))


def test_a_size_that_the_autoencoder_does_not_divide_is_a_wrong_request(made: Made, tmp_path: Path) -> None:
    folder = diffusers_autoencoder(tmp_path / "vae", levels=6)
    job = autoencoder_job(made.bench.given.train, AutoencoderParameters(pretrained=str(folder), precision="fp32"))
    with pytest.raises(RequestError, match="48 pixels do not divide by the autoencoder's 32: try 32 pixels"):
        made.do(job)


def diffusers_autoencoder(folder: Path, levels: int = 4, shift: float | None = None) -> Path:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    network = diffusers.AutoencoderKL(
        block_out_channels=(4,) * levels, layers_per_block=1, norm_num_groups=2, latent_channels=4, shift_factor=shift,
        **kinds,
    )  # fmt: skip
    network.save_pretrained(folder)
    return folder


def test_a_named_autoencoder_takes_no_options_of_training(tmp_path: Path) -> None:
    named = AutoencoderParameters(pretrained=str(diffusers_autoencoder(tmp_path / "vae", levels=2)))
    assert made_of(named) == (2, 4)
    assert made_of(AutoencoderParameters(pretrained=str(tmp_path))) == (2, 4)  # a pipeline's
    assert made_of(AutoencoderParameters(factor=4, channels=6)) == (4, 6)
    for changed in ({"equivariance": 0.5}, {"factor": 4}, {"steps": 7}):
        with pytest.raises(RequestError, match=f"autoencoder.{next(iter(changed))} is for one that is trained here"):
            autoencoder_job(ArtifactRef(kind="clips", key="c"), named.model_copy(update=changed))
    (tmp_path / "vae" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(RequestError, match=r"config.json is not of an AutoencoderKL"):
        made_of(named)


def test_a_named_autoencoder_is_known_by_its_content_and_kept(made: Made, tmp_path: Path) -> None:
    folder = diffusers_autoencoder(tmp_path / "here" / "vae")
    shutil.copytree(folder, tmp_path / "there" / "vae")
    jobs = [autoencoder_job(made.bench.given.train, AutoencoderParameters(pretrained=str(place), precision="fp32"))
            for place in (folder, tmp_path / "there" / "vae")]  # fmt: skip
    assert jobs[0].ref == jobs[1].ref
    ref = made.do(jobs[0])
    told = [path for path in made.store.folder(ref).rglob("*.json") if str(tmp_path) in path.read_text()]
    assert not told
    shutil.rmtree(tmp_path / "here")
    codec = load_codec(made.store, ref, made.bench.device)
    z = encoded(codec, made.bench.clips.read([0]), made.bench.device)
    assert z.shape == (1, 4, 4, 6, 6)
    assert decoded(codec, z, made.bench.device).shape == (1, 4, 48, 48, 3)
    facts = made.facts(ref, "autoencoder.json")
    assert (facts["factor"], facts["channels"], facts["shift"][0], facts["scale"][0]) == (8, 4, 0.0, 0.18215)
    assert facts["error"] > 0


def test_a_named_autoencoder_s_latents_are_shifted_as_its_configuration_says(made: Made, tmp_path: Path) -> None:
    network, clips_NTHWC = pretrained(str(diffusers_autoencoder(tmp_path, shift=0.125))), made.bench.clips.read([0])
    facts = measured(network, made.bench.clips, made.bench.device)
    assert (facts["shift"], facts["scale"]) == ([0.125] * 4, [0.18215] * 4)
    z_NCTHW = encoded(Codec(network, facts["shift"], facts["scale"]), clips_NTHWC, made.bench.device)
    with torch.inference_mode():
        mean_TCHW = network.encode(to_frames(torch.from_numpy(clips_NTHWC)))
    torch.testing.assert_close(z_NCTHW[0].transpose(0, 1), (mean_TCHW - 0.125) * 0.18215)


def test_weights_that_are_not_there_are_a_wrong_request(made: Made) -> None:
    with pytest.raises(RequestError, match=r"no weights at \./nowhere"):
        autoencoder_job(made.bench.given.train, AutoencoderParameters(pretrained="./nowhere"))
    with pytest.raises(RequestError, match="no checkpoint maxin-cn/Latte: give the file"):
        made.latte(LATTE.model_copy(update={"pretrained": "maxin-cn/Latte"}))


def checkpoint(
    path: Path, classes: int, size: str = "micro", patch: int = 1, channels: int = 4, *, learned_sigma: bool = False
) -> dict[str, torch.Tensor]:
    """A released file: an average and the last weights, with the embeddings that are fixed."""
    torch.manual_seed(0)
    network = Latte(classes, 4, patch, SIZES[size], channels=channels, patch=patch, learned_sigma=learned_sigma)
    state = {name: torch.randn_like(weight) for name, weight in network.state_dict().items()}
    width = SIZES[size].width
    fixed = {"pos_embed": torch.zeros(1, 36, width), "temp_embed": torch.zeros(1, 16, width)}
    torch.save({"ema": state | fixed, "model": {}}, path)
    return state


def test_fine_tuning_starts_from_the_released_weights_and_warns(made: Made, tmp_path: Path) -> None:
    path, classes = tmp_path / "ucf101.pt", len(made.bench.clips.classes)
    state = checkpoint(path, classes=101)
    still = TuningParameters(batch_size=4, adam=TuningAdam(lr=1e-9))
    ref = made.do(made.latte(TUNED.model_copy(update={"pretrained": str(path), "steps": 1, "tuning": still})))
    loaded, name = load_latte(made.store, ref, made.bench.device).state_dict(), "y_embedder.embedding_table.weight"
    table, released = loaded.pop(name), state.pop(name)
    assert all(torch.allclose(weight, state[name], atol=1e-6) for name, weight in loaded.items())
    assert len(table) == classes + 1
    assert torch.allclose(table[-1], released[-1], atol=1e-6)  # of no class
    assert made.facts(ref, "latte.json")["warnings"] == [LEAK]
    assert made.store.manifest(ref).parameters["pretrained"].startswith("ucf101.pt:")


def test_a_checkpoint_is_taken_as_it_is_with_its_own_classes_alone(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "own.pt"
    state = checkpoint(path, classes=len(made.bench.clips.classes))
    released = TUNED.model_copy(update={"pretrained": str(path), "steps": 0})
    with pytest.raises(RequestError, match=r"would know no class: give latte\.new_labels=false"):
        made.latte(released)
    ref = made.do(made.latte(released.model_copy(update={"new_labels": False, "compile": True})))
    loaded = load_latte(made.store, ref, made.bench.device).state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in loaded.items())


def test_a_checkpoint_generates_each_class_under_its_own_name(made: Made, tmp_path: Path) -> None:
    """A release has its classes sorted, UCF101's lists have not: JumpingJack comes before JumpRope there."""
    own = sorted(made.bench.clips.classes)
    state = checkpoint(tmp_path / "own.pt", classes=len(own))
    taken = {"pretrained": str(tmp_path / "own.pt"), "steps": 0, "new_labels": False}
    turned = [own[1], own[0], *own[2:]]
    job = made.latte_of(turned, TUNED.model_copy(update=taken))
    table = load_latte(made.store, made.do(job), made.bench.device).state_dict()[LABELS]
    assert torch.equal(table, state[LABELS][[1, 0, *range(2, len(own) + 1)]])
    ref = made.do(made.latte(LATTE))  # of vidistill, which says its classes
    weights = made.store.folder(ref) / "weights.safetensors"
    taken |= {"pretrained": str(weights)}
    names = made.bench.clips.classes
    assert made.latte_of(names[::-1], TUNED.model_copy(update=taken)).parameters["label_rows"] == [
        *reversed(range(len(names)))
    ]
    assert "label_rows" not in made.latte(TUNED.model_copy(update=taken)).parameters
    with pytest.raises(RequestError, match=r"know no class 'other', but .*: leave out latte\.new_labels"):
        made.latte_of([*names[:-1], "other"], TUNED.model_copy(update=taken))


@pytest.mark.parametrize(("patch", "learned_sigma"), [(1, False), (2, True), (3, False)])
def test_a_checkpoint_says_what_it_is_and_is_tuned_as_published(
    made: Made, tmp_path: Path, patch: int, learned_sigma: bool
) -> None:
    checkpoint(tmp_path / "ucf101.pt", 101, "mini", patch, learned_sigma=learned_sigma)
    own = made.asked(tmp_path / "ucf101.pt", "steps=7").parameters
    assert (own["size"], own["patch"], own["learned_sigma"]) == ("mini", patch, learned_sigma)
    assert (own["batch_size"], own["at_once"], own["recompute"], own["ema_decay"]) == (40, 5, True, 0.9999)
    assert (own["adam"]["lr"], own["adam"]["decay_share"], own["adam"]["warmup_steps"]) == (1e-4, 0, 0)
    assert (own["velocity"], own["steps"]) == (False, 7)
    changed = "tuning.batch_size=8", "tuning.adam.lr=0.003", "tuning.recompute=false", "size=mini"
    own = made.asked(tmp_path / "ucf101.pt", *changed).parameters
    assert (own["batch_size"], own["adam"]["lr"], own["ema_decay"], own["size"]) == (8, 3e-3, 0.9999, "mini")
    assert own["adam"]["warmup_steps"] == 0
    assert not own.keys() & {"tuning", "recompute"}


@pytest.mark.parametrize("velocity", [True, False])
def test_a_latte_that_was_trained_here_predicts_what_it_learned(made: Made, velocity: bool) -> None:
    ref = made.do(made.latte(LATTE.model_copy(update={"velocity": velocity})))
    job = made.asked(made.store.folder(ref) / "weights.safetensors", "steps=0", "new_labels=false")
    assert job.parameters["velocity"] is velocity
    assert load_latte(made.store, made.do(job), made.bench.device).velocity is velocity
    with safe_open(made.store.folder(ref) / "weights.safetensors", framework="pt") as file:
        assert len(file.metadata()) == 1  # several come in an order of chance, and the file's bytes with them


def test_weights_that_say_what_they_predict_and_their_classes_in_entries_of_their_own_are_read(
    made: Made, tmp_path: Path
) -> None:
    names = made.bench.clips.classes[::-1]
    state, path = checkpoint(tmp_path / "ucf101.pt", classes=len(names)), tmp_path / "older.safetensors"
    for said, rows in ({}, None), ({"classes": json.dumps(names)}, [*reversed(range(len(names)))]):
        save_file(state, path, metadata={"velocity": "True"} | said)
        own = made.asked(path, "steps=0", "new_labels=false").parameters
        assert (own["velocity"], own.get("label_rows")) == (True, rows)


def test_weights_that_do_not_say_what_they_predict_predict_what_the_request_says(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "older.safetensors"
    save_file(checkpoint(tmp_path / "ucf101.pt", classes=101), path)
    for said, velocity in ((), False), (("velocity=false",), False), (("velocity=true",), True):
        assert made.asked(path, *said).parameters["velocity"] is velocity


def test_weights_that_change_while_a_run_waits_are_not_taken_for_those_that_it_asked_for(
    made: Made, tmp_path: Path
) -> None:
    path, folder = tmp_path / "other.pt", diffusers_autoencoder(tmp_path / "other")
    checkpoint(path, classes=101)
    asked = AutoencoderParameters(pretrained=str(folder), precision="fp32")
    jobs = [made.latte(TUNED.model_copy(update={"pretrained": str(path), "steps": 1})),
            autoencoder_job(made.bench.given.train, asked)]  # fmt: skip
    for job, file in zip(jobs, (path, folder / "config.json"), strict=True):
        file.write_bytes(file.read_bytes() + b"\n")
        with pytest.raises(TransientError, match=f"{file.relative_to(tmp_path).parts[0]} changed during the run: run"):
            made.do(job)


def test_what_is_new_is_in_no_key_unless_it_is_asked_for(made: Made) -> None:
    assert not made.latte(LatteParameters()).parameters.keys() & {"at_once", "recompute", "tuning"}


def test_released_weights_that_do_not_fit_are_a_wrong_request_before_anything_is_made(
    made: Made, tmp_path: Path
) -> None:
    path = tmp_path / "ucf101.pt"
    checkpoint(path, classes=101)
    released = TUNED.model_copy(update={"pretrained": str(path)})
    for changed, said in {
        "new_labels": (False, r"do not fit: .* ← 102×32"),
        "velocity": (True, r"have velocity=False, not True: leave out latte.velocity"),
        "middle_noise": (0.5, "tuned at a constant one: give latte.tuning.adam.decay_share"),
        "size": ("XL", r"have size=micro, not XL: leave out latte.size"),
        "patch": (2, r"have patch=1, not 2: leave out latte.patch"),
        "batch_size": (8, "latte.batch_size is that of training from nothing: set latte.tuning.batch_size"),
    }.items():
        with pytest.raises(RequestError, match=said[1]):
            made.latte(released.model_copy(update={changed: said[0]}))
    for options, said in (
        ({"channels": 8}, "8 channels in patches of 1, and these latents have 4 channels"),
        ({"patch": 5}, "patches of 5, and these latents have 4 channels and a side of 6"),
    ):
        checkpoint(path, 101, **options)
        with pytest.raises(RequestError, match=said):
            made.latte(released)
    path.write_bytes(b"not weights")
    with pytest.raises(RequestError, match=r"ucf101.pt cannot be read .*: give a .pt or .safetensors file"):
        made.latte(released)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(RequestError, match=r"ucf101.pt cannot be read \(AttributeError"):
        made.latte(released)
    for other in ({"ema": {"conv.weight": torch.zeros(1)}}, {"epoch": 3, "state_dict": {}}):
        torch.save(other, path)
        with pytest.raises(RequestError, match="are not a Latte's"):
            made.latte(released)
    odd = {"x_embedder.proj.weight": torch.zeros(7, 4, 1, 1), "final_layer.linear.bias": torch.zeros(4),
           "blocks.2.attn.qkv.weight": torch.zeros(1)}  # fmt: skip
    torch.save(odd, path)
    with pytest.raises(RequestError, match="have 3 blocks of width 7: known are micro 2×32"):
        made.latte(released)


def test_a_step_in_parts_whose_maps_are_made_again_is_the_step_at_once(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, curves, sizes, again = [], [], [], []
    forward, checkpoint = Latte.forward, models_latte.checkpoint
    monkeypatch.setattr(Latte, "forward", lambda network, z_BCTHW, *rest: (
        sizes.append(len(z_BCTHW)), forward(network, z_BCTHW, *rest))[1])  # fmt: skip
    monkeypatch.setattr(models_latte, "checkpoint", lambda block, *rest, **options: (
        again.append(block), checkpoint(block, *rest, **options))[1])  # fmt: skip
    for changed, seen, blocks in (
        ({}, [8] * 3, 0),
        ({"at_once": 3}, [3, 3, 2] * 3, 0),
        ({"recompute": True}, [8] * 3, 2 * 3),
    ):
        sizes.clear()
        again.clear()
        parameters = LATTE.model_copy(update={"batch_size": 8, "steps": 3, "frame_noise": 0.5} | changed)
        ref = made.do(made.latte(parameters))
        weights.append(load_file(made.store.folder(ref) / "weights.safetensors"))
        curves.append(made.facts(ref, "curve.json")["loss"])
        assert (sizes, len(again)) == (seen, blocks)
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    for other in weights[1:]:
        for name, weight in weights[0].items():
            assert torch.allclose(other[name], weight, atol=2e-4), name
    assert any(float((other - weights[0][name]).abs().max()) == 0 for name, other in weights[2].items())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles with g++, and there is none")
def test_a_compiled_network_learns_what_the_plain_one_does(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    curves, calls = [], []
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: (
        calls.append(type(module)), compiled(module, **options)))  # fmt: skip
    for changed in ({}, {"compile": True}):
        ref = made.do(made.latte(LATTE.model_copy(update={"steps": 4} | changed)))
        curves.append(made.facts(ref, "curve.json")["loss"])
    assert curves[1] == pytest.approx(curves[0], rel=1e-2)
    assert calls == [Latte]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles with g++, and there is none")
def test_a_compiled_network_s_gradients_in_bf16_are_the_plain_one_s(made: Made) -> None:
    """As many tokens and as wide as the presets' Lattes: narrower ones are compiled to other code."""
    device = replace(made.bench.device, precision="bf16")
    shape, random = (4, 8, 16, 16), torch.Generator().manual_seed(0)
    z_BCTHW, noise_BCTHW = torch.randn(2, 16, *shape, generator=random)
    steps_BT, labels_B = torch.randint(1000, (16, 8), generator=random), torch.randint(9, (16,), generator=random)
    gradients = []
    for compiled in (False, True):
        with training.seeded(0):
            network = Latte(8, 8, 16, Size(2, 192, 3), velocity=True)
        if compiled:
            compile_network(network, device)
        with device.autocast():
            output = network(noised(z_BCTHW, noise_BCTHW, steps_BT), steps_BT, labels_B)
        diffusion_loss(output, z_BCTHW, noise_BCTHW, steps_BT, velocity=True).backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in network.parameters()]))
    plain, other = gradients
    assert float((other - plain).norm()) < 0.02 * float(plain.norm())


@pytest.mark.parametrize(("capability", "options"), [("AVX512", {"cpp.simdlen": 256}), ("AVX2", None)])
def test_a_network_is_compiled_in_vectors_that_its_compiler_gets_right(
    made: Made, monkeypatch: pytest.MonkeyPatch, capability: str, options: dict[str, int] | None
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(shutil, "which", lambda _: "g++")
    asked: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _, **given: asked.append(given))
    compile_network(Latte(2, 2, 4, SIZES["micro"]), made.bench.device)
    assert asked == [{"options": options}]


def test_a_network_is_not_compiled_without_a_compiler(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RunError, match="no no-such-compiler here: install it, name another in CXX"):
        made.do(made.latte(LATTE.model_copy(update={"steps": 1, "compile": True})))
