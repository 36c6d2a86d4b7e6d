"""Why students of some sets name few classes: the sets of a store, changed one by one, and what students then name.

    python tests/benchmarks/named_classes.py --store STORE

Each set of one network that the store has scores of, but for those with a teacher online, is trained on again, as it
is and in three forms: its motion (what is left of a clip when its mean over time is gone) as strong as that of the
real clips, its frames averaged over three in time, and over 3×3 pixels, both with their motion made as strong again.
A set that learned its labels is also trained on with the labels of its classes, and with its own in equal shares of
all classes; the shares are said, and how the students' mean logits go with them. Of each student: top-1, the
perplexity of its answers (10 where it names ten classes equally often), and top-1 where every class's logits are
standardised over the test clips, which needs no label of theirs. Run it on a store whose scores are of a held-out
fifth.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.opening import open_store
from vidistill.storage.store import Manifest, Store
from vidistill.tasks.learning import evaluate, streams, training
from vidistill.tasks.learning.training import Device, Order
from vidistill.tasks.report.origin import made_by
from vidistill.tasks.stage import Runtime

Floats = NDArray[np.float32]
Change = Callable[[Floats], Floats]


def motion(x_NTHWC: Floats) -> Floats:
    return x_NTHWC - x_NTHWC.mean(1, keepdims=True)


def strength(x_NTHWC: Floats) -> float:
    return float(motion(x_NTHWC).std())


def as_strong(x_NTHWC: Floats, wanted: float) -> Floats:
    return x_NTHWC.mean(1, keepdims=True) + wanted / strength(x_NTHWC) * motion(x_NTHWC)


def flicker(x_NTHWC: Floats) -> float:
    """Energy of the differences of neighbouring frames by twice that of the motion: 1 for noise, 0 for slow changes."""
    return float((np.diff(x_NTHWC, axis=1) ** 2).mean() / (2 * (motion(x_NTHWC) ** 2).mean()))


def smoothed(x_NTHWC: Floats) -> Floats:
    padded = np.concatenate([x_NTHWC[:, :1], x_NTHWC, x_NTHWC[:, -1:]], 1)
    return (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3


def blurred(x_NTHWC: Floats) -> Floats:
    frames_XCHW = torch.from_numpy(x_NTHWC).flatten(0, 1).permute(0, 3, 1, 2)
    mean_XCHW = F.avg_pool2d(F.pad(frames_XCHW, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return mean_XCHW.permute(0, 2, 3, 1).reshape(x_NTHWC.shape).numpy()


def logits(manifest: Manifest, clips: Clips, test: Clips, distilled: DistilledSet, device: Device) -> torch.Tensor:
    """Of the test clips, by a student trained as the score's was."""
    asked = evaluate.EvaluateParameters.model_validate(manifest.parameters)
    student = evaluate.at_its_rate(asked.student, distilled.facts)
    seed = training.role_seed(asked.seed, streams.STUDENT_WEIGHTS)
    network = training.build_network(asked.network, len(clips.classes), clips.shape_THWC, seed)
    order = Order(len(distilled), student.optimiser.batch_size, seed)
    draw = evaluate.DistilledBatches(distilled, clips.table, asked.recipe, order, device, None, student)
    training.train(
        network, draw, student.steps(order.n), student.optimiser, device, seed=seed, average=student.average,
        temperature=1.0 if asked.recipe.kind == "hard" else asked.recipe.temperature,
    )  # fmt: skip
    return evaluate.predict_test(network, test, device)


def in_equal_shares(logits_NK: Floats) -> Floats:
    """Labels nearest to these of which every class has as much (Sinkhorn), as log probabilities."""
    for _ in range(100):
        logits_NK = logits_NK - np.logaddexp.reduce(logits_NK, 0)
        logits_NK = logits_NK - np.logaddexp.reduce(logits_NK, 1)[:, None]
    return logits_NK


