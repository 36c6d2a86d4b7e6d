"""The report page and its JSON, looked at as text and in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vidistill.storage.store import ArtifactRef, Manifest, Store
from vidistill.tasks.report import pictures, tables
from vidistill.tasks.report.confusion import confusions
from vidistill.tasks.report.data import (
    TRAINING_CLIPS,
    ClipPair,
    Confusion,
    Curve,
    FailedRow,
    LineageEntry,
    ReportData,
    Row,
    RowPlan,
    Saliency,
)
from vidistill.tasks.report.gather import _begun, with_differences
from vidistill.tasks.report.page import _method_of, _motion, render_html, render_json, render_markdown
from vidistill.tasks.report.statistics import Difference, collapsed_to, paired

CLASSES = ["left", "right", "spin & <b>grow</b>", "bounce"]
SCRIPTED = [
    "dataset",
    "split",
    "protocol",
    "recipe",
    "method",
    "variant",
    "ipc",
    "student",
    "labels",
    "top1_mean",
    "top1_std",
    "top5_mean",
    "auc_mean",
    "f1_mean",
    "bytes",
    "seconds",
    "peak_memory_bytes",
    "flops",
    "seeds",
    "artifact",
]


def moving_clip(step: int, seed: int = 0, frames: int = 12, side: int = 64) -> np.ndarray:
    """A smooth random texture that moves `step` pixels to the right each frame."""
    noise = np.random.default_rng(seed).random((side // 8, side // 8, 3))
    texture = np.asarray(Image.fromarray((noise * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC))
    return np.stack([np.roll(texture, step * t, axis=1) for t in range(frames)])


def row(method: str, labels: str, top1: float, ipc: int | None = 1, **others: object) -> Row:
    values = {
        "dataset": "sprites",
        "split": "1",
        "protocol": "default",
        "recipe": "ce-500",
        "method": method,
        "variant": "",
        "ipc": ipc,
        "student": "minic3d_bn",
        "labels": labels,
        "top1_mean": top1,
        "top1_std": 0.02,
        "top5_mean": 0.9,
        "auc_mean": 0.81,
        "f1_mean": top1 - 0.01,
        "bytes": 602_112 * (ipc or 40),
        "seconds": 312.0,
        "peak_memory_bytes": 1_530_000_000,
        "flops": 2_400_000_000_000,
        "student_seconds": 41.0,
        "seeds": 5,
        "artifact": f"{method}{labels}{ipc}" + "0" * 20,
        "per_class": list(np.clip([top1, top1 - 0.1, top1 + 0.2, top1], 0, 1)),
        "top1": [top1] * 5,
        "difference_mean": None,
        "difference_error": None,
    }
    return Row.model_validate(values | others)


def learning_curve(method: str, setting: str, seed: int, speed: float) -> Curve:
    steps = np.arange(0, 500, 5)
    noise = np.random.default_rng(seed).normal(0, 0.04, len(steps))
    loss = 1.4 * np.exp(-steps * speed) + 0.1 + np.abs(noise)
    return Curve(name=f"{method} {setting}", setting=setting, seed=seed, steps=steps.tolist(), loss=loss.tolist())


@pytest.fixture(scope="module")
def data() -> ReportData:
    better = {"difference_mean": 0.218, "difference_error": 0.024, "difference_interval": 0.067, "settled": True}
    unsettled = {"difference_mean": -0.01, "difference_error": 0.03, "difference_interval": 0.083}
    rows = [
        row("tsgf", "soft", 0.621, **better),
        row("random", "soft", 0.403),
        row("dm", "soft", 0.393, **unsettled),
        row("tsgf", "soft", 0.6, variant="no mask", **better),
        row("tsgf", "hard", 0.45, **unsettled),
        row("random", "hard", 0.46),
        row("tsgf", "hard", 0.7, ipc=5, **better),
        row("random", "hard", 0.55, ipc=5),
        row("sfvd", "online", 0.5, recipe="online-300"),
        row("full", "hard", 0.93, ipc=None),
    ]
    curves = [
        learning_curve(method, f"{labels} ipc 1 minic3d_bn", seed, speed)
        for labels in ("soft", "hard")
        for method, speed in (("tsgf", 0.02), ("random", 0.007), ("tsgf no mask", 0.012))
        for seed in range(3)
    ]
    pairs = [
        ClipPair(
            name, [moving_clip(2, i)], {"tsgf": [moving_clip(1, i + 10)], "tsgf/no mask": [moving_clip(0, i + 20)]}
        )
        for i, name in enumerate(CLASSES)
    ]
    s_T = np.abs(np.sin(np.linspace(0, 4, 16)))
    mask_T = np.maximum(0.6 - s_T, 0) / (s_T.max() - s_T.min())
    lineage = [
        LineageEntry(
            kind="clips",
            key="aaaa" * 8,
            parameters={"frames": 16, "root": "<script>alert(2)</script>"},
            inputs={},
            seconds=12.0,
            bytes=9_000_000,
            created="2026-01-02T03:04:05Z",
        ),
        LineageEntry(
            kind="distilled",
            key="tsgfsoft1" + "0" * 20,
            parameters={"ipc": 1, "weights": [0.2, 0.8]},
            inputs={"clips": ["aaaa" * 8], "teacher": ["not-listed"]},
            seconds=300.0,
            bytes=602_112,
            created="2026-01-02T03:14:05Z",
        ),
    ]
    rejected = [
        {"video": "left/<script>alert(1)</script>.mp4", "outcome": "failed", "reason": "no video stream"},
        {"video": "v_space and ünïcode (HQ)!.mp4", "outcome": "filtered", "reason": "3 frames, at least 8 asked for"},
    ]
    return ReportData(
        title="sprites: TSGF against Random",
        created="2026-01-02 03:20 UTC",
        dataset_summary={"data set": "sprites", TRAINING_CLIPS: 160, "test clips": 80, "frames": 16},
        classes=CLASSES,
        rows=rows,
        curves=curves,
        losses=[
            Curve(name=f"dm, ipc {ipc}", seed=seed, steps=[0, 9], loss=[2.0, 1.0]) for ipc in (1, 5) for seed in (0, 1)
        ],
        pairs=pairs,
        saliency=[Saliency("TSGF", "left", s_T.tolist(), 0.6, mask_T.tolist())],
        lineage=lineage,
        rejected=rejected,
        notes=["The teacher was trained on the data at hand."],
    )


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return render_html(data)


class Outline(HTMLParser):
    """Collects what the tests ask of a page: method cells by table kind, tags, pictures, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.methods: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = [("", {})]
        self.text: list[str] = []
        self.kind = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if kind := attributes.get("data-labels"):
            self.kind = kind
        if tag == "table" and attributes.get("class") == "results":
            self.methods.setdefault(self.kind, []).append([])

    def handle_data(self, text: str) -> None:
        self.text.append(text)
        tag, attributes = self.tags[-1]
        tables = [one["class"] for name, one in self.tags if name == "table"]
        if tag == "th" and attributes.get("scope") == "row" and text.strip() and tables[-1] == "results":
            self.methods[self.kind][-1].append(text)


