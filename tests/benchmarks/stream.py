"""Stream a large data set of random bytes in YouTube-8M's frame-level format: memory, throughput, time spent waiting.

    python tests/benchmarks/stream.py --gigabytes 20 --workers 2

The shards (3,862 labels, 300 frames of 1,024 + 128 bytes) are written into a temporary folder (TMPDIR) and removed.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from bench import peak
from peers_read import SPEC, write_shard

from aart_lib.data import dataset as data

FRAMES, SHARD, BATCH, STEP = 300, 500, 32, 0.100  # frames, videos a shard, videos a step, seconds a step
VIDEO = FRAMES * SPEC.dims  # bytes


def write(folder: Path, gigabytes: float) -> list[Path]:
    """Shards of random bytes, about so many gigabytes together."""
    paths = [folder / f"train{n:04}.tfrecord" for n in range(max(1, round(gigabytes * 1e9 / VIDEO / SHARD)))]
    for number, path in enumerate(paths):
        write_shard(path, SHARD, FRAMES, seed=number)
    return paths


def children() -> list[int]:
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def epoch(dataset: data.VideoDataset, workers: int, *, step: float = 0.0, most: int | None = None) -> dict:
    """Read an epoch, or its first batches; where and how long the reader of the batches waits."""
    readers, waited, freed, videos, batch = 0, 0.0, 0.0, 0, None
    batches = iter(dataset.batches(BATCH, seed=0, workers=workers))
    total = -(-len(dataset) // BATCH) if most is None else most
    if step:
        next(batches)  # the readers have started
        total -= 1
    started = time.perf_counter()
    for i in range(total):
        asked = time.perf_counter()
        fresh = next(batches)
        came = time.perf_counter()
        batch = fresh  # the old one's 44 MB go back to the system: no waiting, but time all the same
        waited, freed = waited + came - asked, freed + time.perf_counter() - came
        videos += len(batch)
        if i % 20 == 0:
            readers = max([readers, *map(peak, children())])
        time.sleep(step)
    seconds = time.perf_counter() - started
    found = {"videos": videos, "seconds": seconds, "megabytes_a_second": videos * VIDEO / seconds / 1e6}
    found |= {"waited": waited / seconds, "freed": freed / seconds}
    return found | {"peak_main_mb": peak() / 1e6, "peak_reader_mb": readers / 1e6}


def measure(folder: Path, gigabytes: float, workers: int) -> dict:
    os.environ["AART_CACHE"] = str(folder / "cache")
    data.STREAM_BYTES = min(data.STREAM_BYTES, int(gigabytes * 1e9 / 8))  # streamed, however small
    paths = write(folder, gigabytes)
    started = time.perf_counter()
    dataset = data.VideoDataset(paths, SPEC)
    found = {"gigabytes": sum(path.stat().st_size for path in paths) / 1e9}
    found |= {"index_seconds": time.perf_counter() - started, "workers": workers}
    found["stand_in"] = epoch(dataset, workers, step=STEP, most=min(300, len(dataset) // BATCH))
    return found | {"epoch": epoch(dataset, workers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the numbers here (.json)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="aart-stream-") as folder:
        found = json.dumps(measure(Path(folder), options.gigabytes, options.workers), indent=1)
    print(found)
    if options.out:
        options.out.write_text(found, encoding="utf-8")


if __name__ == "__main__":
    main()
