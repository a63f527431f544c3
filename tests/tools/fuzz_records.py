"""A program that feeds mutated records to the reader: it may read them or refuse them in a sentence, nothing else.

    python tests/tools/fuzz_records.py --count 1000000 --seed 1

The seeds are generated; with AART_REAL_DATA set, the first records of every genuine shard there as well. An outcome
that is neither "read" nor a refusal (another kind of error, a record that takes longer than --slowest seconds, memory
beyond --memory) is printed with the bytes that led to it, and the exit code is 1.
"""

import argparse
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from aart_lib.data import index, records
from aart_lib.data.formats import SPECS, DatasetSpec, tables_of
from aart_lib.data.index import Entries
from aart_lib.data.records import RecordError, encode_example, encode_sequence_example

PATTERNS = {"audioset": "audioset_*", "yt8m-frame": "yt8m_frame/*", "yt8m-video": "yt8m_video/*"}
TINY = DatasetSpec("tiny", {"rgb": (3, 3), "audio": (2, 2)}, 5, ("train*.tfrecord",), ("test*.tfrecord",), max_frames=4)
LONGEST_SENTENCE = 600  # characters of an error without its path
NUMBERS = (0, 1, 127, 128, 255, 2**14, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
NAMES = ("id", "video_id", "labels", "segment_start_times", "segment_labels", "segment_scores", "mean_rgb", "rgb")


# ---------------------------------------------------------------- seeds


def rated_record() -> bytes:
    """A video with rated segments."""
    context = {"id": "seg", "labels": [0, 3], "segment_start_times": [0, 5], "segment_labels": [1, 2]}
    lists = {"rgb": np.arange(36).reshape(12, 3), "audio": np.ones((12, 2), int)}
    return encode_sequence_example(context | {"segment_scores": np.float32([1, 0])}, lists)


def seeds() -> list[tuple[DatasetSpec, bytes]]:
    """Records with what they should hold."""
    frames = {"rgb": np.arange(9).reshape(3, 3), "audio": np.zeros((3, 2), int)}
    means = {"mean_rgb": np.zeros(1024, np.float32), "mean_audio": np.ones(128, np.float32)}
    found = [
        (TINY, encode_sequence_example({"id": "v0", "labels": [1, 4]}, frames)),
        (TINY, rated_record()),
        (SPECS["yt8m-video"], encode_example({"id": "m", "labels": [1], **means})),
    ]
    folder = os.environ.get("AART_REAL_DATA")
    for name, pattern in PATTERNS.items() if folder else ():
        for path in sorted(Path(folder).glob(pattern + ".tfrecord")):
            found += [(SPECS[name], payload) for payload in islice(records.read_records(path), 8)]
    return found


# ---------------------------------------------------------------- mutations


def mutated(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """One to four changes, most of them near the beginning, where the structure of a record is."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        reach = len(data) if draw.random() < 0.3 else min(len(data), 200)
        at = draw.randrange(reach) if reach else 0
        size, start = draw.choice((1, 1, 2, 4, 8, 40)), draw.randrange(len(other)) if other else 0
        cut, new = draw.choice(
            (
                (1, bytes([(data[at] if reach else 0) ^ 1 << draw.randrange(8)])),
                (1, bytes([draw.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x12, draw.randrange(256)))])),
                (size, b""),
                (0, draw.randbytes(size)),
                (draw.choice((0, 1, 2)), records._varint(draw.choice(NUMBERS))),
                (0, bytes(data[at : at + size]) * draw.choice((1, 2, 30))),
                (size, other[start : start + size]),
                (len(data), b""),
            )
        )
        data[at : at + cut] = new
    return bytes(data)


def composed(draw: random.Random) -> bytes:
    """A well-formed record, some of its features of the wrong kinds, counts and sizes."""
    kinds = (
        lambda: draw.randbytes(draw.choice((0, 1, 11, 5000))),
        lambda: [(draw.choice(NUMBERS) + 2**63) % 2**64 - 2**63 for _ in range(draw.choice((0, 1, 2, 9)))],
        lambda: [draw.randrange(-3, 9) for _ in range(draw.choice((0, 1, 2, 2, 3000)))],
        lambda: np.float32([draw.choice((0, 1, -1, 1e38, np.nan, np.inf)) for _ in range(draw.choice((0, 1, 2)))]),
    )
    context = {"id": b"v", "labels": [1], "segment_scores": np.float32([1, 0])}
    context |= {"segment_start_times": [0, draw.choice((5, 11, 12))], "segment_labels": [1, 2]}
    context |= {name: draw.choice(kinds)() for name in NAMES if draw.random() < 0.15}
    lists = {}
    for name, size in (("rgb", 3), ("audio", 2), ("evidence", 5)):
        strange = draw.random() < 0.3
        lists[name] = np.zeros((draw.choice((0, 1, 12)) if strange else 12, size - strange), np.uint8)
    # numbers of any kind under any name, as strangers may write them: our own writer refuses that
    encoded = {name: records._encode_feature("", value) for name, value in context.items()}
    return records._message(1, *records._encode_map(encoded)) + encode_sequence_example({}, lists)


def framed(draw: random.Random, payloads: list[bytes]) -> bytes:
    """A record file; lengths and checksums may lie, also a false length with a right checksum."""
    out = b""
    for payload in payloads:
        length, end = struct.pack("<Q", len(payload)), struct.pack("<I", records._masked_crc(payload))
        if draw.random() < 0.3:
            length = struct.pack("<Q", (len(payload) + draw.choice((*NUMBERS, -1, -4, 4))) % 2**64)
        if draw.random() < 0.1:
            end = draw.randbytes(4)
        out += length + struct.pack("<I", records._masked_crc(length)) + payload + end
    return out


# ---------------------------------------------------------------- what is tried


def read_record(spec: DatasetSpec, segments: bool, payload: bytes) -> None:
    """Index a record, and read its features."""
    entries = Entries.of(list(index._scan(Path("x"), spec, [(0, payload)], segments, True)))
    for name, table in tables_of(payload, spec).items():
        width = spec.classes if name == "evidence" else spec.features[name][0]
        assert table.ndim == 2 and table.shape[1] == width and len(table), f"{name} of shape {table.shape}"
    for entry in entries:
        assert 0 <= entry.start < 2**31 and all(0 <= k < spec.classes for k in entry.labels), entry


def read_file(path: Path, in_full: bool, data: bytes) -> None:
    """Index a record file in full, or by its heads."""
    path.write_bytes(data)
    scan = records.scan_records if in_full else records.scan_heads
    Entries.of(list(index._scan(path, TINY, scan(path), False, in_full)))


# ---------------------------------------------------------------- the loop


class Fuzzer:
    """Counts outcomes; every input that should not have come to what it came to is kept."""

    def __init__(self, seed: int, slowest: float, folder: Path):
        self.draw, self.limit, self.file = random.Random(seed), slowest, folder / "f.tfrecord"
        self.seeds, self.outcomes, self.found, self.slowest = seeds(), Counter(), {}, (0.0, "")

    def one(self) -> None:
        draw, dice = self.draw, self.draw.random()
        (spec, payload), (_, other) = draw.choice(self.seeds), draw.choice(self.seeds)
        if dice < 0.60:
            self.run("record", read_record, spec, mutated(draw, payload, other))
        elif dice < 0.75:
            spec = SPECS["yt8m-video"] if draw.random() < 0.1 else TINY
            self.run("composed record", read_record, spec, composed(draw))
        else:
            small = [payload for spec, payload in self.seeds if spec is TINY]
            data = framed(draw, [draw.choice(small) for _ in range(draw.randrange(1, 4))])
            data = mutated(draw, data, other) if draw.random() < 0.5 else data
            self.run("file", read_file, self.file, data)

    def run(self, kind: str, read: Callable, of, data: bytes) -> None:
        """Read it both ways; one refusal is enough."""
        begun, outcome, expected = time.perf_counter(), "read", True
        signal.setitimer(signal.ITIMER_REAL, 10 * self.limit)
        try:
            for way in (False, True):
                try:
                    read(of, way, data)
                except RecordError as error:
                    outcome, expected = "refused", expected and len(error.reason) <= LONGEST_SENTENCE
        except Exception as error:
            outcome, expected = f"{type(error).__name__}: {error}"[:80], False
        signal.setitimer(signal.ITIMER_REAL, 0)
        took = time.perf_counter() - begun
        self.slowest = max(self.slowest, (took, f"{kind} of {len(data)} bytes"))
        outcome = f"{kind}: {re.sub('[0-9]+', '#', outcome)}"
        self.outcomes[outcome] += 1
        if not expected or took > self.limit:
            self.found.setdefault(f"{outcome}, {took:.1f} s", data)


def hang(number, frame):
    raise TimeoutError("a hang")


def peak() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="mutated records (default 10,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slowest", type=float, default=2.0, metavar="S", help="seconds a record may take")
    parser.add_argument("--memory", type=int, default=512, metavar="MB", help="growth of memory that is allowed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer, before, begun = Fuzzer(options.seed, options.slowest, Path(folder)), peak(), time.perf_counter()
        signal.signal(signal.SIGALRM, hang)
        for _ in range(options.count):
            fuzzer.one()
    grown = peak() - before
    print(f"{options.count:,} mutated records of {len(fuzzer.seeds)} seeds in {time.perf_counter() - begun:.0f} s")
    for outcome, count in sorted(fuzzer.outcomes.items()):
        print(f"  {count:9,} {outcome}")
    print(f"slowest: {fuzzer.slowest[0]:.3f} s, {fuzzer.slowest[1]}; memory grew by {grown:.0f} MB to {peak():.0f} MB")
    for outcome, data in list(fuzzer.found.items())[:50]:
        print(f"FOUND {outcome}, {len(data)} bytes: {data[:400].hex()}")
    if grown > options.memory:
        print(f"FOUND memory grew by {grown:.0f} MB")
    return int(bool(fuzzer.found) or grown > options.memory)


if __name__ == "__main__":
    sys.exit(main())
