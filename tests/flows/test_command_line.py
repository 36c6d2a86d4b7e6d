"""The command that a report shows asks for the same experiment, and for nothing of the machine that made it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from vidistill.flows import cli, commands
from vidistill.flows.command_line import command_of
from vidistill.flows.own import without_places
from vidistill.flows.parameters import PRESETS, Experiment, load_preset, name_of

PLAIN = {path.stem: load_preset(path.stem) for path in sorted(PRESETS.glob("*.yaml"))}
EXPERIMENTS = {name: plain for name, plain in PLAIN.items() if "cells" in plain and not name.startswith("benchmark_")}
MIXED: dict[str, Any] = {
    "data": "/somebody/data/my videos",
    "cells": [
        {
            "method": "/somebody/mine.py:Mine",
            "options": {"name": "a: b", "yes": True, "no": "no", "lr": 1e-5, "k": None},
        },
        {"method": "dm"},
    ],
    "kb": [0.5, 10],
    "index": {"layout": "csv", "holdout": True},
    "student": {"networks": {}},
    "protocol": "vdsd",
}


def asked(command: str, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(commands, "run", lambda plain, *_: found.append(plain))
    name, *words = shlex.split(command)
    assert name == "vidistill"
    cli.app(words, standalone_mode=False)
    return Experiment.model_validate(found[0])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_preset_comes_back_from_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment.model_validate({"data": "videos"} | EXPERIMENTS[name])
    assert asked(command_of(experiment), monkeypatch).model_dump() == experiment.model_dump()


def test_no_place_of_this_machine_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    command = command_of(Experiment.model_validate(MIXED))
    assert "somebody" not in command
    assert "--data 'my videos' --method mine.py:Mine,dm" in command
    assert " --protocol vdsd" in command
    cells = [MIXED["cells"][0] | {"method": "mine.py:Mine"}, MIXED["cells"][1]]
    expected = Experiment.model_validate(MIXED | {"data": "my videos", "cells": cells})
    assert asked(command, monkeypatch).model_dump() == expected.model_dump()


def test_where_things_lie_is_said_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment.model_validate(MIXED)
    command = command_of(experiment, places=True)
    assert "--data '/somebody/data/my videos' --method /somebody/mine.py:Mine,dm" in command
    assert asked(command, monkeypatch).model_dump() == experiment.model_dump()


def test_of_what_is_a_file_here_the_name_alone_is_kept(tmp_path: Path) -> None:
    (tmp_path / "own.pt").touch()
    cells = [{"method": "optdistill", "options": {"detector": str(tmp_path / "own.pt"), "scorer": "a/b"}}]
    pool = {
        "autoencoder": {"pretrained": "stabilityai/sd-vae-ft-mse"},
        "latte": {"pretrained": str(tmp_path / "own.pt")},
    }
    kept = without_places(Experiment.model_validate({"data": "sprites", "cells": cells, "pool": pool}))
    assert kept.cells[0].options == {"detector": "own.pt", "scorer": "a/b"}
    assert (kept.pool.autoencoder.pretrained, kept.pool.latte.pretrained) == ("stabilityai/sd-vae-ft-mse", "own.pt")


def test_defaults_are_left_out(tmp_path: Path) -> None:
    cells = [{"method": "random"}, {"method": "tsgf", "options": {"iterations": 5}}]
    experiment = Experiment.model_validate({"data": str(tmp_path / "clips"), "cells": cells})
    assert command_of(experiment) == "vidistill run --data clips --method random,tsgf --set tsgf.iterations=5"


def test_recipes_of_all_methods_are_one_option(monkeypatch: pytest.MonkeyPatch) -> None:
    given = "vidistill run --data sprites --method herding,tsgf --recipes hard,soft"
    experiment = asked(given, monkeypatch)
    assert [cell.recipes for cell in experiment.cells] == [("hard", "soft")] * 2
    assert command_of(experiment) == given
    cells = (experiment.cells[0], experiment.cells[1].model_copy(update={"recipes": None}))
    other = experiment.model_copy(update={"cells": cells})
    assert asked(command_of(other), monkeypatch).cells == cells


def test_a_data_set_is_called_as_its_folder_from_wherever_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clips" / "train").mkdir(parents=True)
    for here, given in (("clips", "."), ("clips/train", ".."), ("", "clips/"), ("", "./clips"), ("", "/data/clips")):
        monkeypatch.chdir(tmp_path / here)
        assert name_of(given) == "clips"
    monkeypatch.chdir(tmp_path / "clips")
    command = command_of(Experiment.model_validate({"data": ".", "cells": [{"method": "random"}]}))
    assert command == "vidistill run --data clips --method random"


def test_a_list_in_several_options_is_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(
        "vidistill run --data sprites --method random,dm --method mtt --ipc 1 --ipc 2,5 --kb 2 --kb 4 "
        "--students c3d --students minic3d",
        monkeypatch,
    )
    assert [cell.method for cell in found.cells] == ["random", "dm", "mtt"]
    assert (found.ipc, found.kb, found.students) == ((1, 2, 5), (2.0, 4.0), ("c3d", "minic3d"))
