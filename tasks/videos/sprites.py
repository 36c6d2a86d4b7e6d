"""The embedded data set: videos whose motion, not whose look, is the class.

A textured shape, the target, stands over a panning background among smaller distractors. It has four attributes: x, y,
angle and scale. The class names the one attribute that is *swept* through its range, and the direction. The other three
*rock* there and back through the very same values, so that single frames and the unordered set of frames are
distributed alike in every class and only the order tells it. Scenes (shapes, colours, textures, background) belong to
groups: each group is rendered once a class, so the look tells nothing either, and no group spans the split.

Legend: N frames, H height, W width, C colour channels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.parameters import Parameters

Floats = NDArray[np.floating]
Frames = NDArray[np.uint8]

CLASSES: tuple[str, ...] = ("left", "right", "up", "down", "spin_cw", "spin_ccw", "grow", "shrink")
ATTRIBUTES: tuple[str, ...] = ("x", "y", "angle", "scale")
# class → (attribute swept, direction); the image's y axis points down, so a growing angle turns clockwise.
SWEEPS: dict[str, tuple[str, int]] = {
    "left": ("x", -1),
    "right": ("x", 1),
    "up": ("y", -1),
    "down": ("y", 1),
    "spin_cw": ("angle", 1),
    "spin_ccw": ("angle", -1),
    "grow": ("scale", 1),
    "shrink": ("scale", -1),
}
SHAPES: tuple[str, ...] = ("disc", "triangle", "square", "pentagon", "star")
FRAMES_PER_SECOND = 16
# Half the range of each attribute: x and y in image widths, the angle in radians, the scale in factors of e.
RANGES: dict[str, float] = {"x": 0.2, "y": 0.2, "angle": 1.3, "scale": 0.45}
ROCKING_PERIODS = 3.0  # a clip: the faster the rest rocks, the more the sweep stands out
RADIUS = 0.2  # of the target at scale 1, in image widths
TURN = 0.3  # radians by which the angle's range differs between clips, either way
PAN = 0.1  # of the background over the clip, in image widths
WAVES = 4  # of which a background is made
DISTRACTORS = 2
DISTRACTOR_RADIUS = 0.06  # in image widths
# What makes learning from one clip a class hard is a look that gives a scene away: vivid distractors or a colour spread
# of 0.1 take a student of eight clips from 60 % to under 20 %, while shapes, stripes and backgrounds cost it little.
COLOUR_SPREAD = 0.02  # of each channel between scenes, either way
STRIPES = (2.5, 3.5)  # radians of the texture's wave over one radius: the least and the most
TARGET_COLOURS = ((0.9, 0.85, 0.4), (0.75, 0.2, 0.2))
DISTRACTOR_COLOURS = ((0.35, 0.4, 0.45), (0.25, 0.3, 0.3))
BACKGROUND_COLOURS = ((0.1, 0.1, 0.1), (0.3, 0.3, 0.3))


class SpritesParameters(Parameters):
    """What is rendered. `size` is both sides in pixels; 32 frames are 8 at an interval of 4, or 16 at 2."""

    seed: int = Field(0, ge=0, description="Of the scenes.")
    size: int = Field(64, ge=16, multiple_of=2, description="Height and width of a video in pixels.")
    frames: int = Field(32, ge=2, description="Frames of a video.")
    train_per_class: int = Field(40, ge=1, description="Videos for training, a class.")
    test_per_class: int = Field(20, ge=1, description="Videos for the test, a class.")


@dataclass(frozen=True)
class Sprite:
    """A shape's look: the shape, its texture's two RGB colours in [0, 1] and its stripes in radians over one radius."""

    shape: str
    colours_2C: Floats
    stripes: float


@dataclass(frozen=True)
class Scene:
    """All that a group's clips have in common; a background's wave is (periods along x, along y) over the image."""

    target: Sprite
    distractors: tuple[Sprite, ...]
    background_colours_2C: Floats
    waves_K2: Floats


@dataclass(frozen=True)
class Pose:
    """Where a sprite is in every frame: centre and radius in pixels, angle in radians, all of shape (N,)."""

    x: Floats
    y: Floats
    angle: Floats
    radius: Floats


def render_sprites(
    root: Path, parameters: SpritesParameters, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write `root/train/<class>/<class>_scene0001.mp4` …, `root/test/…` and `root/boxes.json`.

    The same parameters give the same bytes. `boxes.json` maps each video's path, relative to `root`, to the target's
    `shape` and to `boxes`, one `[x0, y0, x1, y1]` in pixels a frame (x1 and y1 exclusive).

    Args:
        root: The folder to write to; made where it is missing.
        parameters: What to render.
        progress: Called with (videos written, videos in all) after each.
    """
    total = len(CLASSES) * (parameters.train_per_class + parameters.test_per_class)
    annotations: dict[str, dict[str, object]] = {}
    for name, frames_NHWC, boxes_N4, shape in render_clips(parameters):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, frames_NHWC)
        annotations[name] = {"shape": shape, "boxes": boxes_N4.tolist()}
        if progress is not None:
            progress(len(annotations), total)
    (root / "boxes.json").write_text(json.dumps(annotations, sort_keys=True), encoding="utf-8")


