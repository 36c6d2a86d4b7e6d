"""Seeded chaos: runs that share a store are killed, find its disk full, its endpoint stumbling and bytes flipped.

    python tests/chaos.py --minutes 120 --seed 0          # a summary in Markdown; exit code 1 if anything was lost

Each round draws a world (a small disk, or a bucket behind a stumbling proxy with a mirror a host), flips a byte of what
is there, lets one to three runs begin, and has things happen to them. Then a run that nothing happens to must end well;
everything that was committed and not flipped must be as it was, everything must be whole, and in the end the bytes must
be those of a run that nothing ever happened to. A run is what `vidistill run` does, without Prefect's server: index,
blocks, clips, teacher, TSGF, students and report, through the store, its locks, leases and checkpoints.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))

from faults import EXPERIMENT, manifests, whole
from object_storage import SETTINGS
from stumbling import Stumbling

from vidistill.storage.errors import VidistillError
from vidistill.storage.opening import open_store
from vidistill.storage.store import ArtifactRef, Store

EXPERIMENT = EXPERIMENT | {"index": {"layout": "folders"}}
DISK_BYTES, RUN_SECONDS = 24 << 20, 900
GOOD, FAILED = 0, 1


def work(location: str, data: str) -> None:
    """One run, without Prefect."""
    from vidistill.flows.execution import discard_damaged, find_videos
    from vidistill.flows.experiment import build
    from vidistill.flows.fronts import choose_front
    from vidistill.flows.parameters import Experiment
    from vidistill.storage.leases import leased
    from vidistill.tasks.stage import Runtime, run_job

    host = os.environ.get("CHAOS_HOST") or socket.gethostname()
    socket.gethostname = lambda: host
    experiment, runtime = Experiment.model_validate(EXPERIMENT | {"data": data}), Runtime(store=location, data=data)
    store = open_store(location)
    store.check_writable()
    table = find_videos(experiment, runtime)
    settled, front = choose_front(experiment, table, runtime)
    graph = build(settled, table, front, experiment)
    with leased(store, graph.jobs):
        for sentence in discard_damaged(graph, store):
            print(sentence, flush=True)
        left = dict(graph.jobs)
        while left:
            for ref, job in list(left.items()):
                if not any(need in left for needs in job.inputs.values() for need in needs):
                    run_job(job, runtime)
                    del left[ref]


@dataclass
class World:
    """A store, and what can happen to it."""

    name: str
    location: str
    folder: Path
    hosts: list[dict[str, str]]
    troubles: dict[str, Callable[[random.Random], Any]]
    store: Store
    flip: Callable[[random.Random, ArtifactRef], str]
    hurt: set[str] = field(default_factory=set)
    """What was flipped in the store, and may be made again, now or by the first host that fetches it."""


@dataclass
class Tally:
    rounds: int = 0
    seconds: float = 0.0
    events: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def page(self, seed: int) -> str:
        happened = ", ".join(f"{count} × {name}" for name, count in sorted(self.events.items()))
        ended = ", ".join(f"{count} {name}" for name, count in sorted(self.ends.items()))
        lines = [f"Seed {seed}, {self.seconds / 60:.1f} minutes, {self.rounds} rounds: {happened}.", f"Runs: {ended}.",
                 f"Wrong or lost: {len(self.wrong)}."]  # fmt: skip
        return "\n".join([*lines, *(f"- {line}" for line in self.wrong)])


@contextmanager
def small_disk(folder: Path) -> Iterator[World]:
    """A tmpfs of 24 MB."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], check=True)
    store = Store(disk / "store")

    def full(draw: random.Random) -> None:
        with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        time.sleep(draw.uniform(1, 6))
        (disk / "ballast").unlink(missing_ok=True)

    def flip(draw: random.Random, ref: ArtifactRef) -> str:
        return flipped(draw, store.root / ref.kind / ref.key)

    host = {"XDG_CACHE_HOME": str(folder / "cache")}
    try:
        yield World("disk", str(store.root), folder, [host, host], {"a full disk": full}, store, flip)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@contextmanager
