"""The pool's section of the report: from a real pool to the page, its JSON and a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from method_contract import DECODE, Bench

from vidistill.storage.pool import Pool
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.distil import distil_jobs
from vidistill.tasks.generate.autoencoder import AutoencoderParameters
from vidistill.tasks.generate.diffusion import LatteParameters
from vidistill.tasks.generate.pool import PoolParameters, pool_of
from vidistill.tasks.generate.quality import load_quality, quality_job
from vidistill.tasks.generate.sample import SamplerParameters
from vidistill.tasks.learning.evaluate import StudentParameters, evaluate_job
from vidistill.tasks.methods import HARD, find_method
from vidistill.tasks.report import page_pool
from vidistill.tasks.report.data import PoolShown, ReportData, RowPlan
from vidistill.tasks.report.gather import HTML, JSON, ReportParameters, report_job
from vidistill.tasks.report.page import render_html
from vidistill.tasks.report.pool import CLOSEST, pools_shown
from vidistill.tasks.stage import Job, run_job
from vidistill.tasks.videos.decode import block_jobs, clips_job

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PARAMETERS = PoolParameters(
    clips_a_class=4,
    part_clips=2,
    autoencoder=AutoencoderParameters(width=8, steps=20, batch_frames=4, precision="fp32"),
    latte=LatteParameters(steps=8, batch_size=2, muon_lr=0.02, frame_noise=0.5, precision="fp32"),
    sampler=SamplerParameters(steps=2, chunks=(1, 3), precision="fp32"),
    seed=7,
)


@dataclass(frozen=True)
class Made:
    """A pool, its quality, and the report of a set that was made with the pool among its inputs."""

    bench: Bench
    pool: ArtifactRef
    quality: ArtifactRef
    test: ArtifactRef

    def add(self, job: Job) -> ArtifactRef:
        return run_job(job, self.bench.runtime)[0]

    def report(self, inputs: dict[str, list[ArtifactRef]], quality: list[ArtifactRef]) -> Path:
        given, source = self.bench.given, find_method("random")
        jobs = distil_jobs(source, source.method.Parameters(), 1, 0, len(self.bench.clips.classes), inputs, "set")
        made = [self.add(job) for job in jobs][-1]
        student = StudentParameters(epochs=1, least_steps=2, precision="fp32")
        refs = {"train": given.train, "test": self.test, "distilled": made}
        score = self.add(evaluate_job("minic3d_bn", student, HARD, 0, refs, "score"))
        row = RowPlan(method="random", variant="", recipe="hard", labels="hard", ipc=1, student="minic3d_bn",
                      scores=(score,), sets=(made,), makers=((made,),))  # fmt: skip
        parameters = ReportParameters(title="a pool", dataset="sprites", split="1", rows=(row,))
        job = report_job(parameters, {"index": given.index, "train": given.train, "test": self.test, "teacher": [],
                                      "pool_quality": quality})  # fmt: skip
        return self.bench.store.folder(self.add(job))


@pytest.fixture(scope="module")
def made(bench: Bench, tiny_transformer: None) -> Made:
    given = replace(bench.given, add=lambda job: run_job(job, bench.runtime)[0])
    pool = pool_of(given, PARAMETERS)
    quality = given.add(quality_job(pool, given.train, bench.teacher))
    blocks = block_jobs(given.table, DECODE, "test")
    for job in blocks:
        given.add(job)
    test = given.add(clips_job(given.index, DECODE, "test", blocks, given.train))
    return Made(bench, pool, quality, test)


@pytest.fixture(scope="module")
def folder(made: Made) -> Path:
    """The report of a set that has the pool in its lineage, with the pool's quality."""
    return made.report({"clips": [made.bench.given.train], "pool": [made.pool]}, [made.quality])


def test_the_page_shows_the_pool_and_its_quality(made: Made, folder: Path) -> None:
    page, found = (folder / HTML).read_text(), load_quality(made.bench.store.folder(made.quality))
    assert page.count('<section id="pool">') == 1
    assert '<a href="#pool">Pool</a>' in page
    assert "12, 4 a class, 4 frames of 48×48" in page
    assert "Latte micro, patches of 1, 8 steps by Muon" in page
    assert "dpm, 2 steps, guidance 3, frames 1, then 3" in page
    assert f'<strong>{found.accuracy:.1%}</strong></td><td class="number">33.3%</td>' in page
    assert f'<strong>{found.fvd:.2f}</strong></td><td class="number">{found.fvd_real:.2f}</td>' in page
    assert "Training loss of Latte" in page
    assert page.count('<figure class="pair">') == len(made.bench.clips.classes) + CLOSEST
    assert page.count("Frames of the first generated clips of") == len(made.bench.clips.classes)
    assert "was not measured" not in page
    assert "pool-part" not in page


