"""The flow `refresh` on videos that come and change: distilled again only then, compared, and promoted by a name."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from flow_running import CLASSES, CommandLine
from prefect.client.orchestration import get_client
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter
from torchvision.models.video import r3d_18

from vidistill import DistilledSet
from vidistill.flows import refresh as refreshing
from vidistill.flows.refresh import refresh
from vidistill.storage.errors import ArtifactNotFound, RequestError
from vidistill.storage.names import names
from vidistill.storage.opening import open_store
from vidistill.tasks.coreset.herding import Herding
from vidistill.tasks.videos.files import Rejected
from vidistill.tasks.videos.index import IndexTable

pytestmark = pytest.mark.usefixtures("prefect_server")
TINY = {
    "decode": {"frames": 4, "size": 48, "max_lost_share": 0.5},
    "teacher": {"epochs": 1, "least_steps": 1, "precision": "fp32"},
    "student": {"epochs": 1, "least_steps": 3, "precision": "fp32"},
}
NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes, channels):
        super().__init__(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels, classes))
"""
Refresh = Callable[..., Any]


@pytest.fixture
def growing(tmp_path: Path, videos: Path) -> Path:
    """A folder of videos that is the test's own."""
    return Path(shutil.copytree(videos, tmp_path / "growing"))


@pytest.fixture
def again(tmp_path: Path, growing: Path) -> Refresh:
    """Run the flow; its state."""

    def run(settle_minutes: float = 0, student: dict[str, Any] | None = None, size: int = 0, **more: Any) -> Any:
        advanced = TINY | {"runtime": {"store": str(tmp_path / "store"), "threads": 1}, "out": str(tmp_path / "out")}
        advanced["student"] = TINY["student"] | (student or {})
        advanced["decode"] = TINY["decode"] | ({"size": size} if size else {})
        given = {"data": str(growing), "method": "herding", "seeds": 2, "front": "rgb", "advanced": advanced} | more
        return refresh(settle_minutes=settle_minutes, return_state=True, **given)

    return run


def add_video(folder: Path) -> None:
    first = next((folder / "train" / CLASSES[0]).glob(f"{CLASSES[0]}*"))
    first.with_stem("new").write_bytes(next((folder / "train" / CLASSES[1]).glob("*.mp4")).read_bytes())


@pytest.mark.slow
def test_it_distils_again_only_when_videos_came_and_promotes_what_it_made(
    again: Refresh, growing: Path, tmp_path: Path
) -> None:
    store, since = open_store(str(tmp_path / "store")), datetime.now(UTC)
    first = again()
    assert first.name == "Completed", first
    begun = names(store)["latest"]
    assert first.result() == begun.sets[0]
    assert "the first of its name" in (tmp_path / "out" / "refresh.md").read_text()

    assert again().name == "Unchanged"
    assert names(store)["latest"] == begun

    add_video(growing)
    waiting = again(settle_minutes=10)
    assert (waiting.name, waiting.result()) == ("Waiting", begun.sets[0])
    assert names(store)["latest"] == begun

    second = again()
    now = names(store)["latest"]
    assert second.result() == now.sets[0]
    assert now.sets[0] != begun.sets[0]
    assert store.has(begun.sets[0]), "the set that was in use is kept"
    said = (tmp_path / "out" / "refresh.md").read_text()
    assert "1 videos came, 0 went, 0 changed." in said
    (row,) = [line for line in said.split("\n") if line.startswith("| top-1")]
    assert row.count("±") == 2, "both are scored on today's videos, by every seed"
    made = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    (mean,) = [one["top1_mean"] for one in made if one["method"] == "herding"]
    assert f"{100 * mean:.1f}" in row.split("|")[3]
    check_events(growing.name, since)


@pytest.mark.slow
def test_a_set_in_use_that_was_made_of_today_s_test_videos_is_said_to_be(
    again: Refresh, growing: Path, tmp_path: Path
) -> None:
    paths = sorted(path.relative_to(growing) for path in growing.rglob("*.mp4"))
    splits = {path.as_posix(): path.parts[0] for path in paths}
    table = growing / "table.csv"

    def write() -> None:
        lines = [f"{path},{path.split('/')[1]},{split}" for path, split in splits.items()]
        table.write_text("\n".join(["path,label,split", *lines]))

    write()
    again(data=str(table))
    store = open_store(str(tmp_path / "store"))
    splits[DistilledSet.sources_of(store.folder(names(store)["latest"].sets[0]))[0]] = "test"
    write()
    again(data=str(table))
    assert "made of 1 of today's" in (tmp_path / "out" / "refresh.md").read_text()


def check_events(dataset: str, since: datetime) -> None:
    """The index and the promotion are events that automations can wait for."""
    with get_client(sync_client=True) as client:
        told = EventNameFilter(name=["vidistill.data.changed", "vidistill.set.promoted"])
        occurred = EventOccurredFilter(since=since)
        deadline = time.monotonic() + 60
        while True:  # the server takes them in a moment later
            found = [
                (one.event, one.resource.id)
                for one in client.read_events(EventFilter(event=told, occurred=occurred), limit=50).events
            ]
            if found.count(("vidistill.set.promoted", "vidistill.set.latest")) == 2 or time.monotonic() > deadline:
                break
            time.sleep(1)
    assert found.count(("vidistill.set.promoted", "vidistill.set.latest")) == 2
    assert found.count(("vidistill.data.changed", f"vidistill.data.{dataset}")) == 2


