"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vidistill.storage.errors import RequestError
from vidistill.storage.files import expanded


def out_option(said: str) -> Any:
    """`--out`, with the user's own folder for ~, which shells leave after --out=."""
    return typer.Option("--out", callback=expanded, help=said)


Data = Annotated[
    str, typer.Option("--data", help="A folder of labelled videos, a CSV of path,label,split, or `sprites`.")
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method", help="full, random, herding, k_center, tsgf, dm, mtt … (README), comma-separated, or FILE.py:CLASS."
    ),
]
Recipes = Annotated[
    list[str] | None,
    typer.Option(
        "--recipes",
        help="How those methods' sets are labelled: hard, soft, online, soft+tsgf … (README), comma-separated. "
        "[dim]\\[default: each method's own][/dim]",
    ),
]
Budgets = Annotated[
    list[str] | None, typer.Option("--ipc", help="Clips a class, comma-separated: 1,5. [dim]\\[default: 1][/dim]")
]
Kilobytes = Annotated[
    list[str] | None,
    typer.Option("--kb", help="Kilobytes a class, all included, for coded sets, comma-separated: 2,10."),
]
Clips = Annotated[int | None, typer.Option(help="Of a pool: generated clips a class. [dim]\\[default: 20][/dim]")]
Layout = Annotated[str | None, typer.Option(help="folders, ucf101, hmdb51, csv …; recognised where it is not given.")]
Split = Annotated[int | None, typer.Option(help="Number of the official split. [dim]\\[default: 1][/dim]")]
Frames = Annotated[int | None, typer.Option(help="Frames a clip. [dim]\\[default: 16][/dim]")]
Size = Annotated[int | None, typer.Option(help="Height and width of a clip in pixels. [dim]\\[default: 112][/dim]")]
Students = Annotated[
    list[str] | None,
    typer.Option(
        help="r2plus1d_small, minic3d_bn, c3d … (README), torchvision:r3d_18 or FILE.py:CLASS, comma-separated. "
        "[dim]\\[default: r2plus1d_small][/dim]"
    ),
]
Seeds = Annotated[
    int | None, typer.Option(help="How many seeds; mean ± standard deviation over them. [dim]\\[default: 5][/dim]")
]
StoreRoot = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Where artifacts are kept: a folder or s3://…. [dim]\\[default: VIDISTILL_STORE, else one a user][/dim]",
    ),
]
Out = Annotated[Path, out_option("Where report.html and report.json are written.")]
Preset = Annotated[str | None, typer.Option(help="A YAML file of parameters, or the name of a shipped one.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Any parameter: teacher.epochs=20, tsgf.lr=0.05; --set mine.option=3 reaches a method of yours."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Runner = Annotated[
    str,
    typer.Option(help="Who does the jobs: threads, processes, dask, ray; dask:ADDRESS and ray:ADDRESS of a cluster."),
]
Front = Annotated[
    str | None,
    typer.Option(
        help="What networks see first: rgb, centred (what moves), rgb+difference, FILE.py:FUNCTION, or auto: "
        "each is tried on a fifth of the training split. [dim]\\[default: auto][/dim]"
    ),
]
Protocol = Annotated[
    str | None,
    typer.Option(
        help="How students are trained and tested: vidistill, or vdsd, the common benchmark with its habits, for a "
        "number beside a paper's. [dim]\\[default: vidistill][/dim]"
    ),
]
Log = Annotated[
    str,
    typer.Option("--log", help="tensorboard, mlflow or wandb (offline): what was found goes there too, below --out."),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show Prefect's log and full tracebacks.")]


def request_from(
    data: str, method: list[str] | None, ipc: list[str] | None, kb: list[str] | None, layout: str | None,
    split: int | None, frames: int | None, size: int | None, students: list[str] | None, front: str | None,
    seeds: int | None, protocol: str | None, preset: str | None, settings: list[str] | None,
    recipes: list[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The experiment that options ask for, as plain data: the preset, then the named options, then --set.

    Raises:
        RequestError: an option is not what it should be, or nothing says which data or which method.
    """
    from vidistill.flows import commands

    scored = {"recipes": listed(recipes, "--recipes")} if recipes else {}
    if scored and not method:
        raise RequestError("--recipes is of the methods that --method names: those of a preset's cells stand in it.")
    nested: dict[str, dict[str, Any]] = {
        "index": {"layout": layout, "split": split},
        "decode": {"frames": frames, "size": size},
    }
    named = {
        "data": data or None,
        "cells": [{"method": name} | scored for name in listed(method, "--method")] or None,
        "ipc": [_number(value, "--ipc") for value in listed(ipc, "--ipc")] or None,
        "kb": [_kilobytes(value) for value in listed(kb, "--kb")] or None,
        "students": listed(students, "--students") or None,
        "front": front,
        "seeds": seeds,
        "protocol": protocol,
    }
    return commands.request_of(preset, named, nested, settings or [])


def listed(given: list[str] | None, option: str) -> list[str]:
    """The values of an option that may be given several times, each time several, comma-separated."""
    names = []
    for value in given or []:
        names += [name.strip() for name in value.split(",")]
        if not all(names):
            raise RequestError(f"{option} {value!r} has an empty place: write its values with one comma between them.")
    return names


def _number(value: str, option: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise RequestError(f"{option} takes whole numbers separated by commas, such as 1,5; got {value!r}.") from error


def _kilobytes(value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise RequestError(f"--kb takes numbers separated by commas, such as 2,10; got {value!r}.") from error
