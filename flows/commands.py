"""What `run`, `plan`, `demo` and `index` do."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape

from vidistill.flows import loggers, server
from vidistill.flows.display import showing
from vidistill.flows.parameters import (
    SPRITES,
    Experiment,
    PoolRequest,
    checked,
    load_preset,
    merged,
    name_of,
    override,
    stated,
)
from vidistill.flows.runners import WORKERS, check_runner
from vidistill.models import parted
from vidistill.storage.errors import RequestError, RowsFailed, RunError
from vidistill.storage.files import expanded
from vidistill.storage.opening import VARIABLE, absolute, default_location, open_store
from vidistill.tasks.report.data import KINDS, Named
from vidistill.tasks.report.tables import budget_of, size
from vidistill.tasks.running.places import video_seconds
from vidistill.tasks.stage import Runtime
from vidistill.tasks.videos.layouts import IndexParameters

if TYPE_CHECKING:
    from vidistill.flows.planning import Plan

console = Console(markup=False)


def request_of(
    preset: str | None,
    named: dict[str, Any] | None = None,
    nested: dict[str, Any] | None = None,
    settings: list[str] | None = None,
) -> dict[str, Any]:
    """Plain parameters of an experiment: preset, then named options, then settings.

    Raises:
        RequestError: nothing says which data or which method.
    """
    plain = _gathered(preset, named or {}, nested or {})
    if grids := sorted({"fronts", "expect"} & plain.keys()):
        raise RequestError(f"The preset {preset} is one of `vidistill benchmark`: it has {grids[0]}.")
    if not plain.get("cells"):
        if unknown := [name for name in plain if name not in Experiment.model_fields]:
            raise RequestError(f"The preset {preset} has no cells, and there is no parameter {unknown[0]!r}.")
        of_pool = f"{preset} is a preset of `vidistill pool`; for `vidistill run` give" if "pool" in plain else "Give"
        raise RequestError(f"Which method? {of_pool} --method random,tsgf (see `vidistill run --help`).")
    _check_budgets(named or {})
    return override(plain, settings or [])


def _check_budgets(named: dict[str, Any]) -> None:
    """Make sure that some method which is named takes the clips a class that are asked for beside kilobytes.

    Raises:
        RequestError: all of them take the kilobytes.
    """
    from vidistill.flows.rows import FULL
    from vidistill.tasks.methods import find_method

    methods = [cell["method"] for cell in named.get("cells") or [] if cell["method"] != FULL]
    both = methods and named.get("ipc") and named.get("kb")
    if both and all("kb" in find_method(name).method.budgets for name in methods):
        raise RequestError(
            f"No row would have ipc {', '.join(map(str, named['ipc']))}: {', '.join(methods)} takes the kilobytes "
            "where there are any. Leave one of the two out, or run it twice."
        )


def pool_request_of(preset: str | None, data: str, nested: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """Plain parameters of a pool: preset, then named options, then settings.

    Raises:
        RequestError: nothing says which data.
    """
    return override(_gathered(preset, {"data": data or None}, nested), settings, PoolRequest)


def _gathered(preset: str | None, named: dict[str, Any], nested: dict[str, Any]) -> dict[str, Any]:
    plain = merged(merged(load_preset(preset) if preset else {}, stated(named)), stated(nested))
    if not plain.get("data"):
        raise RequestError("Which videos? Give --data DIR, or --data sprites for the embedded set.")
    return plain


def run(
    plain: dict[str, Any], store: str | None, out: Path, device: str, runner: str, verbose: bool, log: str = ""
) -> None:
    """Run the flow under Prefect: the server that PREFECT_API_URL names, or one of its own for the time of the run."""
    from vidistill.flows.planning import plan_of

    experiment, runtime = checked(Experiment, plain, "The experiment"), runtime_of(store, device, runner)

    def start(runtime: Runtime) -> None:
        from vidistill.flows.distill import distill

        distill(experiment, runtime, out)

    reported(lambda: plan_of(experiment, runtime), start, runtime, out, verbose, log)
    console.print(f"\nThe report is {out / 'report.html'}", soft_wrap=True, highlight=False)


def reported(
    plan: Callable[[], Plan], start: Callable[[Runtime], None], runtime: Runtime, out: Path, verbose: bool, log: str
) -> None:
    """Run a flow that writes a report, and print its table.

    Args:
        plan: what there is to do.
        start: imports the flow, once a server is named, and runs it.
        runtime: where to run.
        out: where the report goes.
        verbose: whether Prefect's own lines are shown.
        log: the logger, if any.

    Raises:
        RowsFailed: some rows could not be made; the report of the others is written, printed and logged.
    """
    failed = None
    if log:
        loggers.check(log)
    try:
        performed(plan, start, runtime, out, verbose)
    except RowsFailed as error:
        failed = error
    document = json.loads((out / "report.json").read_text())
    print_table(document)
    _print_export(document["rows"], runtime.store)
    if log:
        try:
            said = f"Logged to {loggers.write(log, loggers.of_report(document), out)}"
        except RunError as error:
            if not failed:
                raise
            said = str(error)
        console.print(f"\n{said}", soft_wrap=True, highlight=False)
    if failed:
        raise failed


def performed(
    plan: Callable[[], Plan], start: Callable[[Runtime], None], runtime: Runtime, out: Path, verbose: bool
) -> None:
    """Plan, see that everything can be written, and run a flow beside its progress; the arguments are `reported`'s."""
    with showing(console) as progress:
        planned = plan()
        check_places(runtime, out)
        progress.expect(planned)
        if not planned.todo:  # no engine is started for what is there
            runtime = runtime.model_copy(update={"runner": "threads"})
        server.connect(verbose)
        start(runtime)


