"""A grid: methods × budgets × students × fronts × seeds on one data set, as one graph that shares its stages."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from vidistill.flows.experiment import Graph
from vidistill.flows.parameters import Experiment, Front
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.report.gather import ReportParameters, report_job
from vidistill.tasks.videos.index import IndexTable
from vidistill.tasks.videos.scan import Video


class Expected(Parameters):
    """What a data set holds, as its authors say, to price a grid before it is there."""

    classes: int = Field(ge=2)
    train: int = Field(ge=1, description="Training videos.")
    test: int = Field(ge=1, description="Test videos.")
    megabytes: float = Field(gt=0, description="All of its files.")

    def table(self) -> IndexTable:
        """An index of as many videos, evenly spread over the classes and of one size."""
        size = round(1e6 * self.megabytes / (self.train + self.test))
        videos = tuple(
            Video(path=f"{split}/{number}.avi", label=number % self.classes, split=split, group=str(number), bytes=size,
                  sha256="unseen", width=320, height=240, frames=0, duration_seconds=None, codec="")
            for split, count in (("train", self.train), ("test", self.test))
            for number in range(count)
        )  # fmt: skip
        names = tuple(f"class {label}" for label in range(self.classes))
        return IndexTable(layout="csv", classes=names, flips=False, videos=videos, rejected=())


class Benchmark(Experiment):
    """A table of several fronts, which are tried side by side."""

    fronts: tuple[Front, ...] = Field((), description="Each takes a grid of its own; `front` where none are given.")
    expect: Expected | None = Field(None, description="For `plan benchmark`, where the data are not there.")


def experiments(grid: Benchmark) -> list[Experiment]:
    """One for each front: together they are the grid."""
    plain = grid.model_dump(exclude={"fronts", "expect"}, exclude_unset=True)
    return [Experiment.model_validate(plain | {"front": front}) for front in grid.fronts or (grid.front,)]


def merged(graphs: Sequence[Graph]) -> Graph:
    """All their jobs, each once, and one report of all their rows, last."""
    if len(graphs) == 1:
        return graphs[0]
    whole, reports = Graph(), []
    for graph in graphs:
        *jobs, report = graph.jobs.values()
        whole.add(*jobs)
        reports.append(report)
    asked = [ReportParameters.model_validate(report.parameters) for report in reports]
    fronts = ", ".join(str(one.experiment["front"]) for one in asked)
    parameters = asked[0].model_copy(
        update={
            "rows": tuple(dict.fromkeys(row for one in asked for row in one.rows)),
            "notes": tuple(dict.fromkeys(note for one in asked for note in one.notes)),
            "command": "\n".join(one.command for one in asked),
            "experiment": asked[0].experiment | {"front": fronts},
        }
    )
    inputs: dict[str, list[ArtifactRef]] = {}
    for report in reports:
        for name, refs in report.inputs.items():
            inputs[name] = list(dict.fromkeys([*inputs.get(name, []), *refs]))
    whole.add(report_job(parameters, inputs))
    return whole
