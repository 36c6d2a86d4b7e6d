"""The `vidistill` command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import errno
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from vidistill.flows import cli_use
from vidistill.flows.options import (
    Budgets,
    Clips,
    Data,
    Device,
    Frames,
    Front,
    Kilobytes,
    Layout,
    Log,
    Methods,
    Out,
    Preset,
    Protocol,
    Recipes,
    Runner,
    Seeds,
    Settings,
    Size,
    Split,
    StoreRoot,
    Students,
    Verbose,
    out_option,
    request_from,
)
from vidistill.flows.stopping import STOPPED, Stopping
from vidistill.storage.errors import RequestError, Stopped, VidistillError

app = typer.Typer(
    name="vidistill",
    help="Turn a labelled video data set into a few clips per class, from which a classifier learns much.\n\n"
    "Start with [bold]vidistill demo[/bold], then [bold]vidistill run --data DIR --method tsgf --ipc 5[/bold].",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _say_version(asked: bool) -> None:
    if asked:
        print("vidistill", version("vidistill"))
        raise typer.Exit


@app.callback()
def common(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    data: Data = "", method: Methods = None, recipes: Recipes = None, ipc: Budgets = None, kb: Kilobytes = None,
    layout: Layout = None, split: Split = None, frames: Frames = None, size: Size = None, students: Students = None,
    front: Front = None, seeds: Seeds = None, protocol: Protocol = None, store: StoreRoot = None,
    out: Out = Path("vidistill-report"), preset: Preset = None, settings: Settings = None, log: Log = "",
    device: Device = "auto", runner: Runner = "threads", verbose: Verbose = False,
) -> None:  # fmt: skip
    """Distil, score and report. What an earlier run has made is not made again."""
    from vidistill.flows import commands

    request = request_from(data, method, ipc, kb, layout, split, frames, size, students, front, seeds, protocol, preset,
                       settings, recipes)  # fmt: skip
    commands.run(request, store, out, device, runner, verbose, log)


@app.command()
def plan(
    asked: Annotated[
        list[str] | None,
        typer.Argument(metavar="[benchmark PRESET | pool]", help="Plan a benchmark or a pool instead of a run."),
    ] = None,
    data: Data = "", method: Methods = None, recipes: Recipes = None, ipc: Budgets = None, kb: Kilobytes = None,
    layout: Layout = None, split: Split = None, frames: Frames = None, size: Size = None, students: Students = None,
    front: Front = None, seeds: Seeds = None, protocol: Protocol = None, store: StoreRoot = None,
    out: Out = Path("vidistill-report"), preset: Preset = None, settings: Settings = None, log: Log = "",
    clips: Clips = None, device: Device = "auto", runner: Runner = "threads", verbose: Verbose = False,
) -> None:  # fmt: skip
    """Say what `run` would do with the same arguments, why, and about how long it takes. Writes nothing."""
    del out, verbose  # taken, so that any `run` can be made a `plan`
    from vidistill.flows import commands, loggers, use

    if log:
        loggers.check(log)
    if asked:
        given = {"data": data, "method": method, "recipes": recipes, "ipc": ipc, "kb": kb, "layout": layout,
                 "split": split, "frames": frames, "size": size, "students": students, "front": front, "seeds": seeds,
                 "protocol": protocol, "preset": preset, "set": settings, "clips": clips}  # fmt: skip
        use.plan_another(
            asked, {name: value for name, value in given.items() if value not in (None, "")}, store, device, runner
        )
        return
    if clips is not None:
        raise RequestError("--clips is an option of `vidistill plan pool`: for a run write --set pool.clips_a_class=N.")
    request = request_from(data, method, ipc, kb, layout, split, frames, size, students, front, seeds, protocol, preset,
                       settings, recipes)  # fmt: skip
    commands.plan(request, store, device, runner)


@app.command()
def demo(
    store: StoreRoot = None, out: Out = Path("vidistill-demo"), runner: Runner = "threads", verbose: Verbose = False
) -> None:
    """Render sprites, distil them beside Random, score all, and name the report. Minutes on two cores."""
    from vidistill.flows import commands

    commands.run(commands.request_of(preset="demo"), store, out, "auto", runner, verbose)


@app.command()
def pool(
    data: Data = "", clips: Clips = None, layout: Layout = None, split: Split = None, frames: Frames = None,
    size: Size = None, store: StoreRoot = None, preset: Preset = None, settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any parameter: pool.sampler.steps=50, pool.latte.size=S.")
    ] = None, out: Annotated[Path, out_option("Where its quality and contact sheet are written.")]
    = Path("vidistill-pool"), device: Device = "auto", runner: Runner = "threads", verbose: Verbose = False,
) -> None:  # fmt: skip
    """Train a generator on a data set and generate clips from it; more clips of the same one are added."""
    from vidistill.flows import commands, use

    given = {"data": data, "layout": layout, "split": split, "frames": frames, "size": size, "clips": clips,
             "preset": preset, "set": settings}  # fmt: skip
    commands.pool(use.pool_asked(given), store, out, device, runner, verbose)


@app.command()
def index(
    data: Annotated[str, typer.Option(help="A folder of labelled videos, or a CSV of path,label,split.")],
    layout: Layout = None, split: Split = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
) -> None:  # fmt: skip
    """List every file of a data set with its outcome: kept, filtered or failed, and why."""
    from vidistill.flows import commands

    commands.index(data, layout, split, as_json)


@app.command()
def report(
    key: Annotated[str, typer.Argument(help="A report's key, its first letters, or `latest`.")] = "latest",
    store: StoreRoot = None, out: Out = Path("vidistill-report"),
) -> None:  # fmt: skip
    """Write a report that the store holds once more."""
    from vidistill.flows import housekeeping

    housekeeping.write_report(key, store, out)


@app.command()
def export(
    key: Annotated[str, typer.Argument(help="A set's key, its first letters, or a name of `refresh`, such as latest.")],
    store: StoreRoot = None, out: Annotated[Path, out_option("The folder to write to.")] = Path("set"),
    fps: Annotated[int, typer.Option(min=1, max=1000, help="Frames a second of the files.")] = 8,
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="mkv or folders (FFV1), webdataset, hf, npz and, of coded sets, coded and coded_class lose nothing; "
            "mp4 is lossy.",
        ),
    ] = "mkv",
) -> None:  # fmt: skip
    """Write a distilled set as files, with all that a student of it needs in export.json."""
    from vidistill.flows import housekeeping

    housekeeping.export(key, store, out, fps, kind)


@app.command("ls")
def list_artifacts(
    kind: Annotated[str | None, typer.Argument(help="Only this kind: teacher, distilled, report …")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only of this data set.")] = None,
    method: Annotated[str | None, typer.Option(help="Only of this method.")] = None,
    ipc: Annotated[int | None, typer.Option(help="Only of this budget.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only of this seed.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Only of this recipe: hard, soft+tsgf …")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
    store: StoreRoot = None,
) -> None:
    """List the artifacts of a store: what they are of, their scores, how large, how long they took, when."""
    from vidistill.flows import listing

    wanted = {"dataset": dataset, "method": method, "ipc": ipc, "seed": seed, "recipe": recipe}
    listing.list_artifacts(kind, store, {name: value for name, value in wanted.items() if value is not None}, as_json)


@app.command()
def gc(
    store: StoreRoot = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only say what would go.")] = False,
    keep_interrupted: Annotated[
        str, typer.Option(help="How long the work of a run that was stopped or failed is kept: 7d, 12h, 0.")
    ] = "7d",
    older_than: Annotated[
        str | None, typer.Option(help="Reports older than that go, too: 90d, 8w. The newest stays.")
    ] = None,
    max_size: Annotated[str | None, typer.Option(help="The oldest reports go until the rest fits: 50GB.")] = None,
) -> None:
    """Remove what no report, no pool and no run needs: unreachable and damaged artifacts, checkpoints of finished
    stages, the work of runs that were interrupted long ago. Runs that are at work lose nothing.
    """
    from vidistill.flows import collecting

    collecting.collect(store, yes, keep_interrupted, older_than, max_size)


@app.command()
def verify(store: StoreRoot = None) -> None:
    """Read every byte of a store and name what is damaged. Exit code 1 if anything is."""
    from vidistill.flows import housekeeping

    housekeeping.verify(store)


@app.command()
def doctor(
    store: StoreRoot = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="Import torch too, and say the device: slower.")] = False,
) -> None:
    """Check the environment: versions that must match, codecs, Prefect, disk. Exit code 1 if it is ill."""
    from vidistill.flows import doctor

    doctor.examine(store, thorough=thorough)


app.add_typer(cli_use.app)


def _say_if_lost(error: Exception) -> bool:
    """Whether the Prefect server no longer answers, which is said."""
    from vidistill.flows import server

    told = None if "--verbose" in sys.argv else server.lost(error)
    if told is not None:
        print("vidistill:", told, file=sys.stderr)
    return told is not None


def main() -> None:
    """The command's door, which heeds Ctrl-C and SIGTERM."""
    stopping = Stopping()
    try:
        code = answer()
    except Exception:
        if not stopping.asked:
            raise
        code = STOPPED
    if stopping.asked and code:
        stopping.say()
        code = STOPPED
    if code:
        sys.exit(code)


CLOSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)
"""What the system says of a path that no command can open."""


def answer() -> int:
    """Do what the command line asks: 0 done, 1 failed, 2 a wrong request; errors of ours are one sentence."""
    try:
        return app(standalone_mode=False) or 0
    except (typer.Abort, KeyboardInterrupt, Stopped):
        return STOPPED
    except VidistillError as error:
        if "--verbose" in sys.argv:
            traceback.print_exc()
        else:
            print("vidistill:", *str(error).split(), file=sys.stderr)  # one line, whatever the cause wrote
        return 2 if isinstance(error, RequestError) else 1
    except Exception as error:
        if isinstance(error, OSError) and error.filename and error.errno in CLOSED:
            print(f"vidistill: {error.filename} cannot be used ({error.strerror}): name another.", file=sys.stderr)
            return 2
        usage = getattr(error, "format_message", None)  # a usage error of the command-line parser
        if usage is None:
            if not _say_if_lost(error):
                raise
            return 1
        if usage():  # where no command is named the help has been shown instead
            from vidistill.flows import wording

            print(f"vidistill: {wording.usage(error)}", file=sys.stderr)
        return 2