def pool(plain: dict[str, Any], store: str | None, out: Path, device: str, runner: str, verbose: bool) -> None:
    """Run the flow `pool` and print what is known of the pool."""
    from rich.markdown import Markdown

    from vidistill.flows.pools import plan_pool

    request, runtime = checked(PoolRequest, plain, "The pool"), runtime_of(store, device, runner)

    def start(runtime: Runtime) -> None:
        from vidistill.flows.pool import pool

        pool(request, runtime, out)

    performed(lambda: plan_pool(request, runtime), start, runtime, out, verbose)
    console.print(Markdown((out / "pool.md").read_text(encoding="utf-8")))
    console.print(f"\nThe contact sheet is {out / 'sheet.png'}", soft_wrap=True, highlight=False)


def plan(plain: dict[str, Any], store: str | None, device: str, runner: str) -> None:
    """Print what a run would do; nothing is written."""
    from vidistill.flows.planning import describe, plan_of

    experiment = checked(Experiment, plain, "The experiment")
    describe(plan_of(experiment, runtime_of(store, device, runner)), console)


def runtime_of(store: str | None, device: str, runner: str = "threads") -> Runtime:
    """Where to run.

    Raises:
        RequestError: there is no such device or runner here.
    """
    given = {"store": store or default_location(), "device": device, "runner": runner}
    runtime = checked(Runtime, given, "Where to run")
    check_runner(runner)
    if runtime.device == "cuda":
        from vidistill.models.compute import resolve_device

        try:
            resolve_device("cuda")
        except ValueError as error:
            raise RequestError(f"--device cuda: {error}") from error
    return runtime


def index(data: str, layout: str | None, split: int | None, as_json: bool) -> None:
    """Print every file of a data set with its outcome."""
    from vidistill.tasks.videos.index import survey

    if not data:
        raise RequestError("Which videos? Give --data DIR.")
    if data == SPRITES:
        raise RequestError("`sprites` is rendered by a run: give the folder of videos to index.")
    parameters = checked(IndexParameters, stated({"layout": layout, "split": split}), "The index")
    table = survey(expanded(data).absolute(), parameters, workers=WORKERS, timeout_seconds=video_seconds())
    rows = [{"video": video.path, "outcome": "kept", "reason": "", "label": table.classes[video.label],
             "split": video.split, "group": video.group} for video in table.videos]  # fmt: skip
    rows += [rejected.model_dump() for rejected in table.rejected]
    rows.sort(key=lambda row: str(row["video"]))
    if as_json:
        facts = {"dataset": name_of(data), "layout": table.layout, "classes": table.classes, "notes": table.notes}
        print(json.dumps(facts | {"videos": rows}, indent=1, ensure_ascii=False))
        return
    for row in rows:
        note = row["reason"] or f"{row['label']}, {row['split']}"
        line = f"{row['outcome']:9}{escape(str(row['video']))}  [dim]{escape(note)}[/dim]"
        console.print(line, highlight=False, soft_wrap=True, markup=True)
    counts = f"{len(table.videos)} kept, {len(table.rejected)} not; {len(table.classes)} classes, layout {table.layout}"
    console.print("\n".join([counts, *table.notes]), highlight=False, soft_wrap=True)


