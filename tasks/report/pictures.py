"""Arrays → pictures that a page carries inside itself: animated WebP, motion strips, and the geometry of charts.

Legend: T frames, H height, W width, C colours (RGB); the last 2 of `flow_THW2` are (x, y) in pixels a frame, y down.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vidistill.tasks.videos.strips import strip

SMALL_SIDE = 128
MOVING_BYTES = 240_000
PANEL_WIDTH, PANEL_HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 36
Moving = tuple[str, str]


def moving(clip_THWC: NDArray[np.uint8]) -> str:
    """A looping animated WebP (a still one for a single frame) as a `data:` address.

    Small frames are doubled by nearest neighbour, so that the format's halved colour resolution costs no pixel its
    colour, unless that makes a noisy clip too large.
    """
    if min(clip_THWC.shape[1:3]) <= SMALL_SIDE:
        doubled = data_uri(clip_THWC.repeat(2, axis=1).repeat(2, axis=2))
        if len(doubled) <= MOVING_BYTES:
            return doubled
    return data_uri(clip_THWC)


def looping(clip_THWC: NDArray[np.uint8]) -> Moving:
    """The addresses of a moving picture and of its first frame, for those who want none that moves."""
    return moving(clip_THWC), data_uri(clip_THWC[:1])


def data_uri(clip_THWC: NDArray[np.uint8]) -> str:
    """Frames at their own size, eight a second, as the `data:` address of a WebP."""
    from PIL import Image

    first, *rest = [Image.fromarray(np.ascontiguousarray(frame_HWC)) for frame_HWC in clip_THWC]
    buffer = io.BytesIO()
    first.save(buffer, "WEBP", save_all=True, append_images=rest, duration=125, loop=0, quality=80, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def frame_differences(clip_THWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean absolute difference of neighbouring frames over the colours: float32 (T-1, H, W) in [0, 1]."""
    differences: NDArray[np.float32] = np.abs(np.diff(clip_THWC.astype(np.float32), axis=0)).mean(axis=-1) / 255
    return differences


def brightness(values_THW: NDArray[np.float32], largest: float) -> NDArray[np.uint8]:
    """Grey frames, white at `largest` and above."""
    grey_THW: NDArray[np.uint8] = (np.clip(values_THW / largest, 0, 1) * 255).astype(np.uint8)
    return np.stack([grey_THW] * 3, axis=-1)


