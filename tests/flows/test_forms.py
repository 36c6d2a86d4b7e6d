"""The form of a deployment asks for what the command line would, and the files beside it are what Prefect reads."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import deployment
from prefect.utilities.callables import parameter_schema

from vidistill import deployments
from vidistill.flows import benchmark, distill, forms, pool, segment
from vidistill.flows.execution import deployed_places
from vidistill.flows.parameters import Experiment, PoolRequest, merged, stated
from vidistill.storage.errors import RequestError
from vidistill.tasks.stage import Runtime

FOLDER = Path(next(iter(deployments.__path__)))
POOLS = sorted(FOLDER.glob("pools/*.json"))
Asked = Callable[..., tuple[Any, Runtime, Path | None]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What a form's flow hands to the flow that does the work."""

    def call(flow: Any, **form: Any) -> tuple[Any, Runtime, Path | None]:
        taken: list[Any] = []
        for worker in (distill.distill, pool.pool):
            monkeypatch.setattr(worker, "fn", lambda *given: taken.extend(given))
        flow.fn(**form)
        return taken[0], taken[1], taken[2]

    return call


def test_the_form_is_the_command_line_s_experiment(asked: Asked) -> None:
    advanced = {"teacher": {"epochs": 3}, "runtime": {"store": "/here", "device": "cpu"}, "out": "~/there"}
    experiment, runtime, out = asked(
        forms.distill, data="videos", methods=["random", "tsgf"], ipc=[1, 5], seeds=2, front="rgb",
        students=["minic3d_bn"], runner="processes", advanced=advanced,
    )  # fmt: skip
    assert experiment == Experiment.model_validate(
        {"data": "videos", "cells": [{"method": "random"}, {"method": "tsgf"}], "ipc": (1, 5), "seeds": 2,
         "front": "rgb", "students": ("minic3d_bn",), "teacher": {"epochs": 3}}
    )  # fmt: skip
    assert (runtime.device, runtime.runner, out) == ("cpu", "processes", Path.home() / "there")
    assert runtime.store == "/here"


@pytest.mark.parametrize(("name", "given"), [("out", {"out": "there"}), ("runtime.store", {"runtime": {"store": "x"}})])
def test_places_in_the_run_s_own_folder_are_refused(name: str, given: dict[str, Any]) -> None:
    """Which a worker removes with all that is in it."""
    with pytest.raises(RequestError, match=f"advanced.{name} is .*, which would lie in the run's own folder"):
        forms.parted(given, "threads")
    assert forms.parted({"runtime": {"store": "s3://bucket/prefix"}}, "threads")[1].store == "s3://bucket/prefix"


def test_a_deployed_grid_writes_nothing_into_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "deployed")
    given: dict[str, Any] = {}
    monkeypatch.setitem(deployment.FIELDS, "parameters", lambda: given)
    for flow in (benchmark.benchmark, segment.segment):
        given.clear()
        with pytest.raises(RequestError, match="out is 'results', which would lie in the run's own folder"):
            flow.fn(None, None, Path("results"))  # type: ignore[arg-type]
        given["runtime"] = {"store": "kept"}
        with pytest.raises(RequestError, match=r"runtime\.store is 'kept', which would lie in the run's own folder"):
            flow.fn(None, None)  # type: ignore[arg-type]
    assert deployed_places(None, "~/results") == Path.home() / "results"


