"""Whether the clips of pools of sprites keep a shape, as real ones do, judged by a network that names shapes.

    python tests/benchmarks/shapes_kept.py --store STORE

The network learns single frames of four fifths of 40 training scenes, as they are and through the pool's autoencoder,
so that softness tells it nothing; the last fifth are its control. Of the frames of the control and of each pool in the
store: how often two of a clip are named alike, how often two of any clips are, the share of clips with one name in all
frames, and the share of each name. The store holds pools of sprites alone, all of one seed; a network takes four
minutes.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vidistill.models.compute import keep_freed_memory
from vidistill.models.regions import resize
from vidistill.storage.clips import Clips
from vidistill.storage.opening import open_store
from vidistill.storage.pool import Pool, open_latent_array
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.crops.training import BOXES
from vidistill.tasks.generate.autoencoder import decoded, load_codec
from vidistill.tasks.learning.training import Device
from vidistill.tasks.report.pool import pool_facts
from vidistill.tasks.stage import Runtime
from vidistill.tasks.videos.sprites import SHAPES

STEPS, BATCH = 1500, 48
SCENES = 40
Clip = NDArray[np.uint8]


def built() -> nn.Module:
    layers: list[nn.Module] = []
    for ins, outs in ((3, 16), (16, 32), (32, 64), (64, 96)):
        for into in (ins, outs):
            layers += [nn.Conv2d(into, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(96, len(SHAPES)))


def to_input(frames_NHWC: Tensor) -> Tensor:
    return frames_NHWC.permute(0, 3, 1, 2).float() / 255 - 0.5


def trained(clips_FNTHWC: Tensor, shapes_N: Tensor) -> nn.Module:
    """Of N clips in F forms; frames are turned, mirrored, shifted and made lighter or darker, which keeps shapes."""
    torch.manual_seed(0)
    network = built()
    adamw = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    falls = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: min(1.0, 2 * (1 - step / STEPS)))
    forms, clips, frames = clips_FNTHWC.shape[:3]
    for _ in range(STEPS):
        rows = torch.randint(clips, (BATCH,))
        x_BCHW = to_input(clips_FNTHWC[torch.randint(forms, (BATCH,)), rows, torch.randint(frames, (BATCH,))])
        x_BCHW = x_BCHW.rot90(int(torch.randint(4, ())), (2, 3)).roll(torch.randint(-8, 9, (2,)).tolist(), (2, 3))
        x_BCHW = (x_BCHW if torch.rand(()) < 0.5 else x_BCHW.flip(3)) * (0.75 + 0.5 * torch.rand(()))
        F.cross_entropy(network(x_BCHW), shapes_N[rows]).backward()
        adamw.step()
        falls.step()
        adamw.zero_grad()
    return network.eval()


@torch.no_grad()
def named(network: nn.Module, clips_NTHWC: Clip) -> NDArray[np.int64]:
    names = [network(to_input(torch.from_numpy(clip_THWC))).argmax(1) for clip_THWC in clips_NTHWC]
    return torch.stack(names).numpy()


def described(names_NT: NDArray[np.int64]) -> str:
    n, t = names_NT.shape
    counts_NS = (names_NT[:, :, None] == np.arange(len(SHAPES))).sum(1)
    alike_N = ((counts_NS**2).sum(1) - t) / (t * t - t)
    spread = 1.96 * alike_N.std() / n**0.5
    all_S = counts_NS.sum(0)
    chance = ((all_S**2).sum() - (counts_NS**2).sum()) / ((n * t) ** 2 - n * t * t)
    shares = ", ".join(f"{shape} {share:.0%}" for shape, share in zip(SHAPES, all_S / (n * t), strict=True))
    whole = (counts_NS.max(1) == t).mean()
    return (f"named alike: two frames of a clip {alike_N.mean():.1%} ± {spread:.1%}, of two clips {chance:.1%},"
            f" all frames of {whole:.1%} of the clips; {shares}")  # fmt: skip


def judge(store: Store, ref: ArtifactRef, device: Device, judges: dict[ArtifactRef, nn.Module]) -> None:
    pool, manifest = Pool(store, ref), store.manifest(ref)
    latte = store.manifest(manifest.inputs["latte"][0])
    clips = Clips(store, manifest.inputs["clips"][0])
    (latents,) = latte.inputs["latents"]
    if latents not in judges:
        judges[latents] = judge_of(store, clips, manifest.inputs["autoencoder"][0], latents, device)
    facts = pool_facts(store, pool, ref)
    names_NT = named(judges[latents], pool.read(range(len(pool))))
    made = f"{facts['generator']} of {len(clips)} clips; {facts['sampler']}; {len(pool)} clips"
    print(f"{made}: {described(names_NT)}", flush=True)


def judge_of(store: Store, clips: Clips, codec: ArtifactRef, latents: ArtifactRef, device: Device) -> nn.Module:
    all_M = np.array([video.group for video in clips.table.videos])
    rows_N = np.flatnonzero(np.isin(all_M, np.unique(all_M)[:SCENES]))
    scenes_N, shapes_N = all_M[rows_N], shapes_of(store, clips)[rows_N]
    last_N = np.isin(scenes_N, np.unique(scenes_N)[-len(np.unique(scenes_N)) // 5 :])
    real_NTHWC = clips.read(rows_N)
    network, array = load_codec(store, codec, device), open_latent_array(store.folder(latents))
    latents_NCTHW = torch.from_numpy(np.stack([array[row][0] for row in rows_N]).astype(np.float32))
    soft_NTHWC = resize(decoded(network, latents_NCTHW, device), *real_NTHWC.shape[2:4])
    forms_FNTHWC = np.stack([real_NTHWC, soft_NTHWC])
    network = trained(torch.from_numpy(forms_FNTHWC[:, ~last_N]), shapes_N[~last_N])
    for form, clips_NTHWC in zip(("real", "through the autoencoder"), forms_FNTHWC[:, last_N], strict=True):
        names_NT = named(network, clips_NTHWC)
        right = (names_NT == shapes_N[last_N].numpy()[:, None]).mean()
        print(f"{form}, {last_N.sum()} clips, {right:.1%} of frames rightly: {described(names_NT)}", flush=True)
    return network


def shapes_of(store: Store, clips: Clips) -> Tensor:
    """By the boxes of the rendered set that has all of the clips; sets of one seed agree."""
    sets = [store.folder(entry.manifest.ref) for entry in store.survey("sprites").values() if entry.manifest]
    found = []
    for rendered in sets:
        boxes = json.loads((rendered / BOXES).read_text())
        if all(video.path in boxes for video in clips.table.videos):
            found.append([SHAPES.index(boxes[video.path]["shape"]) for video in clips.table.videos])
    if not found or any(shapes != found[0] for shapes in found):
        raise SystemExit(f"{len(found)} sets of sprites have these clips' names: keep those of one seed in the store.")
    return torch.tensor(found[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True)
    asked = parser.parse_args()
    keep_freed_memory()
    store = open_store(asked.store)
    device = Device.on(Runtime(store=asked.store, threads=1), 1, "auto")
    judges: dict[ArtifactRef, nn.Module] = {}
    for entry in store.survey("pool").values():
        if entry.manifest:
            judge(store, entry.manifest.ref, device, judges)


if __name__ == "__main__":
    main()