@pytest.mark.slow
def test_students_that_begin_with_weights_from_a_file_are_compared_too(
    again: Refresh, growing: Path, tmp_path: Path
) -> None:
    torch.save(r3d_18().state_dict(), tmp_path / "own.pth")
    asked: dict[str, Any] = {"students": ["r3d_18"], "student": {"pretrained": {"r3d_18": str(tmp_path / "own.pth")}}}
    assert again(seeds=1, **asked).name == "Completed"
    add_video(growing)
    state = again(seeds=1, **asked)
    assert state.name == "Completed", state
    assert "not to be had" not in (tmp_path / "out" / "refresh.md").read_text()
    assert again(seeds=1, **asked).name == "Unchanged"
    torch.save(r3d_18().state_dict(), tmp_path / "own.pth")
    assert again(seeds=1, **asked).name == "Completed", "other weights in the same file"


@pytest.mark.slow
def test_students_of_one_s_own_are_compared_in_processes_too(again: Refresh, growing: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    asked: dict[str, Any] = {"students": [f"{tmp_path}/net.py:Net"], "seeds": 1, "runner": "processes"}
    store = open_store(str(tmp_path / "store"))
    assert again(**asked).name == "Completed"
    begun = names(store)["latest"]
    add_video(growing)
    state = again(**asked)
    assert state.name == "Completed", state
    assert names(store)["latest"].sets != begun.sets


@pytest.mark.slow
def test_what_comes_while_a_run_looks_is_in_the_index_that_it_keeps(
    again: Refresh, growing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_look = refreshing.find_videos

    def looked(*given: Any) -> IndexTable:
        table = first_look(*given)
        add_video(growing)
        return table

    monkeypatch.setattr(refreshing, "find_videos", looked)
    assert again(seeds=1).name == "Completed"
    monkeypatch.undo()
    store = open_store(str(tmp_path / "store"))
    assert store.has(names(store)["latest"].index)
    assert again(seeds=1).name == "Unchanged"


@pytest.mark.slow
def test_a_set_that_cannot_be_scored_as_the_new_one_does_not_keep_it_from_its_name(
    again: Refresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = again(method="random", seeds=1).result()
    monkeypatch.setattr(Herding, "recipes", ("soft",))  # as TSGF's: the set in use has no such labels
    state = again(seeds=1)
    assert state.name == "Completed", state
    now = names(open_store(str(tmp_path / "store")))["latest"]
    assert begun != state.result() == now.sets[0]
    assert "| not to be had |" in (tmp_path / "out" / "refresh.md").read_text()
    assert again(seeds=1).name == "Unchanged"


@pytest.mark.slow
def test_a_set_of_clips_of_another_size_is_not_compared(again: Refresh, tmp_path: Path) -> None:
    for size in (0, 32):
        assert again(seeds=1, size=size).name == "Completed"
    assert "| not to be had |" in (tmp_path / "out" / "refresh.md").read_text()


def test_a_file_that_cannot_be_read_yet_is_waited_for(tmp_path: Path) -> None:
    """A video that is being copied is no video until its end."""
    (tmp_path / "half.mp4").write_bytes(b"half")
    names = "half.mp4", "gone.mp4"
    rejected = tuple(Rejected(video=name, outcome="failed", reason="not a video file") for name in names)
    table = IndexTable(layout="folders", classes=("a",), flips=True, videos=(), rejected=rejected, notes=())
    assert refreshing._quiet_minutes(tmp_path, table) < 1


def test_a_table_or_a_list_that_is_still_written_is_waited_for(tmp_path: Path) -> None:
    table = IndexTable(layout="csv", classes=("a",), flips=True, videos=(), rejected=(), notes=())
    (tmp_path / "notes.txt").write_text("of no split")
    assert refreshing._quiet_minutes(tmp_path, table) > 1e6
    (tmp_path / "own.csv").write_text("path,label")
    assert refreshing._quiet_minutes(tmp_path / "own.csv", table) < 1
    assert refreshing._quiet_minutes(tmp_path, table) > 1e6
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "train.json").write_text("[]")
    assert refreshing._quiet_minutes(tmp_path, table) < 1


@pytest.mark.slow
def test_users_load_a_set_by_its_name(again: Refresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again(name="in_use")
    store = str(tmp_path / "store")
    loaded = DistilledSet.load("in_use", store=store)
    assert loaded.classes == tuple(sorted(CLASSES))
    monkeypatch.setenv("VIDISTILL_STORE", store)
    assert len(DistilledSet.load("in_use")) == len(loaded)
    ended = CommandLine(tmp_path)("export", "in_use", "--store", store, "--out", "exported")
    assert ended.returncode == 0, ended.stderr
    with pytest.raises(ArtifactNotFound, match=r"no set of that name .* its names are in_use"):
        DistilledSet.load("latest")


@pytest.mark.parametrize(("wrong", "said"), [({"data": "sprites"}, "never are"), ({"name": "a/b"}, "'a/b'")])
def test_a_wrong_request_is_one_sentence(growing: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        refresh.fn(**({"data": str(growing)} | wrong))
    assert os.listdir(growing)
