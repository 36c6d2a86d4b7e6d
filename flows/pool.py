"""The flow `pool`: from videos to generated clips that every selection method reads, made once."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from vidistill.flows.execution import found_videos, refuse_inside, run_graph
from vidistill.flows.fronts import choose_front
from vidistill.flows.own import with_own
from vidistill.flows.parameters import PoolRequest
from vidistill.flows.pools import build_pool
from vidistill.flows.runners import jobs_done_by
from vidistill.storage.files import copy_out, write_out
from vidistill.storage.opening import default_location, open_store
from vidistill.storage.pool import Pool
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.generate.quality import FACTS as QUALITY_FACTS
from vidistill.tasks.generate.quality import SHEET, in_words, load_quality
from vidistill.tasks.report.pool import pool_facts
from vidistill.tasks.stage import Runtime


@flow(name="pool")
def pool(request: PoolRequest, runtime: Runtime | None = None, out: Path | None = None) -> ArtifactRef:
    """Generate a pool of clips of a labelled video data set, or the part of it that the store lacks.

    Args:
        request: the data, the generator, the sampler and the clips a class.
        runtime: store, device, threads and time limits; the store of this user by default.
        out: a folder for pool.md, quality.json and sheet.png; the store alone where it is not given.

    Returns:
        The artifact of the pool's quality, whose input `pool` is the pool.
    """
    request, runtime = with_own(request, runtime or Runtime(store=default_location()))
    refuse_inside(request, runtime)
    with jobs_done_by(runtime):
        runtime, table = found_videos(request, runtime)
        request, _ = choose_front(request, table, runtime)
        graph = build_pool(request, table)
        run_graph(graph, runtime)
    publish(open_store(runtime.store), graph.last.ref, out)
    return graph.last.ref


def publish(store: Store, ref: ArtifactRef, out: Path | None) -> None:
    """Copy the pool's quality and contact sheet out of the store, and show them in the Prefect UI."""
    words, folder = described(store, ref), store.folder(ref)
    if out is not None:
        write_out(out, "pool.md", words.encode())
        copy_out(folder, (QUALITY_FACTS, SHEET), out)
    create_markdown_artifact(words, key="distill-pool", description=f"Pool {store.manifest(ref).inputs['pool'][0].key}")


def described(store: Store, ref: ArtifactRef) -> str:
    """A pool and its quality in Markdown."""
    pool_ref = store.manifest(ref).inputs["pool"][0]
    made, found = Pool(store, pool_ref), load_quality(store.folder(ref))
    apart, apart_real = in_words(found.fvd), in_words(found.fvd_real)
    lines = [
        f"**{len(made)} clips of {len(made.classes)} classes**",
        "",
        *(f"- {name}: {words}" for name, words in pool_facts(store, made, pool_ref).items()),
        f"- the teacher names the class of {found.accuracy:.1%}",
        f"- Fréchet distance in its features: {apart}; between halves of the real clips: {apart_real}",
        f"- correlation with the nearest training clip, median: {found.nearest_median:.2f}",
        f"- the same of a training clip with one of another group: {found.nearest_real:.2f}",
        f"- copies, more like a training clip than 99 % of these are: {found.copied:.1%}",
        f"- of training clips that went through the autoencoder, which are copies: {found.control:.1%}",
        *(f"- warning: {warning}" for warning in store.manifest(pool_ref).record["warnings"]),
    ]
    return "\n".join(lines) + "\n"