def test_label_kinds_and_full_data_stand_in_tables_of_their_own(page: str) -> None:
    assert Outline(page).methods == {
        "Hard labels": [["Random", "TSGF"], ["TSGF", "Random"]],
        "Soft labels": [["TSGF", "TSGF · no mask", "Random", "DM"]],
        "Online labels": [["SFVD"]],
        "All clips": [["Full data"]],
    }


def test_only_the_best_of_a_ranked_table_is_bold(data: ReportData) -> None:
    best = {
        (table.title, group.heading): [line.cells[0] for line in group.lines if line.best]
        for table in tables.tables(data.rows)
        for group in table.groups
    }
    assert best == {
        ("Hard labels", "minic3d_bn · 1 per class · ce-500"): ["Random"],
        ("Hard labels", "minic3d_bn · 5 per class · ce-500"): ["TSGF"],
        ("Soft labels", "minic3d_bn · 1 per class · ce-500"): ["TSGF"],
        ("Online labels", "minic3d_bn · 1 per class · online-300"): [],
        ("All clips", "minic3d_bn · hard labels · ce-500"): [],
    }


def test_a_winner_that_seeds_do_not_settle_is_not_bold() -> None:
    def bold(*seeds: list[float]) -> list[bool]:
        rows = [
            row("dm", "hard", float(np.mean(one)), variant=str(one)).model_copy(update={"top1": one, "seeds": len(one)})
            for one in seeds
        ]
        [table] = tables.tables(rows)
        return [line.best for line in table.groups[0].lines]

    assert bold([0.6, 0.61, 0.62], [0.5, 0.51, 0.51]) == [True, False]
    assert bold([0.6, 0.61, 0.62], [0.5, 0.51, 0.51], [0.59, 0.6, 0.64]) == [False, False, False]
    assert bold([0.6, 0.61], [0.5, 0.51]) == [False, False], "two seeds settle nothing"
    assert bold([0.4, 0.41, 0.42, 0.8, 0.8, 0.77], [0.5, 0.51, 0.52]) == [False, False], "behind, seed by seed"
    assert bold([0.6, 0.7, 0.8], [0.5, 0.5, 0.5]) == [False, False], "2 SE, which settles no more than noise does"


