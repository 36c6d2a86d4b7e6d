"""Embeddings of the training clips are what the teacher's network says of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from method_contract import Bench

from vidistill.tasks.learning import training
from vidistill.tasks.learning.embedding import load_embeddings, train_embeddings
from vidistill.tasks.learning.teacher import load_teacher
from vidistill.tasks.learning.weights import known_by


def test_every_clip_has_its_own_features(bench: Bench) -> None:
    found_ND = load_embeddings(bench.store.folder(train_embeddings(bench.given, "fp32")))
    network, table = load_teacher(bench.store, bench.teacher, bench.clips, bench.device), bench.clips.table
    with torch.inference_mode():
        for row, found_D in enumerate(found_ND):
            x_BCTHW = training.to_input(bench.clips.read([row]), table.mean, table.std, bench.device)
            np.testing.assert_allclose(found_D, network.embed(x_BCTHW)[0], rtol=1e-4, atol=1e-5)
    assert len(found_ND) == len(bench.clips) == len(np.unique(found_ND, axis=0))


def test_a_link_to_nothing_is_no_part_of_a_folder_of_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = known_by(str(tmp_path))
    (tmp_path / ".#config.json").symlink_to("me@host.1:2")  # an editor's lock
    assert known_by(str(tmp_path)) == before
