"""A coded set that leaves the store as files: its packets are not coded again, and its pixels are the set's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torchvision
from method_contract import Bench
from safetensors.torch import load_file

import vidistill
from vidistill.flows.train import TrainRequest, train
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import ArtifactDamaged, RequestError
from vidistill.storage.exported import read_packets
from vidistill.storage.store import ArtifactRef
from vidistill.storage.streams import Stream, units
from vidistill.tasks.coded.keep import Coding
from vidistill.tasks.coded.recode import recode_job
from vidistill.tasks.distil import distil_jobs
from vidistill.tasks.learning import streams
from vidistill.tasks.learning.relabel import relabel_job
from vidistill.tasks.learning.training import role_seed
from vidistill.tasks.methods import Recipe, find_method
from vidistill.tasks.report.export import export_set
from vidistill.tasks.stage import Job, run_job

README = Path(__file__).resolve().parents[3] / "README.md"


def done(bench: Bench, job: Job) -> ArtifactRef:
    return run_job(job, bench.runtime)[0]


def made_of(bench: Bench, ipc: int = 1, **options: Any) -> ArtifactRef:
    """A coded set of so many clips a class with its teacher's labels."""
    source = find_method("coded")
    parameters = source.method.Parameters(preset=10, **options)
    given = replace(bench.given)
    inputs = {"clips": [given.train], **source.method(parameters).inputs(given)}
    (job,) = distil_jobs(source, parameters, ipc, 4, len(bench.clips.classes), inputs, "coded")
    return done(bench, relabel_job(done(bench, job), given.train, bench.teacher, Recipe(labels="soft"), 4, "label"))


@pytest.mark.parametrize(
    "options",
    [{"crf": 40}, {"crf": 30, "scale": 0.7, "views": 3}, {"crf": 30, "frames": 2, "views": 2}, {"frames": 0.5}],
    ids=["plain", "views", "dense", "half"],
)
def test_it_reads_back_to_the_pixel(bench: Bench, tmp_path: Path, options: dict[str, Any]) -> None:
    ref = made_of(bench, **options)
    facts = export_set(bench.store, ref, tmp_path / "out", 8, "coded")
    made, back = DistilledSet.load(bench.store.folder(ref)), DistilledSet.load(tmp_path / "out")
    for name in ("clips_NTHWC", "labels_N", "logits_NK", "others_VNTHWC"):
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name))
    assert back.sources == made.sources
    assert facts["lossless"]
    assert len(facts["files"]) == 3
    assert facts["codec"] == "av1"


def test_its_packets_are_those_of_the_set(bench: Bench, tmp_path: Path) -> None:
    ref = made_of(bench, crf=40)
    facts = export_set(bench.store, ref, tmp_path / "out", 8, "coded")
    stream = Stream.from_bytes(DistilledSet.load(bench.store.folder(ref)).stored["stream"].tobytes())
    with av.open(str(tmp_path / "out" / facts["files"][1]["file"])) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        assert container.streams.video[0].average_rate == 8
    assert packets == units(stream, 1)


def test_a_set_that_was_recoded_leaves_too(bench: Bench, tmp_path: Path) -> None:
    source = find_method("random")
    (job,) = distil_jobs(source, source.method.Parameters(), 1, 9, 3, {"clips": [bench.given.train]}, "random")
    ref = done(bench, recode_job(done(bench, job), Coding(crf=40, preset=10), "code"))
    facts = export_set(bench.store, ref, tmp_path / "out", 8, "coded")
    assert facts["method"]["name"] == "random"
    made, back = DistilledSet.load(bench.store.folder(ref)), DistilledSet.load(tmp_path / "out")
    np.testing.assert_array_equal(back.clips_NTHWC, made.clips_NTHWC)
    with pytest.raises(
        RequestError, match="keeps no compressed video: choose mkv, folders, webdataset, hf, npz, mp4, or make"
    ):
        export_set(bench.store, job.ref, tmp_path / "other", 8, "coded")


@pytest.mark.parametrize("options", [{"crf": 40, "together": True}, {"crf": 40, "together": True, "frames": 0.5}])
def test_one_stream_of_all_clips_is_one_file(bench: Bench, tmp_path: Path, options: dict[str, Any]) -> None:
    ref = made_of(bench, **options)
    export_set(bench.store, ref, tmp_path / "out", 8, "coded")
    made, back = DistilledSet.load(bench.store.folder(ref)), DistilledSet.load(tmp_path / "out")
    np.testing.assert_array_equal(back.clips_NTHWC, made.clips_NTHWC)
    assert [path.name for path in (tmp_path / "out").glob("**/*.mkv")] == ["clips.mkv"]
    with av.open(str(tmp_path / "out" / "clips.mkv")) as container:
        assert [packet.is_keyframe for packet in container.demux(video=0) if packet.size][:3] == [True, False, False]


