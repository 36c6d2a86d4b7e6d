"""The flow `pool`: what is asked for again is cached, and more clips cost the new parts alone."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from deployed import settled
from flow_running import CLASSES
from method_contract import DECODE
from method_contract import POOL as CONTRACT_POOL

from vidistill.flows import commands
from vidistill.flows.cli import app
from vidistill.flows.experiment import build
from vidistill.flows.parameters import Experiment, PoolRequest, checked, override
from vidistill.flows.planning import _expected_sprites
from vidistill.flows.pool import pool
from vidistill.flows.pools import build_pool
from vidistill.storage.errors import RequestError
from vidistill.storage.pool import Pool
from vidistill.storage.store import Store
from vidistill.tasks.learning.teacher import TeacherParameters
from vidistill.tasks.stage import Runtime
from vidistill.tasks.videos.sprites import SpritesParameters

POOL = CONTRACT_POOL.model_copy(update={"clips_a_class": 2, "part_clips": 2})


def states(since: datetime) -> Counter[tuple[str, str]]:
    """How many task runs of flows that began since then are in which state, by the task's name."""
    from prefect import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterStartTime

    with get_client(sync_client=True) as client:
        began = FlowRunFilter(start_time=FlowRunFilterStartTime(after_=since))

        def read() -> list[tuple[str, str]]:
            runs = client.read_task_runs(flow_run_filter=began, limit=200)
            return [(run.name.split(" ")[0], run.state_name or "Pending") for run in runs]

        return Counter(settled(read))


@pytest.mark.usefixtures("prefect_server", "tiny_transformer")
def test_more_clips_cost_their_parts_alone(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runtime = Runtime(store=str(tmp_path / "store"), device="cpu", threads=1)
    request = PoolRequest(
        data=str(videos),
        decode=DECODE,
        front="rgb",
        pool=POOL,
        teacher=TeacherParameters(epochs=1, least_steps=1, precision="fp32"),
    )
    since = datetime.now(UTC)
    first = pool(request, runtime, tmp_path / "out")
    made = states(since)
    assert made["generate", "Completed"] == len(CLASSES)
    assert not [name for name, state in made if state == "Cached"]
    more = request.model_copy(update={"pool": POOL.model_copy(update={"clips_a_class": 3})})
    second = pool(more, runtime, tmp_path / "out")
    again = states(since) - made
    assert {name for name, state in again if state == "Completed"} == {"generate", "pool", "quality"}
    assert again["generate", "Completed"] == again["generate", "Cached"] == len(CLASSES)
    store = Store(tmp_path / "store")
    sizes = [len(Pool(store, store.manifest(ref).inputs["pool"][0])) for ref in (first, second)]
    assert sizes == [2 * len(CLASSES), 3 * len(CLASSES)]
    assert len(json.loads((tmp_path / "out" / "quality.json").read_text())["nearest"]) == sizes[1]
    said = (tmp_path / "out" / "pool.md").read_text()
    assert said.startswith("**9 clips of 3 classes**")
    assert "- generator: Latte micro" in said
    assert (tmp_path / "out" / "sheet.png").is_file()


def test_a_class_without_a_training_video_has_no_pool_and_no_run() -> None:
    whole = _expected_sprites(SpritesParameters())
    videos = tuple(video for video in whole.videos if (video.split, video.label) != ("train", 3))
    table, asked = whole.model_copy(update={"videos": videos}), {"data": "sprites", "front": "rgb"}
    said = f"No training video of the class '{table.classes[3]}' can be read: `vidistill index` says why"
    with pytest.raises(RequestError, match=said):
        build_pool(PoolRequest.model_validate(asked), table)
    with pytest.raises(RequestError, match=said):
        build(Experiment.model_validate(asked | {"cells": [{"method": "random"}]}), table)


def test_clips_that_are_too_small_for_the_teacher_have_no_pool() -> None:
    asked = {"data": "sprites", "teacher": {"network": "r2plus1d_small_in"}, "decode": {"frames": 2, "size": 16}}
    with pytest.raises(RequestError, match="2 frames of 16 pixels are too small for r2plus1d_small_in: take 3 frames"):
        build_pool(PoolRequest.model_validate(asked), _expected_sprites(SpritesParameters()))


def test_where_everything_is_cached_no_engine_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []
    (tmp_path / "pool.md").touch()
    monkeypatch.setattr("vidistill.flows.pools.plan_pool", lambda *_: SimpleNamespace(todo=[]))
    monkeypatch.setattr("vidistill.flows.pool.pool", lambda _, runtime, out: began.append(runtime.runner))
    monkeypatch.setattr(commands, "showing", lambda _: nullcontext(SimpleNamespace(expect=lambda plan: None)))
    monkeypatch.setattr("vidistill.flows.server.connect", lambda _: None)
    commands.pool({"data": "sprites"}, str(tmp_path / "store"), tmp_path, "cpu", "processes", False)
    assert began == ["threads"]


def test_settings_reach_the_pool() -> None:
    plain = override({"data": "sprites"}, ["pool.sampler.steps=7", "pool.latte.size=S"], PoolRequest)
    request = PoolRequest.model_validate(plain)
    assert (request.pool.sampler.steps, request.pool.latte.size) == (7, "S")
    with pytest.raises(RequestError, match="knows no parameter 'cells'"):
        override({"data": "sprites"}, ["cells=1"], PoolRequest)


def test_settings_that_do_not_go_together_are_named_without_all_the_others() -> None:
    plain = override({"data": "sprites"}, ["pool.latte.middle_noise=0.5", "pool.latte.adam.decay_share=0"], PoolRequest)
    with pytest.raises(
        RequestError, match=r"^The pool: pool\.latte: middle_noise acts while the rate falls: give adam"
    ):
        checked(PoolRequest, plain, "The pool")


def test_the_command_is_there() -> None:
    assert "pool" in {command.callback.__name__ for command in app.registered_commands if command.callback}