def test_rows_are_measured_against_the_random_that_was_trained_as_they_were() -> None:
    def trained(method: str, top1: float, training: str) -> Row:
        made = row(method, "hard", top1, variant=training, training=training)
        return made.model_copy(update={"top1": [top1] * 3, "seeds": 3})

    named = [("random", 0.3, ""), ("random", 0.6, "lr 0.1"), ("tsgf", 0.5, ""), ("tsgf", 0.5, "lr 0.1")]
    rows = with_differences([trained(*one) for one in named])
    assert [one.is_random for one in rows] == [True, True, False, False]
    assert [tables.difference(one) for one in rows] == ["–", "–", "+20.0 ± 0.0", "−10.0 ± 0.0"]
    [table] = tables.tables(rows)
    assert {line.cells[0]: line.best for line in table.groups[0].lines} == {
        "Random": False, "TSGF": True, "Random · lr 0.1": True, "TSGF · lr 0.1": False,
    }  # fmt: skip


def test_differences_carry_t_intervals() -> None:
    found = paired([0.5, 0.6, 0.9], [0.4, 0.4, 0.6])
    differences = np.array([0.1, 0.2, 0.3])
    error = differences.std(ddof=1) / np.sqrt(3)
    assert (found.mean, found.error, found.seeds) == (pytest.approx(0.2), pytest.approx(error), 3)
    assert found.interval == pytest.approx(4.302653 * error, rel=1e-6)  # a table of Student's t: 2 degrees, 97.5 %
    assert not found.settled
    assert abs(found.mean) > 2 * error, "what was called settled before"
    assert paired([0.5], [0.4]) == Difference(pytest.approx(0.1), None, None, 1)
    assert not paired([0.5, 0.5], [0.4, 0.4]).settled
    assert paired([0.5, 0.5, 0.5], [0.4, 0.4, 0.4]).settled
    assert not paired([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]).settled


def test_a_student_that_calls_everything_one_class_is_found() -> None:
    assert collapsed_to(np.array([[0, 20, 0], [0, 20, 0], [0, 19, 1]])) == 1
    assert collapsed_to(np.array([[5, 15, 0], [0, 20, 0], [0, 19, 1]])) is None, "one in four of a class is known"
    assert collapsed_to(np.array([[0, 1], [0, 99]])) == 1
    assert collapsed_to(np.array([[1, 0], [0, 99]])) is None, "the test clips are so"
    assert collapsed_to(np.array([[7]])) is None
    many = np.full((51, 51), 2)  # all of class 0 is known and little of the others, which are called anything
    many[0] = np.eye(51)[0] * 102
    assert collapsed_to(many) is None
    fallen = row("dm", "hard", 0.25, collapsed=(0, 2), mark="2 of 5 students call nearly everything one class (left)")
    page = render_html(ReportData("t", "now", {}, CLASSES, [fallen]))
    assert "of DM some students call nearly everything one class" in page
    assert "† DM: 2 of 5 students call nearly everything one class (left)." in page


