"""`vidistill parameters`: what it lists is what --set takes, and what it calls a default is one."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
import yaml
from rich.console import Console

from vidistill.flows.parameter_list import LONGEST, list_parameters, listed
from vidistill.flows.parameters import Experiment, override
from vidistill.flows.rows import rows_of
from vidistill.storage.errors import RequestError
from vidistill.tasks.methods import REGISTRY


def plain(method: str = "random") -> dict[str, Any]:
    return {"data": "sprites", "cells": [{"method": method}]}


@pytest.mark.parametrize("of", ["", "pool"])
def test_each_parameter_of_a_run_can_be_set_and_has_its_default(of: str) -> None:
    usual = Experiment.model_validate(plain())
    names = [name for name, default, _ in listed(of) if len(default) <= LONGEST]
    assert {"teacher.epochs", "decode.interval", "index.test_fraction", "seeds"} <= {*names} or of
    for name, default, _ in listed(of):
        if name in names:
            assert Experiment.model_validate(override(plain(), [f"{name}={default}"])) == usual, name


@pytest.mark.parametrize("method", REGISTRY)
def test_each_option_of_a_method_can_be_set(method: str) -> None:
    usual = rows_of(Experiment.model_validate(plain(method)))
    for name, default, _ in listed(method):
        assert name.startswith(f"{method}.")
        asked = override(plain(method), [f"{name}={default}"])
        assert asked["cells"][0]["options"], name
        assert len(rows_of(Experiment.model_validate(asked))) == len(usual)


def test_a_default_that_differs_from_its_class_s_is_the_one_that_is_used() -> None:
    """Lattes that are fine-tuned average more slowly."""
    defaults = {name: yaml.safe_load(default) for name, default, _ in listed("pool")}
    assert defaults["pool.latte.tuning.ema_decay"] != defaults["pool.latte.ema_decay"]


def test_they_are_printed_with_what_they_mean() -> None:
    written = StringIO()
    list_parameters(["dm"], Console(file=written, width=100))
    assert "dm.reuse" in written.getvalue()
    assert "Iterations of one network" in written.getvalue()


def test_what_is_no_method_is_refused() -> None:
    with pytest.raises(RequestError, match="There is no method 'dn': choose from"):
        list_parameters(["dn"], Console(file=StringIO()))
