"""Scores of a benchmark against what their definitions give by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from method_contract import Bench

from vidistill.storage.opening import open_store
from vidistill.tasks.report.data import FailedRow, Named, Row
from vidistill.tasks.report.gather import with_differences
from vidistill.tasks.report.naming import told_apart
from vidistill.tasks.report.plots import SHAPES, Series, bars_svg, class_gains, curve_svg, series_of, write_plots
from vidistill.tasks.report.scores import (
    CLASSES,
    CLIPS,
    EVERY_CLIP,
    accuracy_table,
    area,
    area_table,
    augmentation_robust,
    comparable,
    label_robust,
    motion_table,
    moving_halves,
    normalised,
    published,
    published_table,
    robust_table,
    scores_page,
)
from vidistill.tasks.report.tables import row_label
from vidistill.tasks.stage import run_job
from vidistill.tasks.videos.motion import motion_job, motion_of

BARE = "crop_scale 1.0"


def row(method: str, top1: float, **more: Any) -> Row:
    facts: dict[str, Any] = {
        "dataset": "miniucf", "split": "1", "protocol": "vidistill", "recipe": "hard", "method": method, "variant": "",
        "ipc": 1, "student": "minic3d", "labels": "hard", "top1_mean": top1, "top1_std": 0.01, "top5_mean": 0.9,
        "auc_mean": 0.5, "f1_mean": 0.5, "bytes": 4000, "seconds": 2.0, "peak_memory_bytes": 1, "flops": 1, "seeds": 3,
        "artifact": "a", "per_class": [top1, top1, 0.0, 2 * top1], "top1": [top1] * 3,
    }  # fmt: skip
    return Row.model_validate(facts | more)


SOFT = {"recipe": "soft", "labels": "soft"}
ROWS = [
    row("full", 0.6, ipc=None),
    row("random", 0.10), row("random", 0.2, **SOFT), row("random", 0.05, variant=BARE, training=BARE),
    row("dm", 0.15, difference_mean=0.05), row("dm", 0.32, difference_mean=0.12, **SOFT),
    row("dm", 0.09, variant=BARE, training=BARE),
]  # fmt: skip


def test_the_label_robust_score_is_dd_rankings() -> None:
    alpha = 0.5 * (0.32 - 0.2) - 0.5 * (0.6 - 0.15)
    expected = 100 * (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))
    assert label_robust(ROWS[4], ROWS) == pytest.approx(expected)
    assert label_robust(ROWS[4], ROWS[1:]) is None  # all clips are missing
    assert label_robust(ROWS[5], [ROWS[0], ROWS[2], ROWS[5]]) is None  # hard labels are missing
    assert (normalised(-1), normalised(1)) == (0, 100)


def test_random_clips_coded_are_the_measure_of_kilobytes_alone() -> None:
    coded = {"method": "coded", "variant": "random"}
    assert [row(top1=0.1, **more).is_random for more in (
        {"method": "random"}, coded | {"ipc": None, "kb": 5.0}, coded, {"method": "random", "variant": "coded"},
    )] == [True, True, False, False]  # fmt: skip


def test_the_augmentation_robust_score_is_dd_rankings() -> None:
    beta = 0.5 * (0.15 - 0.10) + 0.5 * (0.09 - 0.05)
    assert augmentation_robust(ROWS[4], ROWS) == pytest.approx(normalised(beta))
    assert augmentation_robust(ROWS[5], ROWS) is None  # its set has no row without crops
    assert augmentation_robust(ROWS[6], ROWS) is None
    longer = f"{BARE}, least_steps 900"
    others = [one.model_copy(update={"variant": longer, "training": longer} if one.training else {}) for one in ROWS]
    assert augmentation_robust(others[4], others) is None, "more differs than crops"


def test_a_method_without_crops_under_soft_labels_alone_has_its_augmentation_robust_score() -> None:
    bare = [row(name, top1, variant=BARE, training=BARE, **SOFT) for name, top1 in (("random", 0.1), ("dm", 0.2))]
    [_, dm] = robust_table([*ROWS[:3], *ROWS[4:6], *bare])
    assert dm[4] == f"{normalised(0.5 * (0.32 - 0.2) + 0.5 * (0.2 - 0.1)):.1f} (soft)"
    for rows in ([*ROWS, *bare], [*ROWS[:4], ROWS[5], ROWS[4], *bare, ROWS[6]]):  # whichever recipe comes first
        [_, dm] = robust_table(rows)
        assert dm[4] == f"{normalised(0.5 * (0.15 - 0.10) + 0.5 * (0.09 - 0.05)):.1f}"


def test_an_area_is_the_mean_height_over_the_logarithm() -> None:
    assert area([(1, 0.2), (100, 0.4)]) == pytest.approx(0.3)
    assert area([(100, 0.4), (1, 0.2), (10, 0.4)]) == pytest.approx((0.3 + 0.4) / 2)
    xs, ys = [1, 3, 8, 50], [0.1, 0.4, 0.3, 0.9]
    expected = np.trapezoid(ys, np.log(xs)) / np.log(50)
    assert area(zip(xs, ys, strict=True)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="two points"):
        area([(2, 0.1), (2, 0.3)])
    larger = row("dm", 0.35, ipc=5, bytes=40000)
    assert area_table([*ROWS, larger], 4)[1:] == [["DM", "hard", "minic3d", "1.0–10.0", "2", "25.0"]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": "vdsd"}, "yes"),
        ({}, "another protocol"),
        ({"protocol": "vdsd", "split": "2"}, "split 2"),
        ({"protocol": "vdsd", "student": "centred:minic3d"}, "minic3d in the paper"),
        ({"protocol": "vdsd", "student": "c3d"}, "minic3d in the paper"),
        ({"protocol": "vdsd", **SOFT}, "hard labels in the paper"),
        ({"protocol": "vdsd", "variant": "mine"}, "another variant"),
        ({"protocol": "vdsd", "clip": "8 frames of 56×56"}, "16 frames of 112×112 in the paper"),
        ({"protocol": "vdsd", "network": "rgb:minic3d"}, "yes"),
        ({"protocol": "vdsd", "network": "convnet2d"}, "yes"),
        ({"protocol": "vdsd", "network": "rgb:r2plus1d_small_in"}, "made with r2plus1d_small_in"),
        ({"protocol": "vdsd", "layout": "folders"}, "split by folders"),
        ({"protocol": "vdsd", "classes": 10}, "50 classes in the paper"),
    ],
)
def test_published_numbers_are_compared_with_their_like_alone(changes: dict[str, Any], said: str) -> None:
    [theirs] = [one for one in published() if (one["dataset"], one["method"], one["ipc"]) == ("miniucf", "dm", "1")]
    data = {name: changes.pop(name) for name in ("clip", "layout", "classes") if name in changes}
    assert comparable(row("dm", 0.15, **changes), theirs, told(**data)) == said


def told(clip: str = "16 frames of 112×112", layout: str = "csv", classes: int = 50) -> dict[str, Any]:
    """What a report's JSON says of its data."""
    return {"dataset": {"dataset": "MiniUCF", "clip": clip, "layout": layout}, "classes": ["a"] * classes}


