"""Every shipped preset is a pool, or an experiment whose methods, options, recipes and students exist."""

from __future__ import annotations

import pytest

from vidistill.flows.grid import Benchmark
from vidistill.flows.parameters import PRESETS, Experiment, PoolRequest, checked, load_preset
from vidistill.flows.rows import rows_of

PLAIN = {path.stem: {"data": "videos"} | load_preset(path.stem) for path in sorted(PRESETS.glob("*.yaml"))}
POOL_FIELDS = PoolRequest.model_fields
GRIDS = [name for name in PLAIN if name.startswith("benchmark_")]


@pytest.mark.parametrize("name", [name for name, plain in PLAIN.items() if "cells" in plain])
def test_a_preset_is_an_experiment(name: str) -> None:
    experiment = checked(Benchmark if name in GRIDS else Experiment, PLAIN[name], name)
    rows = rows_of(experiment)
    for row in rows:
        if row.source is not None:
            checked(row.source.method.Parameters, row.cell.options, f"{name}: {row.source.name}")
    names = [(row.cell.method, row.variant, row.recipe.name, row.ipc, row.kb, row.student) for row in rows]
    assert len(names) == len(set(names)), "two rows of one name would be one row of the table"


@pytest.mark.parametrize("name", [name for name, plain in PLAIN.items() if "cells" not in plain])
def test_a_preset_without_cells_is_a_pool(name: str) -> None:
    assert checked(PoolRequest, PLAIN[name], name).pool != PoolRequest(data="videos").pool


@pytest.mark.parametrize("data", ["sprites", "ucf101_10"])
def test_selections_read_the_pool_that_its_preset_makes(data: str) -> None:
    selections = PLAIN[f"select_{data}"]
    chosen, made = (checked(PoolRequest, {name: plain[name] for name in POOL_FIELDS if name in plain}, "a preset")
                    for plain in (selections, PLAIN[f"pool_{data}"]))  # fmt: skip
    assert chosen == made
    whole = [cell["ipc"] for cell in selections["cells"] if cell.get("variant") == "all of it"]
    assert whole == [[made.pool.clips_a_class]]