def check_places(runtime: Runtime, out: Path) -> None:
    """Find out before the work, not after it, that the store or the report cannot be written."""
    open_store(runtime.store).check_writable()
    check_out(out)


def check_out(out: Path) -> None:
    """The same of the report alone."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".vidistill"
        probe.touch()
        probe.unlink(missing_ok=True)  # another run looks, too
    except OSError as error:
        why = "a part of the path is a file" if isinstance(error, FileExistsError) else error.strerror
        raise RequestError(f"The folder {out} cannot be written ({why}): name another --out.") from error


def print_table(document: dict[str, Any]) -> None:
    """A report's rows, a table for each kind of labels, and what is to be known of them and of the videos."""
    from rich.table import Table

    rows = document["rows"]
    fronts = {row["front"] for row in rows}
    if len(fronts) == 1:
        rows = [row | {"student": parted(row["student"])[1]} for row in rows]
    students = {row["student"] for row in rows}
    alike = [f", student {name}" for name in students if len(students) == 1]
    alike += [f", networks see {name}" for name in fronts if len(fronts) == 1]
    columns = ["method", "student", "budget", "top-1 %", "− random", "bytes", "time", "seeds"]
    if len(students) == 1:
        columns.remove("student")
    for kind, recipe in sorted(
        {(row["labels"], row["recipe"]) for row in rows}, key=lambda pair: (KINDS.index(pair[0]), pair[1])
    ):
        title = "".join([f"{kind} labels", "" if recipe == kind else f", recipe {recipe}", *alike])
        shown = sorted(
            (row for row in rows if row["recipe"] == recipe),
            key=lambda row: (Named.of(row).whole, row["ipc"] or 0, row["kb"] or 0, row["student"], -row["top1_mean"]),
        )
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for name in columns:
            words = name in {"method", "student"}  # a narrow terminal breaks these, and cuts nothing off
            justify: Literal["left", "right"] = "left" if words else "right"
            table.add_column(name, justify=justify, no_wrap=not words, overflow="fold", min_width=8 if words else None)
        for cells in map(_cells, shown):
            table.add_row(*(cells[name] for name in columns))
        console.print()
        console.print(table)
    if any(row["collapsed"] for row in document["rows"]):
        console.print("\n† some of its students call nearly everything one class", soft_wrap=True, highlight=False)
    if lost := [f"{one['video']}: {one['reason']}" for one in document["rejected"] if one["outcome"] == "failed"]:
        many = "1 video is lost (" if len(lost) == 1 else f"{len(lost)} videos are lost (the first is "
        console.print(f"\n{many}{lost[0]}): see the report.", soft_wrap=True, highlight=False)


def _print_export(rows: list[dict[str, Any]], store: str) -> None:
    """How the set of a row is taken, by the first one that is no companion."""
    sets = [row for row in rows if row["method"] not in ("full", "teacher")]
    if not sets:
        return
    row = min(sets, key=lambda row: row["method"] == "random")
    named = Named.of(row)
    usual = VARIABLE not in os.environ and store == absolute(default_location())  # another shell may not have it set
    where = "" if usual else f" --store {shlex.quote(store)}"
    console.print(
        f"\nA set as files, here {named.name} {budget_of(named)}: vidistill export {row['artifact'][:10]} --out set"
        f"{where}\nThe others' keys stand under Artifact in the report.",
        soft_wrap=True, highlight=False, markup=False,
    )  # fmt: skip


def _cells(row: dict[str, Any]) -> dict[str, str]:
    named = Named.of(row)
    difference = "" if row.get("difference_mean") is None else f"{100 * row['difference_mean']:+.1f}"
    if difference and row.get("difference_interval") is not None:
        difference += f" ± {100 * row['difference_interval']:.1f}"
    return {
        "method": named.name + (" †" if row["collapsed"] else ""),
        "student": row["student"],
        "budget": budget_of(named),
        "top-1 %": f"{100 * row['top1_mean']:.1f}" + (f" ± {100 * row['top1_std']:.1f}" if row["seeds"] > 1 else ""),
        "− random": difference,
        "bytes": size(row["bytes"] if row["bytes_coded"] is None else row["bytes_coded"]),
        "time": f"{row['seconds']:.0f} s",
        "seeds": str(row["seeds"]),
    }