@pytest.mark.parametrize(("method", "recipe", "said"), [
    ("frepo", "learned", "AdamW in the paper"),
    ("frepo", "hard", "learned labels in the paper, AdamW in the paper"),
    ("frepo", "soft", "learned labels in the paper, AdamW in the paper"),
    ("frepo_vdsd", "learned", "AdamW in the paper"),
    ("random", "learned", "yes"),
    ("random", "soft", "hard labels in the paper"),
])  # fmt: skip
def test_learned_labels_are_compared_with_learned_ones(method: str, recipe: str, said: str) -> None:
    """Random has none to learn, and its students see hard labels under this recipe as well."""
    [theirs] = [one for one in published() if (one["dataset"], one["method"], one["ipc"]) == ("miniucf", method, "1")]
    kind = {"labels": "hard" if recipe == "hard" else "soft", "recipe": recipe}
    assert comparable(row(method, 0.2, protocol="vdsd", **kind), theirs, told()) == said


def test_clips_of_kinetics_and_something_something_are_small_in_the_papers() -> None:
    small = [one for one in published() if one["dataset"] in CLIPS]
    assert {one["dataset"] for one in small} == {"kinetics400", "ssv2"} == {*CLIPS}
    asked = row("dm", 0.15, protocol="vdsd")
    theirs = next(one for one in small if one["method"] == "dm")
    many = CLASSES[theirs["dataset"]]
    small_clip, large_clip = told("8 frames of 64×64", classes=many), told(classes=many)
    assert (comparable(asked, theirs, small_clip), comparable(asked, theirs, large_clip)) == (
        "yes", "8 frames of 64×64 in the paper")  # fmt: skip


