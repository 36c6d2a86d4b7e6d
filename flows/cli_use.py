"""Commands that use what has been distilled. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from vidistill.flows.options import Device, Layout, Split, StoreRoot
from vidistill.storage.errors import RequestError

app = typer.Typer()


@app.command()
def train(
    source: Annotated[
        str, typer.Argument(help="A distilled set's key, or its first letters, or a folder that `export` wrote.")
    ],
    network: Annotated[
        str, typer.Option(help="r2plus1d_small, c3d … (README), torchvision:r3d_18 or FILE.py:CLASS.")
    ] = "r2plus1d_small",
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
    out: Annotated[Path, typer.Option("--out", help="Where student.safetensors and train.json are written.")]
    = Path("student"),
    device: Device = "auto",
) -> None:  # fmt: skip
    """Train a video classifier on a distilled set, score it on real videos, and keep its weights."""
    from vidistill.flows import use

    given = {name: value for name, value in {"layout": layout, "split": split}.items() if value is not None}
    request = {"source": source, "network": network, "test": test, "index": given, "labels": labels, "seed": seed,
               "student": nested(settings or [])}  # fmt: skip
    use.train(request, store, out, device)


def nested(settings: list[str]) -> dict[str, Any]:
    """`a.b=3` as {a: {b: 3}}; values are YAML."""
    from vidistill.flows.parameters import put_nested

    plain: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise RequestError(f"--set {setting!r} has no '=': write --set key=value, e.g. --set epochs=20.")
        put_nested(plain, key.strip().split("."), yaml.safe_load(value))
    return plain
