from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from vidistill.storage.distilled import DistilledSet, joined

CLASSES = ("walk", "run", "jump")


def made(labels=(0, 1, 2), logits=True, extras=True, seed=0) -> DistilledSet:
    rng = np.random.default_rng(seed)
    n = len(labels)
    return DistilledSet(
        clips_NTHWC=rng.integers(0, 256, (n, 2, 8, 8, 3), dtype=np.uint8),
        labels_N=np.array(labels, dtype=np.int64),
        classes=CLASSES,
        logits_NK=rng.standard_normal((n, len(CLASSES))).astype(np.float32) if logits else None,
        sources=tuple(f"{label}/{seed}-{row}.avi" for row, label in enumerate(labels)),
        facts={"features": "teacher", "nested": {"a": [1, 2]}},
        extras={"saliency": rng.random((n, 2)).astype(np.float32)} if extras else {},
    )


def assert_same(one: DistilledSet, other: DistilledSet) -> None:
    for field in dataclasses.fields(DistilledSet):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        elif field.name == "extras":
            assert left.keys() == right.keys()
            for name, array in left.items():
                np.testing.assert_array_equal(array, right[name])
        else:
            assert left == right


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("extras", [False, True])
def test_a_set_reads_back_as_it_was(tmp_path, logits, extras):
    before = made(logits=logits, extras=extras)
    before.save(tmp_path)
    assert_same(DistilledSet.load(tmp_path), before)


def test_the_same_set_is_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made().save(tmp_path / name)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [(tmp_path / "a" / file).read_bytes() for file in files] == [
        (tmp_path / "b" / file).read_bytes() for file in files
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clips_NTHWC": np.zeros((3, 2, 8, 8, 3), dtype=np.float32)}, r"uint8 \(3, T, H, W, 3\).*got float32"),
        ({"clips_NTHWC": np.zeros((2, 2, 8, 8, 3), dtype=np.uint8)}, r"one a label; got uint8 \(2, 2, 8, 8, 3\)"),
        ({"clips_NTHWC": np.zeros((3, 8, 8, 3), dtype=np.uint8)}, r"got uint8 \(3, 8, 8, 3\)"),
        ({"clips_NTHWC": np.zeros((3, 2, 8, 8, 1), dtype=np.uint8)}, r"got uint8 \(3, 2, 8, 8, 1\)"),
        ({"clips_NTHWC": [1, 2, 3]}, r"one a label; got a list"),
        ({"labels_N": [0, 1, 2]}, r"labels must be an array \(N,\) of whole numbers; got a list"),
        ({"labels_N": np.array([0.0, 1.0, 2.0])}, r"whole numbers; got float64 \(3,\)"),
        ({"labels_N": np.array([0, 1, 3])}, r"labels must lie in 0…2; got 0…3"),
        ({"labels_N": np.array([-1, 1, 2])}, r"got -1…2"),
        ({"logits_NK": np.zeros((3, 2), dtype=np.float32)}, r"logits must have shape \(3, 3\); got \(3, 2\)"),
        ({"logits_NK": np.zeros((3, 3))}, r"logits must be float32 \(3, 3\); got float64 \(3, 3\)"),
    ],
)
def test_a_set_that_does_not_fit_together_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(made(), **change)


def test_with_changes_one_thing():
    before = made()
    logits_NK = np.ones((3, 3), dtype=np.float32)
    assert_same(before.with_logits(logits_NK).with_logits(before.logits_NK), before)
    np.testing.assert_array_equal(before.with_logits(logits_NK).logits_NK, logits_NK)
    assert (
        before.with_clips(255 - before.clips_NTHWC).clips_NTHWC[0, 0, 0, 0, 0]
        == 255 - before.clips_NTHWC[0, 0, 0, 0, 0]
    )


def test_variants_that_no_form_makes_are_not_dropped(tmp_path):
    plain = made((0, 1))
    with pytest.raises(ValueError, match="variants are kept by a form that makes them"):
        replace(plain, others_VNTHWC=plain.clips_NTHWC[None]).save(tmp_path)
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"variants must be uint8 \(V, 2, T, H, W, 3\)"):
        replace(plain, others_VNTHWC=plain.clips_NTHWC)


def test_parts_are_joined_in_class_order():
    parts = [made((2, 2), seed=1), made((0, 1, 0), seed=2)]
    whole = joined(parts)
    assert whole.labels_N.tolist() == [0, 0, 1, 2, 2]
    assert whole.sources == ("0/2-0.avi", "0/2-2.avi", "1/2-1.avi", "2/1-0.avi", "2/1-1.avi")
    for field in ("clips_NTHWC", "logits_NK"):
        expected = [getattr(parts[1], field)[[0, 2, 1]], getattr(parts[0], field)]
        np.testing.assert_array_equal(getattr(whole, field), np.concatenate(expected))
    np.testing.assert_array_equal(whole.extras["saliency"][3:], parts[0].extras["saliency"])
    assert whole.facts == {"parts": [part.facts for part in parts]}
    assert joined(parts[:1]) is parts[0]


def test_parts_of_the_same_steps_have_one_curve_and_say_what_each_says():
    curves = [{"steps": [5, 10], "loss": [4.0, 2.0], "mark": "few"}, {"steps": [5, 10], "loss": [2.0, 1.0]}]
    parts = [replace(made((label,), seed=label), facts=facts) for label, facts in enumerate(curves)]
    assert joined(parts).facts == {"parts": curves, "steps": [5, 10], "loss": [3.0, 1.5], "mark": "few"}
    parts[1].facts["steps"] = [5, 9]
    assert joined(parts).facts.keys() == {"parts", "mark"}


def test_parts_without_logits_are_joined_without():
    assert joined([made((0,), logits=False), made((1,), logits=False)]).logits_NK is None


@pytest.mark.parametrize("folder", ["set", "extra_disk/set"])
def test_training_bytes_are_those_of_clips_labels_and_logits(tmp_path, folder):
    place = tmp_path / folder
    place.mkdir(parents=True)
    made(extras=True).save(place)
    (place / "manifest.json").write_text("{}")
    own = [path for name in ("clips", "labels", "logits") for path in (place / name).rglob("*") if path.is_file()]
    expected = sum(path.stat().st_size for path in [*own, place / "zarr.json"])
    assert DistilledSet.training_bytes(place) == expected > made().clips_NTHWC.nbytes
