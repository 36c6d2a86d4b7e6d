"""The flow `tune`: a method's settings by Optuna, on the fifth of the training split that is held out.

The sampler is the tree-structured Parzen estimator (Bergstra et al. 2011). What each trial tried and found is a note in
the store, so that a study that was stopped goes on, and one that is asked for more trials adds them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from vidistill.flows.command_line import command_of
from vidistill.flows.distill import distill
from vidistill.flows.parameters import Experiment
from vidistill.flows.progress import TRIAL
from vidistill.flows.ranges import checked_request, trial_of
from vidistill.flows.rows import FULL, rows_of
from vidistill.storage.errors import RequestError, RunError, Stopped, TransientError
from vidistill.storage.files import write_out
from vidistill.storage.keys import digest
from vidistill.storage.opening import default_location, open_store
from vidistill.storage.parameters import Parameters, in_words
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.report.gather import JSON
from vidistill.tasks.report.tables import markdown_text
from vidistill.tasks.stage import Runtime, report_progress

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STUDIES, PAGE, BEST = ".studies", "tune.md", "best.json"
AS_IT_IS = "as it is"
HEAD = [
    "# Trials", "",
    "Top-1 is the mean over seeds, budgets and students on the fifth of the training split that is held out; the best",
    "of many is a little lucky there. On the test split, once:", "",
]  # fmt: skip
log = logging.getLogger("vidistill")


class Trial(Parameters):
    """What was tried, and the mean top-1 on the held-out fifth over seeds, budgets and students.

    Attributes:
        number: from 0, which is the experiment as it is.
        top1: None where the trial failed.
        said: why it failed.
    """

    number: int
    values: dict[str, Any]
    top1: float | None
    said: str = ""

    @property
    def outcome(self) -> str:
        return f"failed: {self.said}" if self.top1 is None else f"{100 * self.top1:.1f}"

    @property
    def line(self) -> str:
        return f"{in_words(self.values) or AS_IT_IS}: top-1 {self.outcome}"


@flow(name="tune")
def tune(
    experiment: Experiment,
    ranges: dict[str, str],
    trials: int = 20,
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0,
    runtime: Runtime | None = None,
    out: Path | None = None,
) -> list[Trial]:
    """Search settings of one method; the test split is not looked at.

    Args:
        experiment: one method on one data set, at one budget or several.
        ranges: settings, as `--set` names them, and where each is looked for: `0.001..0.1:log`, `10..200` or `a|b|c`.
        trials: how many values are tried, besides the experiment as it is; those that the store holds count.
        seed: of the sampler.
        runtime: store, device, threads and time limits.
        out: a folder for tune.md and best.json; the store alone where it is not given.

    Returns:
        The trials, the experiment as it is first.

    Raises:
        RequestError: Optuna is not installed, a range is not understood, or there is more than one method.
    """
    runtime = runtime or Runtime(store=default_location())
    experiment, space = checked_request(experiment, ranges)
    report_progress(TRIAL, 0, trials, AS_IT_IS)
    store, begin = open_store(runtime.store), distill(experiment, runtime)
    folder = f"{STUDIES}/{digest({'report': begin.key, 'ranges': ranges, 'seed': seed})}"
    done = [Trial(number=0, values={}, top1=top1_of(experiment, store, begin)), *known(store, folder)]
    for number in range(len(done), trials + 1):
        values = proposed(space, done[1:], seed + number)
        report_progress(TRIAL, number, trials, in_words(values))
        trial = tried(experiment, number, values, runtime)
        store.write_note(folder, f"{number:05d}.json", trial.model_dump_json().encode())
        report_progress(TRIAL, number, trials, trial.line)
        log.info("trial %d of %d: %s", number, trials, trial.line)
        done.append(trial)
    done = done[: trials + 1]
    page = page_of(experiment, done)
    if out is not None:
        write_out(out, PAGE, page.encode())
        write_out(out, BEST, f"{json.dumps(best(done).values, indent=1)}\n".encode())
    create_markdown_artifact(page, key="tune", description=f"Study {folder}")
    return done


def tried(experiment: Experiment, number: int, values: Mapping[str, Any], runtime: Runtime) -> Trial:
    """One trial; that its values do not work, too, is something found."""
    try:
        asked = trial_of(experiment, values)
        top1 = top1_of(asked, open_store(runtime.store), distill(asked, runtime))
    except (RunError, RequestError) as error:
        for cause in (error, *getattr(error, "causes", ())):
            if isinstance(cause, Stopped | TransientError):
                raise cause from None
        return Trial(number=number, values=dict(values), top1=None, said=str(error))
    return Trial(number=number, values=dict(values), top1=top1)


def known(store: Store, folder: str) -> list[Trial]:
    """The trials that the store holds, in their order."""
    found = map(Trial.model_validate_json, store.notes(folder).values())
    return sorted(found, key=lambda trial: trial.number)


def proposed(space: Mapping[str, BaseDistribution], done: Sequence[Trial], seed: int) -> dict[str, Any]:
    """What Optuna would try next; numbers in three digits, so that a report's command says the whole of them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.add_trials([_frozen(trial, space) for trial in done])
    return {name: _rounded(value, space[name]) for name, value in study.ask(dict(space)).params.items()}


def _frozen(trial: Trial, space: Mapping[str, BaseDistribution]) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    state = TrialState.FAIL if trial.top1 is None else TrialState.COMPLETE
    return create_trial(state=state, params=dict(trial.values), distributions=dict(space), value=trial.top1)


def _rounded(value: Any, distribution: BaseDistribution) -> Any:
    if not isinstance(value, float):
        return value
    low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
    return min(max(float(f"{value:.3g}"), low), high)


def top1_of(experiment: Experiment, store: Store, report: ArtifactRef) -> float:
    """Mean top-1 of the rows that were asked for: Random beside them is not one."""
    document = json.loads((store.folder(report) / JSON).read_text())
    asked = {(row.source.name if row.source else FULL, row.variant) for row in rows_of(experiment) if not row.companion}
    return fmean(row["top1_mean"] for row in document["rows"] if (row["method"], row["variant"]) in asked)


def best(done: Sequence[Trial]) -> Trial:
    return max(done, key=_reached)


def _reached(trial: Trial) -> float:
    return -1.0 if trial.top1 is None else trial.top1


def page_of(experiment: Experiment, done: Sequence[Trial]) -> str:
    """The trials by what they reached, and the command of the best for the test split, to be copied as it stands."""
    names = sorted({name for trial in done for name in trial.values})
    lines = [" | ".join(["| trial", *names, "top-1 % |"]), "|" + "---|" * (len(names) + 2)]
    for trial in sorted(done, key=_reached, reverse=True):
        values = [str(trial.values.get(name, AS_IT_IS)) for name in names]
        outcome = markdown_text(" ".join(trial.outcome.split()))  # an error may have several lines
        lines.append(" | ".join([f"| {trial.number}", *values, f"{outcome} |"]))
    chosen = trial_of(experiment, best(done).values)
    tested = chosen.model_copy(update={"index": chosen.index.model_copy(update={"holdout": False})})
    return "\n".join([*HEAD, "```", command_of(tested, places=True), "```", "", *lines, ""])
