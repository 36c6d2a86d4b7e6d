"""Accuracy, edit and F1@k against references straight from their definitions, and cases worked out by hand."""

from __future__ import annotations

from functools import cache
from itertools import groupby

import numpy as np
import pytest

from vidistill.tasks.segment.metrics import edit_score, hits_at, score_videos, segments_of


def labels(words: str) -> np.ndarray:
    """`aab` is three frames of the classes 0, 0 and 1."""
    return np.array([ord(letter) - ord("a") for letter in words], dtype=np.int64)


def runs(words: str, background: str) -> list[tuple[str, frozenset[int]]]:
    """Each run of a letter with the set of its frames."""
    found, first = [], 0
    for letter, own in groupby(words):
        many = len(list(own))
        found.append((letter, frozenset(range(first, first + many))))
        first += many
    return [run for run in found if run[0] not in background]


def edit_by_recursion(one: str, other: str) -> float:
    """The least number of insertions, deletions and changes that make one word another, tried out."""

    @cache
    def distance(left: str, right: str) -> int:
        if not left or not right:
            return len(left) + len(right)
        if left[0] == right[0]:
            return distance(left[1:], right[1:])
        return 1 + min(distance(left[1:], right), distance(left, right[1:]), distance(left[1:], right[1:]))

    longest = max(len(one), len(other))
    return 1 - distance(one, other) / longest if longest else 1.0


def counts_by_sets(found: str, true: str, overlap: float, background: str) -> tuple[int, int, int]:
    """True positives, false positives and false negatives, by the frames that two segments share."""
    there = runs(true, background)
    hit = [False] * len(there)
    positives = false = 0
    for letter, frames in runs(found, background):
        shares = [len(frames & other) / len(frames | other) if letter == known else 0.0 for known, other in there]
        best = max(range(len(shares)), key=shares.__getitem__, default=None)
        if best is not None and shares[best] >= overlap and not hit[best]:
            positives, hit[best] = positives + 1, True
        else:
            false += 1
    return positives, false, hit.count(False)


def reference(found: list[str], true: list[str], background: str) -> tuple[float, ...]:
    right = [
        one == other for own, known in zip(found, true, strict=True) for one, other in zip(own, known, strict=True)
    ]
    words = [["".join(letter for letter, _ in runs(side, background)) for side in pair]
             for pair in zip(found, true, strict=True)]  # fmt: skip
    edits = [edit_by_recursion(*pair) for pair in words]
    f1 = []
    for overlap in (0.1, 0.25, 0.5):
        counted = [counts_by_sets(own, known, overlap, background) for own, known in zip(found, true, strict=True)]
        tp, fp, fn = map(sum, zip(*counted, strict=True))
        precision, recall = tp / (tp + fp), tp / (tp + fn)
        f1.append(2 * precision * recall / (precision + recall) if tp else 0.0)
    return sum(right) / len(right), sum(edits) / len(edits), *f1


def stretched(random: np.random.Generator, frames: int, longest: int) -> str:
    """Letters that stay for a while."""
    word = ""
    while len(word) < frames:
        word += "abcd"[random.integers(4)] * int(random.integers(1, longest))
    return word[:frames]


@pytest.mark.parametrize("background", ["", "d"])
@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_the_definitions(seed: int, background: str) -> None:
    random = np.random.default_rng(seed)
    true = [stretched(random, int(random.integers(20, 60)), 12) for _ in range(3)]
    found = []
    for word in true:  # mostly right, with frames that are not, and a shift
        noise = stretched(random, len(word), 5)
        shifted = word[-2:] + word[:-2]
        found.append("".join(np.where(random.random(len(word)) < 0.8, list(shifted), list(noise))))
    score = score_videos([labels(word) for word in found], [labels(word) for word in true], [3] if background else [])
    expected = reference(found, true, background)
    assert (score.accuracy, score.edit, *score.f1) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected[2] < 1  # the case tells something


