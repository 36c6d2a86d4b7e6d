"""What a run or a training found, in the logger that a team has: TensorBoard, MLflow or Weights & Biases (offline)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidistill.storage.errors import RequestError, RunError
from vidistill.tasks.report.data import Named

Values = dict[str, float]
PROJECT = "vidistill"
METRICS = ("top1_mean", "top1_std", "top5_mean", "auc_mean", "f1_mean", "bytes", "seconds", "flops")
FACTS = ("dataset", "split", "protocol", "recipe", "method", "variant", "ipc", "kb", "student", "labels", "seeds",
         "artifact")  # fmt: skip


@dataclass(frozen=True)
class Logged:
    """One row of a report, or one training: what it is, what it scored, and its losses (step, loss), a line a seed."""

    name: str
    facts: dict[str, str]
    metrics: Values
    losses: tuple[tuple[tuple[int, float], ...], ...]


def of_report(document: dict[str, Any]) -> list[Logged]:
    """A run a row; the curves of a report stand in the order of its rows, one a seed."""
    curves, found = iter(document["curves"]), []
    for row in document["rows"]:
        own = [next(curves) for _ in range(row["seeds"])]
        budget = f"ipc {row['ipc']}" if row["ipc"] else f"kb {row['kb']:g}" if row["kb"] else "all"
        parts = [Named.of(row).name, row["recipe"], budget, row["student"]]
        losses = tuple(tuple(zip(curve["steps"], curve["loss"], strict=True)) for curve in own)
        facts = {name: str(row[name]) for name in FACTS if row[name] is not None}
        found.append(Logged(" ".join(parts), facts, _numbers(row, METRICS), losses))
    return found


def of_training(facts: dict[str, Any]) -> list[Logged]:
    """The one run of `vidistill train`."""
    told = {name: str(facts[name]) for name in ("source", "set", "network", "labels", "seed", "clips", "test_clips")}
    losses = (tuple(zip(facts["steps"], facts["loss"], strict=True)),)
    return [
        Logged(f"{facts['network']} on {facts['source']}", told, _numbers(facts, ("top1", "top5", "auc", "f1")), losses)
    ]


def _numbers(plain: dict[str, Any], names: Sequence[str]) -> Values:
    return {name: float(plain[name]) for name in names if plain[name] is not None}


def check(kind: str) -> None:
    """Before any work.

    Raises:
        RequestError: there is no such logger, or it is not installed.
    """
    if kind not in LOGGERS:
        raise RequestError(f"There is no logger {kind!r}: choose {', '.join(LOGGERS)}.")
    _module(kind)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RequestError(f"{name} is not installed: pip install -e '.[loggers]' -c constraints.txt.") from error


def write(kind: str, runs: Sequence[Logged], out: Path) -> str:
    """Log all runs; where they are.

    Raises:
        RunError: the logger fails, whose server may be down.
    """
    try:
        return LOGGERS[kind](runs, out.absolute())
    except Exception as error:
        raise RunError(f"The results are in {out}; {kind} did not take them ({error}).") from error


def _tensorboard(runs: Sequence[Logged], out: Path) -> str:
    from torch.utils.tensorboard import SummaryWriter

    for run in runs:
        with SummaryWriter(str(out / "tensorboard" / run.name.replace("/", "_"))) as writer:
            for seed, losses in enumerate(run.losses):
                for step, loss in losses:
                    writer.add_scalar(f"loss/seed {seed}", loss, step)
            for name, value in run.metrics.items():
                writer.add_scalar(name, value)
            writer.add_text("facts", "\n".join(f"- {name}: {value}" for name, value in run.facts.items()))
    return str(out / "tensorboard")


def _mlflow(runs: Sequence[Logged], out: Path) -> str:
    mlflow = _module("mlflow")
    place = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{out / 'mlflow.db'}")
    mlflow.set_tracking_uri(place)
    mlflow.set_experiment(PROJECT)
    for run in runs:
        with mlflow.start_run(run_name=run.name):
            mlflow.log_params(run.facts)
            mlflow.log_metrics(run.metrics)
            for seed, losses in enumerate(run.losses):
                for step, loss in losses:
                    mlflow.log_metric(f"loss seed {seed}", loss, step=step)
    return place


def _wandb(runs: Sequence[Logged], out: Path) -> str:
    wandb = _module("wandb")
    for run in runs:
        with wandb.init(project=PROJECT, name=run.name, config=run.facts, dir=str(out), mode="offline") as session:
            for seed, losses in enumerate(run.losses):
                session.define_metric(f"loss/seed {seed}", step_metric="training step")
                for step, loss in losses:
                    session.log({"training step": step, f"loss/seed {seed}": loss})
            session.summary.update(run.metrics)
    wandb.teardown()  # which waits until its own process has written everything
    return f"{out / 'wandb'} (`wandb sync` uploads it)"


LOGGERS: dict[str, Callable[[Sequence[Logged], Path], str]] = {
    "tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb,
}  # fmt: skip
