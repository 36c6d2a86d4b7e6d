"""Clips a second from video files: vidistill's decoder beside the usual ones, which must choose the same frames.

    python tests/benchmarks/decode_speed.py FOLDER... [--rounds 5] [--every 1]

Every reader decodes with one thread and gives the centre clip, 16 frames 4 apart, as uint8 (16, 112, 112, 3); in one
process, and in as many as there are cores, each with its share of the files. Readers take turns round by round, since
other work on the machine would otherwise favour one; the fastest round counts. OpenCV, decord, torchcodec and the
ffmpeg command join where they are installed. At the end, the peak memory of one decoding process after a tenth of the
files and after all of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from vidistill.tasks.videos import frames
from vidistill.tasks.videos.decoder import Decoder, Sampling

SAMPLING = Sampling()
SIZE = SAMPLING.size
SUFFIXES = {".avi", ".mp4", ".mkv", ".webm", ".mov"}
Reader = Callable[[Path], np.ndarray]


def centre(count: int) -> list[int]:
    numbers: list[int] = frames.choose(count, SAMPLING.frames, SAMPLING.interval, 1)[0].tolist()
    return numbers


def scaled(width: int, height: int) -> tuple[int, int]:
    ratio = SIZE / min(width, height)
    return max(SIZE, round(width * ratio)), max(SIZE, round(height * ratio))


def middle(frames_NHWC: np.ndarray) -> np.ndarray:
    top, left = ((side - SIZE) // 2 for side in frames_NHWC.shape[1:3])
    return frames_NHWC[:, top : top + SIZE, left : left + SIZE]


def in_process(path: Path) -> np.ndarray:
    return frames.clips(str(path), **SAMPLING.model_dump())[0]


def pyav_everything(path: Path) -> np.ndarray:
    import av

    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        frames = list(container.decode(video=0))
        width, height = scaled(frames[0].width, frames[0].height)
        chosen = [frames[number] for number in centre(len(frames))]
        return middle(np.stack([frame.to_ndarray(format="rgb24", width=width, height=height) for frame in chosen]))


def opencv() -> Reader:
    import cv2

    cv2.setNumThreads(1)

    def read(path: Path) -> np.ndarray:
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        numbers = centre(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        pictures = {}
        for number in range(numbers[-1] + 1):
            capture.grab()
            if number in numbers:
                picture = capture.retrieve()[1]
                size = scaled(picture.shape[1], picture.shape[0])
                pictures[number] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)[..., ::-1]
        return middle(np.stack([pictures[number] for number in numbers]))

    return read


def decord() -> Reader:
    from decord import VideoReader

    def read(path: Path) -> np.ndarray:
        height, width = VideoReader(str(path), num_threads=1)[0].shape[:2]
        width, height = scaled(width, height)
        video = VideoReader(str(path), num_threads=1, width=width, height=height)
        return middle(video.get_batch(centre(len(video))).asnumpy())

    return read


def torchcodec() -> Reader:
    import torch
    from torch.nn.functional import interpolate
    from torchcodec.decoders import VideoDecoder

    torch.set_num_threads(1)

    def read(path: Path) -> np.ndarray:
        video = VideoDecoder(str(path), num_ffmpeg_threads=1)
        frames_NCHW = video.get_frames_at(centre(len(video))).data
        width, height = scaled(frames_NCHW.shape[3], frames_NCHW.shape[2])
        small = interpolate(frames_NCHW, (height, width), mode="bilinear", antialias=True)
        return middle(small.permute(0, 2, 3, 1).numpy())

    return read


def ffmpeg_command() -> Reader:
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        raise ImportError("no ffmpeg and ffprobe on PATH")

    def read(path: Path) -> np.ndarray:
        count = "ffprobe -v error -select_streams v:0 -count_packets -show_entries stream=nb_read_packets -of csv=p=0"
        numbers = centre(int(subprocess.check_output([*count.split(), str(path)]).split(b",")[0]))
        chosen = "+".join(rf"eq(n\,{number})" for number in sorted(set(numbers)))
        scale = f"scale={SIZE}:{SIZE}:force_original_aspect_ratio=increase:flags=bilinear,crop={SIZE}:{SIZE}"
        command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-vf", f"select='{chosen}',{scale}"]
        command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        frames = np.frombuffer(subprocess.check_output(command), np.uint8).reshape(-1, SIZE, SIZE, 3)
        return frames[np.searchsorted(sorted(set(numbers)), numbers)]

    return read


def readers_here() -> dict[str, Reader]:
    readers: dict[str, Reader] = {"vidistill": in_process, "PyAV, every frame": pyav_everything}
    for name, load in (("OpenCV", opencv), ("decord", decord), ("torchcodec", torchcodec), ("ffmpeg", ffmpeg_command)):
        try:
            readers[name] = load()
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name}: skipped, {str(error).splitlines()[0]}")
    return readers


def compare(readers: dict[str, Reader], paths: list[Path]) -> dict[str, str]:
    """How far each reader's pixels lie from ours; one that fails on a file is named and left out."""
    notes = {}
    ours = [in_process(path).astype(int) for path in paths]
    for name, read in readers.items():
        try:
            differences = [np.abs(read(path) - clip).mean() for path, clip in zip(paths, ours, strict=True)]
        except Exception as error:  # noqa: BLE001 (whatever another library raises is its result here)
            print(f"{name}: left out, {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        notes[name] = f"{np.median(differences):10.2f} {max(differences):10.2f}"
    return notes


def seconds(read: Reader, paths: list[Path]) -> np.ndarray:
    """By the clock, and of CPU time (a command's included), which other work on the machine disturbs less."""
    begin = clocks()
    for path in paths:
        read(path)
    return clocks() - begin


def clocks() -> np.ndarray:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return np.array([time.perf_counter(), sum(used.ru_utime + used.ru_stime for used in usage)])


def seconds_of_processes(read: Reader, paths: list[Path], processes: int) -> np.ndarray:
    """By the clock, forks included: a process costs some hundredths of a second."""
    fork = multiprocessing.get_context("fork")
    begin = time.perf_counter()
    started = [fork.Process(target=seconds, args=(read, paths[place::processes])) for place in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return np.array([time.perf_counter() - begin, np.nan])


def seconds_of_children(decoders: list[Decoder], paths: list[Path]) -> np.ndarray:
    def work(place: int) -> None:
        for path in islice(paths, place, None, len(decoders)):
            decoders[place].clips(path, SAMPLING)

    begin = time.perf_counter()
    with ThreadPoolExecutor(len(decoders)) as pool:
        list(pool.map(work, range(len(decoders))))
    return np.array([time.perf_counter() - begin, np.nan])


def peak_megabytes(decoder: Decoder) -> float:
    assert decoder._child is not None
    status = Path(f"/proc/{decoder._child.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def measure(folder: Path, rounds: int, every: int) -> None:
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES][::every]
    cores = os.cpu_count() or 1
    readers = readers_here()
    notes = compare(readers, paths)
    readers = {name: read for name, read in readers.items() if name in notes}
    alone: dict[str, list[np.ndarray]] = defaultdict(list)
    together: dict[str, list[np.ndarray]] = defaultdict(list)
    decoders = [Decoder() for _ in range(cores)]
    seconds_of_children(decoders, paths[: 2 * cores])
    for _ in range(rounds):
        for name, read in readers.items():
            alone[name].append(seconds(read, paths))
            together[name].append(seconds_of_processes(read, paths, cores))
        alone["vidistill, its children"].append(seconds_of_children(decoders[:1], paths))
        together["vidistill, its children"].append(seconds_of_children(decoders, paths))
    print(f"\n{folder}: {len(paths)} files, fastest of {rounds} rounds")
    print(f"{'':24} {'one process':^29}   {f'{cores} processes':^21}")
    print(
        f"{'reader':24} {'clips/s':>8} {'ratio':>6} {'CPU ms':>7} {'ratio':>6} {'clips/s':>8} {'ratio':>6} {'gain':>6}"
        "   pixels off: median, worst file"
    )
    ours, ours_together = np.min(alone["vidistill"], axis=0), np.min(together["vidistill"], axis=0)[0]
    for name, rows in alone.items():
        (clock, cpu), both = np.min(rows, axis=0), np.min(together[name], axis=0)[0]
        one = f"{len(paths) / clock:8.1f} {ours[0] / clock:6.2f} {1000 * cpu / len(paths):7.2f} {ours[1] / cpu:6.2f}"
        all_cores = f"{len(paths) / both:8.1f} {ours_together / both:6.2f} {clock / both:6.2f}"
        print(f"{name:24} {one} {all_cores} {notes.get(name, '')}")
    for decoder in decoders:
        decoder.close()
    report_memory(paths)


def report_memory(paths: list[Path]) -> None:
    with Decoder() as decoder:
        seconds_of_children([decoder], paths[::10])
        few = peak_megabytes(decoder)
        seconds_of_children([decoder], paths)
        print(
            f"peak memory of one decoding process: {few:.0f} MB after {len(paths[::10])} files, "
            f"{peak_megabytes(decoder):.0f} MB after {len(paths)} more"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=int, default=1, help="take every n-th file of each folder")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        measure(folder, arguments.rounds, arguments.every)


if __name__ == "__main__":
    main()