def bucket(folder: Path) -> Iterator[World]:
    """An S3 endpoint behind a proxy that stumbles, and two hosts with mirrors of their own."""
    import boto3
    import moto.server
    import s3fs

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    s3fs.S3FileSystem.clear_instance_cache()  # they hold the endpoint of the world before
    server = moto.server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(SETTINGS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"})
    client = boto3.client("s3")
    client.create_bucket(Bucket="chaos")
    proxy = Stumbling(f"http://{host}:{port}")
    proxy.slow_seconds = 0.5
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    os.environ["AWS_ENDPOINT_URL"] = proxy.url
    os.environ["XDG_CACHE_HOME"] = str(folder / "here")
    store = open_store(f"s3://chaos/{folder.name}")  # its own: moto keeps a bucket as long as the process lives

    def stumbles(draw: random.Random) -> None:
        share, lot = draw.uniform(0.05, 0.4), random.Random(draw.random())
        faults = {"GET": ["500", "503", "half", "short", "slow"], "PUT": ["500", "503", "slow", "half"]}

        def fault(method: str, path: str) -> str | None:
            found = lot.choice(faults.get(method, ["503"])) if lot.random() < share else None
            return "503" if found in {"half", "short"} and "list-type" in path else found

        proxy.fault = fault
        time.sleep(draw.uniform(2, 10))
        proxy.fault = lambda method, path: None

    def flip(draw: random.Random, ref: ArtifactRef) -> str:
        """In the bucket, or in a host's mirror."""
        mirrored = [
            place for place in folder.glob(f"mirror*/vidistill/mirror/*/{ref.kind}/{ref.key}") if place.is_dir()
        ]
        if mirrored and draw.random() < 0.5:
            flipped(draw, draw.choice(mirrored))
            return ""  # the bucket's is whole: nothing is to be made again
        prefix = f"{folder.name}/{ref.kind}/{ref.key}/"
        listed = client.list_objects_v2(Bucket="chaos", Prefix=prefix)["Contents"]
        key = draw.choice(sorted(one["Key"] for one in listed if one["Size"]))
        content = bytearray(client.get_object(Bucket="chaos", Key=key)["Body"].read())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        client.put_object(Bucket="chaos", Key=key, Body=bytes(content))
        return str(ref)

    hosts = [{"XDG_CACHE_HOME": str(folder / f"mirror{name}"), "CHAOS_HOST": name} for name in ("a", "b")]
    try:
        yield World("bucket", store.location, folder, hosts, {"a stumbling store": stumbles}, store, flip)
    finally:
        proxy.shutdown()
        server.stop()


def flipped(draw: random.Random, place: Path) -> str:
    """Flip a bit of a file of an artifact."""
    path = draw.choice(sorted(path for path in place.rglob("*") if path.is_file() and path.stat().st_size))
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))
    return f"{place.parent.name}/{place.name}"


def begin(world: World, data: Path, host: dict[str, str], number: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--work", world.location, str(data)]
    with (world.folder / f"said{number}").open("wb") as said:
        env = os.environ | host | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=env, stdout=said, stderr=said, start_new_session=True)


def one_round(world: World, data: Path, expected: dict[ArtifactRef, str], draw: random.Random, tally: Tally) -> None:
    """Flip, run, trouble, run again, look."""
    before = manifests(world.store)
    if before and draw.random() < 0.8:
        world.hurt.add(world.flip(draw, draw.choice(sorted(before, key=str))))
        tally.events["a flipped bit"] += 1
    runs = [
        begin(world, data, host, number)
        for number, host in enumerate(draw.choices(world.hosts, k=draw.choice([1, 2, 2, 3])))
    ]
    tally.events["runs at once"] += len(runs) > 1
    for _ in range(draw.randrange(1, 4)):
        time.sleep(draw.expovariate(1 / 12))
        alive = [run for run in runs if run.poll() is None]
        if alive and draw.random() < 0.5:
            os.killpg(draw.choice(alive).pid, signal.SIGKILL)
            tally.events["SIGKILL"] += 1
        else:
            name, trouble = draw.choice(sorted(world.troubles.items()))
            trouble(draw)
            tally.events[name] += 1
    for number, run in enumerate(runs):
        ended(world, run, number, tally)
    last = begin(world, data, world.hosts[0], 9)
    if ended(world, last, 9, tally) != GOOD:
        tally.wrong.append(f"{world.name}: a run that nothing happened to failed: {said(world, 9)}")
    look(world, before, expected, tally)


