"""Every shipped preset is a pool, or an experiment whose methods, options, recipes and students exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from vidistill.flows.grid import Benchmark
from vidistill.flows.parameters import PRESETS, Experiment, PoolRequest, checked, load_preset, override
from vidistill.flows.rows import Row, rows_of
from vidistill.models import known
from vidistill.storage.parameters import Parameters

PLAIN = {path.stem: {"data": "videos"} | load_preset(path.stem) for path in sorted(PRESETS.glob("*.yaml"))}
POOL_FIELDS = PoolRequest.model_fields
GRIDS = [name for name in PLAIN if name.startswith("benchmark_")]
of_papers = pytest.mark.parametrize(
    "name", [f"benchmark_{data}" for data in ("miniucf", "hmdb51", "ucf101", "kinetics400", "ssv2")]
)


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


@pytest.mark.parametrize(("data", "pool"), [("sprites", "sprites_shapes"), ("ucf101_10", "ucf101_10")])
def test_selections_read_the_pool_that_its_preset_makes(data: str, pool: str) -> None:
    selections = PLAIN[f"select_{data}"]
    chosen, made = (checked(PoolRequest, {name: plain[name] for name in POOL_FIELDS if name in plain}, "a preset")
                    for plain in (selections, PLAIN[f"pool_{pool}"]))  # fmt: skip
    assert chosen == made
    whole = [cell["ipc"] for cell in selections["cells"] if cell.get("variant") == "all of it"]
    assert whole == [[made.pool.clips_a_class]]


def matched(name: str) -> list[tuple[Row, Any]]:
    """The rows of a grid whose method matches, follows or trains a network of its own, and their parameters."""
    rows = [row for row in rows_of(checked(Benchmark, PLAIN[name], name)) if row.source is not None]
    given = [(row, checked(row.source.method.Parameters, row.cell.options, name)) for row in rows if row.source]
    return [(row, asked) for row, asked in given if row.source and row.source.method(asked).network]


def steps(parameters: Parameters) -> Iterator[str]:
    """How it steps, and how what is nested in it does."""
    for name, value in parameters:
        if name == "step":
            yield value
        elif isinstance(value, Parameters):
            yield from steps(value)


@of_papers
def test_papers_match_the_network_that_is_scored_and_step_at_their_rates(name: str) -> None:
    rows = matched(name)
    assert {row.cell.method for row, _ in rows} >= {"dm", "mtt", "dm_vdsd", "mtt_vdsd", "idtd"}
    for row, asked in rows:
        assert row.source is not None
        network = row.source.method(asked).network
        assert network == (row.student if known(network) else "convnet2d"), row.cell.method
        assert set(steps(asked)) <= {"published"}, row.cell.method
        assert getattr(asked, "lr_network", 1e-4) == 1e-4, row.cell.method


@of_papers
def test_papers_match_as_long_as_they_say(name: str) -> None:
    iterations = {"static_dc": 1000, "mtt": 8000, "sfvd": 8000, "sfvd_t": 8000, "mtt_vdsd": 10000, "frepo": 10000,
                  "frepo_vdsd": 10000}  # fmt: skip
    for row, asked in matched(name):
        assert asked.iterations == iterations.get(row.cell.method, 5000)
        if row.cell.method.endswith("vdsd"):
            assert (asked.static.depth, asked.static.iterations, asked.static.init) == (4, 3000, "noise")
        if expert := getattr(asked, "expert", None):
            assert (asked.experts, expert.epochs, expert.lr, expert.batch_size) == (30, 50, 0.01, 256)


@of_papers
def test_mtt_vdsd_takes_the_steps_of_its_budget_and_holds_its_rate_where_the_paper_does(name: str) -> None:
    found = {row.ipc: (asked.syn_steps, asked.batch_syn, asked.lr_lr) for row, asked in matched(name)
             if row.cell.method == "mtt_vdsd"}  # fmt: skip
    large = name in ("benchmark_kinetics400", "benchmark_ssv2")
    assert found == ({1: (10, 256, 0), 5: (10, 256, 0)} if large else {1: (10, None, None), 5: (5, 128, 0)})


def test_an_option_that_is_set_stays_with_its_method_where_a_preset_shares_options() -> None:
    plain = override(load_preset("benchmark_miniucf"), ["mtt.experts=2", "mtt.expert.epochs=3", "mtt.store.crf=40"])
    found = {cell["method"]: cell for cell in plain["cells"]}
    assert (found["mtt"]["options"]["experts"], found["mtt"]["options"]["expert"]["epochs"]) == (2, 3)
    assert found["mtt"]["store"] == {"crf": 40}
    for other in ("sfvd", "sfvd_t", "mtt_vdsd"):
        assert (found[other]["options"]["experts"], found[other]["options"]["expert"]["epochs"]) == (30, 50)
