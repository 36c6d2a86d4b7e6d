"""What `train`, `benchmark`, `tune`, `segment` and `unpack` do and say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vidistill.flows import loggers, server
from vidistill.flows import train as training
from vidistill.flows.commands import check_out, check_places, performed, pool_request_of, reported, runtime_of
from vidistill.flows.display import showing
from vidistill.flows.parameters import (
    PRESETS,
    SPRITES,
    Experiment,
    PoolRequest,
    checked,
    load_preset,
    merged,
    override,
    stated,
)
from vidistill.flows.ranges import checked_request
from vidistill.storage.errors import RequestError
from vidistill.storage.files import expanded, writing_to
from vidistill.tasks.stage import Runtime

if TYPE_CHECKING:
    from vidistill.flows.grid import Benchmark

console = Console(soft_wrap=True, highlight=False, markup=False)


def train(plain: dict[str, Any], store: str | None, out: Path, device: str, log: str) -> None:
    """Train, and say what came of it."""
    server.prepare(server.THREADS)  # before torch is loaded
    request, runtime = checked(training.TrainRequest, plain, "The training"), runtime_of(store, device)
    if request.test:  # whose clips are kept
        check_places(runtime, out)
    else:
        check_out(out)
    if log:
        loggers.check(log)
    with showing(console) as progress:
        progress.say(f"training on {request.source}")
        facts = training.train(request, runtime, out)
    console.print(
        f"{facts['network']} on {facts['clips']} clips of {request.source}, {facts['labels']} labels: top-1 "
        f"{facts['top1']:.1%}, top-5 {facts['top5']:.1%} of {facts['test_clips']} test clips"
    )
    console.print(f"Its weights are {out / training.STUDENT}, its facts {out / training.FACTS}")
    if log:
        console.print(f"Logged to {loggers.write(log, loggers.of_training(facts), out)}")


def grid_of(preset: str, data: str, options: dict[str, Any], settings: list[str]) -> Benchmark:
    """A benchmark by name or file, with what differs from it.

    Raises:
        RequestError: there is no such preset, or it is no benchmark.
    """
    from vidistill.flows.grid import Benchmark

    own = PRESETS / f"benchmark_{preset}.yaml"
    index = {name: options.get(name) for name in ("layout", "split")}
    plain = merged(load_preset(str(own) if own.is_file() else preset), stated({"data": data or None, "index": index}))
    plain.setdefault("data", Path(preset).stem if plain.get("expect") else None)
    if plain["data"] is None:
        raise RequestError("Which videos? Give --data DIR, or --data sprites for the embedded set.")
    return checked(Benchmark, override(plain, settings, Benchmark), "The benchmark")


def benchmark(grid: Benchmark, store: str | None, out: Path, device: str, runner: str, verbose: bool, log: str) -> None:
    """Run a grid, and say where everything is."""
    from vidistill.flows.planning import plan_grid

    runtime = runtime_of(store, device, runner)
    if grid.expect and grid.data != SPRITES and not expanded(grid.data).exists():
        raise RequestError(f"There are no videos at {grid.data}: give --data DIR, or price it by `vidistill plan`.")

    def start(runtime: Runtime) -> None:
        from vidistill.flows.benchmark import benchmark

        benchmark(grid, runtime, out)

    reported(lambda: plan_grid(grid, runtime), start, runtime, out, verbose, log)
    from vidistill.flows.benchmark import PAGE

    console.print(f"\nScores and plots are in {out / PAGE}, the report is {out / 'report.html'}")


TAKEN = {
    "benchmark": {"data", "layout", "split", "set"},
    "pool": {"data", "layout", "split", "frames", "size", "clips", "preset", "set"},
}
"""Which options of `plan` are those of another command than `run`."""


def plan_another(asked: list[str], given: dict[str, Any], store: str | None, device: str, runner: str) -> None:
    """Price a benchmark, even of data that are not there, or a pool; nothing is written.

    Raises:
        RequestError: there is no such command, or it does not take what is given.
    """
    from vidistill.flows.planning import describe, plan_grid

    command, runtime = asked[0], runtime_of(store, device, runner)
    if command not in TAKEN or len(asked) != 1 + (command == "benchmark"):
        said = " ".join(asked)
        raise RequestError(f"plan takes the options of run, or `benchmark PRESET` or `pool` with theirs; got {said!r}.")
    if wrong := sorted(f"--{name}" for name in set(given) - TAKEN[command]):
        takes = ", ".join(f"--{name}" for name in sorted(TAKEN[command]))
        raise RequestError(f"`vidistill {command}` takes {takes}, not {', '.join(wrong)}: leave it out.")
    if command == "pool":
        from vidistill.flows.pools import plan_pool

        describe(plan_pool(checked(PoolRequest, pool_asked(given), "The pool"), runtime), console)
        return
    grid = grid_of(asked[1], given.get("data", ""), given, given.get("set", []))
    describe(plan_grid(grid, runtime), console)


def pool_asked(given: dict[str, Any]) -> dict[str, Any]:
    """Plain parameters of a pool by the options that `vidistill pool` takes.

    Raises:
        RequestError: nothing says which data.
    """
    nested = {
        "index": {name: given.get(name) for name in ("layout", "split")},
        "decode": {name: given.get(name) for name in ("frames", "size")},
        "pool": {"clips_a_class": given.get("clips")},
    }
    return pool_request_of(given.get("preset"), given.get("data", ""), nested, given.get("set") or [])


def tune(
    plain: dict[str, Any], ranges: dict[str, str], trials: int, seed: int, store: str | None, out: Path, device: str,
    runner: str, verbose: bool,
) -> None:  # fmt: skip
    """Try values, and print what each reached on the held-out fifth."""
    from rich.markdown import Markdown

    experiment, runtime = checked(Experiment, plain, "The experiment"), runtime_of(store, device, runner)
    checked_request(experiment, ranges)
    with showing(console):
        check_places(runtime, out)
        server.connect(verbose)
        from vidistill.flows import tune as studies

        studies.tune(experiment, ranges, trials, seed, runtime, out)
    head, command, table = (out / studies.PAGE).read_text(encoding="utf-8").split("```", 2)
    console.print(Markdown(head))
    console.print(command.rstrip())  # markdown would cut it where the terminal ends
    console.print(Markdown(table))
    console.print(f"\nThe page is {out / studies.PAGE}")


def segment(plain: dict[str, Any], store: str | None, out: Path, device: str, runner: str, verbose: bool) -> None:
    """Run the flow `segment`, and print its tables."""
    from vidistill.flows.segments import SegmentRequest, plan_segments

    request, runtime = checked(SegmentRequest, plain, "The request"), runtime_of(store, device, runner)

    def start(runtime: Runtime) -> None:
        from vidistill.flows.segment import segment

        segment(request, runtime, out)

    performed(lambda: plan_segments(request, runtime), start, runtime, out, verbose)
    print_segments(json.loads((out / "segment.json").read_text()))
    console.print(f"\nThe tables are in {out / 'segment.md'}, their numbers in {out / 'segment.json'}")


def print_segments(document: dict[str, Any]) -> None:
    """The means of a report of segments, a table for each kind of labels."""
    from rich.table import Table

    from vidistill.tasks.report.segments import SHOWN, difference, in_order
    from vidistill.tasks.report.tables import size

    for labels in dict.fromkeys(row["labels"] for row in document["rows"]):
        table = Table(title=f"{labels} labels", title_justify="left", title_style="bold", box=None, pad_edge=False)
        for name in ("method", "points", *SHOWN.values(), "− random", "bytes", "seeds"):
            table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
        for row in in_order([row for row in document["rows"] if row["labels"] == labels]):
            means = (f"{100 * row[f'{name}_mean']:.1f}" for name in SHOWN)
            points = "all" if row["points"] is None else str(row["points"])
            table.add_row(row["method"], points, *means, difference(row), size(row["bytes"]), str(row["seeds"]))
        console.print()
        console.print(table)


def unpack(source: Path, out: Path) -> None:
    """Write class folders, and say what is in them."""
    from vidistill.flows.unpack import unpack as write

    with writing_to(out):
        counts = write(expanded(source), out)
    console.print(f"{', '.join(f'{count} {split} videos' for split, count in counts.items())} in {out}")