def test_a_relative_store_of_the_environment_is_refused_by_every_deployed_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDISTILL_STORE", "kept")
    with pytest.raises(RequestError, match="VIDISTILL_STORE is 'kept', which would lie in the run's own folder"):
        forms.parted({}, "threads")
    assert forms.parted({"runtime": {"store": "/here"}}, "threads")[1].store == "/here"


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ({"methods": ["random", "dm"], "kb": [2, 5]}, "sprites · random, dm · kb 2, 5"),
        ({"methods": ["random"], "advanced": {"cells": [{"method": "dm"}, {"method": "dm"}]}}, "sprites · dm"),
        ({"preset": "coded_rate"}, "sprites · coded_rate"),
        ({"preset": "coded_rate", "advanced": {"cells": [{"variant": "x"}, "dm"]}}, "sprites · coded_rate"),
        ({"preset": "coded_rate", "advanced": {"cells": None}}, "sprites · coded_rate"),
    ],
)
def test_a_run_is_called_by_the_methods_that_it_runs(
    form: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty: dict[str, Any] = {"data": "sprites", "preset": "", "methods": [], "ipc": [], "kb": [], "advanced": {}}
    monkeypatch.setattr(forms, "flow_run", SimpleNamespace(parameters=empty | form))
    assert forms.distill_name() == name


def test_a_runtime_that_is_no_group_of_parameters_is_a_sentence(asked: Asked) -> None:
    with pytest.raises(RequestError, match=r"advanced.runtime takes parameters by their names"):
        asked(forms.distill, data="videos", advanced={"runtime": "dask"})


def test_a_preset_is_changed_by_what_else_the_form_says(asked: Asked) -> None:
    plain = asked(forms.distill, preset="sprites")[0]
    assert plain == Experiment.model_validate(yaml.safe_load((FOLDER / "presets" / "sprites.yaml").read_text()))
    changed = asked(forms.distill, preset="sprites", seeds=1, advanced={"decode": {"views": 2}})[0]
    assert (changed.seeds, changed.decode.views, changed.decode.size) == (1, 2, 56)
    assert changed.cells == plain.cells


@pytest.mark.parametrize(("flow", "others"), [(forms.distill, "benchmark_sprites"), (forms.pool, "sprites")])
def test_each_preset_on_a_form_is_one_of_its_flow(asked: Asked, flow: Any, others: str) -> None:
    shown = parameter_schema(flow).properties["preset"]["enum"]
    assert others not in shown
    assert len(shown) > 4
    for preset in shown[1:]:
        assert asked(flow, preset=preset, data="videos")[0].data == "videos"


def test_the_pool_s_form(asked: Asked) -> None:
    request, runtime, _ = asked(forms.pool, data="sprites", clips=7, front="rgb")
    assert request == PoolRequest.model_validate({"data": "sprites", "pool": {"clips_a_class": 7}, "front": "rgb"})
    assert runtime.runner == "threads"


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"methods": ["random"]}, "Which videos"),
        ({"data": "sprites"}, "Which method"),
        ({"data": "sprites", "methods": ["random"], "advanced": {"teacher": {"epcohs": 1}}}, "epcohs"),
        ({"data": "sprites", "methods": ["random"], "advanced": {"runtime": {"cores": 1}}}, "cores"),
    ],
)
def test_a_wrong_form_is_one_sentence(asked: Asked, form: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        asked(forms.distill, **form)


def test_what_is_merged_says_nothing_by_none_and_leaves_its_parts_alone() -> None:
    plain = {"a": {"b": 1, "c": 2}, "d": 3}
    more = stated({"a": {"b": 4, "c": None}, "d": None, "e": {"f": None}})
    assert merged(plain, more) == {"a": {"b": 4, "c": 2}, "d": 3}
    assert plain == {"a": {"b": 1, "c": 2}, "d": 3}


# --- files ---------------------------------------------------------------------------------------------------------

WORKERS = {
    "process": "prefect.workers.process:ProcessJobConfiguration",
    "docker": "prefect_docker.worker:DockerWorkerJobConfiguration",
    "kubernetes": "prefect_kubernetes.worker:KubernetesWorkerJobConfiguration",
}


@pytest.mark.parametrize("path", POOLS, ids=lambda path: path.stem)
def test_a_pool_s_template_is_what_its_worker_reads(path: Path, prefect_server: None) -> None:
    module, _, name = WORKERS[path.stem].partition(":")
    try:
        configuration = getattr(importlib.import_module(module), name)
    except ImportError as error:
        pytest.skip(str(error))
    template = json.loads(path.read_text())
    assert set(template["job_configuration"]) <= set(configuration.model_fields)  # it drops what it does not know
    made = asyncio.run(configuration.from_template_and_values(template, {"env": {"VIDISTILL_STORE": "s3://b/p"}}))
    made.prepare_for_flow_run(FlowRun(name="videos · random · ipc 1", flow_id=uuid4()))
    assert made.env["VIDISTILL_STORE"] == "s3://b/p"
    assert made.command.endswith(("flow-run execute", "prefect.engine"))  # a container's, a process's
    assert "{{" not in made.model_dump_json()


@pytest.mark.parametrize("path", POOLS, ids=lambda path: path.stem)
def test_every_variable_of_a_template_is_used_and_described(path: Path) -> None:
    template = json.loads(path.read_text())
    used, known = json.dumps(template["job_configuration"]), template["variables"]["properties"]
    assert all(f"{{{{ {name} }}}}" in used for name in known)
    assert used.count("{{") >= len(known)
    assert all(one["title"] and one["description"] for one in known.values())


@pytest.mark.parametrize("name", ["automations.yaml", "notify.yaml"])
def test_the_server_takes_the_automations(name: str, prefect_server: None) -> None:
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.automations import AutomationCore

    text = (FOLDER / name).read_text().replace("BLOCK", "00000000-0000-4000-8000-000000000000")
    with get_client(sync_client=True) as client:
        for plain in yaml.safe_load(text)["automations"]:
            wanted = AutomationCore.model_validate(plain)
            assert wanted.enabled
            answer = client._client.post("/automations/", json=wanted.model_dump(mode="json"))
            assert answer.status_code == 201, answer.text
            client._client.delete(f"/automations/{answer.json()['id']}")


def test_compose_names_files_and_variables_that_are_there() -> None:
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"database", "server", "deploy", "worker", "objects", "bucket"}
    for service in services.values():
        assert "image" in service
        assert set(service.get("depends_on", ())) <= set(services)
        named = [volume.partition(":")[0] for volume in service.get("volumes", []) if not volume.startswith("$")]
        assert set(named) <= set(compose["volumes"])
    for name in ("prefect.yaml", "automations.yaml", "pools/process.json"):
        assert f"/src/deployments/{name}" in services["deploy"]["command"]
        assert (FOLDER / name).is_file()
    assert "inspect refresh/nightly" in services["deploy"]["command"], "a schedule that is switched on stays on"
    lasting = {"database", "server", "worker", "objects"}
    assert {name for name, service in services.items() if service.get("restart") == "unless-stopped"} == lasting
    assert services["server"]["ports"] == ["127.0.0.1:4200:4200"], "the server has no login"