def render_clips(parameters: SpritesParameters) -> Iterator[tuple[str, Frames, NDArray[np.int64], str]]:
    """Yield each clip: relative path, frames (N, H, W, 3), the target's boxes (N, 4), the target's shape."""
    for group in range(1, parameters.train_per_class + parameters.test_per_class + 1):
        split = "train" if group <= parameters.train_per_class else "test"
        scene = draw_scene(np.random.default_rng([parameters.seed, group]))
        for label, name in enumerate(CLASSES):
            rng = np.random.default_rng([parameters.seed, group, label + 1])
            frames_NHWC, boxes_N4 = render_clip(scene, name, parameters, rng)
            yield f"{split}/{name}/{name}_scene{group:04d}.mp4", frames_NHWC, boxes_N4, scene.target.shape


def render_clip(
    scene: Scene, name: str, parameters: SpritesParameters, rng: np.random.Generator
) -> tuple[Frames, NDArray[np.int64]]:
    """One clip of class `name`: frames (N, H, W, 3) and the target's boxes (N, 4)."""
    size, frames = parameters.size, parameters.frames
    image_NHWC = draw_background(scene, size, frames, rng)
    for distractor in scene.distractors:
        image_NHWC, _ = paint(image_NHWC, distractor, drift(size, frames, rng))
    image_NHWC, mask_NHW = paint(image_NHWC, scene.target, target_pose(name, size, frames, rng))
    return (image_NHWC * 255 + 0.5).astype(np.uint8), boxes_of(mask_NHW)


def attribute_paths(name: str, frames: int, rng: np.random.Generator) -> dict[str, Floats]:
    """The four attributes of class `name` over time, each in [-1, 1].

    A rocking attribute takes the swept one's values in the order of a triangle wave with a random phase: its rank in
    the wave picks the value, so that the set of values is the same whatever the order.
    """
    sweep_N = np.linspace(-1, 1, frames, dtype=np.float32)
    swept, direction = SWEEPS[name]
    paths = {}
    for attribute in ATTRIBUTES:
        phase_N = np.arange(frames) / frames * ROCKING_PERIODS + rng.random()
        rank_N = np.argsort(np.argsort(np.abs(phase_N % 1 - 0.5), kind="stable"))
        paths[attribute] = direction * sweep_N if attribute == swept else sweep_N[rank_N]
    return paths


def target_pose(name: str, size: int, frames: int, rng: np.random.Generator) -> Pose:
    path = {attribute: values * RANGES[attribute] for attribute, values in attribute_paths(name, frames, rng).items()}
    turn = rng.uniform(-TURN, TURN)
    return Pose(
        x=size * (0.5 + path["x"]),
        y=size * (0.5 + path["y"]),
        angle=(turn + path["angle"]).astype(np.float32),
        radius=size * RADIUS * np.exp(path["scale"]),
    )


def drift(size: int, frames: int, rng: np.random.Generator) -> Pose:
    """A distractor's slow straight way, in a random direction."""
    start_2 = rng.uniform(0.1, 0.9, 2)
    step_2 = rng.uniform(-PAN, PAN, 2)
    time_N = np.linspace(0, 1, frames)
    x_N, y_N = ((start_2[i] + step_2[i] * time_N).astype(np.float32) * size for i in range(2))
    angle_N = np.full(frames, rng.uniform(0, 2 * math.pi), np.float32)
    return Pose(x_N, y_N, angle_N, np.full(frames, size * DISTRACTOR_RADIUS, np.float32))


def draw_scene(rng: np.random.Generator) -> Scene:
    return Scene(
        target=draw_sprite(rng, TARGET_COLOURS),
        distractors=tuple(draw_sprite(rng, DISTRACTOR_COLOURS) for _ in range(DISTRACTORS)),
        background_colours_2C=draw_colours(rng, BACKGROUND_COLOURS),
        waves_K2=rng.integers(-3, 4, (WAVES, 2)).astype(np.float32),
    )