def test_chance_stands_under_every_table_and_in_every_chart(page: str, data: ReportData) -> None:
    sections = page.partition('<section id="results">')[2].partition('<section id="classes">')
    assert sections[0].count("<tfoot><tr><td>Chance</td><td>25.0</td>") == 5
    charts = sections[2].partition("</section>")[0]
    assert charts.count('class="chance-line" x1="180.0"') == charts.count("<svg") > 0
    assert render_json(data)["chance"] == 0.25


def test_what_is_called_what_is_shown_by_class(data: ReportData) -> None:
    counts = [[3, 1, 0, 0], [0, 4, 0, 0], [2, 0, 2, 0], [0, 0, 0, 4]]
    shown = replace(data, confusions=[Confusion("TSGF · soft labels", counts)])
    section = render_html(shown).partition('<section id="confusion">')[2].partition("</section>")[0]
    cells = re.findall(r'<td class="(right|wrong)" style="--share: (\d+)%">(\d*)</td>', section)
    assert [int(count or 0) for _, _, count in cells] == [count for row in counts for count in row]
    assert [kind for kind, _, _ in cells[:6]] == ["right", "wrong", "wrong", "wrong", "wrong", "right"]
    assert int(cells[8][1]) == int(cells[10][1]) > int(cells[1][1]) > int(cells[2][1]) == 0
    assert "Most often: spin &amp; &lt;b&gt;grow&lt;/b&gt; as left, 2 of 4; left as right, 1 of 4." in section
    assert render_json(shown)["confusions"] == [{"heading": "TSGF · soft labels", "counts_KK": counts}]
    right, classes = np.eye(20, dtype=int).tolist(), [f"c{i}" for i in range(20)]
    many = render_html(ReportData("t", "now", {}, classes, [], confusions=[Confusion("Full data", right)]))
    assert '<table class="confusion">' not in many
    assert "None is mistaken." in many


def test_the_best_row_of_each_table_is_asked_what_it_calls_what(tmp_path: Path) -> None:
    store, plans, rows = Store(tmp_path), [], []
    for number, (method, ipc, top1) in enumerate(
        [("dm", 1, 0.5), ("mtt", 1, 0.6), ("full", None, 0.9), ("teacher", None, 0.95), ("dc", 5, 0.7)]
    ):
        refs = []
        for seed in range(2):
            key = f"{number}{seed}" * 12
            with store.writing(Manifest(kind="score", key=key, version=2, parameters={}, inputs={})) as attempt:
                assert attempt is not None
                if method != "dc":  # its scores are from before this was kept
                    np.save(attempt.folder / "confusion.npy", np.full((4, 4), number))
            refs.append(ArtifactRef(kind="score", key=key))
        made = row(method, "hard", top1, ipc=ipc)
        named = {name: getattr(made, name) for name in ("method", "variant", "recipe", "labels", "ipc", "student")}
        plans.append(RowPlan(scores=tuple(refs), sets=(), makers=(), **named))
        rows.append(made)
    found = confusions(store, plans, rows)
    assert [(one.heading.split(" ·")[0], one.counts_KK[0][0]) for one in found] == [
        ("Full data", 4), ("Teacher", 6), ("MTT", 2)
    ]  # fmt: skip
    assert all(one.heading.count("hard labels") == 1 for one in found)


def test_the_command_and_the_rows_that_failed_are_shown(data: ReportData) -> None:
    named = {"recipe": "hard", "labels": "hard", "ipc": 1, "student": "c3d", "error": "KeyError: '<b>'"}
    lost = [
        FailedRow(method="mine", variant="no mask", **named),
        FailedRow(method="coded", variant="", kb=2.5, **named | {"ipc": None}),
    ]
    told = replace(data, command="vidistill run --data sprites --method dm,mine", failed=lost)
    page = render_html(told)
    assert "The command that makes this report, from" in page
    joined = replace(data, command="vidistill run --front rgb\nvidistill run --front centred")
    assert "The runs that a benchmark joined into this report, from" in render_html(joined)
    assert "`vidistill run --front rgb`\n\n`vidistill run --front centred`" in render_markdown(joined)
    assert '<pre class="command"><code>vidistill run --data sprites --method dm,mine</code></pre>' in page
    assert (
        "<strong>2 rows failed:</strong> mine · no mask (1 per class, hard, c3d), Coded (2.5 kB per class, hard, c3d)"
        in page
    )
    assert "KeyError: &#39;&lt;b&gt;&#39;" in page
    document = render_json(told)
    assert (document["command"], document["failed"][0]["error"]) == (told.command, "KeyError: '<b>'")
    text = render_markdown(told)
    assert "## Rows that failed" in text
    assert "- mine · no mask · 1 per class · hard · c3d: KeyError: '\\<b\\>'" in text


