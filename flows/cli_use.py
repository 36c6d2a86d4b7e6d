"""Commands that use what has been distilled. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vidistill.flows.options import (
    Budgets,
    Data,
    Device,
    Frames,
    Front,
    Kilobytes,
    Layout,
    Log,
    Methods,
    Preset,
    Runner,
    Seeds,
    Settings,
    Size,
    Split,
    StoreRoot,
    Students,
    Verbose,
    listed,
    out_option,
    request_from,
)
from vidistill.storage.errors import RequestError

app = typer.Typer()


@app.command()
def train(
    source: Annotated[
        str, typer.Argument(help="A distilled set's key, or its first letters, or a folder that `export` wrote.")
    ],
    network: Annotated[
        str, typer.Option(help="c3d … (README), torchvision:r3d_18 or FILE.py:CLASS; by default the set's student.")
    ] = "",
    test: Annotated[
        str, typer.Option(help="A folder of labelled videos to score on; the run's own where the set is in the store.")
    ] = "",
    layout: Layout = None, split: Split = None,
    labels: Annotated[str, typer.Option(help="hard, soft, or auto: as the set was scored.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the first weights and of every draw.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="How it is trained, where it differs: epochs=60, optimiser.lr=0.01, crop_scale=1."),
    ] = None,
    store: StoreRoot = None,
    out: Annotated[Path, out_option("Where student.safetensors and train.json are written.")]
    = Path("student"),
    device: Device = "auto", log: Log = "",
) -> None:  # fmt: skip
    """Train a video classifier on a distilled set, score it on real videos, and keep its weights."""
    from vidistill.flows import use

    given = {name: value for name, value in {"layout": layout, "split": split}.items() if value is not None}
    request = {"source": source, "network": network, "test": test, "index": given, "labels": labels, "seed": seed,
               "student": nested(settings or [])}  # fmt: skip
    use.train(request, store, out, device, log)


@app.command()
def benchmark(
    preset: Annotated[str, typer.Argument(help="sprites, ucf101_10, miniucf … (deployments/presets), or a YAML file.")],
    data: Annotated[str, typer.Option(help="A folder of labelled videos; `sprites` needs none.")] = "",
    layout: Layout = None, split: Split = None, settings: Settings = None, store: StoreRoot = None,
    out: Annotated[Path, out_option("Where the report, benchmark.md and its plots are written.")]
    = Path("vidistill-benchmark"),
    device: Device = "auto", runner: Runner = "threads", verbose: Verbose = False, log: Log = "",
) -> None:  # fmt: skip
    """Run a grid of methods, budgets, students and fronts; what an earlier one has made is not made again."""
    from vidistill.flows import use

    grid = use.grid_of(preset, data, {"layout": layout, "split": split}, settings or [])
    use.benchmark(grid, store, out, device, runner, verbose, log)


@app.command()
def tune(
    data: Data = "", method: Methods = None, ipc: Budgets = None, kb: Kilobytes = None, layout: Layout = None,
    split: Split = None, frames: Frames = None, size: Size = None, students: Students = None, front: Front = None,
    seeds: Seeds = None, store: StoreRoot = None, preset: Preset = None, settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Where to look: mtt.lr=0.003..0.1:log, dm.iterations=50..500, coded.pick='random|herding'; one value "
            "is one for all trials.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="How many values are tried.")] = 20,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Of the sampler.")] = 0,
    out: Annotated[Path, out_option("Where tune.md and best.json are written.")]
    = Path("vidistill-tune"), device: Device = "auto", runner: Runner = "threads", verbose: Verbose = False,
) -> None:  # fmt: skip
    """Search a method's settings by Optuna on a fifth of the training split; a study that was stopped goes on."""
    from vidistill.flows import use
    from vidistill.flows.ranges import is_range

    given = settings or []
    names = [one.partition("=")[0].strip() for one in given]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RequestError(f"--set {twice[0]} is given twice: say once where to look, or which value it has.")
    ranges = dict(one.split("=", 1) for one in given if is_range(one.partition("=")[2]))
    fixed = [one for one in given if not is_range(one.partition("=")[2])]
    request = request_from(data, method, ipc, kb, layout, split, frames, size, students, front, seeds, None, preset,
                          fixed)  # fmt: skip
    use.tune(request, ranges, trials, seed, store, out, device, runner, verbose)


@app.command()
def segment(
    data: Annotated[str, typer.Option(help="A folder of features in the layout of 50Salads, or `sprites`.")] = "",
    method: Annotated[
        list[str] | None,
        typer.Option(help="full, mean, random, herding, tsgf, comma-separated. [dim]\\[default: all][/dim]"),
    ] = None,
    points: Annotated[
        list[str] | None,
        typer.Option(help="Feature vectors a segment, comma-separated: 1,4. [dim]\\[default: 1][/dim]"),
    ] = None,
    split: Split = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds. [dim]\\[default: 5][/dim]")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any parameter: sample_rate=2, tcn.epochs=20, labels=\\[hard].")
    ] = None,
    store: StoreRoot = None,
    out: Annotated[Path, out_option("Where segment.md and segment.json are written.")]
    = Path("vidistill-segment"),
    device: Device = "auto", runner: Runner = "threads", verbose: Verbose = False,
) -> None:  # fmt: skip
    """Distil frame-wise features of long videos for temporal action segmentation, and score what is learned of them."""
    from vidistill.flows import use

    if not data:
        raise RequestError("Which features? Give --data DIR, or --data sprites for the set that is rendered.")
    given = {"methods": listed(method, "--method") or None, "points": listed(points, "--points") or None,
             "split": split, "seeds": seeds}  # fmt: skip
    named = {name: value for name, value in given.items() if value is not None}
    use.segment({"data": data} | named | nested(settings or []), store, out, device, runner, verbose)


@app.command()
def unpack(
    source: Annotated[Path, typer.Argument(help="Shards of WebDataset (.tar), or a data set of Hugging Face.")],
    out: Annotated[Path, out_option("The folder to write to.")] = Path("videos"),
) -> None:
    """Write the videos of WebDataset shards or of a Hugging Face data set as class folders, for every command."""
    from vidistill.flows import use

    use.unpack(source, out)


@app.command()
def parameters(
    methods: Annotated[
        list[str] | None,
        typer.Argument(metavar="[METHOD|pool]...", help="dm, mtt … (README), FILE.py:CLASS, pool."),
    ] = None,
) -> None:
    """List what --set takes, with its default and meaning: of a run, of methods, of pools."""
    from vidistill.flows.commands import console
    from vidistill.flows.parameter_list import list_parameters

    list_parameters(methods or [], console)


def nested(settings: list[str]) -> dict[str, Any]:
    """`a.b=3` as {a: {b: 3}}; values are YAML."""
    from vidistill.flows.parameters import put_nested, set_to

    plain: dict[str, Any] = {}
    for setting in settings:
        name, value = set_to(setting, "epochs=20")
        put_nested(plain, name.split("."), value)
    return plain
