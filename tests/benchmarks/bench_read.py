"""Reading a frame-level shard, in file order and shuffled, against other readers of the same file."""

import numpy as np
import peers_read as readers
from bench import Entry, Settings, in_turns, missing, peer

SHARD = (1000, 300)  # videos, frames
SMALL = (60, 30)


def _shard(settings: Settings):
    path = settings.folder / "train-bench.tfrecord"
    if not path.exists():
        readers.write_shard(path, *settings.size(SHARD, SMALL))
    return path


def _digest(batches) -> tuple:
    """What two readers must agree on: the number of videos, and sums of frames and labels, batch by batch."""
    return tuple(
        (len(frames), int(frames.view(np.uint8).sum(dtype=np.int64)), int(np.flatnonzero(labels).sum()))
        for frames, labels in batches
    )


def _drain(batches) -> None:
    for _ in batches:
        pass


def _limit_tensorflow():
    tf = peer("tensorflow")
    if tf is not None:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


def read(settings: Settings) -> list[Entry]:
    """The whole shard into batches: as stored bytes and as floats, from the file and from the cache."""
    path, entries = _shard(settings), []
    has_tf, has_tfrecord = _limit_tensorflow() is not None, peer("tfrecord") is not None
    cached = readers.ours_opened(path, cached=True)
    _drain(readers.ours_batches(cached))  # fills the cache
    for product in ("stored bytes", "floats"):
        batches = readers.batched if product == "stored bytes" else readers.as_floats
        jobs = {"ours": lambda batches=batches: batches(readers.ours_stored(path))}
        if product == "floats":
            jobs = {"ours": lambda: readers.ours_batches(readers.ours_opened(path))}
            jobs["ours, cached"] = lambda: readers.ours_batches(cached)
        elif readers.ours_cached(cached) is not None:
            jobs["ours, cached"] = lambda: readers.batched(readers.ours_cached(cached))
        if has_tfrecord:
            jobs["tfrecord"] = lambda batches=batches: batches(readers.tfrecord_stored(path))
            jobs["protobuf (upb)"] = lambda batches=batches: batches(readers.protobuf_stored(path))
        if has_tf:
            jobs["tf.data"] = lambda product=product: readers.tf_batches(path, product == "floats")
        digests = {name: _digest(job()) for name, job in jobs.items()}
        jobs["bound"] = _bound(cached, product)
        timed = {name: lambda job=job: _drain(job()) for name, job in jobs.items()}
        times = in_turns(timed, settings.repeats)
        note = f"bound: {times.median('bound'):.3g} s to {_BOUNDS[product]}"
        for ours, targets in (
            ("ours", {"tfrecord": 6.0, "protobuf (upb)": None, "tf.data": 3.0}),
            ("ours, cached", {"tfrecord": 25.0}),
        ):
            what = f"read a shard into batches of {product}" + (", once cached" if "cached" in ours else "")
            for name, target in targets.items():
                if name not in jobs or ours not in jobs:
                    entries.append(missing("read", what, name, target=target))
                    continue
                holds = digests[ours] == digests[name]
                most = times.ratio(name, "bound")
                said = note + (f": no reader is more than {most:.1f} times as fast as {name}" if target else "")
                if "cached" in ours and product == "floats":
                    said = "the floats themselves are cached: no bytes are turned, so the bound above is none here"
                entries.append(times.entry("read", what, ours, name, target=target, holds=holds, note=said))
    return entries


_BOUNDS = {
    "stored bytes": "copy the cached bytes into batches",
    "floats": "turn bytes that lie ready into floats in new batches, and read nothing",
}


def _bound(dataset, product: str):
    """A job that only writes the batches, from bytes that lie ready: what memory allows, without any reader."""
    count, frames = len(dataset), len(dataset[0].frames)
    source = np.random.default_rng(0).integers(0, 256, (readers.BATCH, frames, readers.SPEC.dims), np.uint8)

    def run():
        for start in range(0, count, readers.BATCH):
            part = source[: min(readers.BATCH, count - start)]
            if product == "stored bytes":
                yield part.copy()
            else:
                yield readers.data.dequantize(part)

    return run


def shuffled(settings: Settings) -> list[Entry]:
    """Single videos in a shuffled order, each read from the file anew."""
    path, what = _shard(settings), "shuffled access to single videos, floats"
    if peer("tfrecord") is None:
        return [missing("shuffled", what, "tfrecord with index", target=5.0)]
    theirs, ours = readers.TFRecordItems(path), readers.ours_opened(path)
    order = np.random.default_rng(1).permutation(len(theirs.index)).tolist()
    dequantize = readers.data.dequantize
    same = all(np.array_equal(readers.ours_item(ours, i), dequantize(theirs[i])) for i in order[:50])
    jobs = {
        "ours": lambda: [readers.ours_item(ours, i) is None for i in order],
        "tfrecord with index": lambda: [dequantize(theirs[i]) is None for i in order],
        "ours, bytes": lambda: [ours._stored(ours.entries[i]) is None for i in order],
        "tfrecord with index, bytes": lambda: [theirs[i] is None for i in order],
        "bound": lambda table=theirs[0]: [dequantize(table) is None for _ in order],
    }
    if readers.ours_cached(ours) is None:
        del jobs["ours, bytes"], jobs["tfrecord with index, bytes"]
    times = in_turns(jobs, settings.repeats)
    most = times.ratio("tfrecord with index", "bound")
    notes = [
        "we check the CRC and make multi-hot labels, the peer does neither; both turn bytes into floats in our way, "
        f"which alone takes {times.median('bound'):.3g} s: no reader is more than {most:.1f} times as fast as the peer",
        "we check the CRC, the peer does not",
    ]
    pairs = [("ours", "tfrecord with index", what), ("ours, bytes", "tfrecord with index, bytes", what[:-6] + "bytes")]
    return [
        times.entry("shuffled", text, ours, name, target=5.0, holds=same, note=note)
        for (ours, name, text), note in zip(pairs, notes, strict=True)
        if ours in jobs
    ]