def ended(world: World, run: subprocess.Popen[bytes], number: int, tally: Tally) -> int:
    try:
        code = run.wait(timeout=RUN_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        tally.wrong.append(f"{world.name}: a run hung: {said(world, number)}")
        return run.wait()
    tally.ends[{GOOD: "ended well", FAILED: "failed with a sentence"}.get(code, "killed")] += 1
    if code == FAILED and "Traceback" in (world.folder / f"said{number}").read_text():
        tally.wrong.append(f"{world.name}: a traceback: {said(world, number)}")
    return code


def said(world: World, number: int) -> str:
    return " ".join((world.folder / f"said{number}").read_text().split())[-600:]


def look(world: World, before: dict[ArtifactRef, bytes], expected: dict[ArtifactRef, str], tally: Tally) -> None:
    """After the last run everything is there, whole, with the right bytes, and what was there before is as it was."""
    after = manifests(world.store)
    for ref, content in before.items():
        if after.get(ref) != content and str(ref) not in world.hurt:
            tally.wrong.append(f"{world.name}: {ref} was committed and is {'another' if ref in after else 'gone'}")
    for ref in after:
        problem = world.store.problem(ref, thorough=True)
        if problem is not None:
            tally.wrong.append(f"{world.name}: {ref}: {problem}")
    found = whole(world.store)
    if found != expected:
        odd = sorted(str(ref) for ref in expected.keys() | found.keys() if expected.get(ref) != found.get(ref))
        tally.wrong.append(f"{world.name}: not the bytes of an unbroken run: {', '.join(odd)}")
    if left := [str(ref) for ref in world.store.refs() if ref.kind.endswith("-checkpoint")]:
        tally.wrong.append(f"{world.name}: checkpoints stay: {', '.join(left)}")


def chaos(minutes: float, seed: int, folder: Path) -> Tally:
    """Rounds until the time is up; a world that is complete is begun anew now and then."""
    from method_contract import sprite_videos

    draw, tally, start = random.Random(seed), Tally(), time.monotonic()
    data = sprite_videos(folder / "data", folder / "rendered")
    plain = Store(folder / "plain")
    unbroken = World(
        "plain", str(plain.root), folder, [{"XDG_CACHE_HOME": str(folder / "cache")}], {}, plain, lambda *_: ""
    )
    if ended(unbroken, begin(unbroken, data, unbroken.hosts[0], 0), 0, tally) != GOOD:
        raise SystemExit(f"the unbroken run failed: {said(unbroken, 0)}")
    expected = whole(plain)
    makers: list[Callable[[Path], Any]] = [small_disk, bucket]
    for number in count():
        if time.monotonic() - start > 60 * minutes:
            break
        place = folder / f"world{number}"
        place.mkdir()
        with ExitStack() as stack:
            world = stack.enter_context(makers[number % len(makers)](place))
            for _ in range(draw.choice([2, 3, 4])):
                one_round(world, data, expected, draw, tally)
                tally.rounds += 1
                wrong = " · ".join(tally.wrong) or "nothing"
                print(f"{time.monotonic() - start:6.0f} s  {tally.rounds} rounds, wrong: {wrong}", flush=True)
        shutil.rmtree(place, ignore_errors=True)
    tally.seconds = time.monotonic() - start
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=2, metavar=("STORE", "DATA"), help="one run; for itself")
    given = parser.parse_args()
    if given.work:
        try:
            work(*given.work)
        except VidistillError as error:
            sys.exit(f"{error}")
        return
    with tempfile.TemporaryDirectory() as folder:
        tally = chaos(given.minutes, given.seed, Path(folder))
    print(tally.page(given.seed))
    sys.exit(bool(tally.wrong))


if __name__ == "__main__":
    main()
