"""A small data set that is rendered: sprites in sequence, as frame-wise features in the layout of 50Salads.

The target of the sprites (tasks/videos/sprites.py) does one action after another, or rests. An action sweeps one of
its four attributes at a steady speed; all four tremble at all times, about as fast, so that two frames tell little of
the action. A video's features are those of a grid over its frames: how the picture moves in each cell (Lucas and
Kanade 1981) and how much it changes.

Legend: T frames, H height, W width, G cells a side, D features a frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from vidistill.storage.parameters import Parameters
from vidistill.tasks.stage import Job, Work, stage
from vidistill.tasks.videos.sprites import (
    ATTRIBUTES,
    CLASSES,
    RADIUS,
    RANGES,
    SWEEPS,
    Pose,
    Scene,
    draw_background,
    draw_scene,
    drift,
    paint,
)

REST = "rest"
ACTIONS = (*CLASSES, REST)
LEAST_SWEEP = 0.8  # of an attribute's range, which is 2 wide
SPEED = (0.045, 0.075)  # of a sweep, in halves of a range a frame
REST_FRAMES = (12, 30)
TREMOR, PERIOD = 0.06, (6.0, 12.0)  # in halves of a range, and in frames
RIDGE = 1e-3  # of the least squares, in squared brightness a pixel
SPLIT = 1


class ActionSpritesParameters(Parameters):
    """What is rendered."""

    seed: int = Field(0, ge=0)
    size: int = Field(32, ge=16, description="Both sides in pixels.")
    train: int = Field(24, ge=1, description="Videos of the training split.")
    test: int = Field(8, ge=1)
    actions: int = Field(10, ge=2, description="Segments of a video.")
    grid: int = Field(4, ge=1, description="Cells a side, of a pixel at least; a frame has 3·grid² features.")

    @model_validator(mode="after")
    def _cells_have_pixels(self) -> ActionSpritesParameters:
        if self.grid > self.size:
            raise ValueError(f"grid={self.grid} cells a side are more than the {self.size} pixels")
        return self


@dataclass(frozen=True)
class Action:
    """A segment: the class, and the four attributes of each of its frames, in [−1, 1]."""

    name: str
    path_AT: NDArray[np.float64]


def action_sprites_job(parameters: ActionSpritesParameters) -> Job:
    return action_sprites(parameters, label="render sequences")


@stage("action-sprites", version=1)
def action_sprites(work: Work) -> None:
    parameters = ActionSpritesParameters.model_validate(work.job.parameters)
    names = [f"video_{number + 1:03d}" for number in range(parameters.train + parameters.test)]
    for folder in ("features", "groundTruth", "splits"):
        (work.folder / folder).mkdir()
    (work.folder / "mapping.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(ACTIONS)))
    for split, own in (("train", names[: parameters.train]), ("test", names[parameters.train :])):
        bundle = work.folder / "splits" / f"{split}.split{SPLIT}.bundle"
        bundle.write_text("".join(f"{name}.txt\n" for name in own))
    for number, name in enumerate(names):
        actions, frames_THW = render_sequence(parameters, number)
        np.save(work.folder / "features" / f"{name}.npy", grid_features(frames_THW, parameters.grid).T)
        labels = [action.name for action in actions for _ in range(action.path_AT.shape[1])]
        (work.folder / "groundTruth" / f"{name}.txt").write_text("\n".join(labels) + "\n")
        work.progress(number + 1, len(names))


def render_sequence(parameters: ActionSpritesParameters, number: int) -> tuple[list[Action], NDArray[np.float32]]:
    """A video's actions and its frames (T, H, W), brightness in [0, 1]."""
    rng = np.random.default_rng([parameters.seed, number])
    actions = list(draw_actions(parameters.actions, rng))
    path_AT = np.concatenate([action.path_AT for action in actions], axis=1)
    image_THWC = _rendered(draw_scene(rng), path_AT, parameters.size, rng)
    return actions, image_THWC.mean(3, dtype=np.float32)


