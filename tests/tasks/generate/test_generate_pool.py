"""The pool: parts that never change, drawn by (seed, class, number), listed and extended, and what is known of it."""

from __future__ import annotations

import importlib.util
import json
import math
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from method_contract import Bench
from PIL import Image
from pydantic import ValidationError

from vidistill.flows.parameters import PoolRequest
from vidistill.flows.pools import build_pool
from vidistill.models.diffusion import BETA_FIRST, BETA_LAST, alphas_cumulated, by_frame
from vidistill.models.latte import Latte, Size
from vidistill.storage.clips import Clips, open_clip_array
from vidistill.storage.errors import RequestError, RunError
from vidistill.storage.pool import Pool
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.generate import sample
from vidistill.tasks.generate.autoencoder import AutoencoderParameters, decoded, load_codec
from vidistill.tasks.generate.diffusion import LatteParameters, load_latte
from vidistill.tasks.generate.optimising import AdamParameters
from vidistill.tasks.generate.pool import PoolParameters, check_pool, pool_of
from vidistill.tasks.generate.quality import SHEET, frechet_distance, load_quality, quality_job
from vidistill.tasks.generate.sample import SamplerParameters, part_jobs, sampled, scheduler_of
from vidistill.tasks.generate.sheet import GAP, TITLE
from vidistill.tasks.stage import Job, listening, run_job

pytestmark = pytest.mark.usefixtures("tiny_transformer")
ADAM = AdamParameters(lr=3e-3, warmup_steps=2)
PARAMETERS = PoolParameters(
    clips_a_class=3,
    part_clips=2,
    autoencoder=AutoencoderParameters(width=8, steps=4, batch_frames=4, adam=ADAM, precision="fp32"),
    latte=LatteParameters(steps=12, batch_size=4, adam=ADAM, precision="fp32", checkpoint_steps=5),
    sampler=SamplerParameters(steps=3, batch_size=2, precision="fp32"),
    seed=7,
)
KILLED = """
import json, os, signal, sys
from vidistill.models.diffusion import alphas_cumulated
from vidistill.models.latte import SIZES, Latte, Size
from vidistill.tasks.stage import Job, Runtime, listening, run_job

def kill(label, done, total, note):
    if [label, done] == plan["kill"]:
        os.kill(os.getpid(), signal.SIGKILL)

SIZES["micro"] = Size(2, 32, 2)
plan = json.loads(sys.stdin.read())
with listening(kill):
    for job in plan["jobs"]:
        run_job(Job.model_validate(job), Runtime.model_validate(plan["runtime"]))
"""
METHODS = [SamplerParameters(method=name, steps=4, precision="fp32") for name in ("ddim", "dpm", "ddpm")]


@dataclass
class Maker:
    """Runs the jobs of a pool as a flow would, and remembers which had to be done."""

    bench: Bench
    jobs: list[Job] = field(default_factory=list)
    done: list[str] = field(default_factory=list)

    def add(self, job: Job) -> ArtifactRef:
        ref, cached = run_job(job, self.bench.runtime)
        self.jobs.append(job)
        self.done += [] if cached else [job.stage]
        return ref

    def make(self, parameters: PoolParameters) -> ArtifactRef:
        return pool_of(replace(self.bench.given, add=self.add), parameters)


@pytest.fixture(scope="module")
def maker(bench: Bench) -> Maker:
    made = Maker(bench)
    made.make(PARAMETERS)
    return made


@pytest.fixture
def again(maker: Maker) -> Maker:
    return Maker(maker.bench)


@pytest.fixture(scope="module")
def pool(maker: Maker) -> Pool:
    return Pool(maker.bench.store, of(maker, "pool"))


def of(maker: Maker, kind: str) -> ArtifactRef:
    """The first artifact of a kind that was asked for."""
    return next(job.ref for job in maker.jobs if job.stage == kind)


def parts(maker: Maker) -> list[Job]:
    return [job for job in maker.jobs if job.stage == "pool-part"]