def test_a_file_a_class_holds_its_clips_one_after_the_other(bench: Bench, tmp_path: Path) -> None:
    ref = made_of(bench, ipc=2, crf=40)
    facts = export_set(bench.store, ref, tmp_path / "out", 8, "coded_class")
    assert sorted(path.name for path in (tmp_path / "out").glob("**/*.mkv")) == ["grow.mkv", "left.mkv", "right.mkv"]
    made, back = DistilledSet.load(bench.store.folder(ref)), DistilledSet.load(tmp_path / "out")
    np.testing.assert_array_equal(back.clips_NTHWC, made.clips_NTHWC)
    np.testing.assert_array_equal(back.labels_N, made.labels_N)
    stream = Stream.from_bytes(made.stored["stream"].tobytes())
    with av.open(str(tmp_path / "out" / facts["files"][2]["file"])) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [bytes(packet) for packet in packets] == [*units(stream, 2), *units(stream, 3)]
    assert [place for place, packet in enumerate(packets) if packet.is_keyframe] == [0, len(units(stream, 2))]


def test_a_file_that_was_cut_is_named(bench: Bench, tmp_path: Path) -> None:
    facts = export_set(bench.store, made_of(bench, crf=40), tmp_path / "out", 8, "coded")
    file = tmp_path / "out" / facts["files"][0]["file"]
    frames, height, width, _ = facts["video_shape"]
    with pytest.raises(ArtifactDamaged, match="holds 4 frames instead of 5"):
        read_packets(file, 1, (frames + 1, height, width), (height, width))
    file.write_bytes(b"no video")
    with pytest.raises(ArtifactDamaged, match=r"00000\.mkv is not what was written there"):
        DistilledSet.load(tmp_path / "out")


def test_the_readme_s_loop_trains_on_it(bench: Bench, tmp_path: Path) -> None:
    export_set(bench.store, made_of(bench, crf=40), tmp_path / "set", 8, "coded")
    [snippet] = re.findall(r"```python\n(import torch\n.*?)```", README.read_text(), re.DOTALL)
    ran = subprocess.run(
        [sys.executable, "-c", snippet.replace("range(100)", "range(5)")],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "student.pt").is_file()


OUTSIDE = """
import math, sys, torch, torchvision, vidistill

data = vidistill.Dataset("out")
torch.manual_seed(int(sys.argv[1]))
torch.set_num_threads(1)
network = torchvision.models.video.r3d_18(num_classes=len(data.classes))
optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / 8)))
for x_BCTHW, targets in torch.utils.data.DataLoader(data, batch_size=len(data)):
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(network(x_BCTHW), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        print(float(loss))
    network.eval()
    print(*network(x_BCTHW).argmax(1).tolist())
assert not {"vidistill.flows", "vidistill.tasks", "prefect"} & sys.modules.keys()
"""


@pytest.mark.slow
def test_torchvision_s_network_outside_reaches_what_it_reaches_inside(bench: Bench, tmp_path: Path) -> None:
    """The same steps, once driven by vidistill and once by a loop of torch alone: the same losses and answers."""
    ref = made_of(bench, crf=40)
    export_set(bench.store, ref, tmp_path / "out", 8, "coded")
    student = {"epochs": 1, "least_steps": 8, "crop_scale": 1.0, "label_smoothing": 0.0, "precision": "fp32",
               "optimiser": {"lr": 0.01, "warmup_share": 0.0}}  # fmt: skip
    request = TrainRequest(
        source=ref.key, network="torchvision:r3d_18", test=str(tmp_path / "videos"), labels="soft", student=student
    )
    shutil.copytree(Path(bench.runtime.data) / "train", tmp_path / "videos", ignore=shutil.ignore_patterns("broken*"))
    runtime = bench.runtime.model_copy(update={"threads": 1})
    inside = train(request, runtime, tmp_path / "student")
    seed = role_seed(0, streams.STUDENT_WEIGHTS)
    ran = subprocess.run(
        [sys.executable, "-c", OUTSIDE, str(seed)],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    *losses, answers = ran.stdout.splitlines()
    np.testing.assert_allclose(inside["loss"], [float(loss) for loss in losses], rtol=2e-3, atol=1e-4)
    network = torchvision.models.video.r3d_18(num_classes=3)
    network.load_state_dict(load_file(tmp_path / "student" / "student.safetensors"))
    network.eval()
    x_BCTHW = torch.stack([x_CTHW for x_CTHW, _ in vidistill.Dataset(tmp_path / "out")])
    assert network(x_BCTHW).argmax(1).tolist() == [int(answer) for answer in answers.split()]
