"""What a plan says of the time, the bytes and the reasons of jobs, before and after some were measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from vidistill.flows import planning
from vidistill.flows.costs import COMPARED, Cost, cost_of
from vidistill.flows.distill import _rows_failed
from vidistill.flows.estimates import Estimates, pace, wall_seconds
from vidistill.flows.experiment import build
from vidistill.flows.look import Look
from vidistill.flows.parameters import Experiment, PoolRequest
from vidistill.flows.planning import Plan, describe, plan_jobs, plan_of
from vidistill.flows.pools import plan_pool
from vidistill.flows.salvage import Failed, salvaged
from vidistill.models import cpu
from vidistill.storage.errors import RequestError, RunError
from vidistill.storage.opening import open_store
from vidistill.storage.provenance import machine
from vidistill.storage.store import ArtifactRef, Manifest, Store
from vidistill.tasks.report.gather import ReportParameters
from vidistill.tasks.stage import Job, Runtime
from vidistill.tasks.videos.index import IndexTable
from vidistill.tasks.videos.layouts import IndexParameters, Rejected
from vidistill.tasks.videos.scan import Video
from vidistill.tasks.videos.sprites import SpritesParameters

CLASSES = ("left", "right")
SMALL: dict[str, Any] = {"decode": {"frames": 8, "size": 32, "views": 1}, "seeds": 1, "front": "rgb"}


@pytest.fixture(autouse=True)
def usual_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of these tests are default costs, on any machine."""
    monkeypatch.setattr("vidistill.flows.estimates.pace", lambda _: 1.0)


