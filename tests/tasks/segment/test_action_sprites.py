"""Sprites in sequence: actions that follow each other without a jump, features of motion, the layout of 50Salads."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from vidistill.storage.files import files_of
from vidistill.storage.store import Store
from vidistill.tasks.segment.layout import survey_sequences
from vidistill.tasks.segment.sprites import (
    ACTIONS,
    LEAST_SWEEP,
    REST,
    SPEED,
    ActionSpritesParameters,
    action_sprites_job,
    draw_actions,
    grid_features,
    render_sequence,
)
from vidistill.tasks.stage import Runtime, run_job
from vidistill.tasks.videos.sprites import ATTRIBUTES, SWEEPS


def test_cells_without_a_pixel_are_refused() -> None:
    with pytest.raises(ValidationError, match="grid=17 cells a side are more than the 16 pixels"):
        ActionSpritesParameters(size=16, grid=17)
    assert ActionSpritesParameters(size=16, grid=16).grid == 16


TINY = ActionSpritesParameters(train=2, test=1, actions=3, size=16, grid=2)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    ref, _ = run_job(action_sprites_job(TINY), Runtime(store=str(folder), device="cpu", threads=1))
    return Store(folder).folder(ref)


def test_an_action_sweeps_its_own_attribute_and_begins_where_the_last_one_ended() -> None:
    actions = list(draw_actions(200, np.random.default_rng(0)))
    assert {action.name for action in actions} == set(ACTIONS)
    for before, action in pairwise(actions):
        assert action.name != before.name
        assert np.abs(action.path_AT[:, 0] - before.path_AT[:, -1]).max() <= SPEED[1]
    for action in actions:
        assert np.abs(action.path_AT).max() <= 1 + 1e-9
        moved = {name: path[-1] - path[0] for name, path in zip(ATTRIBUTES, action.path_AT, strict=True)}
        if action.name == REST:
            assert set(moved.values()) == {0.0}
            continue
        swept, direction = SWEEPS[action.name]
        assert direction * moved.pop(swept) >= LEAST_SWEEP - SPEED[1]
        assert set(moved.values()) == {0.0}


def test_features_and_labels_lie_in_the_layout_that_is_read(rendered: Path) -> None:
    table = survey_sequences(rendered, 1)
    assert table.classes == ACTIONS
    assert table.dimensions == 3 * 2**2
    assert [video.split for video in table.videos] == ["train", "train", "test"]
    for number, video in enumerate(table.videos):
        actions, frames_THW = render_sequence(TINY, number)
        np.testing.assert_array_equal(
            np.load(rendered / "features" / f"{video.name}.npy"), grid_features(frames_THW, 2).T
        )
        names = [action.name for action in actions for _ in range(action.path_AT.shape[1])]
        assert (rendered / "groundTruth" / f"{video.name}.txt").read_text().split() == names


def test_the_same_seed_renders_the_same_bytes_and_another_others(tmp_path: Path, rendered: Path) -> None:
    runtime = Runtime(store=str(tmp_path), device="cpu", threads=1)
    again, other = (
        Store(tmp_path).folder(run_job(action_sprites_job(one), runtime)[0])
        for one in (TINY, TINY.model_copy(update={"seed": 1}))
    )
    contents = [
        {path.name: path.read_bytes() for path in files_of(folder) if path.name != "manifest.json"}
        for folder in (rendered, again, other)
    ]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


@pytest.mark.parametrize(("x", "y"), [(0.3, 0.0), (0.0, -0.4), (0.25, 0.2)])
def test_features_say_how_the_picture_moves(x: float, y: float) -> None:
    """A smooth picture that moves by a part of a pixel a frame, seen in one cell."""
    rows, columns = np.mgrid[0:24, 0:24].astype(float)
    frames_THW = np.stack(
        [
            0.5 + 0.2 * np.sin(2 * math.pi * (columns - x * t) / 12) + 0.2 * np.sin(2 * math.pi * (rows - y * t) / 8)
            for t in range(4)
        ]
    ).astype(np.float32)
    features_TD = grid_features(frames_THW, 1)
    assert features_TD[0].tolist() == [0, 0, 0]
    assert features_TD[1:, 0] == pytest.approx([x] * 3, abs=0.06)
    assert features_TD[1:, 1] == pytest.approx([y] * 3, abs=0.06)
    change = np.diff(frames_THW, axis=0)
    assert features_TD[1:, 2] == pytest.approx((change**2).mean((1, 2)), rel=1e-5)


def test_cells_are_those_of_a_grid_row_by_row() -> None:
    frames_THW = np.zeros((2, 8, 8), np.float32)
    frames_THW[1, :4, 4:] = 1.0  # the upper right quarter changes
    changes = grid_features(frames_THW, 2)[1].reshape(3, 4)[2]
    assert changes.tolist() == [0, 1, 0, 0]