def test_what_many_classes_show_is_said() -> None:
    names = [f"class {i}" for i in range(50)]
    pairs = [ClipPair(name, [moving_clip(1)], {"dm": [moving_clip(0)]}) for name in names[:10]]
    page = " ".join(render_html(ReportData("t", "now", {}, names, [], pairs=pairs)).split())
    assert "The first real clip of each of the first 10 of 50 classes beside" in page
    assert "40 more classes are not pictured" in page


def test_a_clip_that_several_rows_share_is_shown_once_under_all_their_names() -> None:
    same, other = moving_clip(1), moving_clip(2)
    pairs = [ClipPair("left", [moving_clip(0)], {"tsgf, soft+tsgf": [same], "random": [other], "tsgf": [same.copy()]})]
    saliency = [Saliency(name, "left", [0.5, 0.7, 0.6], 0.65, [0.3, 0, 0.1]) for name in ("tsgf, soft+tsgf", "tsgf")]
    page = render_html(ReportData("t", "now", {}, ["left"], [], pairs=pairs, saliency=saliency))
    motion = page.partition('<section id="motion">')[2].partition("</section>")[0]
    assert re.findall("<h4>(.*?)</h4>", motion) == ["Real", "TSGF · soft+tsgf; TSGF", "Random"]
    assert page.count('class="line saliency') == 1


def test_saliency_fills_its_panel_whatever_its_level() -> None:
    panel = pictures.saliency_panel([0.50, 0.51, 0.52, 0.50], 0.505, [0.1, 0, 0, 0.1])
    heights = [float(height) for height in re.findall(r"[ML][\d.]+ ([\d.]+)", panel.line)]
    assert max(heights) - min(heights) > 0.6 * (panel.s_axis.start - panel.s_axis.end)
    assert min(heights) < panel.threshold < max(heights)


def test_cells_have_human_units(data: ReportData) -> None:
    [group] = tables.tables(data.rows)[1].groups
    assert group.lines[0].cells == [
        "TSGF",
        "62.1 ± 2.0",
        "+21.8 ± 6.7",
        "90.0",
        "0.810",
        "61.1",
        "602 kB",
        "5.2 min",
        "1.5 GB",
        "2.4 TFLOP",
        "41.0 s",
        "5",
        "tsgfsoft10",
    ]
    assert group.lines[-1].cells[2] == "−1.0 ± 8.3"


def test_one_seed_shows_no_deviation() -> None:
    assert tables.spread(row("dm", "hard", 0.5, seeds=1, top1_std=0.0)) == "50.0"


def test_a_table_without_random_says_so(page: str) -> None:
    assert page.count("No Random stands beside these rows") == 1


def test_the_summary_says_the_result_in_words(data: ReportData) -> None:
    assert [sentence.replace("\N{NO-BREAK SPACE}", " ") for sentence in tables.summary(data)] == [
        (
            "Top-1 accuracy on the test split of sprites with the student minic3d_bn, "
            "± the standard deviation over seeds; in brackets the paired difference from Random under the same recipe, "
            "± half of its 95 % t interval."
        ),
        "Full data reaches 93.0 ± 2.0 %. Guessing reaches 25.0 %.",
        (
            "With hard labels, TSGF reaches 45.0 ± 2.0 % at 1 per class, 1/40 of the number of training clips, "
            "against 46.0 ± 2.0 % for Random (−1.0 ± 8.3, not settled by 5 seeds)."
        ),
        (
            "With hard labels, TSGF reaches 70.0 ± 2.0 % at 5 per class, 1/8 of the number of training clips, "
            "against 55.0 ± 2.0 % for Random (+21.8 ± 6.7)."
        ),
        (
            "With soft labels, TSGF, the best of 3, reaches 62.1 ± 2.0 % at 1 per class, 1/40 of the number of "
            "training clips, against 40.3 ± 2.0 % for Random (+21.8 ± 6.7)."
        ),
        "With online labels, SFVD reaches 50.0 ± 2.0 % at 1 per class, 1/40 of the number of training clips.",
    ]


