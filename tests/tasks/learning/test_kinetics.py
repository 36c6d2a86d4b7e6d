"""R3D-18 that begins with weights: torchvision's own class writes the file and says what is right."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_contract import Bench
from safetensors.torch import save_file
from torchvision.models.video import R3D_18_Weights, mc3_18, r3d_18

from vidistill.storage.errors import RequestError, TransientError
from vidistill.tasks.learning import kinetics, training
from vidistill.tasks.learning.evaluate import StudentParameters, evaluate_job, load_score
from vidistill.tasks.learning.optimisers import OptimiserParameters
from vidistill.tasks.methods import HARD
from vidistill.tasks.stage import Job, run_job

STILL = OptimiserParameters(lr=1e-9, weight_decay=0.0, batch_size=6)


@pytest.fixture(scope="module")
def published() -> torch.nn.Module:
    torch.manual_seed(3)
    network = r3d_18(num_classes=400)
    for name, buffer in network.named_buffers():
        if "running_var" in name:
            buffer.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def file(published: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "r3d.pt"
    torch.save(published.state_dict(), path)
    return path


def job(bench: Bench, weights: str = "", network: str = "r3d_18", **more: Any) -> Job:
    pretrained = {"r3d_18": weights} if weights else {}
    student = StudentParameters.model_validate(
        {"epochs": 1, "least_steps": 1, "optimiser": STILL, "precision": "fp32", "pretrained": pretrained} | more
    )
    inputs = {"train": bench.given.train, "test": bench.given.train, "index": bench.given.index}
    return evaluate_job(network, student, HARD, 0, inputs, "score")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_it_says_of_a_clip_what_torchvision_says(
    bench: Bench, published: torch.nn.Module, tmp_path: Path, suffix: str
) -> None:
    path, state = tmp_path / f"r3d.{suffix}", published.state_dict()
    torch.save({"state_dict": state}, path) if suffix == "pt" else save_file(state, path)
    network = training.build_network("r3d_18", 3, bench.clips.shape_THWC, 0)
    head = network.net.fc.weight.clone()
    kinetics.begin(network, str(path), bench.clips.table)
    clips_NTHWC, table = bench.clips.read([0, 1]), bench.clips.table
    preset = R3D_18_Weights.KINETICS400_V1.transforms()
    mean, std = torch.tensor(preset.mean), torch.tensor(preset.std)
    x_BCTHW = ((torch.from_numpy(clips_NTHWC).float() / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    published.fc, head_400 = torch.nn.Identity(), published.fc
    with torch.no_grad():
        expected_BD = published(x_BCTHW)
        found_BD = network.eval().embed(training.to_input(clips_NTHWC, table.mean, table.std, bench.device))
    published.fc = head_400
    torch.testing.assert_close(found_BD, expected_BD, rtol=1e-3, atol=1e-4)
    assert torch.equal(network.net.fc.weight, head), "the classifier is of other classes"


def test_a_student_begins_with_them(bench: Bench, file: Path) -> None:
    fresh, begun = (
        load_score(bench.store.folder(run_job(one, bench.runtime)[0])) for one in (job(bench), job(bench, str(file)))
    )
    assert begun.loss != fresh.loss


def test_weights_are_known_by_their_content_wherever_they_lie(bench: Bench, file: Path, tmp_path: Path) -> None:
    moved = tmp_path / "r3d.pt"
    moved.write_bytes(file.read_bytes())
    first, second = job(bench, str(file)), job(bench, str(moved))
    assert first.ref == second.ref
    known = {"r3d_18": f"r3d.pt:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"}
    assert first.parameters["student"]["pretrained"] == known
    waiting = job(bench, str(moved), least_steps=2)
    moved.write_bytes(b"other")
    with pytest.raises(TransientError, match=r"r3d\.pt changed during the run: run again"):
        run_job(waiting, bench.runtime)
    assert job(bench, str(moved)).ref != first.ref
    assert job(bench, "kinetics400").parameters["student"]["pretrained"] == {"r3d_18": "KINETICS400_V1"}
    assert "pretrained" not in job(bench).parameters["student"]
    assert job(bench, str(file), network="minic3d").ref == job(bench, network="minic3d").ref, "it is not its network"


def test_weights_that_are_not_there_or_not_its_own(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no weights 'nowhere.pt': give student.pretrained the path"):
        job(bench, "nowhere.pt")
    other = tmp_path / "mc3.pt"
    torch.save(mc3_18(num_classes=400).state_dict(), other)
    with pytest.raises(
        RequestError, match=r"The weights mc3.pt do not fit R3D-18 \(.*: give student.pretrained"
    ) as told:
        run_job(job(bench, str(other)), bench.runtime)
    assert "\n" not in str(told.value)
    np.save(tmp_path / "r3d.pt", np.zeros(3))
    with pytest.raises(RequestError, match=r"cannot be had .*: give student.pretrained the path"):
        run_job(job(bench, f"{tmp_path}/r3d.pt.npy"), bench.runtime)


def test_torchvision_fetches_them_by_name_and_offline_that_is_said(
    bench: Bench, published: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(RequestError, match=r"'KINETICS400_V1' cannot be had \(URLError.*: give student.pretrained"):
        run_job(job(bench, "kinetics400"), bench.runtime)
    there = tmp_path / "hub" / "checkpoints" / "r3d_18-b3b3357e.pth"
    torch.save(published.state_dict(), there)
    made = load_score(bench.store.folder(run_job(job(bench, "kinetics400"), bench.runtime)[0]))
    assert made.loss != load_score(bench.store.folder(run_job(job(bench), bench.runtime)[0])).loss
