"""The index of a folder: one with every file for the report, one for what is made of its videos."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from method_contract import Bench

from vidistill.storage.errors import RunError
from vidistill.tasks.stage import run_job
from vidistill.tasks.videos.index import files_job, index_job, load_index, survey
from vidistill.tasks.videos.layouts import IndexParameters


def test_a_stray_file_is_in_the_report_s_index_and_not_in_that_of_the_clips(bench: Bench, tmp_path: Path) -> None:
    data = Path(shutil.copytree(bench.runtime.data, tmp_path / "videos"))
    runtime = bench.runtime.model_copy(update={"data": str(data)})
    plain = index_job(survey(data, IndexParameters()), IndexParameters())
    (data / "train" / "notes.doc").write_text("a stray file")
    table = survey(data, IndexParameters())
    clips, report = index_job(table, IndexParameters()), files_job(table, IndexParameters())
    assert (clips.label, report.label) == ("index", "index of all files"), "new videos are the event of the first alone"
    assert (clips.ref, report.ref) == (plain.ref, files_job(table, IndexParameters()).ref)
    tables = [load_index(bench.store, run_job(job, runtime)[0]) for job in (clips, report)]
    assert [[rejected.video for rejected in found.rejected] for found in tables] == [[], ["train/notes.doc"]]
    assert tables[0].videos == tables[1].videos == table.videos
    other, elsewhere = IndexParameters(split_seed=1), runtime.model_copy(update={"data": str(data / "train")})
    with pytest.raises(RunError, match="changed while they were indexed: run again"):
        run_job(index_job(table, other), elsewhere)
