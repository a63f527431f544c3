"""Stream a large data set of random bytes in YouTube-8M's frame-level format: memory, throughput, time spent waiting.

    python tests/benchmarks/stream.py --gigabytes 20 --workers 2

The shards (3,862 labels, 300 frames of 1,024 + 128 bytes) are written into a temporary folder, or --dir, and removed.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from aart_lib.data import dataset as data
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.formats import SPECS
from aart_lib.data.records import encode_sequence_example, write_records

FRAMES, SHARD, BATCH, STEP = 300, 500, 32, 0.100  # frames, videos a shard, videos a step, seconds a step
VIDEO = FRAMES * 1152  # bytes


def write(folder: Path, gigabytes: float) -> list[Path]:
    """Shards of random bytes, about so many gigabytes together."""
    rng, paths = np.random.default_rng(0), []
    for shard in range(max(1, round(gigabytes * 1e9 / VIDEO / SHARD))):
        paths.append(folder / f"train{shard:04}.tfrecord")
        if not paths[-1].exists():
            write_records(paths[-1], (a_video(rng, f"{shard:04}-{i:04}") for i in range(SHARD)))
    return paths


def a_video(rng, name: str) -> bytes:
    lists = {
        key: np.frombuffer(rng.bytes(FRAMES * dims), np.uint8).reshape(FRAMES, dims)
        for key, dims in (("rgb", 1024), ("audio", 128))
    }
    labels = np.sort(rng.choice(3862, 3, replace=False))
    return encode_sequence_example({"id": name, "labels": labels}, lists)


def peak(pid: int | str = "self") -> int:
    """Largest resident memory of a process so far, bytes (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def children() -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def epoch(dataset: VideoDataset, workers: int, *, step: float = 0.0, most: int | None = None) -> dict:
    """Read an epoch, or its first batches; where and how long the reader of the batches waits."""
    readers, waited, freed, videos, batch = 0, 0.0, 0.0, 0, None
    batches = iter(dataset.batches(BATCH, seed=0, workers=workers))
    total = -(-len(dataset) // BATCH) if most is None else most
    if step:
        next(batches)  # the readers have started
        total -= 1
    started = time.perf_counter()
    for i in range(total):
        before = time.perf_counter()
        fresh = next(batches)
        waited += time.perf_counter() - before
        before = time.perf_counter()
        batch = fresh  # the old one's 44 MB go back to the system: no waiting, but time all the same
        freed += time.perf_counter() - before
        videos += len(batch)
        if i % 20 == 0:
            readers = max([readers, *map(peak, children())])
        time.sleep(step)
    seconds = time.perf_counter() - started
    return {
        "videos": videos,
        "seconds": seconds,
        "megabytes_a_second": videos * VIDEO / seconds / 1e6,
        "waited": waited / seconds,
        "freed": freed / seconds,
        "peak_main_mb": peak() / 1e6,
        "peak_reader_mb": readers / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dir", type=Path, help="keep the shards here")
    parser.add_argument("--out", type=Path, help="write the numbers here (.json)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.dir or Path(tempfile.mkdtemp(prefix="aart-stream-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["AART_CACHE"] = str(folder / "cache")
    data.STREAM_BYTES = min(data.STREAM_BYTES, int(options.gigabytes * 1e9 / 8))  # streamed, however small
    try:
        started = time.perf_counter()
        paths = write(folder, options.gigabytes)
        size = sum(path.stat().st_size for path in paths)
        print(f"{len(paths)} shards, {size / 1e9:.1f} GB, written in {time.perf_counter() - started:.0f} s", flush=True)
        started = time.perf_counter()
        dataset = VideoDataset(paths, SPECS["yt8m-frame"].leading(rgb=1024, audio=128))
        found = {"gigabytes": size / 1e9, "index_seconds": time.perf_counter() - started, "workers": options.workers}
        print(f"index of {len(dataset)} videos: {found['index_seconds']:.1f} s, peak {peak() / 1e6:.0f} MB", flush=True)
        found["stand_in"] = epoch(dataset, options.workers, step=STEP, most=min(300, len(dataset) // BATCH))
        spent = "{waited:.1%} of the time spent waiting, {freed:.1%} giving memory back".format(**found["stand_in"])
        print(f"with a step of {STEP:.1f} s: {spent}", flush=True)
        found["epoch"] = epoch(dataset, options.workers)
        about = "{videos} videos in {seconds:.0f} s, {megabytes_a_second:.0f} MB/s".format(**found["epoch"])
        memory = "peak {peak_main_mb:.0f} MB here, {peak_reader_mb:.0f} MB the largest reader".format(**found["epoch"])
        print(f"epoch: {about}; {memory}")
        if options.out:
            options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    finally:
        if options.dir is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