@pytest.mark.parametrize(("layout", "said"), [("hmdb51_5236", "yes"), ("hmdb51", EVERY_CLIP)])
def test_hmdb51_is_the_papers_where_it_trains_on_all_that_is_no_test(layout: str, said: str) -> None:
    [theirs] = [one for one in published() if (one["dataset"], one["method"], one["ipc"]) == ("hmdb51", "dm", "1")]
    assert comparable(row("dm", 0.06, protocol="vdsd"), theirs, told(layout=layout, classes=51)) == said


def test_what_a_paper_does_not_say_is_not_compared() -> None:
    told = {(one["dataset"], one["method"], one["network"]): one["note"] for one in published()}
    assert (
        told["miniucf", "optdistill", "minic3d"]
        == told["miniucf", "full", "minic3d"]
        == "network not named in the paper"
    )
    assert told["ucf101", "full", "c3d"].startswith("training of C3D not described")


def test_published_numbers_stand_beside_ours_with_their_source() -> None:
    document = told()
    [line] = [line for line in published_table(document, [row("dm", 0.15)]) if line[0] == "DM"]
    assert line[4:8] == ["15.0", "15.3", "−0.3", "TSGF, Tables 1 and 2"]
    ssv2 = published_table({"dataset": {"dataset": "ssv2"}, "classes": []}, [row("dm", 0.01, top5_mean=0.04)])
    assert ssv2[1][4:7] == ["4.0", "3.6", "+0.4"]
    assert len(published_table({"dataset": {"dataset": "mine"}, "classes": []}, ROWS)) == 1
    assert {one["metric"] for one in published()} == {"top1", "top5"}


def test_classes_are_static_or_dynamic_by_what_moves() -> None:
    assert moving_halves([3.0, 1.0, 2.0, 9.0]) == ([1, 2], [0, 3])
    assert moving_halves([3.0, 1.0, 2.0]) == ([1, 2], [0])
    table = motion_table([row("dm", 0.2)], ["a", "b", "c", "d"], [3.0, 1.0, 2.0, 9.0])
    assert table[1] == ["DM", "hard", "1", "minic3d", "10.0", "30.0"]
    assert table[-1][-2:] == ["b, c", "a, d"]
    assert motion_table([row("dm", 0.2)], ["a"], []) == []


def test_motion_is_the_mean_difference_between_frames(bench: Bench) -> None:
    ref, _ = run_job(motion_job(bench.given.train), bench.runtime)
    clips_NTHWC = bench.clips.read(range(len(bench.clips))).astype(float)
    expected = [np.abs(np.diff(clips_NTHWC[bench.clips.labels_N == label], axis=1)).mean() for label in range(3)]
    assert motion_of(open_store(bench.runtime.store), ref) == pytest.approx(expected)


def document(rows: list[Row]) -> dict[str, Any]:
    dataset = {"dataset": "miniucf", "clip": "8 frames of 56×56"}
    return {"title": "vidistill on x", "classes": ["a", "b", "c", "d"], "dataset": dataset, "failed": [],
            "notes": ["A note."], "rows": [json.loads(one.model_dump_json()) for one in rows]}  # fmt: skip


