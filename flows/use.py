"""What `train` does and says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from vidistill.flows import train as training
from vidistill.flows.commands import check_places, runtime_of
from vidistill.flows.display import showing
from vidistill.flows.parameters import checked

console = Console(soft_wrap=True, highlight=False)


def train(plain: dict[str, Any], store: str | None, out: Path, device: str) -> None:
    """Train, and say what came of it."""
    request, runtime = checked(training.TrainRequest, plain, "The training"), runtime_of(store, device)
    check_places(runtime, out)
    with showing(console):
        facts = training.train(request, runtime, out)
    console.print(
        f"{facts['network']} on {facts['clips']} clips of {request.source}, {facts['labels']} labels: top-1 "
        f"{facts['top1']:.1%}, top-5 {facts['top5']:.1%} of {facts['test_clips']} test clips"
    )
    console.print(f"Its weights are {out / training.STUDENT}, its facts {out / training.FACTS}")
