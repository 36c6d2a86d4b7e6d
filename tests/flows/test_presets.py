"""Every shipped preset is an experiment whose methods, options, recipes and students exist."""

from __future__ import annotations

import pytest

from vidistill.flows.experiment import rows_of
from vidistill.flows.parameters import PRESETS, Experiment, checked, load_preset


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_a_preset_is_an_experiment(name: str) -> None:
    plain = {"data": "videos"} | load_preset(name)
    experiment = checked(Experiment, plain, name)
    rows = rows_of(experiment)
    for row in rows:
        if row.source is not None:
            checked(row.source.method.Parameters, row.cell.options, f"{name}: {row.source.name}")
    names = [(row.cell.method, row.cell.variant, row.recipe.name, row.ipc, row.student) for row in rows]
    assert len(names) == len(set(names)), "two rows of one name would be one row of the table"