def test_the_summary_says_what_the_largest_class_alone_reaches(data: ReportData) -> None:
    said = tables.summary(replace(data, largest=0.4))[1].replace("\N{NO-BREAK SPACE}", " ")
    assert said.endswith("Guessing reaches 25.0 %, the name of the largest class alone 40.0 %.")


def test_the_summary_of_a_holdout_does_not_speak_of_the_test_split(data: ReportData) -> None:
    held_out = replace(data, rows=[row.model_copy(update={"split": "validation"}) for row in data.rows])
    assert tables.summary(held_out)[0].startswith("Top-1 accuracy on a held-out fifth of the training split of sp")


def test_json_rows_have_the_fields_that_scripts_read(data: ReportData) -> None:
    document = json.loads(json.dumps(render_json(data), allow_nan=False))
    assert all(one.keys() >= set(SCRIPTED) for one in document["rows"])
    assert [one["method"] for one in document["rows"]] == [one.method for one in data.rows]
    assert document["rows"][-1]["ipc"] is None
    assert document["rejected"] == data.rejected
    assert all(set(one) == {"video", "outcome", "reason"} for one in document["rejected"])


def test_the_losses_of_sets_have_a_panel_for_each_method_and_budget(data: ReportData) -> None:
    section = render_html(data).partition('<section id="losses">')[2].partition("</section>")[0]
    panels = section.split("<figure>")[1:]
    assert [re.search("<figcaption>(.*?)</figcaption>", panel)[1] for panel in panels] == ["DM, ipc 1", "DM, ipc 5"]
    assert [panel.count('class="line') for panel in panels] == [2, 2]
    assert "seed 1: ends at 1" in panels[0]
    assert len(render_json(data)["losses"]) == 4


def test_a_learning_rate_that_a_set_learned_has_a_panel_beside_its_loss(data: ReportData) -> None:
    learnt = Curve(name="mtt, ipc 1", seed=3, steps=[1, 9], loss=[1.5, 0.5], alpha=[0.03, 0.02])
    section = (
        render_html(replace(data, losses=[learnt])).partition('<section id="losses">')[2].partition("</section>")[0]
    )
    captions = re.findall("<figcaption>(.*?)</figcaption>", section)
    assert captions == ["MTT, ipc 1", "MTT, ipc 1: α, the student’s learning rate"]
    assert "seed 3: ends at 0.02" in section
    assert render_json(replace(data, losses=[learnt]))["losses"][0]["alpha"] == [0.03, 0.02]


LEARNED: dict[str, Any] = {"steps": [0, 1], "loss": [1.0, 0.5]}
MOVED = LEARNED | {"moved_in_std": 0.1}


