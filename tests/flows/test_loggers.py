"""Each logger's own local store, read back by its own reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vidistill.flows import commands, loggers
from vidistill.storage.errors import RequestError, RowsFailed, RunError
from vidistill.tasks.stage import Runtime

INSTALL = "pip install -e '.[loggers]' -c constraints.txt"
ROW = {
    "dataset": "x", "split": "1", "protocol": "vidistill", "recipe": "hard", "method": "dm", "variant": "", "ipc": 1,
    "kb": None, "student": "centred:c3d", "labels": "hard", "seeds": 2, "artifact": "k", "top1_mean": 0.5,
    "top1_std": 0.1, "top5_mean": 0.9, "auc_mean": None, "f1_mean": 0.4, "bytes": 100, "seconds": 2.5, "flops": 1e9,
}  # fmt: skip
DOCUMENT: dict[str, Any] = {
    "rows": [ROW, ROW | {"method": "full", "ipc": None, "seeds": 1, "top1_mean": 0.75}],
    "curves": [{"steps": [1, 2], "loss": [0.5 + seed, 0.25 + seed]} for seed in range(3)],
}
NAMES = ["dm hard ipc 1 centred:c3d", "full hard all centred:c3d"]


def test_a_row_is_a_run_with_the_losses_of_its_seeds() -> None:
    dm, full = loggers.of_report(DOCUMENT)
    assert [dm.name, full.name] == NAMES
    assert dm.losses == (((1, 0.5), (2, 0.25)), ((1, 1.5), (2, 1.25)))
    assert full.losses == (((1, 2.5), (2, 2.25)),)
    assert dm.metrics["top1_mean"] == 0.5
    assert "auc_mean" not in dm.metrics
    assert (dm.facts["ipc"], "kb" in dm.facts) == ("1", False)


def test_rows_of_two_teachers_are_runs_of_two_names() -> None:
    soft = ROW | {"method": "random", "labels": "soft", "recipe": "soft", "by": "centred:c3d"}
    [run, _] = loggers.of_report(DOCUMENT | {"rows": [soft, DOCUMENT["rows"][1]]})
    assert run.name == "random, labelled by centred:c3d soft ipc 1 centred:c3d"


def test_a_training_is_a_run() -> None:
    facts = dict.fromkeys(("set", "labels", "seed", "clips", "test_clips"), 1) | {
        "source": "out", "network": "c3d", "steps": [1], "loss": [2.0], "top1": 0.1, "top5": 1, "auc": 0.5, "f1": 0.1
    }  # fmt: skip
    [run] = loggers.of_training(facts)
    assert (run.name, run.losses, run.metrics["top1"]) == ("c3d on out", (((1, 2.0),),), 0.1)


def test_tensorboard_reads_its_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason=INSTALL)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place = loggers.write("tensorboard", loggers.of_report(DOCUMENT), tmp_path)
    events = EventAccumulator(str(Path(place) / NAMES[0]))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss/seed 1")] == [(1, 1.5), (2, 1.25)]
    assert [one.value for one in events.Scalars("top1_mean")] == [0.5]


def test_mlflow_finds_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason=INSTALL)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = loggers.write("mlflow", loggers.of_report(DOCUMENT), tmp_path)
    client = mlflow.tracking.MlflowClient(place)
    [experiment] = [one for one in client.search_experiments() if one.name == "vidistill"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == sorted(NAMES)
    dm = runs[NAMES[0]]
    assert dm.data.metrics["top1_mean"] == 0.5
    assert dm.data.params["method"] == "dm"
    history = client.get_metric_history(dm.info.run_id, "loss seed 1")
    assert [(one.step, one.value) for one in history] == [(1, 1.5), (2, 1.25)]


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Of a .wandb file, LevelDB's log: after seven bytes chunks of CRC, length, kind, content, in blocks of 32 KiB."""
    at, part, block = 7, b"", 1 << 15
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield part
            part = b""


def test_wandb_keeps_its_runs_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason=INSTALL)
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")
    loggers.write("wandb", loggers.of_report(DOCUMENT), tmp_path)
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    said, losses = [], []
    for file in files:
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            said += [record.run.display_name] if record.run.display_name else []
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            losses += [items["loss/seed 1"]] if "loss/seed 1" in items else []
    assert sorted(set(said)) == sorted(NAMES)
    assert [float(loss) for loss in losses] == [1.5, 1.25]


@pytest.mark.parametrize("failed", [None, RowsFailed("1 of 2 rows failed")])
def test_a_logger_that_fails_says_where_the_report_is_and_hides_no_rows_that_failed(
    failed: RowsFailed | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def down(*_: Any) -> str:
        raise ConnectionError("nobody answers")

    def performed(*_: Any) -> None:
        (tmp_path / "report.json").write_text(json.dumps(DOCUMENT))
        if failed:
            raise failed

    monkeypatch.setattr(commands, "performed", performed)
    monkeypatch.setattr(commands, "print_table", lambda document: None)
    monkeypatch.setattr(commands, "_print_export", lambda *_: None)
    monkeypatch.setattr(loggers, "_module", lambda name: None)
    monkeypatch.setitem(loggers.LOGGERS, "mlflow", down)
    given: Any = (None, None, Runtime(store="s"), tmp_path, False)
    with pytest.raises(RunError) as error:
        commands.reported(*given, "mlflow")
    told = f"The results are in {tmp_path}; mlflow did not take them (nobody answers)."
    assert [str(error.value), capsys.readouterr().out.strip()] == ([str(failed), told] if failed else [told, ""])


def test_another_logger_is_refused_before_any_work() -> None:
    with pytest.raises(RequestError, match="choose tensorboard, mlflow, wandb"):
        loggers.check("neptune")


def test_a_report_is_logged_though_rows_failed_and_a_logger_is_looked_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def performed(*_: Any) -> None:
        seen.append("performed")
        (tmp_path / "report.json").write_text(json.dumps(DOCUMENT))
        raise RowsFailed("1 of 2 rows failed")

    monkeypatch.setattr(commands, "performed", performed)
    monkeypatch.setattr(commands, "print_table", lambda document: seen.append("printed"))
    monkeypatch.setattr(loggers, "write", lambda name, runs, out: seen.append(f"{name}: {len(runs)} runs"))
    monkeypatch.setattr(loggers, "_module", lambda name: None)
    given: Any = (None, None, Runtime(store="s"), tmp_path, False)
    with pytest.raises(RowsFailed):
        commands.reported(*given, "tensorboard")
    assert seen == ["performed", "printed", "tensorboard: 2 runs"]
    with pytest.raises(RequestError, match="nobody"):
        commands.reported(*given, "nobody")
    assert seen[3:] == []