def test_a_pool_is_a_clip_set_with_latents(pool: Pool, bench: Bench) -> None:
    classes = len(bench.clips.classes)
    assert len(pool) == 3 * classes
    assert np.bincount(pool.labels_N).tolist() == [3] * classes
    assert pool.shape_THWC == bench.clips.shape_THWC
    assert (pool.table.mean, pool.table.std) == (bench.clips.table.mean, bench.clips.table.std)
    assert pool.read([0, 4]).shape == (2, *bench.clips.shape_THWC)
    assert pool.latents([0, 4]).shape == (2, 4, 4, 6, 6)
    assert [pool.index_of(row) for row in pool.rows_of(1)] == [0, 1, 2]
    assert (pool.facts["seed"], pool.facts["clips_a_class"], pool.facts["sampler"]["steps"]) == (7, 3, 3)


def test_its_manifest_says_what_made_it(maker: Maker, pool: Pool) -> None:
    record = maker.bench.store.manifest(of(maker, "pool")).record
    assert record["labels"] == pool.labels_N.tolist()
    assert record["generator"]["size"] == "micro"
    assert record["warnings"] == []


def test_clips_are_their_latents_decoded(maker: Maker, pool: Pool) -> None:
    codec = of(maker, "autoencoder")
    z = torch.from_numpy(pool.latents([1]))
    again_NTHWC = decoded(load_codec(maker.bench.store, codec, maker.bench.device), z, maker.bench.device)
    assert np.abs(again_NTHWC.astype(int) - pool.read([1])).max() <= 2  # latents are kept in half precision


def draw(maker: Maker, sampler: SamplerParameters, seed: int, label: int, numbers: range) -> Any:
    store, device = maker.bench.store, maker.bench.device
    network = load_latte(store, of(maker, "latte"), device)
    return sampled(network, sampler, seed, label, numbers, (4, 4, 6, 6), device).numpy()


@pytest.mark.parametrize("sampler", METHODS, ids=lambda sampler: sampler.method)
def test_a_clip_is_drawn_by_seed_class_and_number_whatever_its_batch(maker: Maker, sampler: SamplerParameters) -> None:
    together = draw(maker, sampler, 7, 1, range(4))
    for numbers in (range(2, 3), range(1, 4)):
        apart = draw(maker, sampler, 7, 1, numbers)
        assert np.allclose(apart, together[numbers.start : numbers.stop], atol=1e-3 * np.abs(together).max())
    for other in (draw(maker, sampler, 8, 1, range(1)), draw(maker, sampler, 7, 2, range(1)), together[1:2]):
        assert np.abs(other - together[:1]).max() > 0.1


KINDS: tuple[Any, ...] = ("ddim", "dpm", "ddpm")