@pytest.mark.parametrize(("top1", "facts", "source", "said"), [
    ([0.1, 0.2, 0.1], MOVED, "a.mp4", "behind its own start, Random's clips, by 36.7 points"),
    ([0.1, 0.2, 0.1], {"parts": [MOVED] * 2}, "a.mp4", "behind its own start, Random's clips, by 36.7 points"),
    ([0.1, 0.2, 0.1], {"parts": [MOVED, LEARNED]}, "a.mp4", "behind Random's clips by 36.7 points"),
    ([0.1, 0.9, 0.2], MOVED, "a.mp4", ""),
    ([0.6, 0.7, 0.6], LEARNED, "a.mp4", ""),
    ([0.1, 0.2, 0.1], LEARNED, "a.mp4", "behind Random's clips by 36.7 points"),
    ([0.1, 0.2, 0.1], MOVED, "", "behind Random's clips by 36.7 points"),
    ([0.1, 0.2, 0.1], {}, "a.mp4", ""),
])  # fmt: skip
def test_a_set_behind_random_s_clips_says_so_and_whether_it_began_as_these(
    tmp_path: Path, top1: list[float], facts: dict[str, Any], source: str, said: str
) -> None:
    """Where seeds settle it, of sets that were learned."""
    store = Store(tmp_path)
    with store.writing(Manifest(kind="distilled", key="d" * 24, version=1, parameters={}, inputs={})) as attempt:
        assert attempt is not None
        (attempt.folder / "set.json").write_text(json.dumps({"facts": facts, "sources": [source]}))
    made = [row("random", "hard", 0.5), row("mtt", "hard", 0.5)]
    made = [one.model_copy(update={"top1": seeds}) for one, seeds in zip(made, ([0.5, 0.5, 0.5], top1), strict=True)]
    plans = [RowPlan(method=one.method, variant="", recipe="hard", labels="hard", ipc=1, student=one.student, scores=(),
                     sets=(ArtifactRef(kind="distilled", key="d" * 24),), makers=()) for one in made]  # fmt: skip
    rows = [_begun(store, plan, one) for plan, one in zip(plans, with_differences(made), strict=True)]
    assert [one.mark for one in rows] == ["", said]


def test_a_learned_recipe_is_not_part_of_a_methods_name() -> None:
    for method, shown in (("optdistill N=2, tiles", "OptDistill · N=2, tiles"), ("tsgf soft hard", "TSGF · soft hard")):
        assert _method_of(learning_curve(method, "learned, ipc 1, minic3d_bn", 0, 0.1)) == shown


def test_numbers_that_are_not_finite_become_null_and_break_the_line() -> None:
    curve = Curve(name="dm hard", setting="hard", seed=0, steps=[0, 1, 2, 3], loss=[1.0, float("nan"), 0.5, 0.4])
    data = ReportData("t", "now", {}, ["a"], [row("dm", "hard", 0.5, auc_mean=float("nan"))], curves=[curve])
    document = render_json(data)
    assert document["curves"][0]["loss"] == [1.0, None, 0.5, 0.4]
    assert document["rows"][0]["auc_mean"] is None
    [drawn] = re.findall(r'<path class="line c0" d="([^"]+)"', render_html(data))
    assert re.sub(r"[\d. ]", "", drawn) == "MML"


def test_names_are_escaped_and_every_rejected_video_is_listed(page: str, data: ReportData) -> None:
    outline = Outline(page)
    assert page.count("<script>") == 1
    assert "<b>" not in page
    assert all(value in outline.text for one in data.rejected for value in one.values())
    assert any("<script>alert(2)</script>" in text for text in outline.text)


def test_the_page_refers_to_nothing_outside_itself(page: str) -> None:
    assert "http://" not in page
    assert "https://" not in page
    addresses = [
        value
        for _, attributes in Outline(page).tags
        for name in ("src", "href", "srcset")
        if (value := attributes.get(name))
    ]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)


def test_every_picture_has_a_text_and_every_inner_link_a_target(page: str) -> None:
    tags = Outline(page).tags
    identifiers = {attributes["id"] for _, attributes in tags if "id" in attributes}
    links = {attributes["href"] for tag, attributes in tags if tag == "a"}
    assert "#" + "aaaa" * 8 in links
    assert links <= {f"#{one}" for one in identifiers}
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    assert all(attributes.get("aria-label") for tag, attributes in tags if tag == "svg")


def test_markdown_holds_the_tables_alone(data: ReportData) -> None:
    text = render_markdown(data)
    assert "| **TSGF** | **62.1 ± 2.0** | +21.8 ± 6.7 |" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Hard labels",
        "## Soft labels",
        "## Online labels",
        "## All clips",
    ]
    assert "data:" not in text