def test_a_video_by_hand() -> None:
    """Truth aaaa bbbb cc, found aaab bbba ac: 7 of 10 frames; orders abc and abac, one insertion of four."""
    true, found = labels("aaaabbbbcc"), labels("aaabbbbaac")
    score = score_videos([found], [true])
    assert score.accuracy == pytest.approx(0.7)
    assert score.edit == pytest.approx(1 - 1 / 4)
    # a: 3 of 4 frames, b: 3 of 5, the second a: none, c: 1 of 2 — all hits at 50 %, one false alarm, no miss
    assert score.f1 == pytest.approx((2 * 3 / (2 * 3 + 1),) * 3)


def test_segments_are_runs() -> None:
    found = segments_of(labels("aabbba"))
    assert [(one.label, one.start, one.end) for one in found] == [(0, 0, 2), (1, 2, 5), (0, 5, 6)]
    assert segments_of(labels("")) == []


def test_overlaps_at_the_threshold_count_and_below_do_not() -> None:
    true = segments_of(labels("aaaabbbbbb"))  # an a of 4 frames
    half = segments_of(labels("aabbbbbbbb"))  # of which 2 are found: a half
    assert [hits_at(half, true, overlap) for overlap in (0.5, 0.51)] == [2, 1]


def test_a_true_segment_is_found_once() -> None:
    """Over-segmentation: both halves ask for the one a, the second is a false alarm."""
    true, found = labels("aaaaaaaaaa"), labels("aaaaabaaaa")
    score = score_videos([found], [true])
    assert score.f1[0] == pytest.approx(2 * 1 / (2 * 1 + 2))
    assert score.f1[2] == pytest.approx(2 * 1 / (2 * 1 + 2))
    assert score.edit == pytest.approx(1 - 2 / 3)


def test_there_is_no_second_choice() -> None:
    """A segment whose best match is taken does not get another that it overlaps enough, too."""
    true = segments_of(labels("aaaaaabaaa"))  # a of 6, then a of 3
    found = segments_of(labels("aaabaaaaaa"))  # a of 3, then a of 6 over both: 2 of 10 shared with the first, 3 of 6
    assert hits_at(found, true, 0.1) == 2
    greedy = segments_of(
        labels("aabaaaaaab")
    )  # the second a shares 3 of 9 with the first true a, 2 of 7 with the other
    assert hits_at(greedy, true, 0.1) == 1


def test_background_makes_no_segments_and_counts_as_frames() -> None:
    true, found = labels("ddaaadd"), labels("aaaaaaa")
    score = score_videos([found], [true], background=[3])
    assert score.accuracy == pytest.approx(3 / 7)
    assert score.edit == 1.0
    assert score.f1 == pytest.approx((1.0, 1.0, 0.0))
    nothing = score_videos([labels("dd")], [labels("dd")], background=[3])
    assert (nothing.edit, nothing.f1) == (1.0, (1.0, 1.0, 1.0))
    assert score_videos([labels("ab")], [labels("dd")], background=[3]).f1 == (0.0, 0.0, 0.0)


def test_frames_and_segments_are_pooled_over_videos_and_edits_are_not() -> None:
    true, found = [labels("aaaaaaaa"), labels("bc")], [labels("aaaaaaaa"), labels("aa")]
    score = score_videos(found, true)
    assert score.accuracy == pytest.approx(8 / 10)
    assert score.edit == pytest.approx((1 + 0) / 2)
    assert score.f1 == pytest.approx((2 * 1 / (2 + 3),) * 3)


def test_the_distance_counts_insertions_deletions_and_changes() -> None:
    """kitten and sitting, which everybody knows to be three apart."""
    one, other = (segments_of(np.array([ord(letter) for letter in word])) for word in ("kiten", "siting"))
    assert edit_score(one, other) == pytest.approx(1 - 3 / 6)  # tt is one segment
    assert edit_score(other, one) == pytest.approx(1 - 3 / 6)
    assert edit_score([], one) == 0.0
