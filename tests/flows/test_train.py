"""`vidistill train`: with the network of a score, its student again; with another, one that is usual for it."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flow_running import CLASSES
from method_contract import Bench

from vidistill.flows import train, use
from vidistill.flows.train import TrainRequest
from vidistill.storage.distilled import VARIANTS, DistilledSet
from vidistill.storage.errors import ArtifactNotFound, RequestError
from vidistill.storage.exported import EXPORT
from vidistill.storage.leases import leases
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.distil import distil_jobs
from vidistill.tasks.learning.evaluate import StudentParameters, evaluate_job, load_score
from vidistill.tasks.learning.optimisers import NETWORK_OPTIMISERS, OptimiserParameters
from vidistill.tasks.learning.relabel import relabel_job
from vidistill.tasks.methods import HARD, Recipe, find_method
from vidistill.tasks.report.export import export_set
from vidistill.tasks.stage import run_job
from vidistill.tasks.videos.layouts import IndexParameters

OWN = OptimiserParameters(lr=0.002, batch_size=2, warmup_share=0)
SHORT: dict[str, Any] = {"epochs": 1, "least_steps": 2}


@pytest.fixture
def made(bench: Bench, request: pytest.FixtureRequest) -> ArtifactRef:
    """Each test's own set: the store is all tests', and a set's scores are found in it."""
    source, seed = find_method("random"), zlib.crc32(request.node.name.encode())
    parameters, inputs = source.method.Parameters(), {"clips": [bench.given.train]}
    (job,) = distil_jobs(source, parameters, 1, seed, len(bench.clips.classes), inputs, "random")
    ref, _ = run_job(job, bench.runtime)
    return ref


def scored(
    bench: Bench, made: ArtifactRef, network: str, student: StudentParameters, recipe: Recipe = HARD
) -> float:  # fmt: skip
    inputs = {"train": bench.given.train, "test": bench.given.train, "distilled": made}
    ref, _ = run_job(evaluate_job(network, student, recipe, 0, inputs, "score"), bench.runtime)
    return load_score(bench.store.folder(ref)).loss[-1]


def student(bench: Bench, made: ArtifactRef, network: str, **asked: Any) -> StudentParameters:
    request = TrainRequest(source=made.key, network=network, student=asked)
    return train._student(request, train.source_of(made.key, bench.runtime.store), network)


def test_it_is_the_student_of_its_own_network_s_score(bench: Bench, made: ArtifactRef, tmp_path: Path) -> None:
    ways = {name: StudentParameters(optimiser=OWN.model_copy(update={"lr": lr}), networks={}, **SHORT)
            for name, lr in (("minic3d", 0.002), ("r2plus1d_small", 0.2), ("minic3d_bn", 0.03))}  # fmt: skip
    losses = {name: scored(bench, made, name, way) for name, way in ways.items()}
    for name, way in ways.items():
        request = TrainRequest(source=made.key, network=name)
        runtime = bench.runtime.model_copy(update={"threads": 1})
        facts = train.train(request, runtime, tmp_path / name)
        assert facts["student"] == way.model_dump(mode="json")
        assert facts["loss"][-1] == pytest.approx(losses[name])


def test_softened_labels_are_learnt_at_their_temperature(bench: Bench, made: ArtifactRef, tmp_path: Path) -> None:
    soft, way = Recipe(labels="soft", temperature=4.0), StudentParameters(optimiser=OWN, networks={}, **SHORT)
    labelled, _ = run_job(relabel_job(made, bench.given.train, bench.teacher, soft, 0, "label"), bench.runtime)
    loss = scored(bench, labelled, "minic3d", way, soft)
    runtime = bench.runtime.model_copy(update={"threads": 1})
    facts = train.train(TrainRequest(source=labelled.key, network="minic3d"), runtime, tmp_path)
    assert (facts["labels"], facts["loss"][-1]) == ("soft", pytest.approx(loss))


def test_of_several_ways_to_train_it_the_first_is_taken(bench: Bench, made: ArtifactRef) -> None:
    for lr in (0.03, 0.02, 0.01):
        way = StudentParameters(optimiser=OWN.model_copy(update={"lr": lr}), networks={}, **SHORT)
        scored(bench, made, "minic3d", way)
    manifests = [bench.store.manifest(ref) for ref in bench.store.refs("score")]
    first = min((one for one in manifests if made in one.inputs["distilled"]), key=lambda one: one.created)
    assert student(bench, made, "minic3d").model_dump(mode="json") == first.parameters["student"]