def optical_flow(clip_THWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Farnebäck's dense flow between neighbouring frames: float32 (T-1, H, W, 2), pixels a frame.

    Raises:
        ImportError: OpenCV is not installed.
    """
    import cv2

    grey_THW = [cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY) for frame_HWC in clip_THWC]
    blank_HW2 = np.zeros((*grey_THW[0].shape, 2), np.float32)
    flow_THW2 = [
        cv2.calcOpticalFlowFarneback(before, after, blank_HW2.copy(), 0.5, 3, 15, 3, 5, 1.2, 0)
        for before, after in pairwise(grey_THW)
    ]
    return np.stack(flow_THW2).astype(np.float32)


def flow_colours(flow_THW2: NDArray[np.float32], largest: float) -> NDArray[np.uint8]:
    """Hue is the direction (see `colour_wheel`), brightness the speed, full at `largest` pixels a frame."""
    import cv2

    frames, height, width, _ = flow_THW2.shape
    x, y = flow_THW2[..., 0], flow_THW2[..., 1]
    hue = np.degrees(np.arctan2(y, x)) % 360
    value = np.clip(np.hypot(x, y) / largest, 0, 1)
    hsv = np.stack([hue, np.ones_like(hue), value], axis=-1).astype(np.float32)
    rgb = cv2.cvtColor(hsv.reshape(frames * height, width, 3), cv2.COLOR_HSV2RGB)
    return (rgb * 255).round().astype(np.uint8).reshape(frames, height, width, 3)


def colour_wheel(side: int = 96) -> NDArray[np.uint8]:
    """The key to `flow_colours`, (1, side, side, 3): a disc, each point in the colour of moving to it."""
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    flow_HW2 = np.stack(np.meshgrid(axis, axis), axis=-1)
    flow_HW2[np.hypot(flow_HW2[..., 0], flow_HW2[..., 1]) > 1] = 0
    return flow_colours(flow_HW2[None], 1.0)


@dataclass(frozen=True)
class Tick:
    position: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to drawing units, with round ticks inside its range."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[Tick]:
        most = min(5.0, max(2.0, abs(self.end - self.start) / 32))
        step = _round_step((self.high - self.low) / most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [Tick(self.at(i * step), _tick_label(i * step, step)) for i in range(first, last + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _tick_label(value: float, step: float) -> str:
    return f"{value:,.{max(0, -math.floor(math.log10(step)))}f}".replace(",", " ")


def horizontal(low: float, high: float) -> Axis:
    """A panel's x axis, left to right."""
    return Axis(low, high if high > low else low + 1, LEFT, PANEL_WIDTH - RIGHT)


def vertical(low: float, high: float, top: float = TOP, bottom: float = PANEL_HEIGHT - BOTTOM) -> Axis:
    """A panel's y axis, upward."""
    return Axis(low, high if high > low else low + 1, bottom, top)


def path(x: Sequence[float], y: Sequence[float], x_axis: Axis, y_axis: Axis, points: int = 240) -> str:
    """An SVG path through at most about `points` of the points, broken where a value is not finite."""
    stride = max(1, -(-len(x) // points))
    chosen = sorted({*range(0, len(x), stride), len(x) - 1}) if len(x) else []
    pieces, pen = [], "M"
    for i in chosen:
        if math.isfinite(y[i]):
            pieces.append(f"{pen}{x_axis.at(x[i])} {y_axis.at(y[i])}")
        pen = "L" if math.isfinite(y[i]) else "M"
    return "".join(pieces)


@dataclass(frozen=True)
class Series:
    """One line or one set of bars: its colour class in the page, its hover title, its numbers."""

    colour: str
    title: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Line:
    colour: str
    title: str
    d: str


@dataclass(frozen=True)
class Panel:
    """Lines on two axes."""

    label: str
    x_axis: Axis
    y_axis: Axis
    lines: list[Line]


def line_panel(label: str, series: Sequence[Series]) -> Panel:
    """Series on shared axes, y from 0 (or below) to the largest finite value."""
    finite = [value for one in series for value in one.y if math.isfinite(value)]
    x_axis = horizontal(min(one.x[0] for one in series), max(one.x[-1] for one in series))
    y_axis = vertical(min([0.0, *finite]), 1.05 * max([0.0, *finite]))
    return Panel(
        label, x_axis, y_axis, [Line(one.colour, one.title, path(one.x, one.y, x_axis, y_axis)) for one in series]
    )


@dataclass(frozen=True)
class Bar:
    colour: str
    title: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class BarRow:
    name: str
    middle: float
    bars: list[Bar]


@dataclass(frozen=True)
class BarChart:
    height: float
    x_axis: Axis
    rows: list[BarRow]


def bar_chart(names: Sequence[str], series: Sequence[Series], thickness: float = 7, gap: float = 9) -> BarChart:
    """Grouped horizontal bars of shares in [0, 1]: one group a name, one bar a series."""
    x_axis = Axis(0, 1, 124, PANEL_WIDTH - RIGHT)
    band = thickness * len(series) + gap
    rows = []
    for index, name in enumerate(names):
        y = 4 + index * band
        bars = [
            Bar(one.colour, f"{name}, {one.title}: {one.y[index]:.1%}", x_axis.start, y + thickness * place,
                max(0.8, x_axis.at(one.y[index]) - x_axis.start), thickness - 1)
            for place, one in enumerate(series)
        ]  # fmt: skip
        rows.append(BarRow(name, y + thickness * len(series) / 2, bars))
    return BarChart(4 + band * len(names) + 22, x_axis, rows)


@dataclass(frozen=True)
class SaliencyPanel:
    """The saliency line with its threshold above, the mask's bars below, over the same frames."""

    x_axis: Axis
    s_axis: Axis
    mask_axis: Axis
    line: str
    threshold: float
    bars: list[Bar]


def saliency_panel(s_T: Sequence[float], epsilon: float, mask_T: Sequence[float]) -> SaliencyPanel:
    """Saliency s and its threshold ε above, the gradient mask M of the same frames below."""
    x_axis = horizontal(-0.5, len(s_T) - 0.5)
    low, high = min([epsilon, *s_T]), max([epsilon, *s_T])
    room = 0.1 * (high - low) or 0.1
    s_axis = vertical(low - room, high + room, top=24, bottom=112)
    mask_axis = vertical(0.0, max([1e-6, *mask_T]), top=144)
    width = 0.7 * (x_axis.at(1) - x_axis.at(0))
    tops = [mask_axis.at(m) for m in mask_T]
    bars = [
        Bar("", f"frame {t}: M = {mask_T[t]:.3g}", x_axis.at(t) - width / 2, top, width, mask_axis.start - top)
        for t, top in enumerate(tops)
    ]
    line = path(range(len(s_T)), s_T, x_axis, s_axis)
    return SaliencyPanel(x_axis, s_axis, mask_axis, line, s_axis.at(epsilon), bars)


@dataclass(frozen=True)
class MotionStrips:
    """One clip's frames, their differences, and their optical flow (None without OpenCV), as `data:` addresses."""

    source: str
    frames: str
    differences: str
    flow: str | None


@dataclass(frozen=True)
class Motion:
    """Strips of several clips on one scale: white is `largest_difference`, full colour `largest_speed`."""

    strips: list[MotionStrips]
    largest_difference: float
    largest_speed: float
    wheel: str | None


def motion_strips(clips: dict[str, NDArray[np.uint8]]) -> Motion:
    """Frame differences and optical flow of clips of one class, on scales that all share (99.5th percentiles)."""
    differences = {name: frame_differences(clip) for name, clip in clips.items()}
    try:
        flows = {name: optical_flow(clip) for name, clip in clips.items()}
    except ImportError:
        flows = {}
    white = _scale(list(differences.values()))
    speed = _scale([np.linalg.norm(flow_THW2, axis=-1) for flow_THW2 in flows.values()])
    strips = [
        MotionStrips(
            name,
            data_uri(strip(clip)),
            data_uri(strip(brightness(differences[name], white))),
            data_uri(strip(flow_colours(flows[name], speed))) if flows else None,
        )
        for name, clip in clips.items()
    ]
    return Motion(strips, white, speed, data_uri(colour_wheel()) if flows else None)


def _scale(values: Sequence[NDArray[np.float32]]) -> float:
    if not values:
        return 0.0
    return max(1e-3, float(np.quantile(np.concatenate([one.ravel() for one in values]), 0.995)))
