"""The script that says how the small network was chosen, at its smallest."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from method_contract import sprite_videos

from vidistill.models import build

SCRIPT = Path(__file__).parent / "benchmarks" / "network_choice.py"
SMALL = shlex.split("--seeds 2 --epochs 1 --least-steps 2 --frames 4 --interval 2 --size 32 --views 1")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("network_choice", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_every_variant_has_a_line(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    videos = sprite_videos(tmp_path / "videos", tmp_path / "rendered")
    script.main([str(videos), *SMALL, "--store", str(tmp_path / "store")])
    lines = capsys.readouterr().out.splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and "variant" not in line]
    assert [cells[0] for cells in table] == [variant.name for variant in script.VARIANTS]
    weights = {cells[0]: int(cells[3].replace(",", "")) for cells in table}
    whole = sum(weight.numel() for weight in build("r2plus1d_small", classes=3, frames=4, size=32).parameters())
    assert weights["as it is"] == weights["dropout 0.3"] == weights["minus median"] == whole
    assert weights["widths 16, 32, 64"] < whole < weights["widths 32, 64, 128"]
    assert weights["no convolution over time"] < whole < weights["five frames of time"]
    assert weights["two streams: rgb and centred"] == 2 * whole
    assert all(" ± " in cells[1] and float(cells[2]) > 0 for cells in table)


def test_some_groups_alone(script: ModuleType) -> None:
    asked = script._asked(["sprites", "--only", "time"])
    assert asked.only == ["time"]


def test_its_fronts_see_what_they_say(script: ModuleType) -> None:
    x_BCTHW = torch.arange(5.0).view(1, 1, 5, 1, 1).repeat(1, 3, 1, 2, 2) ** 2
    far = script.at_two_distances(x_BCTHW)[0, :, :, 0, 0]
    assert far[0].tolist() == [1, 3, 5, 7, 7]
    assert far[3].tolist() == [4, 8, 12, 12, 12]
    assert script.minus_median(x_BCTHW)[0, 0, :, 0, 0].tolist() == [-4, -3, 0, 5, 12]