class Gaussian(Latte):
    """The exact prediction, of noise or velocity, where the latents of class k are N(k, 0.5²)."""

    def forward(self, z_BCTHW: torch.Tensor, steps_B: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        alpha = alphas_cumulated()[by_frame(steps_B)].float()[:, None, :, None, None]
        mean = labels_B.float()[:, None, None, None, None]
        noise = (1 - alpha).sqrt() * (z_BCTHW - alpha.sqrt() * mean) / (0.25 * alpha + 1 - alpha)
        return (noise - (1 - alpha).sqrt() * z_BCTHW) / alpha.sqrt() if self.velocity else noise


@pytest.mark.parametrize("velocity", [False, True])
@pytest.mark.parametrize(
    ("method", "steps"), [("ddim", 60), ("ddim", 150), ("ddim", 250), ("ddim", 350), ("dpm", 25), ("ddpm", 250)]
)
def test_samplers_draw_from_a_distribution_that_is_known(bench: Bench, method: Any, steps: int, velocity: bool) -> None:
    network = Gaussian(3, 2, 4, Size(2, 32, 2), velocity=velocity)
    sampler = SamplerParameters(method=method, steps=steps, guidance=1, precision="fp32")
    z = sampled(network, sampler, 0, 2, range(40), (4, 2, 4, 4), bench.device)
    assert float(z.mean()) == pytest.approx(2, abs=0.03)
    assert float(z.std()) == pytest.approx(0.5, abs=0.035)
    guided = sampler.model_copy(update={"guidance": 2.0})  # away from no class, which is N(3, 0.5²)
    assert float(sampled(network, guided, 0, 2, range(10), (4, 2, 4, 4), bench.device).mean()) < 1.5


@pytest.mark.parametrize("velocity", [False, True])
def test_ddim_is_that_of_diffusers_where_its_steps_are_whole(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, velocity: bool
) -> None:
    diffusers, kind = pytest.importorskip("diffusers"), "v_prediction" if velocity else "epsilon"
    theirs = diffusers.DDIMScheduler(
        beta_start=BETA_FIRST, beta_end=BETA_LAST, clip_sample=False, timestep_spacing="trailing", prediction_type=kind
    )
    theirs.set_timesteps(8)
    sampler = SamplerParameters(method="ddim", steps=8, guidance=1, precision="fp32")

    def z_BCTHW() -> torch.Tensor:
        network = Gaussian(3, 2, 4, Size(2, 32, 2), velocity=velocity)
        return sampled(network, sampler, 0, 2, range(2), (4, 2, 4, 4), bench.device)

    ours = z_BCTHW()
    monkeypatch.setattr(sample, "scheduler_of", lambda *_: theirs)
    assert torch.allclose(ours, z_BCTHW(), atol=1e-4)


def test_parts_by_ddim_have_a_version_of_their_own() -> None:
    latte, codec = (ArtifactRef(kind=kind, key="k") for kind in ("latte", "autoencoder"))
    ddim, dpm, ddpm = (part_jobs(latte, codec, sampler, 7, ["a"], 2, 2)[0].version for sampler in METHODS)
    assert ddim > dpm == ddpm


@pytest.mark.parametrize(("method", "least", "most"), [("ddim", 1, 1000), ("dpm", 1, 999), ("ddpm", 2, 1000)])
def test_every_number_of_steps_that_is_allowed_gives_clips(bench: Bench, method: Any, least: int, most: int) -> None:
    network = Gaussian(3, 2, 4, Size(2, 32, 2), velocity=True)
    for steps in (least, most):
        sampler = SamplerParameters(method=method, steps=steps, guidance=1, precision="fp32")
        z = sampled(network, sampler, 0, 2, range(10), (4, 2, 4, 4), bench.device)
        assert float(z.mean()) == pytest.approx(2, abs=0.1)
    for steps in (least - 1, most + 1):
        with pytest.raises(ValidationError):
            SamplerParameters(method=method, steps=steps)


class Blind(Latte):
    def forward(self, z_BCTHW: torch.Tensor, _steps: torch.Tensor, _labels: torch.Tensor) -> torch.Tensor:
        return z_BCTHW * torch.nan


def test_clips_that_are_no_numbers_are_an_error(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "load_latte", lambda *_: Blind(8, 4, 6, Size(2, 32, 2), velocity=True))
    job = parts(maker)[0]
    new = job.model_copy(update={"parameters": job.parameters | {"seed": 99}})
    with pytest.raises(RunError, match="numbers overflow at 3 steps of dpm, guidance 3: try other steps"):
        run_job(new, maker.bench.runtime)


class Still(Latte):
    """The exact velocity where all frames of a clip are alike, and their latents N(k, 0.5²); keeps what it is shown."""

    def forward(self, z_BCTHW: torch.Tensor, steps_B: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        self.shown.append((z_BCTHW.clone(), steps_B.clone(), labels_B))
        alpha = alphas_cumulated()[steps_B].float()[:, None, :, None, None]
        told = (alpha.sqrt() * z_BCTHW / (1 - alpha)).sum(2, keepdim=True) + 4 * labels_B[:, None, None, None, None]
        clean = told / ((alpha / (1 - alpha)).sum(2, keepdim=True) + 4)
        return (alpha.sqrt() * z_BCTHW - clean) / (1 - alpha).sqrt()


def still() -> Still:
    network = Still(3, 4, 4, Size(2, 32, 2), velocity=True)
    network.shown = []
    return network


@pytest.mark.parametrize(("method", "steps"), [("ddim", 100), ("dpm", 25), ("ddpm", 250)])
def test_later_chunks_go_with_the_finished_ones(bench: Bench, method: Any, steps: int) -> None:
    sampler = SamplerParameters(method=method, steps=steps, guidance=1, chunks=(1, 2, 1), precision="fp32")
    z = sampled(still(), sampler, 0, 2, range(40), (4, 4, 4, 4), bench.device)
    assert float(z.mean()) == pytest.approx(2, abs=0.03)
    assert float(z.std()) == pytest.approx(0.5, abs=0.03)
    assert float((z - z[:, :, :1]).abs().max()) < 0.1


def test_guidance_leads_away_from_noise_in_place_of_the_finished_frames(bench: Bench) -> None:
    network = still()
    sampler = SamplerParameters(steps=5, guidance=2, chunks=(1, 3), precision="fp32")
    z = sampled(network, sampler, 0, 2, range(2), (4, 4, 4, 4), bench.device)
    noise = network.shown[0][0][:2]
    assert len(network.shown) == 10
    for number, (clips, steps, labels) in enumerate(network.shown):
        assert labels.tolist() == [2, 2, 3, 3]
        (beside, blind), (steps_BT, blind_BT) = clips.chunk(2), steps.chunk(2)
        now = int(steps_BT[0, 0 if number < 5 else 1])
        assert (now == 999) == (number % 5 == 0)
        assert blind_BT.tolist() == [[now, 999, 999, 999] if number < 5 else [999, now, now, now]] * 2
        assert steps_BT.tolist() == ([[now, 999, 999, 999]] if number < 5 else [[0, now, now, now]]) * 2
        if number < 5:
            assert torch.equal(beside, blind)
            assert torch.equal(beside[:, :, 1:], noise[:, :, 1:])
        else:
            assert torch.equal(beside[:, :, 1:], blind[:, :, 1:])
            assert torch.equal(blind[:, :, :1], noise[:, :, :1])
            assert torch.equal(beside[:, :, :1], z[:, :, :1])


class Learned(Gaussian):
    """The exact noise, and a variance that lies everywhere at the same place between its bounds."""

    place = 0.0

    def forward(self, z_BCTHW: torch.Tensor, steps_B: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        noise = super().forward(z_BCTHW, steps_B, labels_B)
        return torch.cat([noise, torch.full_like(noise, self.place)], dim=1)


def ancestral_deviation(steps: int, place: float) -> float:
    """Of DDPM's samples of N(k, 0.5²): each step is linear in what it began with, and adds its own noise.

    z₋₁ = a·ẑ₀ + b·z + √v·noise with ẑ₀ of the exact noise; log v = place between the posterior's variance and β's
    (Nichol and Dhariwal 2021, Eq. 15, over the steps that are left).
    """
    whole = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    left = [round(999 * number / (steps - 1)) for number in reversed(range(steps))]  # the last step is the first
    variance = 1.0
    for at, step in enumerate(left):
        now, before = whole[step], whole[left[at + 1]] if at + 1 < steps else 1.0
        beta = 1 - now / before
        posterior = beta * (1 - before) / (1 - now)
        slope = (1 - now) ** 0.5 / (0.25 * now + 1 - now)  # of the exact noise by z
        clean = (1 - (1 - now) ** 0.5 * slope) / now**0.5
        moved = before**0.5 * beta / (1 - now) * clean + (1 - beta) ** 0.5 * (1 - before) / (1 - now)
        share = (place + 1) / 2
        added = math.exp(share * math.log(beta) + (1 - share) * math.log(max(posterior, 1e-20))) if step else 0.0
        variance = moved**2 * variance + added
    return variance**0.5


def test_samplers_begin_at_the_last_step_and_add_as_much_as_the_betas(bench: Bench) -> None:
    """Eight steps tell the larger of DDPM's two variances, the published one, from the smaller."""
    network = Gaussian(3, 2, 4, Size(2, 32, 2))
    first = {
        method: int(scheduler_of(SamplerParameters(method=method, steps=8), network).timesteps[0]) for method in KINDS
    }
    assert first == {"ddim": 999, "dpm": 999, "ddpm": 999}
    sampler = SamplerParameters(method="ddpm", steps=8, guidance=1, precision="fp32")
    z = sampled(network, sampler, 0, 2, range(60), (4, 2, 4, 4), bench.device)
    large, small = (ancestral_deviation(8, place) for place in (1.0, -1.0))
    assert abs(large - small) > 0.1
    assert float(z.std()) == pytest.approx(large, rel=0.03)


@pytest.mark.parametrize("place", [-1.0, 0.4, 1.0])
def test_a_learned_variance_is_what_ddpm_adds(bench: Bench, place: float) -> None:
    network = Learned(3, 2, 4, Size(2, 32, 2), learned_sigma=True)
    network.place = place
    sampler = SamplerParameters(method="ddpm", steps=8, guidance=1, precision="fp32")
    z = sampled(network, sampler, 0, 2, range(60), (4, 2, 4, 4), bench.device)
    expected = ancestral_deviation(8, place)
    assert float(z.std()) == pytest.approx(expected, rel=0.03)
    assert float(z.mean()) == pytest.approx(2, abs=0.05)


def test_another_cut_into_parts_gives_the_same_clips(maker: Maker, again: Maker, pool: Pool) -> None:
    again.make(PARAMETERS.model_copy(update={"part_clips": 3}))
    other = Pool(maker.bench.store, of(again, "pool"))
    assert [video.path for video in other.table.videos] == [video.path for video in pool.table.videos]
    rows = range(len(pool))
    assert np.abs(other.read(rows).astype(int) - pool.read(rows)).max() <= 1
    assert set(again.done) == {"pool-part", "pool"}


def test_more_clips_are_added_and_none_is_made_again(maker: Maker, again: Maker, pool: Pool) -> None:
    store = maker.bench.store
    before = {job.ref: (store.folder(job.ref) / "manifest.json").stat().st_mtime_ns for job in parts(maker)}
    again.make(PARAMETERS.model_copy(update={"clips_a_class": 5}))
    longer = Pool(store, of(again, "pool"))
    classes = len(pool.classes)
    assert np.bincount(longer.labels_N).tolist() == [5] * classes
    assert again.done == ["pool-part"] * classes + ["pool"]  # of three parts a class, two were there
    assert {ref: (store.folder(ref) / "manifest.json").stat().st_mtime_ns for ref in before} == before
    for label in range(classes):
        assert np.array_equal(longer.read(longer.rows_of(label)[:3]), pool.read(pool.rows_of(label)))


def test_the_same_pool_is_cached_whole(maker: Maker, again: Maker) -> None:
    assert again.make(PARAMETERS) == of(maker, "pool")
    assert again.done == []


def test_a_killed_generation_keeps_its_parts_and_ends_with_the_same_bytes(maker: Maker, again: Maker) -> None:
    store, jobs = maker.bench.store, parts(maker)[:2]
    whole = [np.asarray(open_clip_array(store.folder(job.ref))[...]) for job in jobs]
    for job in jobs:
        store.discard(job.ref)

    def kill(label: str, _done: int, _total: int, _note: str) -> None:
        if label == jobs[1].label:
            raise KeyboardInterrupt

    run_job(jobs[0], maker.bench.runtime)
    with listening(kill), pytest.raises(KeyboardInterrupt):
        run_job(jobs[1], maker.bench.runtime)
    assert again.make(PARAMETERS) == of(maker, "pool")
    assert again.done == ["pool-part"]
    for job, clips_NTHWC in zip(jobs, whole, strict=True):
        assert np.array_equal(open_clip_array(store.folder(job.ref))[...], clips_NTHWC)


@pytest.mark.slow
def test_sigkill_in_training_and_in_generation_changes_no_byte(maker: Maker, again: Maker) -> None:
    store, runtime, made = maker.bench.store, maker.bench.runtime, parts(maker)[:2]
    latte = next(job for job in maker.jobs if job.stage == "latte")
    jobs = [latte, *made]
    files = [store.manifest(job.ref).files for job in jobs]
    for job in jobs:
        store.discard(job.ref)
    for label, done in ((latte.label, 7), (made[1].label, 2)):
        plan = {"jobs": [job.model_dump(mode="json") for job in jobs], "runtime": runtime.model_dump(mode="json"),
                "kill": [label, done]}  # fmt: skip
        command = [sys.executable, "-c", KILLED]
        killed = subprocess.run(command, input=json.dumps(plan), text=True, capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        there = [store.has(job.ref) for job in jobs]
        assert there == ([False] * 3 if label == latte.label else [True, True, False])
    again.make(PARAMETERS)
    assert again.done == ["pool-part"]
    assert [store.manifest(job.ref).files for job in jobs] == files


def test_two_writers_make_a_part_once(maker: Maker) -> None:
    job = parts(maker)[0]
    maker.bench.store.discard(job.ref)
    began: list[int] = []
    start = threading.Barrier(2)

    def write() -> bool:
        start.wait()
        return run_job(job, maker.bench.runtime)[1]

    with listening(lambda _label, done, _total, _note: began.append(done)), ThreadPoolExecutor(2) as both:
        cached = [future.result() for future in [both.submit(write) for _ in range(2)]]
    assert sorted(cached) == [False, True]
    assert began == [2]


def test_a_larger_pool_is_resized_in_a_stage_of_its_own(maker: Maker, again: Maker, bench: Bench) -> None:
    again.make(PARAMETERS.model_copy(update={"size": 64, "clips_a_class": 1}))
    made = Pool(bench.store, of(again, "pool"))
    assert made.shape_THWC == bench.clips.shape_THWC
    assert made.shape_CTHW == (4, 4, 8, 8)
    assert again.done.count("pool-part-resized") == again.done.count("pool-part") == len(bench.clips.classes)
    source = np.asarray(open_clip_array(bench.store.folder(parts(again)[0].ref))[0])
    assert source.shape == (4, 64, 64, 3)
    small = np.stack([Image.fromarray(frame_HWC).resize((48, 48), Image.Resampling.BILINEAR) for frame_HWC in source])
    assert np.abs(made.read([0])[0].astype(int) - small).max() <= 1


def test_a_pool_of_the_data_sets_own_size_is_not_resized(maker: Maker, again: Maker) -> None:
    assert again.make(PARAMETERS.model_copy(update={"size": 48})) == of(maker, "pool")


def test_what_does_not_fit_the_data_set_is_a_wrong_request(pool: Pool, bench: Bench) -> None:
    check_pool(pool, bench.clips, 3)
    with pytest.raises(RequestError, match=r"ipc 4 asks for more clips than the pool has .* \(3\): raise"):
        check_pool(pool, bench.clips, 4)
    other = Clips(bench.store, bench.given.train)
    other.classes = (*pool.classes[:-1], "yodelling")
    with pytest.raises(RequestError, match=r"classes are not the data set's \(.*yodelling"):
        check_pool(pool, other, 1)
    longer = type("Longer", (Clips,), {"shape_THWC": (8, 48, 48, 3)})(bench.store, bench.given.train)
    with pytest.raises(RequestError, match="The pool's clips are 4×48×48, the data set's 8×48×48"):
        check_pool(pool, longer, 1)


def test_a_pool_that_cannot_be_made_is_refused_before_anything_is_made(again: Maker) -> None:
    unguided = PARAMETERS.latte.model_copy(update={"label_dropout": 0.0})
    for changed, said in (
        ({"latte": unguided}, "a Latte of label_dropout=0 never learns: set the guidance to 1"),
        ({"size": 50}, "50 pixels do not divide by the autoencoder's 8: try 48 pixels"),
    ):
        with pytest.raises(RequestError, match=said):
            again.make(PARAMETERS.model_copy(update=changed))
    assert again.jobs == []


def test_chunks_that_cannot_be_generated_are_refused_before_anything_is_made(again: Maker) -> None:
    forced = PARAMETERS.latte.model_copy(update={"frame_noise": 0.5})
    for latte, chunks, said in (
        (forced, (1, 2), r"chunks \[1, 2\] are 3 frames, and a clip has 4: give counts that add up to 4"),
        (
            PARAMETERS.latte,
            (1, 3),
            "need a Latte that has learned frames with noise of their own: set pool.latte.frame",
        ),
    ):
        sampler = PARAMETERS.sampler.model_copy(update={"chunks": chunks})
        with pytest.raises(RequestError, match=said):
            again.make(PARAMETERS.model_copy(update={"latte": latte, "sampler": sampler}))
    assert again.jobs == []


def test_without_diffusers_nothing_is_trained(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(RequestError, match=r"Generating clips needs diffusers: `pip install 'vidistill\[pool\]'`"):
        pool_of(bench.given, PoolParameters())


def test_frechet_distance_is_that_of_its_formula() -> None:
    random = np.random.default_rng(0)
    a_ND, b_MD = random.normal(size=(40, 5)), random.normal(1, 2, size=(30, 5)) @ random.normal(size=(5, 5))
    cov_a, cov_b = np.cov(a_ND.T), np.cov(b_MD.T)
    cross = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = ((a_ND.mean(0) - b_MD.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * cross)
    assert frechet_distance(a_ND, b_MD) == pytest.approx(expected)
    assert frechet_distance(a_ND[:3], a_ND[:3]) == pytest.approx(0, abs=1e-9)  # fewer rows than features


def test_quality_is_recorded(maker: Maker, pool: Pool, bench: Bench) -> None:
    ref = maker.add(quality_job(of(maker, "pool"), bench.given.train, bench.teacher))
    found = load_quality(bench.store.folder(ref))
    assert found.accuracy == pytest.approx(np.mean(list(found.accuracy_by_class.values())))
    assert [one.row for one in found.nearest] == list(range(len(pool)))
    assert all(-1 < one.correlation < 1 for one in found.nearest)
    assert bench.store.manifest(ref).record["accuracy"] == found.accuracy
    sheet_HWC = np.asarray(Image.open(bench.store.folder(ref) / SHEET))
    row, width = 48 + GAP, 2 * (4 * 48 + 3 * 2) + 2 * GAP  # four frames of 48 pixels, two pixels between them
    assert sheet_HWC.shape == (len(pool.classes) * (TITLE + 3 * row), width, 3)
    first_HWC, near = sheet_HWC[TITLE : TITLE + 48], found.nearest[0].train_row
    assert np.array_equal(first_HWC[:, 50:98], pool.read([0])[0, 1])
    assert np.array_equal(first_HWC[:, -48:], bench.clips.read([near])[0, 3])


def test_the_flow_asks_for_the_same_artifacts(maker: Maker, bench: Bench) -> None:
    """A flow and a method that reads the pool agree on its key."""
    request = PoolRequest(data="sprites", decode=bench.given.decode, pool=PARAMETERS)
    graph = build_pool(request, bench.given.table)
    pools = [job.ref for job in graph.jobs.values() if job.stage == "pool"]
    assert pools == [of(maker, "pool")]
    assert (graph.last.stage, graph.last.inputs["pool"]) == ("pool-quality", pools)
    assert len([job for job in graph.jobs.values() if job.stage == "pool-part"]) == 2 * len(bench.clips.classes)
