"""What the report shows of a pool of generated clips that rows were chosen from: how it was made and how good it is.

Legend: N clips, T frames, H height, W width; clips are uint8 RGB.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from vidistill.storage.clips import Clips
from vidistill.storage.pool import LATENTS, Pool
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.generate.autoencoder import FACTS as AUTOENCODER_FACTS
from vidistill.tasks.generate.quality import Neighbour, load_quality
from vidistill.tasks.generate.sheet import SHOWN
from vidistill.tasks.learning.loop import CURVE
from vidistill.tasks.report.data import NeighbourShown, PoolShown
from vidistill.tasks.report.tables import duration

PICTURED_CLASSES = 10
CLOSEST = 4
"""So many of the clips that lie nearest to a training clip of all."""


def pools_shown(store: Store, refs: Iterable[ArtifactRef], qualities: Iterable[ArtifactRef]) -> list[PoolShown]:
    """Every pool among these artifacts, each with its quality where one of `qualities` was measured on it."""
    measured = {store.manifest(quality).inputs["pool"][0]: quality for quality in qualities}
    pools = sorted((ref for ref in refs if ref.kind == "pool"), key=str)
    return [_shown(store, ref, measured.get(ref)) for ref in pools]


def _shown(store: Store, ref: ArtifactRef, quality: ArtifactRef | None) -> PoolShown:
    pool, manifest = Pool(store, ref), store.manifest(ref)
    curve = json.loads((store.folder(manifest.inputs["latte"][0]) / CURVE).read_text())
    labels = range(min(PICTURED_CLASSES, len(pool.classes)))
    made = PoolShown(
        key=ref.key,
        facts=pool_facts(store, pool, ref),
        warnings=list(manifest.record["warnings"]),
        steps=curve["steps"],
        loss=curve["loss"],
        sheet=[(pool.classes[label], pool.read(pool.rows_of(label)[:SHOWN])) for label in labels],
        classes_left_out=len(pool.classes) - len(labels),
    )
    if quality is not None:
        _add_quality(made, store, pool, quality)
    return made


def pool_facts(store: Store, pool: Pool, ref: ArtifactRef) -> dict[str, str]:
    """How the pool was made, in words."""
    manifest = store.manifest(ref)
    latte, codec = (store.manifest(manifest.inputs[name][0]) for name in ("latte", "autoencoder"))
    codec_facts = json.loads((store.folder(codec.ref) / AUTOENCODER_FACTS).read_text())
    network, sampler = manifest.record["generator"], pool.facts["sampler"]
    chunks = ", then ".join(map(str, sampler.get("chunks", ())))
    start = f" from {network['pretrained']}" if network["pretrained"] else ""
    frames, height, width, _ = pool.shape_THWC
    sampling = sum(store.manifest(part).seconds for part in manifest.inputs[LATENTS])
    return {
        "clips": f"{len(pool)}, {pool.facts['clips_a_class']} a class, {frames} frames of {height}×{width}",
        "generator": f"Latte {network['size']}{start}, patches of {network['patch']}, {network['steps']} steps"
        + (" by Muon" if latte.parameters.get("muon_lr") else ""),
        "latents": "×".join(map(str, pool.shape_CTHW)),
        "sampler": f"{sampler['method']}, {sampler['steps']} steps, guidance {sampler['guidance']:g}"
        + (f", frames {chunks}" if chunks else ""),
        "seed": str(pool.facts["seed"]),
        "autoencoder’s error": f"{codec_facts['error']:.1f} levels of 255, {codec_facts['psnr']:.1f} dB",
        "time": f"autoencoder {duration(codec.seconds)}, Latte {duration(latte.seconds)}, clips {duration(sampling)}",
    }


def _add_quality(made: PoolShown, store: Store, pool: Pool, ref: ArtifactRef) -> None:
    found, clips = load_quality(store.folder(ref)), Clips(store, store.manifest(ref).inputs["clips"][0])
    made.quality = found.model_dump(exclude={"nearest", "accuracy_by_class"})
    made.accuracy_by_class = found.accuracy_by_class
    firsts = [found.nearest[pool.rows_of(label)[0]] for label in range(min(PICTURED_CLASSES, len(pool.classes)))]
    closest = sorted(found.nearest, key=lambda one: -one.correlation)[:CLOSEST]
    made.neighbours = {
        "The first clip of each class": _pairs(pool, clips, firsts),
        "The clips nearest to any training clip": _pairs(pool, clips, closest),
    }


def _pairs(pool: Pool, clips: Clips, neighbours: Sequence[Neighbour]) -> list[NeighbourShown]:
    return [
        NeighbourShown(
            class_name=pool.classes[int(pool.labels_N[one.row])],
            number=pool.index_of(one.row),
            nearest_class=clips.classes[int(clips.labels_N[one.train_row])],
            correlation=one.correlation,
            made_THWC=pool.read([one.row])[0],
            real_THWC=one.shown(clips),
        )
        for one in neighbours
    ]
