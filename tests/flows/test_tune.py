"""Searching settings by Optuna: on the held-out fifth alone, going on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from flow_running import TINY, WRONG, CommandLine, check_refusal

from vidistill.flows import cli, use
from vidistill.flows.parameters import Experiment
from vidistill.flows.ranges import checked_request, is_range, trial_of, within
from vidistill.storage.errors import DivergedError, RequestError, RowsFailed, RunError, TransientError
from vidistill.storage.opening import open_store
from vidistill.storage.store import Store
from vidistill.tasks.report.gather import JSON
from vidistill.tasks.stage import Runtime

pytest.importorskip("optuna", reason="pip install -e '.[tune]' -c constraints.txt")

from vidistill.flows.tune import Trial, page_of, proposed, top1_of, tried
from vidistill.flows.tune import tune as study

ASKED = Experiment.model_validate({"data": "sprites", "cells": [{"method": "mtt"}], "index": {"holdout": True}})
RATES = {"mtt.lr": within("mtt.lr", "0.001..1:log")}


def found(*values: float | None) -> list[Trial]:
    return [
        Trial(number=number, values={"mtt.lr": 10**-number}, top1=top1) for number, top1 in enumerate(values) if number
    ]


def test_ranges_are_optunas() -> None:
    whole, choice = within("a", "10..200"), within("a", "random|herding|3")
    assert (type(whole).__name__, whole.low, whole.high, whole.log) == ("IntDistribution", 10, 200, False)  # type: ignore[attr-defined]
    assert choice.choices == ("random", "herding", 3)  # type: ignore[attr-defined]
    rate = within("a", "1e-4..0.1:log")
    assert (type(rate).__name__, rate.low, rate.high, rate.log) == ("FloatDistribution", 1e-4, 0.1, True)  # type: ignore[attr-defined]
    assert [is_range(text) for text in ("0.1..1", "a|b", "[1, 5]", "../front.py:moving", "0.1")] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({}, "needs a range"),
        ({"mtt.lr": "0.1"}, "is no range"),
        ({"mtt.lr": "[1|2"}, "is no range"),
        ({"mtt.lr": "1..0.1"}, r"is no range \(1 is above 0.1\)"),
        ({"mtt.lr": "0..1:log"}, r"is no range \(a logarithm has no 0\)"),
        ({"dm.lr": "0.1..1"}, "no method of this run"),
        ({"mtt.speed": "0.1..1"}, "speed"),
        ({"student.epochs": "0.5..0.7"}, "student.epochs"),
    ],
)
def test_a_wrong_range_is_one_sentence(ranges: dict[str, str], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        checked_request(ASKED, ranges)


def test_a_name_that_is_set_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidistill.flows.use.tune", lambda *_: pytest.fail("it was begun"))
    words = ["tune", "--data", "sprites", "--method", "dm", "--set", "dm.lr=0.1..1", "--set", "dm.lr=3"]
    with pytest.raises(RequestError, match=r"--set dm\.lr is given twice"):
        cli.app(words, standalone_mode=False)


@pytest.mark.parametrize("seed", ["-5", "4294967295"])
def test_a_seed_that_the_sampler_does_not_take_is_refused_before_any_work(
    seed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidistill.flows.use.tune", lambda *_: pytest.fail("it was begun"))
    with pytest.raises(Exception, match=r"Input should be (greater|less) than or equal to [02]"):
        cli.app(["tune", "--data", "sprites", "--method", "dm", "--seed", seed], standalone_mode=False)
    bounds = study.parameters.properties["seed"]
    assert (bounds["minimum"], bounds["maximum"]) == (0, 2**31)


def test_one_method_at_a_time() -> None:
    two = ASKED.model_copy(update={"cells": ASKED.cells * 2})
    with pytest.raises(RequestError, match="one method at a time"):
        checked_request(two, {"mtt.lr": "0.1..1"})


@pytest.mark.parametrize(("name", "text"), [("mtt.init", "real|noize"), ("student.crop_scale", "0.5..2.0")])
def test_every_choice_and_both_ends_are_tried_for_their_meaning_first(name: str, text: str) -> None:
    with pytest.raises(RequestError):
        checked_request(ASKED, {name: text})


def test_the_fifth_is_what_scores() -> None:
    tested = ASKED.model_copy(update={"index": ASKED.index.model_copy(update={"holdout": False})})
    held, _ = checked_request(tested, {"mtt.lr": "0.1..1"})
    assert held.index.holdout
    assert trial_of(held, {"mtt.lr": 0.2, "student.epochs": 3}).index.holdout


def test_a_proposal_is_a_function_of_what_was_found() -> None:
    first = proposed(RATES, found(0.0, 0.3, None, 0.4), seed=5)
    assert first == proposed(RATES, found(0.0, 0.3, None, 0.4), seed=5)
    assert first != proposed(RATES, found(0.0, 0.3, None, 0.4), seed=6)
    assert first["mtt.lr"] == float(f"{first['mtt.lr']:.3g}")


def test_values_that_do_not_work_are_a_trial_and_not_the_end(tmp_path: Path) -> None:
    """The same seed would propose them again."""
    assert Trial(number=1, values={"optdistill.top_k": None}, top1=0.5).line == "optdistill.top_k None: top-1 50.0"
    trial = tried(ASKED, 1, {"mtt.lr": -1.0}, Runtime(store=str(tmp_path / "store")))
    assert (trial.number, trial.values, trial.top1) == (1, {"mtt.lr": -1.0}, None)
    assert "lr is -1: it takes" in trial.said


def test_what_was_better_is_tried_again_nearby() -> None:
    """Twelve rates of which the high ones reached more: what the estimator asks for next is high, seed by seed."""
    done = [
        Trial(number=number, values={"mtt.lr": rate}, top1=0.9 if rate > 0.1 else 0.1)
        for number, rate in enumerate([0.001, 0.002, 0.004, 0.008, 0.01, 0.02, 0.03, 0.05, 0.2, 0.3, 0.5, 0.8], 1)
    ]
    asked = [proposed(RATES, done, seed)["mtt.lr"] for seed in range(20)]
    assert sum(rate > 0.1 for rate in asked) >= 15


def test_what_is_sought_is_the_mean_top_1_of_the_rows_that_were_asked_for(tmp_path: Path) -> None:
    """Random beside them is not one."""
    tops = (("dm", 0.3), ("dm", 0.5), ("random", 0.9))
    rows = [{"method": method, "variant": "", "top1_mean": top1, "top5_mean": 1.0} for method, top1 in tops]
    store, said = Store(tmp_path), json.dumps({"rows": rows})
    report = tiny.put(store, "report", "r", lambda folder: (folder / JSON).write_text(said), {})
    asked = Experiment.model_validate({"data": "sprites", "cells": [{"method": "dm"}], "ipc": [1, 5]})
    assert top1_of(asked, store, report) == pytest.approx(0.4)


def test_the_page_orders_trials_and_names_the_one_that_failed() -> None:
    done = [Trial(number=0, values={}, top1=0.25), *found(None, 0.5), Trial(number=2, values={"mtt.lr": 1.0}, top1=None,
                                                                            said="lost:\na | b")]  # fmt: skip
    lines = page_of(ASKED, done).splitlines()
    assert lines[-3:] == ["| 1 | 0.1 | 50.0 |", "| 0 | as it is | 25.0 |", "| 2 | 1.0 | failed: lost: a \\| b |"]
    [command] = [line for line in lines if line.startswith("vidistill run")]
    assert "mtt.lr=0.1" in command
    assert "holdout" not in command


def test_its_command_is_printed_once_and_whole_and_names_the_data_as_they_were_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"/far/{'away/' * 20}videos"

    def study(experiment: Experiment, *_: Any) -> None:
        (tmp_path / "tune.md").write_text(page_of(experiment, [Trial(number=0, values={}, top1=0.25)]))

    monkeypatch.setattr("vidistill.flows.tune.tune", study)
    monkeypatch.setattr("vidistill.flows.server.connect", lambda _: None)
    monkeypatch.setenv("COLUMNS", "80")
    asked = {"data": data, "cells": [{"method": "mtt"}]}
    use.tune(asked, {"mtt.lr": "0.1..1"}, 1, 0, str(tmp_path / "store"), tmp_path, "cpu", "threads", False)
    shown = capsys.readouterr().out
    assert f"\nvidistill run --data {data} --method mtt\n" in shown
    assert shown.count("vidistill run") == 1


@pytest.mark.slow
def test_a_study_goes_on(tmp_path: Path, server: Any) -> None:
    """One trial, then two more of the same study, are what three at once would be; nothing is tried twice."""
    user = CommandLine(tmp_path, server.variables)
    few = ["--set", "sprites.train_per_class=5", "--set", "sprites.test_per_class=1"]
    asked = ["tune", "--data", "sprites", *few, "--method", "random", *TINY, "--store", "store",
             "--set", "student.optimiser.lr=0.001..0.1:log"]  # fmt: skip
    for trials in (1, 3):
        ended = user(*asked, "--trials", trials, "--out", f"out{trials}")
        assert ended.returncode == 0, ended.stdout + ended.stderr
    [folder] = (tmp_path / "store" / ".studies").iterdir()
    notes = open_store(str(tmp_path / "store")).notes(f".studies/{folder.name}")
    trials_made = [Trial.model_validate_json(content) for content in notes.values()]
    assert [trial.number for trial in trials_made] == [1, 2, 3]
    space = {"student.optimiser.lr": within("lr", "0.001..0.1:log")}
    assert [trial.values for trial in trials_made] == [
        proposed(space, trials_made[:number], number + 1) for number in range(3)
    ]
    assert len(json.loads((tmp_path / "out3" / "best.json").read_text())) in (0, 1)
    assert (tmp_path / "out3" / "tune.md").read_text().count("\n| ") == 5
    refused = user(*asked, "--set", "random.speed=1..2", "--out", "refused")
    check_refusal(refused, WRONG, "speed", store=tmp_path / "store", out=tmp_path / "refused")


@pytest.mark.parametrize("causes", [None, (DivergedError("nan"), TransientError("down")), (DivergedError("nan"),)])
def test_what_may_pass_is_no_finding(
    causes: tuple[RunError, ...] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler that is down for a minute: the same command tries the trial again. A rate that diverges
    does so again.
    """
    error: RunError = TransientError("down")
    if causes is not None:
        error = RowsFailed("1 of 2 rows failed")
        error.causes = causes

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr("vidistill.flows.tune.distill", fails)
    given = ASKED, 1, {"mtt.lr": 0.1}, Runtime(store=str(tmp_path / "store"))
    if causes is not None and len(causes) == 1:
        assert tried(*given).top1 is None
        return
    with pytest.raises(TransientError, match="down"):
        tried(*given)
