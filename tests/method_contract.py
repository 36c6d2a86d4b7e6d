"""What every distillation method owes, as a class to inherit: set `spec`, and the tests are yours.

    class TestMine(MethodContract):
        spec = "mine.py:Mine"

The fixture `bench` gives a small decoded data set and a trained teacher, made by the real stages.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from flow_running import CLASSES

from vidistill.storage import coded
from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet, joined
from vidistill.storage.errors import RequestError
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.coded.keep import Coding
from vidistill.tasks.coded.recode import recoded
from vidistill.tasks.generate.autoencoder import AutoencoderParameters
from vidistill.tasks.generate.diffusion import LatteParameters
from vidistill.tasks.generate.pool import PoolParameters, open_pool, pool_of
from vidistill.tasks.generate.sample import SamplerParameters
from vidistill.tasks.learning.teacher import TeacherParameters, load_teacher, teacher_job
from vidistill.tasks.learning.training import Device
from vidistill.tasks.methods import Given, Material, Method, find_method
from vidistill.tasks.stage import Job, Runtime, run_job
from vidistill.tasks.videos.decode import DecodeParameters, block_jobs, clips_job
from vidistill.tasks.videos.index import IndexParameters, index_job, survey
from vidistill.tasks.videos.sprites import SpritesParameters, render_sprites

DECODE = DecodeParameters(frames=4, size=48, views=1, max_lost_share=0.5)
POOL = PoolParameters(
    clips_a_class=4,
    part_clips=4,
    autoencoder=AutoencoderParameters(width=8, steps=10, batch_frames=4, precision="fp32"),
    latte=LatteParameters(steps=2, batch_size=2, precision="fp32"),
    sampler=SamplerParameters(steps=2, precision="fp32"),
)


@dataclass(frozen=True)
class Bench:
    """Decoded training clips, a teacher of one epoch, and whatever else a method asks for, made when it does."""

    store: Store
    clips: Clips
    teacher: ArtifactRef
    device: Device
    runtime: Runtime
    given: Given

    def material(self, labels: tuple[int, ...], ipc: int, seed: int, method: Method | None = None) -> Material:
        inputs = {} if method is None else method.inputs(replace(self.given, ipc=ipc, seed=seed))
        return Material(
            clips=self.clips,
            ipc=ipc,
            seed=seed,
            labels=labels,
            device=self.device,
            teacher=lambda: load_teacher(self.store, self.teacher, self.clips, self.device),
            inputs=lambda name: [self.store.folder(ref) for ref in inputs.get(name, [])],
            progress=lambda *_: None,
            pool=lambda: open_pool(self.store, inputs["pool"][0], self.clips, ipc),
        )


def sprite_videos(folder: Path, rendered: Path, train_per_class: int = 2) -> Path:
    """`folder`, with sprites of three classes in class folders, train and test; `rendered` gets all classes."""
    render_sprites(rendered, SpritesParameters(size=48, frames=12, train_per_class=train_per_class, test_per_class=1))
    for split in ("train", "test"):
        for name in CLASSES:
            shutil.copytree(rendered / split / name, folder / split / name)
    return folder


def build_bench(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Index → decode → teacher, by the stages that a run uses, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return _bench(videos, tmp_path_factory.mktemp("bench"))


def _bench(videos: Path, folder: Path) -> Bench:
    import torch

    torch.set_num_threads(1)
    runtime = Runtime(store=str(folder), data=str(videos), device="cpu", threads=1)
    table = survey(videos, IndexParameters())
    index, blocks = index_job(table, IndexParameters()), block_jobs(table, DECODE, "train")
    clips = clips_job(index.ref, DECODE, "train", blocks)
    teacher = teacher_job(clips.ref, TeacherParameters(epochs=1, least_steps=1, precision="fp32"))
    for job in (index, *blocks, clips, teacher):
        run_job(job, runtime)

    def add(job: Job) -> ArtifactRef:
        return run_job(job, runtime)[0]

    store = Store(folder)
    given = Given(index.ref, clips.ref, teacher, table, DECODE, videos, add, pool=lambda: pool_of(given, POOL))
    return Bench(store, Clips(store, clips.ref), teacher.ref, Device(torch.device("cpu"), "fp32", 1), runtime, given)


def fingerprint(made: DistilledSet) -> str:
    """The digest of what a student sees."""
    content = made.clips_NTHWC.tobytes() + made.labels_N.tobytes()
    return hashlib.sha256(content).hexdigest()


class MethodContract:
    """Inherit this, set `spec` (and `options` that keep it quick), and pytest collects the rest."""

    spec: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    seeded: ClassVar[bool] = True

    @pytest.fixture(scope="class")
    @classmethod
    def method(cls) -> Method:
        found = find_method(cls.spec).method
        return found(found.Parameters(**cls.options))

    @pytest.fixture(scope="class")
    @classmethod
    def first(cls, method: Method, bench: Bench) -> DistilledSet:
        """One clip a class, seed 0: made once for all the tests that look at it."""
        return cls.distil(method, bench)

    @staticmethod
    def distil(method: Method, bench: Bench, ipc: int = 1, seed: int = 0) -> DistilledSet:
        groups = method.groups(len(bench.clips.classes), ipc)
        return joined([method.distil(bench.material(labels, ipc, seed, method)) for labels in groups])

    def test_groups_cover_every_class_once(self, method: Method) -> None:
        for classes in (1, 3, 10, 101):
            labels = [label for group in method.groups(classes, 1) for label in group]
            assert sorted(labels) == list(range(classes))

    @pytest.mark.parametrize("ipc", [1, 2])
    def test_returns_ipc_clips_of_each_class(self, method: Method, bench: Bench, first: DistilledSet, ipc: int) -> None:
        made = first if ipc == 1 else self.distil(method, bench, ipc)
        assert made.clips_NTHWC.dtype == np.uint8
        assert made.clips_NTHWC.shape == (ipc * len(bench.clips.classes), *bench.clips.shape_THWC)
        assert np.bincount(made.labels_N).tolist() == [ipc] * len(bench.clips.classes)
        assert made.classes == bench.clips.classes

    def test_clips_are_not_blank(self, first: DistilledSet) -> None:
        assert (first.clips_NTHWC.std(axis=(1, 2, 3, 4)) > 1).all()

    def test_same_seed_gives_the_same_set(self, method: Method, bench: Bench, first: DistilledSet) -> None:
        again = self.distil(method, bench)
        assert fingerprint(again) == fingerprint(first)
        assert again.sources == first.sources

    def test_another_seed_gives_another_set(self, method: Method, bench: Bench, first: DistilledSet) -> None:
        same = (fingerprint(self.distil(method, bench, seed=seed)) == fingerprint(first) for seed in (1, 2, 3))
        assert not all(same) if self.seeded else next(same)

    def test_more_clips_than_there_are_is_a_wrong_request(self, method: Method, bench: Bench) -> None:
        with pytest.raises(RequestError, match="ipc 99"):
            self.distil(method, bench, ipc=99)

    def test_a_set_survives_its_storage(self, first: DistilledSet, tmp_path: Path) -> None:
        first.save(tmp_path)
        assert fingerprint(DistilledSet.load(tmp_path)) == fingerprint(first)

    def test_its_clips_can_be_kept_as_compressed_video(self, first: DistilledSet, tmp_path: Path) -> None:
        """Whatever its form: every clip and variant that a student sees, in place, in fewer bytes."""
        if first.form == coded.FORM:
            pytest.skip("its clips are compressed video already")
        every = [first.clips_NTHWC, *(() if first.others_VNTHWC is None else first.others_VNTHWC)]
        made = recoded(first, Coding(crf=20, preset=10))
        made.save(tmp_path)
        back = DistilledSet.load(tmp_path)
        assert fingerprint(back) == fingerprint(made)
        np.testing.assert_array_equal(back.labels_N, first.labels_N.repeat(len(every)))
        shown_NTHWC = np.stack(every, axis=1).reshape(back.clips_NTHWC.shape)
        for place, clip_THWC in enumerate(back.clips_NTHWC):
            distance_N = np.abs(clip_THWC.astype(int) - shown_NTHWC).mean((1, 2, 3, 4))
            assert distance_N[place] < distance_N.min() + 2  # levels of 255
        assert DistilledSet.training_bytes(tmp_path) < shown_NTHWC.size
