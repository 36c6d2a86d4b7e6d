"""A real S3 endpoint on loopback, for stores in object storage."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vidistill.storage.opening import open_store
from vidistill.storage.remote import RemoteStore
from vidistill.storage.store import ArtifactRef, Manifest, Store

SETTINGS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def s3() -> Iterator[Any]:
    """A client of an S3 endpoint that every process started from here finds too."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install vidistill[s3]")
    module = pytest.importorskip("moto.server", reason="moto[server] is not installed: pip install vidistill[dev]")
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SETTINGS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
            patch.setenv(name, value)
        yield boto3.client("s3")
    server.stop()


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"b{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def host(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Store]:
    """`host("a")` is the store as host a sees it: one bucket, a mirror of its own."""

    def store_of(name: str) -> Store:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        store = open_store(f"s3://{bucket}/some/store")
        assert isinstance(store, RemoteStore)
        assert store.root.is_relative_to(tmp_path / name)
        return store

    return store_of


FILES = {"clips/zarr.json": b"{}", "clips/c/0/0": bytes(range(256)) * 40, "empty": b"", "curve.json": b'{"loss": []}'}


def make(store: Store, key: str = "k", kind: str = "thing", files: dict[str, bytes] = FILES) -> ArtifactRef:
    manifest = Manifest(kind=kind, key=key, version=1, parameters={}, inputs={})
    with store.writing(manifest) as attempt:
        assert attempt is not None
        for name, content in files.items():
            (attempt.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (attempt.folder / name).write_bytes(content)
    return manifest.ref


def contents(store: Store, ref: ArtifactRef) -> dict[str, bytes]:
    folder = store.folder(ref)
    return {name: (folder / name).read_bytes() for name in store.manifest(ref).files}


def keys(s3: Any, bucket: str) -> list[str]:
    return sorted(found["Key"] for found in s3.list_objects_v2(Bucket=bucket).get("Contents", []))