def draw_actions(count: int, rng: np.random.Generator) -> Iterator[Action]:
    """Actions for which there is room, none after itself."""
    value_A, before = rng.uniform(-0.5, 0.5, len(ATTRIBUTES)), ""
    for _ in range(count):
        open_now = [name for name in ACTIONS if name != before and _room(name, value_A) >= LEAST_SWEEP]
        before = str(rng.choice(open_now))
        if before == REST:
            path_AT = np.repeat(value_A[:, None], rng.integers(*REST_FRAMES), axis=1)
        else:
            path_AT = _swept(before, value_A, rng)
        value_A = path_AT[:, -1]
        yield Action(before, path_AT)


def _room(name: str, value_A: NDArray[np.float64]) -> float:
    """How far the attribute of an action can still go."""
    if name == REST:
        return math.inf
    swept, direction = SWEEPS[name]
    return float(1 - direction * value_A[ATTRIBUTES.index(swept)])


def _swept(name: str, value_A: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    swept, direction = SWEEPS[name]
    way = rng.uniform(LEAST_SWEEP, _room(name, value_A))
    frames = math.ceil(way / rng.uniform(*SPEED))
    path_AT = np.repeat(value_A[:, None], frames, axis=1)
    path_AT[ATTRIBUTES.index(swept)] += direction * way * np.arange(1, frames + 1) / frames
    return path_AT


def _rendered(scene: Scene, path_AT: NDArray[np.float64], size: int, rng: np.random.Generator) -> NDArray[np.floating]:
    frames = path_AT.shape[1]
    turns_AT = np.arange(frames) / rng.uniform(*PERIOD, (len(ATTRIBUTES), 1)) + rng.random((len(ATTRIBUTES), 1))
    trembling_AT = path_AT + TREMOR * np.sin(2 * math.pi * turns_AT)
    at = {name: trembling_AT[number] * RANGES[name] for number, name in enumerate(ATTRIBUTES)}
    image_THWC = draw_background(scene, size, frames, rng)
    for distractor in scene.distractors:
        image_THWC, _ = paint(image_THWC, distractor, drift(size, frames, rng))
    pose = Pose(
        x=(size * (0.5 + at["x"])).astype(np.float32),
        y=(size * (0.5 + at["y"])).astype(np.float32),
        angle=at["angle"].astype(np.float32),
        radius=(size * RADIUS * np.exp(at["scale"])).astype(np.float32),
    )
    return paint(image_THWC, scene.target, pose)[0]


def grid_features(frames_THW: NDArray[np.float32], grid: int) -> NDArray[np.float32]:
    """Of each cell of a frame: its motion since the frame before, along x and y in pixels, and the mean square of its
    change; (T, 3·G²). The first frame has not moved.

    The motion (u, v) solves min Σ (I_x u + I_y v + I_t)² + RIDGE·(u² + v²) over the cell's pixels.
    """
    change_THW: NDArray[np.floating] = np.diff(frames_THW, axis=0, prepend=frames_THW[:1])
    y_THW, x_THW = np.gradient(frames_THW, axis=(1, 2))
    xx, yy, xy, xt, yt = (
        _cells(np.asarray(one * other), grid)
        for one, other in (
            (x_THW, x_THW), (y_THW, y_THW), (x_THW, y_THW), (x_THW, change_THW), (y_THW, change_THW),
        )
    )  # fmt: skip
    xx, yy = xx + RIDGE, yy + RIDGE
    determinant = xx * yy - xy**2
    u, v = (xy * yt - yy * xt) / determinant, (xy * xt - xx * yt) / determinant
    return np.concatenate([u, v, _cells(np.square(change_THW), grid)], axis=1).astype(np.float32)


def _cells(image_THW: NDArray[np.floating], grid: int) -> NDArray[np.floating]:
    """The mean over each cell: (T, G²)."""
    rows = np.array_split(image_THW, grid, axis=1)
    return np.stack([cell.mean((1, 2)) for row in rows for cell in np.array_split(row, grid, axis=2)], axis=1)