def draw_sprite(rng: np.random.Generator, colours: Sequence[Sequence[float]]) -> Sprite:
    shape = SHAPES[rng.integers(len(SHAPES))]
    return Sprite(shape, draw_colours(rng, colours), stripes=float(rng.uniform(*STRIPES)))


def draw_colours(rng: np.random.Generator, colours: Sequence[Sequence[float]]) -> Floats:
    colours_2C = np.asarray(colours, np.float32)
    spread_2C = rng.uniform(-COLOUR_SPREAD, COLOUR_SPREAD, colours_2C.shape)
    return np.clip(colours_2C + spread_2C, 0, 1).astype(np.float32)


def draw_background(scene: Scene, size: int, frames: int, rng: np.random.Generator) -> Floats:
    """A sum of plane waves between two colours, panning in a random direction: (N, H, W, 3) in [0, 1]."""
    axis = np.arange(size, dtype=np.float32) / size
    heading = rng.uniform(0, 2 * math.pi)
    pan_N = np.linspace(0, PAN, frames, dtype=np.float32)
    x_NW = axis + math.cos(heading) * pan_N[:, None]
    y_NH = axis + math.sin(heading) * pan_N[:, None]
    level_NHW = np.zeros((frames, size, size), np.float32)
    for u, v in scene.waves_K2:
        turns_NHW = u * x_NW[:, None, :] + v * y_NH[:, :, None] + rng.random()
        level_NHW += np.sin(2 * math.pi * turns_NHW)
    return mix(scene.background_colours_2C, level_NHW / len(scene.waves_K2) / 2 + 0.5)


def paint(image_NHWC: Floats, sprite: Sprite, pose: Pose) -> tuple[Floats, Floats]:
    """Lay a sprite over the frames; returns them and the sprite's coverage (N, H, W) in [0, 1]."""
    axis = np.arange(image_NHWC.shape[1], dtype=np.float32)
    x_NHW = axis[None, None, :] - pose.x[:, None, None] + np.zeros_like(axis)[None, :, None]
    y_NHW = axis[None, :, None] - pose.y[:, None, None] + np.zeros_like(axis)[None, None, :]
    distance_NHW = np.hypot(x_NHW, y_NHW)
    bearing_NHW = np.arctan2(y_NHW, x_NHW) - pose.angle[:, None, None]
    radius_N11 = pose.radius[:, None, None]
    mask_NHW = np.clip(radius_N11 * outline(sprite.shape, bearing_NHW) - distance_NHW + 0.5, 0, 1)
    along_NHW = distance_NHW / radius_N11 * np.cos(bearing_NHW)
    texture_NHW = np.clip(2 * np.sin(sprite.stripes * along_NHW) + 0.5, 0, 1)
    colour_NHWC = mix(sprite.colours_2C, texture_NHW)
    return image_NHWC + mask_NHW[..., None] * (colour_NHWC - image_NHWC), mask_NHW


def outline(shape: str, bearing: Floats) -> Floats:
    """How far a shape of radius 1 reaches in each direction (radians)."""
    if shape == "disc":
        return np.full_like(bearing, 0.85)
    if shape == "star":
        return np.asarray(0.75 + 0.25 * np.cos(5 * bearing))
    half = math.pi / {"triangle": 3, "square": 4, "pentagon": 5}[shape]
    return np.asarray(math.cos(half) / np.cos(bearing % (2 * half) - half))


def mix(colours_2C: Floats, level_NHW: Floats) -> Floats:
    return np.asarray(colours_2C[0] + level_NHW[..., None] * (colours_2C[1] - colours_2C[0]))


def boxes_of(mask_NHW: Floats) -> NDArray[np.int64]:
    """The smallest boxes [x0, y0, x1, y1) around the pixels that are at least half covered."""
    inside_NHW: NDArray[np.bool_] = mask_NHW >= 0.5
    columns_NW, rows_NH = (np.asarray(inside_NHW.any(axis=axis)) for axis in (1, 2))
    starts = columns_NW.argmax(axis=1), rows_NH.argmax(axis=1)
    ends = (line.shape[1] - line[:, ::-1].argmax(axis=1) for line in (columns_NW, rows_NH))
    return np.stack([*starts, *ends], axis=1)


def write_video(path: Path, frames_NHWC: Frames, fps: int = FRAMES_PER_SECOND) -> None:
    """Encode frames (N, H, W, 3) as H.264 in MP4, with one thread and no dates, so that the bytes repeat.

    Without `cpu-independent` x264's macroblock tree gives other bytes for the same frames, from one call to the next.
    """
    import av

    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
        options = {"crf": "18", "preset": "veryfast", "x264-params": "cpu-independent=1"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames_NHWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame_HWC in frames_NHWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())