def table(videos: int = 64, content: str = "a") -> IndexTable:
    """So many videos for training a class, half of them for test; `content` tells one data set from another."""
    listed = tuple(
        Video(path=f"{split}/{name}/{number}.mp4", label=label, split=split, group=None, bytes=10_000,
              sha256=f"{content}-{split}-{name}-{number}", width=64, height=64, frames=32, duration_seconds=2, codec="")
        for split, count in (("train", videos), ("test", videos // 2))
        for label, name in enumerate(CLASSES)
        for number in range(count)
    )  # fmt: skip
    return IndexTable(layout="folders", classes=CLASSES, flips=False, videos=listed, rejected=())


def jobs_of(*cells: dict[str, Any], videos: int = 64, content: str = "a", **settings: Any) -> list[Job]:
    experiment = Experiment.model_validate({"data": "videos", "cells": cells} | SMALL | settings)
    return list(build(experiment, table(videos, content)).jobs.values())


def test_a_stray_file_makes_no_clips_anew() -> None:
    """And the report still names it."""
    experiment = Experiment.model_validate(
        {"data": "videos", "cells": [{"method": "random"}, {"method": "full"}]} | SMALL
    )
    plain = table()

    def with_file(outcome: str) -> set[ArtifactRef]:
        rejected = (Rejected.model_validate({"video": "notes.txt", "outcome": outcome, "reason": "no video"}),)
        return set(build(experiment, plain.model_copy(update={"rejected": rejected, "notes": ("a note",)})).jobs)

    before = set(build(experiment, plain).jobs)
    assert {ref.kind for ref in with_file("filtered") - before} == {"index", "report"}
    assert {ref.kind for ref in before - with_file("filtered")} == {"report"}
    assert "clips" in {ref.kind for ref in with_file("failed") - before}


def by_kind(jobs: Sequence[Job], kind: str) -> list[Job]:
    return [job for job in jobs if job.stage == kind]


def seconds(jobs: Sequence[Job], kind: str) -> list[float]:
    """By default, of each job of a kind."""
    nodes = {job.ref: job.manifest for job in jobs}
    return [cost_of(job.manifest, Look(nodes.get)).seconds for job in by_kind(jobs, kind)]


def commit(store: Store, job: Job, taken: float, size: int = 1000, **record: Any) -> None:
    """An artifact that took so many seconds and bytes."""
    with store.writing(job.manifest) as attempt:
        assert attempt is not None
        (attempt.folder / "bytes").write_bytes(bytes(size))
        attempt.note(seconds=taken, record={"machine": machine(), "threads": 1, "device": "cpu"} | record)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def planned(jobs: Sequence[Job], store: Store, **runtime: Any) -> Plan:
    return plan_jobs(jobs, store, Runtime(store=store.location, threads=2, **runtime))


def expected(plan: Plan, kind: str) -> list[float]:
    return [one.seconds for one in plan.planned if one.job.stage == kind]


FULL, RANDOM = {"method": "full"}, {"method": "random"}
VDSD = {"iterations": 50, "static": {"iterations": 50}}


def test_a_plan_looks_at_what_its_jobs_may_be_like_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of a hundred thousand files is nothing to a run that makes none."""
    jobs, asked, survey = jobs_of(RANDOM), set[str | None](), Store.survey

    def noted(self: Store, kind: str | None = None, *, content: bool = False) -> Any:
        asked.add(kind)
        return survey(self, kind, content=content)

    monkeypatch.setattr(Store, "survey", noted)
    planned(jobs, store)
    assert asked == {kind for job in jobs for kind in (job.stage, f"{job.stage}-checkpoint")}


def test_passes_over_all_clips_count_and_of_a_small_set_the_least_steps() -> None:
    student = {"epochs": 100, "least_steps": 1000}
    full, few = seconds(jobs_of(FULL, RANDOM, videos=640, student=student), "score")
    longer, same = seconds(jobs_of(FULL, RANDOM, videos=640, student=student | {"epochs": 200}), "score")
    assert longer == pytest.approx(2 * full, rel=0.1)
    assert same == few
    assert full > 30 * few  # 100 passes over 1,280 clips, and 1,000 steps of the set's two


def test_a_student_is_trained_on_no_more_clips_than_its_set_has() -> None:
    few, more, most = (seconds(jobs_of(RANDOM, ipc=[ipc]), "score")[0] for ipc in (1, 8, 64))
    tested = 64 / 3 / 300
    assert (more - 0.3) / (few - 0.3) == pytest.approx((16 + tested) / (2 + tested))
    assert (most - 0.3) / (few - 0.3) == pytest.approx((32 + tested) / (2 + tested))  # the batch is 32


def test_labels_that_are_asked_for_at_every_step_take_a_third_more() -> None:
    hard, online = seconds(jobs_of(RANDOM | {"recipes": ["hard", "online"]}, ipc=[16]), "score")
    assert online / hard == pytest.approx(4 / 3, rel=0.05)


@pytest.mark.parametrize(
    ("method", "once", "twice"),
    [
        ("tsgf", {"iterations": 500}, {"iterations": 1000}),
        ("dm", {"iterations": 50}, {"iterations": 100}),
        ("mtt", {"iterations": 50}, {"iterations": 100}),
        ("mtt", {"syn_steps": 5}, {"syn_steps": 10}),
        ("mtt_vdsd", VDSD, VDSD | {"iterations": 100, "static": {"iterations": 100}}),
        ("frepo", {"iterations": 50}, {"iterations": 100}),
        ("dc", {"outer": 1}, {"outer": 1, "iterations": 200}),
    ],
)  # fmt: skip
def test_twice_the_work_takes_twice_as_long(method: str, once: dict[str, Any], twice: dict[str, Any]) -> None:
    few, more = (sum(seconds(jobs_of({"method": method, "options": own}), "distilled")) for own in (once, twice))
    assert more == pytest.approx(2 * few, rel=0.1)


@pytest.mark.parametrize("kind", ["teacher", "expert", "block"])
def test_more_videos_take_longer(kind: str) -> None:
    few, more = (sum(seconds(jobs_of({"method": "mtt"}, videos=videos), kind)) for videos in (640, 1280))
    assert more == pytest.approx(2 * few, rel=0.1)


def test_every_method_of_the_registry_has_a_cost() -> None:
    from vidistill.tasks.methods import REGISTRY

    for method in set(REGISTRY) - {"optdistill"}:
        budget = {"kb": [20]} if method == "coded" else {}
        jobs = jobs_of({"method": method}, pool={"clips_a_class": 10}, **budget)
        nodes = {job.ref: job.manifest for job in jobs}
        for job in jobs:
            assert cost_of(job.manifest, Look(nodes.get)).seconds > 0, job.label


def test_what_was_measured_here_is_what_the_like_takes(store: Store) -> None:
    first, second = jobs_of(FULL), jobs_of(FULL, student={"least_steps": 600})
    (score,) = by_kind(first, "score")
    for job in first:
        if job.stage in ("block", "clips"):
            commit(store, job, 1.0)
    commit(store, score, 500.0)
    (said,) = expected(planned(second, store), "score")
    assert said == pytest.approx(1000, rel=0.05)
    assert expected(planned(first, store), "block") == pytest.approx([1.0] * 6, rel=0.5)


def test_a_network_that_is_slow_here_makes_all_networks_slow_but_no_decoding(store: Store) -> None:
    jobs = jobs_of(FULL, RANDOM | {"recipes": ["soft"]})
    before = planned(jobs, store)
    for job in jobs:
        if job.stage in ("block", "clips"):
            commit(store, job, 0.3)
    blocks = expected(planned(jobs, store), "block")
    (teacher,) = by_kind(jobs, "teacher")
    commit(store, teacher, 10 * seconds(jobs, "teacher")[0])
    after = planned(jobs, store)
    for was, now in zip(expected(before, "score"), expected(after, "score"), strict=True):
        assert 5 * was < now < 11 * was
    assert expected(after, "block") == blocks


def test_where_nothing_is_known_networks_go_by_how_fast_this_machine_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(FULL, RANDOM)
    usual = planned(jobs, store)
    monkeypatch.setattr("vidistill.flows.estimates.pace", lambda _: 3.0)
    slow = planned(jobs, store)
    assert expected(slow, "score") == pytest.approx([3 * known for known in expected(usual, "score")])
    assert expected(slow, "block") == expected(usual, "block")


@pytest.mark.parametrize(
    ("flags", "device", "gpu", "slower"),
    [("avx2", "auto", None, True), ("avx2", "auto", "/usr/bin/nvidia-smi", False), ("avx2", "cuda", None, False),
     ("avx2", "cpu", "/usr/bin/nvidia-smi", True), ("avx512_bf16", "auto", None, False)],
)  # fmt: skip
def test_a_cpu_without_bf16_units_is_believed_to_be_slower(
    monkeypatch: pytest.MonkeyPatch, flags: str, device: str, gpu: str | None, slower: bool
) -> None:
    monkeypatch.setattr(cpu, "flags", lambda: frozenset({flags}))
    monkeypatch.setattr("shutil.which", {"nvidia-smi": gpu}.get)
    assert (pace(device) > 2) == slower


def test_a_checkpoint_says_what_is_left_of_its_job_and_how_fast_it_went(store: Store) -> None:
    jobs = jobs_of(RANDOM | {"recipes": ["soft"]}, teacher={"least_steps": 10_000})
    (teacher,) = by_kind(jobs, "teacher")
    (before,) = expected(planned(jobs, store), "score")
    kept = Manifest(kind="teacher-checkpoint", key=f"{teacher.ref.key}-00000005", version=1, parameters={}, inputs={})
    with store.writing(kept) as attempt:
        assert attempt is not None
        record = {"machine": machine(), "threads": 2, "share": 0.5, "measured_share": 0.4}
        attempt.note(seconds=400.0, record=record)
    after = planned(jobs, store)
    assert expected(after, "teacher") == pytest.approx([500], rel=0.01)
    (score,) = expected(after, "score")
    assert score > 5 * before


def test_what_a_resumed_job_took_was_not_all_of_it(store: Store) -> None:
    jobs, longer = jobs_of(FULL), jobs_of(FULL, student={"least_steps": 600})
    for job in jobs:
        if job.stage in ("block", "clips"):
            commit(store, job, 1.0)
    commit(store, by_kind(jobs, "score")[0], 900.0, resumed_share=0.5, resumed_seconds=650.0)
    assert expected(planned(longer, store), "score") == pytest.approx([1000], rel=0.05)


@pytest.mark.parametrize("other", [{"machine": "an abacus"}, {"device": "cuda:0"}])
def test_what_another_machine_or_device_took_says_nothing(store: Store, other: dict[str, str]) -> None:
    first, second = jobs_of(FULL), jobs_of(FULL, student={"least_steps": 600})
    default = expected(planned(second, store, device="cpu"), "score")
    for job in first:
        if job.stage in ("block", "clips", "score"):
            commit(store, job, 500.0, **other)
    assert expected(planned(second, store, device="cpu"), "score") == default


def test_bytes_that_were_measured_are_what_the_like_takes(store: Store) -> None:
    first, second = jobs_of(RANDOM), jobs_of(RANDOM, content="b")
    blocks = by_kind(first, "block")
    for job in blocks:
        commit(store, job, 1.0, size=2_000_000)
    said = sum(one.bytes for one in planned(second, store).planned if one.job.stage == "block")
    assert said == pytest.approx(2_000_000 * len(blocks), rel=0.05)


def pool_costs(kind: str, *, flips: bool = False, **pool: Any) -> list[Cost]:
    """Of the jobs of a kind of a pool of clips of 8×32×32."""
    from vidistill.flows.pools import build_pool

    request = PoolRequest.model_validate({"data": "videos", "decode": SMALL["decode"], "pool": pool})
    jobs = list(build_pool(request, table()).jobs.values())
    nodes = {job.ref: job.manifest for job in jobs}
    return [cost_of(job.manifest, Look(nodes.get, flips)) for job in by_kind(jobs, kind)]


def test_a_pool_takes_the_bytes_of_its_clips() -> None:
    sizes = {clips: sum(cost.bytes for cost in pool_costs("pool-part", clips_a_class=clips)) for clips in (10, 20)}
    raw = 3 * 8 * 32 * 32
    assert 0.3 * raw < sizes[10] / 20 < raw
    assert sizes[20] == pytest.approx(2 * sizes[10])


@pytest.mark.parametrize("kind", ["latte", "pool-part"])
def test_a_generator_with_four_times_the_tokens_takes_four_times_as_long(kind: str) -> None:
    long: dict[str, Any] = {"sampler": {"steps": 999}}
    fine, coarse = (pool_costs(kind, latte={"patch": patch}, **long)[0].seconds for patch in (1, 2))
    assert fine == pytest.approx(4 * coarse, rel=0.1)


def test_a_compiled_generator_takes_less() -> None:
    plain, compiled = (pool_costs("latte", latte={"compile": wanted})[0].seconds for wanted in (False, True))
    assert plain == pytest.approx(1.3 * compiled, rel=0.01)


def test_muon_costs_a_step_the_same_at_every_number_of_tokens() -> None:
    added = []
    for patch in (1, 2):
        adam, muon = (pool_costs("latte", latte={"patch": patch, "muon_lr": rate})[0].seconds for rate in (0, 0.01))
        added.append(muon - adam)
    assert added[0] == pytest.approx(added[1])
    assert added[0] > 100  # of 6,000 steps


def test_frames_in_two_chunks_take_twice_as_long() -> None:
    plain, chunked = (
        pool_costs("pool-part", latte={"frame_noise": 0.5}, sampler={"steps": 999} | chunks)[0].seconds
        for chunks in ({}, {"chunks": [1, 7]})
    )
    assert chunked == pytest.approx(2 * plain, rel=0.05)


def test_a_clip_without_guidance_takes_half_as_long_and_blocks_that_are_made_again_a_third_more() -> None:
    guided, plain = (pool_costs("pool-part", sampler={"steps": 999, "guidance": scale})[0].seconds for scale in (3, 1))
    assert guided == pytest.approx(2 * plain, rel=0.01)
    kept, again = (pool_costs("latte", latte={"recompute": wanted})[0].seconds for wanted in (False, True))
    assert again == pytest.approx(4 / 3 * kept, rel=0.01)


def test_an_autoencoder_that_is_given_is_not_trained(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"block_out_channels": [1, 1, 1, 1], "latent_channels": 4}')

    def costs(kind: str) -> tuple[Cost, Cost]:
        return tuple(
            pool_costs(kind, autoencoder={"pretrained": place} if place else {})[0] for place in ("", str(tmp_path))
        )  # type: ignore[return-value]

    trained, given = costs("autoencoder")
    assert given.seconds == pytest.approx(121, rel=0.01)  # of 512 frames, twice encoded and once decoded
    assert given.bytes > 100 * trained.bytes
    trained, given = costs("latents")
    assert given.seconds == pytest.approx(55 * trained.seconds)


def test_clips_of_a_part_that_the_pool_does_not_show_are_not_read() -> None:
    many, few = (pool_costs("pool-quality", clips_a_class=clips, part_clips=10)[0].seconds for clips in (10, 1))
    assert many > few


def test_mirrored_clips_are_latents_too_and_are_compared_with_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, mirrored = (pool_costs("latents", flips=flips)[0] for flips in (False, True))
    assert (mirrored.seconds, mirrored.bytes) == pytest.approx((2 * plain.seconds, 2 * plain.bytes))
    found = []
    for flips in (False, True):
        shown = planning._expected_sprites(SpritesParameters()).model_copy(update={"flips": flips})
        monkeypatch.setattr(planning, "_expected_sprites", lambda *_asked, shown=shown: shown)
        plan = plan_pool(PoolRequest(data="sprites", front="rgb"), Runtime(store=str(tmp_path / "store")))
        found.append(next(one.bytes for one in plan.planned if one.job.stage == "latents"))
    assert found[1] == pytest.approx(2 * found[0])


def test_each_clip_of_a_pool_is_compared_with_all_looks_of_all_training_clips() -> None:
    plain, mirrored = (pool_costs("pool-quality", clips_a_class=50, flips=flips)[0].seconds for flips in (False, True))
    assert mirrored - plain == pytest.approx(COMPARED * (2 * 50 + 2 * 64) * (2 * 64) * 3 * 8 * 14**2)


def wall(jobs: Sequence[Job], each: float, workers: int, threads: int) -> float:
    known: dict[ArtifactRef, float] = {job.ref: each for job in jobs}
    return wall_seconds(jobs, known, Runtime(store="store", threads=threads), workers)


def test_jobs_of_one_thread_run_side_by_side_and_those_of_all_alone() -> None:
    jobs = jobs_of(RANDOM | {"recipes": ["soft"]}, ipc=[1, 2, 3, 4])
    scores, teacher = by_kind(jobs, "score"), by_kind(jobs, "teacher")
    assert wall(scores, 10, workers=2, threads=2) == 20
    assert wall(scores, 10, workers=4, threads=2) == 20  # two wait for threads
    assert wall(scores, 10, workers=1, threads=2) == 40
    assert wall([*scores[:2], *teacher], 10, workers=3, threads=2) == 20
    assert wall([*teacher, *scores[:1], *by_kind(jobs, "index")], 10, workers=3, threads=2) == 20


def test_a_job_waits_for_its_inputs() -> None:
    jobs = jobs_of(RANDOM | {"recipes": ["soft"]})
    chain = ["clips", "teacher", "relabelled", "score", "report"]
    known = {job.ref: 10.0 if job.stage in chain else 0.0 for job in jobs}
    runtime = Runtime(store="store", threads=2)
    assert wall_seconds(jobs, known, runtime, 2) == 50  # the test clips beside the teacher


def test_a_plan_is_no_sum(store: Store) -> None:
    jobs = jobs_of(RANDOM, seeds=8, student={"least_steps": 100_000})
    plan = planned(jobs, store)
    total = sum(one.seconds for one in plan.todo)
    assert 0.45 * total < plan.seconds < 0.7 * total


def why(plan: Plan, kind: str) -> set[str]:
    return {one.why for one in plan.planned if one.job.stage == kind}


@pytest.fixture
def made(store: Store) -> Store:
    """A store with all of one experiment."""
    for job in jobs_of(RANDOM | {"recipes": ["soft"]}, seeds=2):
        commit(store, job, 1.0)
    return store


def test_a_reason_compares_with_the_same_seed(made: Store) -> None:
    changed = jobs_of(RANDOM | {"recipes": ["soft"]}, seeds=2, student={"least_steps": 50})
    assert why(planned(changed, made), "score") == {"student.least_steps 300 → 50"}
    more = jobs_of(RANDOM | {"recipes": ["soft"]}, seeds=3)
    assert why(planned(more, made), "score") == {"", "no artifact like it of this data yet"}


def test_a_reason_does_not_compare_with_other_data(made: Store) -> None:
    other = planned(jobs_of(RANDOM | {"recipes": ["soft"]}, content="b"), made)
    for kind in ("index", "block", "clips", "teacher", "score"):
        assert why(other, kind) == {"no artifact like it of this data yet"}


def test_a_reason_names_what_was_made_anew(made: Store) -> None:
    changed = planned(jobs_of(RANDOM | {"recipes": ["soft"]}, seeds=2, teacher={"epochs": 3}), made)
    assert why(changed, "teacher") == {"epochs 40 → 3"}
    assert why(changed, "relabelled") == {"its input is made anew: teacher"}
    assert why(changed, "distilled") == {""}
    assert why(planned(jobs_of({"method": "herding"}), made), "distilled") == {
        "no artifact like it of this data yet",
        "",
    }


def test_data_that_grew_is_the_same_data(made: Store) -> None:
    grown = planned(jobs_of(RANDOM | {"recipes": ["soft"]}, videos=65, seeds=2), made)
    assert "train/left/64.mp4 is new, train/left/9.mp4 is gone" in why(grown, "block")
    assert why(grown, "clips") == {
        "its input is made anew: block, index",
        "its input is made anew: clips, index",
    }
    assert why(grown, "teacher") == {"its input is made anew: clips"}


def test_a_plan_says_which_rows_there_will_not_be(tmp_path: Path) -> None:
    cells = [{"method": "random"}, {"method": "static_dc"}]
    asked = Experiment.model_validate({"data": "sprites", "cells": cells, "front": "centred", "seeds": 1})
    plan = plan_of(asked, Runtime(store=str(tmp_path / "store")))
    assert any("The clips of static_dc stand still" in note for note in plan.notes)


def test_sprites_that_are_not_rendered_are_planned_as_they_will_be_held_out(tmp_path: Path) -> None:
    held = {"data": "sprites", "cells": [{"method": "random"}], "front": "rgb", "ipc": [40]}
    runtime = Runtime(store=str(tmp_path / "store"))
    plan_of(Experiment.model_validate(held), runtime)
    with pytest.raises(RequestError, match="40"):
        plan_of(Experiment.model_validate(held | {"index": {"holdout": True}}), runtime)
    shown = planning._expected_sprites(SpritesParameters(), IndexParameters(holdout=True, flips="on"))
    assert shown.flips
    assert len(shown.videos) == 8 * SpritesParameters().train_per_class
    assert {video.group for video in shown.of_split("train")}.isdisjoint(
        video.group for video in shown.of_split("test")
    )


@pytest.mark.parametrize(("free", "said"), [(2.5e12, ""), (1.5e12, "That is more than the 1.5 TB that are free there")])
def test_a_plan_says_what_does_not_fit_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, said: str
) -> None:
    store, (job, *_) = str(tmp_path / "no store yet"), jobs_of({"method": "random"})
    planned = plan_jobs([job], open_store(store), Runtime(store=store))
    large = replace(planned, planned=[replace(planned.planned[0], bytes=2e12)])
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=free if place == tmp_path else 0))
    written = StringIO()
    describe(large, Console(file=written, width=200))
    assert f" and 2.0 TB in {store}\n{said}" in written.getvalue()
    assert ("make room, or name another --store" in written.getvalue()) == bool(said)


def test_the_clips_of_a_data_set_are_counted_once_for_all_scores() -> None:
    """They lie in thousands of blocks, and a store has thousands of scores."""
    jobs = jobs_of({"method": "random"}, seeds=5)
    nodes, asked = {job.ref: job.manifest for job in jobs}, Counter[str]()

    def find(ref: ArtifactRef) -> Manifest | None:
        asked[ref.kind] += 1
        return nodes.get(ref)

    estimates = Estimates(Runtime(store="s"), find)
    for job in by_kind(jobs, "score"):
        estimates.of(job)
    assert asked["block"] == len(by_kind(jobs, "block"))


def test_a_report_that_lacks_the_quality_of_a_pool_has_all_rows_and_says_so() -> None:
    graph = build(Experiment.model_validate({"data": "v", "cells": [{"method": "pool_random"}]} | SMALL), table())
    quality = next(job for job in graph.jobs.values() if job.stage == "pool-quality")
    whole = ReportParameters.model_validate(list(graph.jobs.values())[-1].parameters)
    failed: Failed = {quality.ref: RunError("Its numbers overflow.")}
    left = salvaged(graph, failed)
    assert left is not None
    (report,) = left.jobs.values()
    told = ReportParameters.model_validate(report.parameters)
    assert (told.rows, told.failed) == (whole.rows, ())
    assert told.notes == (*whole.notes, f"Without {quality.label}: Its numbers overflow.")
    error = _rows_failed(left, failed, Path("report.html"))
    assert str(error) == "Its numbers overflow: the report report.html has all rows, and says what it lacks."
