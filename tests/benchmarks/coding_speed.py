"""Coded clips: how many are written and read in a second of CPU time, their bytes, and what they lose.

    python tests/benchmarks/coding_speed.py FOLDER [--clips 20] [--crf 40 50 58] [--preset 4] [--together] [--even]

Clips are centre clips of videos of FOLDER, evenly spread over its files, at 8 frames of 56×56 8 apart and 16 of
112×112 4 apart. PSNR is over all pixels of a clip in RGB, and its mean over the clips is printed; *moving* is that of
the clip minus its mean over time; bytes a clip are those of the whole stream, index and header included. With
--together all clips are one stream, with --even every frame is at the quantiser.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from vidistill.storage.streams import Stream, decode, encode
from vidistill.tasks.videos import frames
from vidistill.tasks.videos.decoder import Sampling

SUFFIXES = {".avi", ".mp4", ".mkv", ".webm", ".mov"}
SAMPLINGS = (Sampling(frames=8, interval=8, size=56, views=1), Sampling(frames=16, interval=4, size=112, views=1))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    errors = ((one.astype(float) - other) ** 2).mean(axis=(1, 2, 3, 4))
    return float((10 * np.log10(255**2 / errors)).mean())


def moving(clips_NTHWC: np.ndarray) -> np.ndarray:
    return clips_NTHWC - clips_NTHWC.mean(1, keepdims=True)


def measure(clips_NTHWC: np.ndarray, crf: int, preset: int, together: bool, even: bool) -> str:
    begin = time.process_time()
    kept = clips_NTHWC.reshape(1, -1, *clips_NTHWC.shape[2:]) if together else clips_NTHWC
    data = encode(kept, crf, preset, even=even).to_bytes()
    coded = time.process_time()
    decoded_NTHWC = decode(Stream.from_bytes(data)).reshape(clips_NTHWC.shape)
    n, end = len(clips_NTHWC), time.process_time()
    return (
        f"{n / (coded - begin):10.1f} {n / (end - coded):10.1f} {len(data) / n:10.0f} "
        f"{psnr(clips_NTHWC, decoded_NTHWC):8.1f} {psnr(moving(clips_NTHWC), moving(decoded_NTHWC)):9.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--crf", type=int, nargs="+", default=[40, 50, 58])
    parser.add_argument("--preset", type=int, default=4)
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--even", action="store_true")
    asked = parser.parse_args()
    files = sorted(path for path in asked.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = [files[i] for i in np.linspace(0, len(files) - 1, min(asked.clips, len(files))).astype(int)]
    print(f"{'clip':12}{'crf':>4} {'written/s':>10} {'read/s':>10} {'B a clip':>10} {'PSNR dB':>8} {'moving dB':>9}")
    for sampling in SAMPLINGS:
        clips_NTHWC = np.stack([frames.clips(str(path), **sampling.model_dump())[0] for path in files])
        for crf in asked.crf:
            shape = f"{sampling.frames}×{sampling.size}²"
            measured = measure(clips_NTHWC, crf, asked.preset, asked.together, asked.even)
            print(f"{shape:12}{crf:4} {measured}", flush=True)


if __name__ == "__main__":
    main()