def test_its_json_has_the_numbers(made: Made, folder: Path) -> None:
    (pool,) = json.loads((folder / JSON).read_text())["pools"]
    found = load_quality(made.bench.store.folder(made.quality))
    assert pool["key"] == made.pool.key
    assert pool["quality"] == {name: getattr(found, name) for name in pool["quality"]}
    assert pool["accuracy_by_class"] == found.accuracy_by_class
    assert pool["facts"]["seed"] == "7"
    assert pool["steps"] == list(range(1, 9))
    assert len(pool["loss"]) == 8


def test_without_a_measurement_the_pool_is_shown_alone(made: Made) -> None:
    folder = made.report({"clips": [made.bench.given.train], "pool": [made.pool]}, [])
    page = (folder / HTML).read_text()
    assert "Its quality was not measured." in page
    assert "Training loss of Latte" in page
    assert page.count("Frames of the first generated clips of") == len(made.bench.clips.classes)
    assert '<figure class="pair">' not in page


def test_a_report_without_a_pool_has_no_such_section(made: Made) -> None:
    folder = made.report({"clips": [made.bench.given.train]}, [])
    assert 'id="pool"' not in (folder / HTML).read_text()
    assert json.loads((folder / JSON).read_text())["pools"] == []


def test_each_generated_clip_stands_beside_its_nearest_training_clip(made: Made) -> None:
    store = made.bench.store
    pool, clips, found = Pool(store, made.pool), made.bench.clips, load_quality(store.folder(made.quality))
    (shown,) = pools_shown(store, [made.pool, made.test], [made.quality])
    firsts, closest = shown.neighbours.values()
    assert [one.class_name for one in firsts] == list(pool.classes)
    for label, one in enumerate(firsts):
        row = pool.rows_of(label)[0]
        assert np.array_equal(one.made_THWC, pool.read([row])[0])
        assert np.array_equal(one.real_THWC, clips.read([found.nearest[row].train_row])[0])
    alike = sorted((one.correlation for one in found.nearest), reverse=True)
    assert [one.correlation for one in closest] == alike[:CLOSEST]
    assert [(name, len(sheet)) for name, sheet in shown.sheet] == [(name, 3) for name in pool.classes]


def plain(**others: object) -> PoolShown:
    noise = np.random.default_rng(0).integers(0, 256, (3, 8, 64, 64, 3), np.uint8)
    values = {"key": "k" * 24, "facts": {"seed": "0"}, "warnings": [], "steps": [], "loss": [],
              "sheet": [(f"class {label}", noise) for label in range(6)]}  # fmt: skip
    return PoolShown(**(values | others))  # type: ignore[arg-type]


def page_of(pool: PoolShown) -> str:
    return render_html(ReportData("title", "now", {}, ["a"], [], pools=[pool]))


def test_warnings_stand_out_and_are_text() -> None:
    page = page_of(plain(warnings=["The checkpoint <b>saw</b> the test split."]))
    assert "<strong>Warning.</strong> The checkpoint &lt;b&gt;saw&lt;/b&gt; the test split." in page
    assert "Training loss of Latte" not in page  # a checkpoint that was not trained on has no curve


def test_sheets_stop_before_the_page_grows_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_pool, "POOL_BYTES", 100_000)
    page = page_of(plain(classes_left_out=91))
    shown = page.count("Frames of the first generated clips of")
    assert 1 <= shown < 6
    assert f"({97 - shown} more classes are not pictured" in page


@pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is on PATH")
def test_a_browser_shows_every_picture(folder: Path, tmp_path: Path) -> None:
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--proxy-server=127.0.0.1:9",
               f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom"]  # fmt: skip
    done = subprocess.run([*command, (folder / HTML).as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert 'data-broken-pictures="0"' in done.stdout