def test_what_containers_remember_outlives_them() -> None:
    """In a folder that the image makes, so that a new volume there is its user's."""
    cache = "/home/vidistill/.cache"
    assert f"chown vidistill /store {cache}" in (FOLDER / "Dockerfile").read_text()
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    assert f"cache:{cache}" in compose["services"]["worker"]["volumes"]
    docker, kubernetes = (json.loads((FOLDER / f"pools/{name}.json").read_text()) for name in ("docker", "kubernetes"))
    assert f"vidistill-cache:{cache}" in docker["variables"]["properties"]["volumes"]["default"]
    pod = kubernetes["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    (mount,) = [one["name"] for one in pod["containers"][0]["volumeMounts"] if one["mountPath"] == cache]
    assert mount in {volume["name"] for volume in pod["volumes"]}


def test_students_and_a_front_of_one_s_own_go_to_advanced(asked: Asked) -> None:
    own = {"students": ["net.py:Net"], "front": "front.py:moving"}
    request = asked(forms.distill, data="videos", methods=["random"], front="rgb", advanced=own)[0]
    assert (request.students, request.front) == (("net.py:Net",), "front.py:moving")
    names = parameter_schema(forms.distill).model_dump()["properties"]["advanced"]["propertyNames"]["enum"]
    assert {*own} <= set(names)
    assert asked(forms.pool, data="videos", front="rgb", advanced={"front": "front.py:moving"})[0].front == own["front"]


def test_what_the_server_does_to_runs_by_itself_it_does_to_ours_alone() -> None:
    for one in yaml.safe_load((FOLDER / "automations.yaml").read_text())["automations"]:
        assert one["trigger"]["match_related"]["prefect.resource.id"] == "prefect.tag.vidistill", one["name"]