def described(logits_NK: torch.Tensor, labels_N: NDArray[np.int64]) -> str:
    share_K = torch.bincount(logits_NK.argmax(1), minlength=logits_NK.shape[1]) / len(logits_NK)
    named = torch.special.entr(share_K).sum().exp()
    standard_NK = (logits_NK - logits_NK.mean(0)) / logits_NK.std(0)
    plain, standardised = (evaluate.score(values, labels_N) for values in (logits_NK, standard_NK))
    told = [f"top-1 {plain['top1']:6.1%}", f"AUC {plain['auc']:.3f}", f"names {named:4.1f}"]
    return ", ".join([*told, f"standardised {standardised['top1']:6.1%}"])


def examine(store: Store, manifest: Manifest, device: Device) -> None:
    clips, test = (Clips(store, manifest.inputs[role][0]) for role in ("train", "test"))
    real_NTHWC = clips.read(range(len(clips))).astype(np.float32)
    ref = manifest.inputs["distilled"][0]
    kept = DistilledSet.load(store.folder(ref))
    x_NTHWC = kept.clips_NTHWC.astype(np.float32)
    *_, made = made_by(store, ref)
    own = made.parameters
    name = f"{own['method']} {own['options'].get('iterations', '')} {manifest.parameters['recipe']['labels']}"
    (own_strength, wanted), (own_flicker, real_flicker) = ((of(x_NTHWC), of(real_NTHWC)) for of in (strength, flicker))
    print(f"{name} seed {own['seed']}: motion of {own_strength:.2f} levels (real {wanted:.2f}),"
          f" flicker {own_flicker:.2f} (real {real_flicker:.2f})")  # fmt: skip
    changes: dict[str, Change] = {
        "as it is": lambda x: x,
        "as strong": lambda x: as_strong(x, wanted),
        "smoothed": lambda x: as_strong(smoothed(x), wanted),
        "blurred": lambda x: as_strong(blurred(x), wanted),
    }
    asked = {form: (manifest, changed(kept, change)) for form, change in changes.items()}
    shares_K = None
    if kept.logits_NK is not None and manifest.parameters["recipe"]["labels"] == "learned":
        shares_K = torch.from_numpy(kept.logits_NK).softmax(1).mean(0)
        print(f"  shares of the classes in its labels: {shares_K.min():.3f} to {shares_K.max():.3f}")
        hard = manifest.model_copy(update={"parameters": manifest.parameters | {"recipe": {"labels": "hard"}}})
        equal = dataclasses.replace(kept, logits_NK=in_equal_shares(kept.logits_NK))
        asked |= {"one-hot": (hard, kept), "in equal shares": (manifest, equal)}
    for form, (score, made) in asked.items():
        logits_NK = logits(score, clips, test, made, device)
        told = described(logits_NK, test.labels_N)
        if shares_K is not None:
            alike = torch.corrcoef(torch.stack([logits_NK.mean(0), shares_K.log()]))[0, 1]
            told += f", mean logits correlate with the log shares by {alike:.2f}"
        print(f"  {form:15s} {told}", flush=True)


def changed(kept: DistilledSet, change: Change) -> DistilledSet:
    """With the clips of all its variants changed."""
    every = [kept.clips_NTHWC, *(kept.others_VNTHWC if kept.others_VNTHWC is not None else ())]
    first, *others = (change(one.astype(np.float32)).round().clip(0, 255).astype(np.uint8) for one in every)
    return dataclasses.replace(kept, clips_NTHWC=first, others_VNTHWC=np.stack(others) if others else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--network", default="centred:minic3d")
    asked = parser.parse_args()
    store = open_store(asked.store)
    device = Device.on(Runtime(store=asked.store, threads=1), 1, "auto")
    scores = [entry.manifest for entry in store.survey("score").values() if entry.manifest]
    of_sets = [one for one in scores if one.parameters["network"] == asked.network and one.inputs.get("distilled")
               and not one.inputs.get("teacher")]  # fmt: skip
    for manifest in sorted(of_sets, key=lambda one: str(store.manifest(one.inputs["distilled"][0]).parameters)):
        examine(store, manifest, device)


if __name__ == "__main__":
    main()