def test_plots_tell_methods_apart_without_colours(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        *(row(name, 0.1 + 0.01 * n, ipc=5, bytes=9000) for n, name in enumerate(("dm", "mtt", "dc", "idtd"))),
    ]
    names = write_plots(document(rows), tmp_path)
    text = (tmp_path / "bytes-minic3d-hard-labels.svg").read_text()
    root = ET.fromstring(text)
    drawn = list(root.iter("{http://www.w3.org/2000/svg}g"))
    titles = [group[0].text for group in drawn]
    assert titles == ["Random", "DM", "MTT", "DC", "IDTD"]
    marks = ["".join(filter(str.isalpha, group[-2].get("d"))) for group in drawn]  # the key's shape
    assert len(set(marks)) == len(titles) <= len(SHAPES)
    assert "all clips" in text
    assert list(names) == ["minic3d, hard labels"]
    assert set(names["minic3d, hard labels"]) == {path.name for path in tmp_path.iterdir()}
    assert not {"red", "blue", "#0", "#f00"} & set(text.split())


def test_a_plot_is_as_wide_as_the_longest_name_in_its_key() -> None:
    for name in ("DM", "Coded · random, by centred:r2plus1d_small"):
        drawn = [Series(name, ((1.0, 0.5, 0.1), (2.0, 0.6, 0.1)))]
        root = ET.fromstring(curve_svg("minic3d", "kilobytes", drawn, None))
        key = root.findall(".//{http://www.w3.org/2000/svg}text")[-1]
        assert key.text == name
        assert float(key.get("x") or 0) + 6 * len(name) < float(root.get("width") or 0)


def test_a_plot_has_room_for_every_line_of_its_key() -> None:
    drawn = [Series(f"method {number}", ((1.0, 0.5, 0.1), (2.0, 0.6, 0.1))) for number in range(24)]
    root = ET.fromstring(curve_svg("minic3d", "kilobytes", drawn, None))
    keys = [text for text in root.findall(".//{http://www.w3.org/2000/svg}text") if "method" in (text.text or "")]
    assert len(keys) == 24
    assert max(float(key.get("y") or 0) for key in keys) < float(root.get("height") or 0)


def test_a_plot_of_many_classes_says_that_it_leaves_some_out() -> None:
    gains = [(f"class {number}", number / 100) for number in range(101, 0, -1)]
    assert "(first and last 20 of 101)" in bars_svg("DM", gains, "minic3d")
    assert "first and last" not in bars_svg("DM", gains[:40], "minic3d")


def test_a_line_goes_through_a_method_s_budgets() -> None:
    rows = [row("dm", 0.3, ipc=5), row("dm", 0.2, ipc=1), row("random", 0.1, seconds=0.0)]
    by_ipc = series_of(rows, lambda one: one.ipc or 0)
    assert [(one.name, [point[0] for point in one.points]) for one in by_ipc] == [("DM", [1, 5]), ("Random", [1])]
    assert [one.name for one in series_of(rows, lambda one: one.seconds)] == ["DM"]  # a logarithm has no zero


def test_gains_are_those_of_the_row_that_leads_random() -> None:
    words, gains = class_gains(ROWS, ["a", "b", "c", "d"]) or ("", [])
    assert words.startswith("DM, soft, 1 a class")
    assert gains[0] == ("d", pytest.approx(0.24))
    assert gains[-1] == ("c", 0.0)
    assert class_gains(ROWS[:2], ["a"]) is None


