"""Reading a frame-level shard, in file order and shuffled, against other readers of the same file."""

import numpy as np
import peers_read as readers
import torch
from bench import Settings, in_turns, peer

from aart_lib.data.batch import features

SHARD = (1000, 300)  # videos, frames
SMALL = (60, 30)
BOUNDS = {
    "stored bytes": "copy the cached bytes into batches",
    "floats": "turn bytes that lie ready into floats in new batches, and read nothing",
}
TARGETS = {  # from the file, and from the cache
    "stored bytes": ({"tfrecord": 6.0, "tf.data": 3.0}, {"tfrecord": 25.0}),
    "floats": ({"tfrecord": 3.0, "tfrecord, two processes": None, "tf.data": 1.5}, {"tfrecord": 10.0}),
}
THREADS = {"stored bytes": 1, "floats": 2}


def _shard(settings: Settings):
    path = settings.folder / "train-bench.tfrecord"
    if not path.exists():
        readers.write_shard(path, *settings.size(SHARD, SMALL))
    return path


def _digest(batches) -> list:
    """What two readers must agree on: the number of videos, and sums of frames and labels."""
    found = np.zeros(3, np.int64)
    for frames, labels in batches:
        found += len(frames), frames.view(np.uint8).sum(dtype=np.int64), labels.nonzero()[1].sum()
    return found.tolist()


def _drain(batches) -> None:
    for _ in batches:
        pass


def _jobs(path, cached, product: str) -> dict:
    """The readers of a product, by name: functions that give its batches, of floats on two cores where they can."""
    floats = product == "floats"
    jobs = {"ours": lambda: readers.batched(readers.ours_stored(path))}
    jobs["ours, cached"] = lambda: readers.batched(readers.ours_cached(cached))
    if floats:
        jobs["ours"] = lambda: readers.ours_batches(readers.ours_opened(path))
        jobs["ours, cached"] = lambda: readers.ours_batches(cached)
    if peer("tfrecord"):
        jobs["tfrecord"] = lambda: readers.batched(readers.tfrecord_stored(path), floats)
        if floats:
            jobs["tfrecord, two processes"] = lambda: readers.tfrecord_batches(path)
    if tensorflow := peer("tensorflow"):
        tensorflow.config.threading.set_intra_op_parallelism_threads(1)
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)
        jobs["tf.data"] = lambda: readers.tf_batches(path, floats, threads=1 + floats)
    return jobs


def read(settings: Settings) -> list[dict]:
    """The whole shard into batches: as stored bytes and as floats, from the file and from the cache."""
    path, entries = _shard(settings), []
    cached = readers.ours_opened(path, cached=True)
    _drain(readers.ours_batches(cached))  # fills the cache
    for product, bound in BOUNDS.items():
        torch.set_num_threads(THREADS[product])
        jobs = _jobs(path, cached, product)
        digests = {name: _digest(job()) for name, job in jobs.items()}
        timed = {name: lambda job=job: _drain(job()) for name, job in jobs.items()}
        times = in_turns(timed | {"bound": lambda product=product: _fill(cached, product)}, settings.repeats)
        least = f"cores that each side may use: {THREADS[product]}; bound: {times.median('bound'):.3g} s to {bound}"
        for ours, targets in zip(("ours", "ours, cached"), TARGETS[product], strict=True):
            what = f"read a shard into batches of {product}" + ", once cached" * (ours == "ours, cached")
            for name in filter(jobs.get, targets):
                note = f"{least}: no reader is more than {times.ratio(name, 'bound'):.1f} times as fast as {name}"
                more = {"target": targets[name], "holds": digests[ours] == digests[name], "note": note}
                entries.append(times.entry("read", what, ours, name, **more))
    torch.set_num_threads(1)
    return entries


def _fill(dataset, product: str) -> None:
    """Only write the batches, from bytes that lie ready: what memory allows, without any reader."""
    count, frames = len(dataset), len(dataset[0].frames)
    source = torch.zeros(readers.BATCH, frames, readers.SPEC.dims, dtype=torch.uint8)
    real = torch.ones(source.shape[:2], dtype=torch.bool)
    for start in range(0, count, readers.BATCH):
        rows = slice(min(readers.BATCH, count - start))
        source[rows].clone() if product == "stored bytes" else features(source[rows], real[rows])


def shuffled(settings: Settings) -> list[dict]:
    """Single videos in a shuffled order, each read from the file anew."""
    path, what = _shard(settings), "shuffled access to single videos"
    if peer("tfrecord") is None:
        return []
    theirs, ours = readers.TFRecordItems(path), readers.ours_opened(path)
    order = np.random.default_rng(1).permutation(len(theirs.index)).tolist()
    same = all(np.array_equal(ours[i].frames.numpy(), readers.dequantize(theirs[i])) for i in order[:50])
    jobs = {
        "ours": lambda: [ours[i] is None for i in order],
        "tfrecord with index": lambda: [readers.dequantize(theirs[i]) is None for i in order],
        "ours, bytes": lambda: [np.concatenate(ours._stored(ours.entries[i])[0], 1) is None for i in order],
        "tfrecord with index, bytes": lambda: [theirs[i] is None for i in order],
        "bound": lambda table=theirs[0]: [readers.dequantize(table) is None for _ in order],
    }
    times = in_turns(jobs, settings.repeats)
    note = "we check the CRC and make multi-hot labels, the peer does neither; both turn bytes into floats in our way, "
    note += f"which alone takes {times.median('bound'):.3g} s: no reader is more than "
    note += f"{times.ratio('tfrecord with index', 'bound'):.1f} times as fast as the peer"
    notes = {"floats": note, "bytes": "we check the CRC, the peer does not"}
    pairs = {"floats": ("ours", "tfrecord with index"), "bytes": ("ours, bytes", "tfrecord with index, bytes")}
    return [
        times.entry("shuffled", f"{what}, {product}", *pair, target=5.0, holds=same, note=notes[product])
        for product, pair in pairs.items()
    ]