def test_a_report_of_nothing_but_rejected_videos_still_renders() -> None:
    data = ReportData(
        "empty", "now", {}, [], [], rejected=[{"video": "a.mp4", "outcome": "failed", "reason": "empty file"}]
    )
    page = render_html(data)
    assert "No method was scored." in page
    assert "empty file" in page


def decoded(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_a_clip_becomes_a_looping_picture_of_the_same_frames() -> None:
    clip_THWC = moving_clip(3)
    picture = decoded(pictures.moving(clip_THWC))
    assert (picture.format, picture.n_frames, picture.size, picture.info["loop"]) == ("WEBP", 12, (128, 128), 0)
    for t in (0, 7):
        picture.seek(t)
        shown_HWC = np.asarray(picture.convert("RGB")).astype(int)[::2, ::2]
        assert np.abs(shown_HWC - clip_THWC[t]).mean() < 6


def test_a_noisy_clip_is_not_doubled() -> None:
    noise_THWC = np.random.default_rng(0).integers(0, 256, (16, 112, 112, 3), np.uint8)
    assert decoded(pictures.moving(noise_THWC)).size == (112, 112)


def test_optical_flow_finds_the_direction_and_speed_of_a_moving_texture() -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    flow_THW2 = pictures.optical_flow(moving_clip(2))
    assert flow_THW2.shape == (11, 64, 64, 2)
    np.testing.assert_allclose(np.median(flow_THW2[:, 16:48, 16:48], axis=(0, 1, 2)), [2, 0], atol=0.2)
    red, green, blue = pictures.flow_colours(flow_THW2, 2.0)[5, 32, 32]
    assert red > 200
    assert max(green, blue) < 80


def test_frame_differences_are_a_share_of_the_full_range() -> None:
    clip_THWC = np.zeros((3, 4, 4, 3), np.uint8)
    clip_THWC[1] = 255
    np.testing.assert_array_equal(pictures.frame_differences(clip_THWC), np.ones((2, 4, 4)))
    assert pictures.frame_differences(moving_clip(0)).max() == 0


def test_without_opencv_the_flow_is_left_out_with_a_note(data: ReportData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    page = render_html(data)
    assert "OpenCV is not installed" in page
    assert "Optical flow of" not in page
    assert "Frame differences of" in page


def test_pictures_stop_before_the_page_grows_large() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 240, 240, 3), np.uint8)
    pairs = [ClipPair(f"class {i}", [noise], {"dm": [noise], "mtt": [noise]}) for i in range(12)]
    page = render_html(ReportData("large", "now", {}, ["a"], [], pairs=pairs))
    assert 8_000_000 < len(page) < 15_000_000
    assert "more classes are not pictured" in page
    many = [ClipPair("a", [noise], {f"dm {i}": [noise] for i in range(40)})]
    assert "Real and distilled clips" in render_html(ReportData("large", "now", {}, ["a"], [], pairs=many))


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 2.3, ["0.0", "0.5", "1.0", "1.5", "2.0"]),
        (0, 12_000, ["0", "5 000", "10 000"]),
        (0, 0.03, ["0.00", "0.01", "0.02", "0.03"]),
    ],
)
def test_ticks_are_round_numbers_in_range(low: float, high: float, labels: list[str]) -> None:
    assert [tick.label for tick in pictures.Axis(low, high, 0, 300).ticks] == labels


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is on PATH")
def test_a_browser_without_a_network_shows_every_picture(page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--proxy-server=127.0.0.1:9",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
        "--window-size=1280,2000",
    ]
    address = (tmp_path / "report.html").as_uri()
    dumped = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in dumped.stderr
    assert 'data-broken-pictures="0"' in dumped.stdout
    shot = tmp_path / "page.png"
    subprocess.run([*command, f"--screenshot={shot}", address], capture_output=True, timeout=120, check=True)
    with Image.open(shot) as picture:
        assert picture.size == (1280, 2000)
        assert len(picture.convert("RGB").getcolors(maxcolors=2**24)) > 500


def test_a_set_of_single_frames_has_no_motion_to_show() -> None:
    still_THWC = np.zeros((1, 8, 8, 3), np.uint8)
    assert _motion([ClipPair("left", [still_THWC], {"random": [still_THWC]})]) is None