def test_sets_of_several_networks_for_one_student_are_told_apart() -> None:
    """Leads over Random are those of one network's sets: 0.2 by hard labels and 0.1 by soft ones, then 0.3 and 0.4."""
    rows = told_apart([
        row("full", 0.6, ipc=None), row("random", 0.1), row("random", 0.1, **SOFT),
        row("random", 0.1, ipc=5, bytes=9000),
        *(row("herding", top1, network=name, **soft)
          for name, *both in (("c3d", 0.3, 0.2), ("centred:c3d", 0.4, 0.5))
          for top1, soft in zip(both, ({}, SOFT), strict=True)),
        row("herding", 0.5, network="centred:c3d", ipc=5, bytes=9000),
    ])  # fmt: skip
    both = ["Herding", "Herding, by centred:c3d"]
    assert list(dict.fromkeys(line[0] for line in accuracy_table(rows)[1:])) == ["Full data", "Random", *both]
    scores = {(line[0], line[1]): float(line[3]) for line in robust_table(rows)[1:]}
    alphas = 0.5 * 0.2 - 0.5 * 0.3, 0.5 * 0.4 - 0.5 * 0.2
    assert [scores[name, "1"] for name in both] == pytest.approx([normalised(alpha) for alpha in alphas], abs=0.06)
    assert [line[:5] for line in area_table(rows, 4)[1:] if "Herding" in line[0]] == [
        [both[1], "hard", "minic3d", "1.0–2.2", "2"]
    ]
    halves = [line for line in motion_table(rows, ["a", "b", "c", "d"], [1.0, 2.0, 3.0, 4.0]) if "Herding" in line[0]]
    assert len({tuple(line[:4]) for line in halves}) == len(halves) == 5
    drawn = series_of([one for one in rows if one.labels == "hard"], lambda one: one.bytes)
    assert [(one.name, len(one.points)) for one in drawn][2:] == [(both[0], 1), (both[1], 2)]


def test_rows_are_compared_with_the_random_that_their_own_teacher_labelled() -> None:
    """A grid of two fronts, and a student with a front of its own: two teachers label clips for it."""
    both = ("c3d", "centred:c3d")
    rows = with_differences(told_apart([
        row("random", 0.1), row("full", 0.6, ipc=None), row("idtd", 0.2),
        *(row(method, top1, teacher=teacher, **SOFT)
          for teacher, tops in zip(both, ((0.1, 0.3), (0.5, 0.4)), strict=True)
          for method, top1 in zip(("random", "idtd"), tops, strict=True)),
    ]))  # fmt: skip
    soft = {(one.method, one.teacher): one for one in rows if one.recipe == "soft"}
    assert [soft["random", teacher].difference_mean for teacher in both] == [None, None]
    assert [soft["idtd", teacher].difference_mean for teacher in both] == pytest.approx([0.2, -0.1])
    names = ["Random", "IDTD", "Random, labelled by centred:c3d", "IDTD, labelled by centred:c3d"]
    assert [line[0] for line in accuracy_table(rows)[1:] if line[1] == "soft"] == names
    alphas = 0.5 * (0.3 - 0.1) - 0.5 * 0.4, 0.5 * (0.4 - 0.5) - 0.5 * 0.4
    scores = {line[0]: float(line[3]) for line in robust_table(rows)[1:]}
    assert [scores[name] for name in names[1::2]] == pytest.approx([normalised(alpha) for alpha in alphas], abs=0.06)
    words, gains = class_gains([*rows[3:5], *rows[5:]], ["a", "b", "c", "d"]) or ("", [])
    assert (words.split(",")[0], gains[0]) == ("IDTD", ("d", pytest.approx(0.4)))


def test_what_failed_is_told_from_what_was_made() -> None:
    made = row("random", 0.1, teacher="c3d", **SOFT)
    facts = {name: getattr(made, name) for name in Named.model_fields}
    [lost] = told_apart([FailedRow(error="", **facts | {"teacher": "centred:c3d"})], beside=[made])
    assert row_label(lost) == "Random, labelled by centred:c3d"


def test_a_page_says_what_there_is() -> None:
    page = scores_page(document(ROWS), {"minic3d, hard labels": ["a.svg"]}, [1.0, 2.0, 3.0, 4.0])
    assert "![a.svg](a.svg)" in page
    assert "| DM | 1 | minic3d | " in page
    assert "| DM · a\\|b |" in scores_page(document([*ROWS, row("dm", 0.1, variant="a|b")]), {}, [1.0] * 4)
    assert page.rstrip().endswith("A note.")
    assert page.index("## Accuracy") < page.index("## Robust") < page.index("### minic3d, hard labels")
    assert "4 classes, chance 25.0 %, clips of 8 frames of 56×56" in page