def test_without_a_network_it_is_the_student_of_the_set(bench: Bench, made: ArtifactRef, tmp_path: Path) -> None:
    scored(bench, made, "cnn_gru", StudentParameters(optimiser=OWN, **SHORT))
    assert train.train(TrainRequest(source=made.key), bench.runtime, tmp_path)["network"] == "cnn_gru"


def test_it_is_the_first_of_its_students_that_is_known_here(
    bench: Bench, made: ArtifactRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(bench, made, "cnn_gru", StudentParameters(optimiser=OWN, **SHORT))
    source = train.source_of(made.key, bench.runtime.store)
    own = "moving@00000000:r2plus1d_small"
    for students, name in ([own, "rgb:torchvision.mc3_18"], "rgb:torchvision.mc3_18"), ([own], "cnn_gru"):
        told = replace(source, facts=source.facts | {"students": {key: {} for key in students}})
        assert train._network(TrainRequest(source=made.key), told)[0] == name
    alone = replace(source, facts=source.facts | {"students": {own: {}}, "scores": []})
    monkeypatch.setattr(train, "source_of", lambda *_: alone)
    with pytest.raises(RequestError, match=f"scored by {own}, of a file of yours: give it by --network"):
        train.train(TrainRequest(source=made.key), bench.runtime, tmp_path)


@pytest.mark.parametrize(
    ("changed", "network", "said"),
    [
        (lambda clips_NTHWC: np.repeat(clips_NTHWC[:, :1], clips_NTHWC.shape[1], 1), "centred:cnn_gru", "stand still"),
        (lambda clips_NTHWC: clips_NTHWC[:, :, ::2], "cnn_gru", "give --test DIR"),
    ],
)
def test_a_set_that_its_network_or_its_test_clips_do_not_fit_is_refused_before_it_trains(
    bench: Bench, made: ArtifactRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: Callable[..., Any],
    network: str, said: str,
) -> None:  # fmt: skip
    scored(bench, made, "cnn_gru", StudentParameters(optimiser=OWN, **SHORT))
    found = train.source_of(made.key, bench.runtime.store)
    monkeypatch.setattr(train, "source_of", lambda *_: replace(
        found, made=replace(found.made, clips_NTHWC=changed(found.made.clips_NTHWC))))  # fmt: skip
    with pytest.raises(RequestError, match=said):
        train.train(TrainRequest(source=made.key, network=network), bench.runtime, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_never_lie_beside_what_was_said_of_others(
    bench: Bench, made: ArtifactRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(bench, made, "cnn_gru", StudentParameters(optimiser=OWN, **SHORT))
    train.train(TrainRequest(source=made.key), bench.runtime, tmp_path)
    assert (tmp_path / train.FACTS).is_file()

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "predict_test", stopped)
    with pytest.raises(KeyboardInterrupt):
        train.train(TrainRequest(source=made.key, seed=1), bench.runtime, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [train.STUDENT]


def test_a_set_of_a_store_that_is_only_read_can_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless test videos are decoded for it, whose clips are kept."""
    facts = {"network": "n", "clips": 1, "labels": "hard", "top1": 1.0, "top5": 1.0, "test_clips": 1}
    monkeypatch.setattr(train, "train", lambda *_: facts)
    store, out = tmp_path / "file" / "store", tmp_path / "out"
    (tmp_path / "file").touch()
    use.train({"source": "a"}, str(store), out, "cpu", "")
    with pytest.raises(RequestError, match="cannot be written"):
        use.train({"source": "a", "test": "videos"}, str(store), out, "cpu", "")


def test_its_threads_do_not_spin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two busy cores a step of two clips took 1400 ms, and takes 280."""
    facts = {"network": "", "clips": 2, "labels": "hard", "top1": 0, "top5": 0, "test_clips": 2}
    found: list[str | None] = []
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(train, "train", lambda *_: found.append(os.environ.get("OMP_WAIT_POLICY")) or facts)
    use.train({"source": "a"}, str(tmp_path / "store"), tmp_path / "out", "cpu", "")
    assert found == ["passive"]


def test_a_layout_without_test_videos_is_refused(bench: Bench, made: ArtifactRef, tmp_path: Path) -> None:
    request = TrainRequest(source=made.key, index=IndexParameters(split=2))
    with pytest.raises(RequestError, match="--layout and --split are those of --test DIR"):
        train.train(request, bench.runtime, tmp_path)


def test_another_network_has_its_usual_optimiser_and_the_rest_of_the_set_s(bench: Bench, made: ArtifactRef) -> None:
    scored(bench, made, "r2plus1d_small", StudentParameters(optimiser=OWN, crop_scale=0.7, **SHORT))
    other = student(bench, made, "c3d")
    assert other.optimiser == NETWORK_OPTIMISERS["c3d"]
    assert (other.crop_scale, other.least_steps) == (0.7, 2)
    assert student(bench, made, "minic3d_bn").optimiser == StudentParameters().optimiser


@pytest.mark.parametrize("network", ["r2plus1d_small", "minic3d"])
def test_what_is_asked_changes_that_alone(bench: Bench, made: ArtifactRef, network: str) -> None:
    scored(bench, made, "r2plus1d_small", StudentParameters(optimiser=OWN, **SHORT))
    usual, asked = student(bench, made, network), student(bench, made, network, optimiser={"lr": 0.123}, epochs=7)
    assert asked == usual.model_copy(
        update={"optimiser": usual.optimiser.model_copy(update={"lr": 0.123}), "epochs": 7}
    )


def test_a_set_that_learned_its_rate_is_trained_at_it(
    bench: Bench, made: ArtifactRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(bench, made, "minic3d", StudentParameters(learnt_lr=True, **SHORT))
    source = train.source_of(made.key, bench.runtime.store)
    monkeypatch.setitem(source.made.facts, "lr", 0.0123)
    request = TrainRequest(source=made.key, network="minic3d")
    assert train._student(request, source, "minic3d").optimiser.lr == 0.0123


def test_a_set_whose_variants_are_clips_is_trained_on_as_long_as_its_instances(
    bench: Bench, made: ArtifactRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = OWN.model_copy(update={"batch_size": 1})
    scored(bench, made, "minic3d", StudentParameters(optimiser=one, networks={}, epochs=2, least_steps=1))
    source = train.source_of(made.key, bench.runtime.store)
    monkeypatch.setitem(source.made.facts, VARIANTS, len(source.made))
    monkeypatch.setattr(train, "source_of", lambda *_: source)
    assert train.train(TrainRequest(source=made.key), bench.runtime, tmp_path)["steps"] == [1, 2]


def test_an_export_of_an_older_version_is_made_again(bench: Bench, made: ArtifactRef, tmp_path: Path) -> None:
    export_set(bench.store, made, tmp_path / "out", 8, "npz")
    assert DistilledSet.load(tmp_path / "out").classes == bench.clips.classes
    text = (tmp_path / "out" / EXPORT).read_text()
    (tmp_path / "out" / EXPORT).write_text(text.replace('"students"', '"student"'))
    with pytest.raises(RequestError, match="older vidistill: export the set again"):
        train.source_of(str(tmp_path / "out"), bench.runtime.store)


def test_a_set_of_online_labels_is_said_to_have_hard_ones_here(
    bench: Bench, made: ArtifactRef, caplog: pytest.LogCaptureFixture
) -> None:
    source = train.source_of(made.key, bench.runtime.store)
    request = TrainRequest(source=made.key, network="minic3d")
    assert train._recipe(request, replace(source, facts=source.facts | {"labels": "hard"})) == HARD
    assert not caplog.messages
    assert train._recipe(request, replace(source, facts=source.facts | {"labels": "online"})) == HARD
    assert "a teacher that is asked at every step" in caplog.text


SHAPE = {"frames": 2, "interval": 1, "size": 24}


def source(classes: Iterable[str] = CLASSES) -> train.Source:
    classes, clips_NTHWC = tuple(classes), np.zeros((0, 2, 24, 24, 3), np.uint8)
    return train.Source(DistilledSet(clips_NTHWC, np.zeros(0, np.int64), classes), SHAPE, None)


def test_test_videos_are_kept_from_gc_while_it_trains(bench: Bench, tmp_path: Path) -> None:
    whole = shutil.ignore_patterns("broken*")
    root = Path(shutil.copytree(Path(bench.runtime.data) / "train", tmp_path / "videos", ignore=whole))
    with train._decoded(root, IndexParameters(), source(), bench.runtime) as found:
        (lease,) = leases(bench.store)
        (read,) = (ref for ref in lease.needs if ref.kind == "clips")
        assert lease.needs >= {ref for refs in bench.store.manifest(read).inputs.values() for ref in refs}
        assert len(found) == len(list(root.rglob("*.mp4")))
    assert not leases(bench.store)


def test_a_test_folder_without_a_class_of_the_set_is_scored_by_the_others_numbers(bench: Bench, tmp_path: Path) -> None:
    root = Path(shutil.copytree(Path(bench.runtime.data) / "train", tmp_path / "videos",
                                ignore=shutil.ignore_patterns("broken*")))  # fmt: skip
    request = TrainRequest(source="a set", test=str(root))
    with train._tests(request, source(["a_first", *CLASSES]), bench.runtime) as (found, labels_N):
        named = [Path(video.path).parent.name for video in found.table.videos]
        assert [("a_first", *CLASSES)[label] for label in labels_N] == named


def test_a_class_that_the_set_lacks_is_said_before_anything_is_decoded(bench: Bench, tmp_path: Path) -> None:
    root = Path(shutil.copytree(Path(bench.runtime.data) / "train", tmp_path / "videos"))
    runtime = bench.runtime.model_copy(update={"store": str(tmp_path / "store")})
    missing, *others = CLASSES
    decoded = train._decoded(root, IndexParameters(), source(others), runtime)
    with pytest.raises(RequestError, match=f"The class '{missing}' of .* is none of the set: {', '.join(others)}"):
        decoded.__enter__()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("layout", ["Train and Test", "one video", "one class", "a table"])
def test_no_video_of_a_training_folder_is_a_test_video(bench: Bench, tmp_path: Path, layout: str) -> None:
    """And class folders alone are all for testing, however few."""
    data, root = Path(bench.runtime.data), tmp_path / "videos"
    if layout == "Train and Test":
        shutil.copytree(data / "train", root / "Train", ignore=shutil.ignore_patterns("broken*"))
        shutil.copytree(data / "test", root / "Test")
        expected = len(list((data / "test").rglob("*.mp4")))
    else:
        names = sorted(folder.name for folder in (data / "test").iterdir())[: 1 if layout == "one class" else None]
        for name in names:
            (root / name).mkdir(parents=True)
            shutil.copy(next((data / "test" / name).glob("*.mp4")), root / name)
        expected = len(names)
    if layout == "a table":
        rows = [f"{path.relative_to(root)},{path.parent.name},test" for path in root.rglob("*.mp4")]
        (root / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    with train._decoded(root, IndexParameters(), source(), bench.runtime) as found:
        assert len(found) == expected


@pytest.mark.parametrize("mosaic", [False, True])
def test_test_videos_that_the_set_is_made_of_are_said_and_counted(
    bench: Bench, made: ArtifactRef, mosaic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    scored(bench, made, "cnn_gru", StudentParameters(optimiser=OWN, **SHORT))
    found = train.source_of(made.key, bench.runtime.store)
    if mosaic:
        found = replace(found, made=replace(found.made, sources=(" + ".join(found.made.sources), "", "elsewhere.mp4")))
    monkeypatch.setattr(train, "source_of", lambda *_: found)
    facts = train.train(TrainRequest(source=made.key), bench.runtime, tmp_path)
    assert facts["test_clips_of_the_set"] == len(CLASSES)
    assert f"{len(CLASSES)} of the {len(bench.clips)} test videos are named as videos that the set" in caplog.text


def test_weights_are_written_before_they_are_scored(
    bench: Bench, made: ArtifactRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: Any, **__: Any) -> None:
        raise ArtifactNotFound("the test clips are gone")

    scored(bench, made, "r2plus1d_small", StudentParameters(**SHORT))
    monkeypatch.setattr(train, "predict_test", damaged)
    with pytest.raises(ArtifactNotFound):
        train.train(TrainRequest(source=made.key, network="r2plus1d_small"), bench.runtime, tmp_path / "out")
    assert (tmp_path / "out" / train.STUDENT).stat().st_size > 100_000
