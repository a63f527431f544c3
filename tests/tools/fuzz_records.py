"""A program that feeds mutated records to the reader: it may read them or refuse them in a sentence, nothing else.

    python tests/tools/fuzz_records.py --count 1000000 --seed 1       # a mutation loop of its own
    python tests/tools/fuzz_records.py --coverage 120                 # guided by coverage; needs `pip install atheris`

The seeds are generated; with AART_REAL_DATA set, the first records of every genuine shard there as well. An outcome
that is neither "read" nor a refusal (another kind of error, a record that takes longer than --slowest seconds, memory
beyond --memory) is printed with the bytes that led to it, and the exit code is 1.
"""

import argparse
import io
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from aart_lib.data import index, records
from aart_lib.data.convert import save_converted
from aart_lib.data.formats import SPECS, DatasetSpec, chosen_frames, features_of
from aart_lib.data.index import Entries, Entry
from aart_lib.data.records import RecordError, encode_example, encode_sequence_example

PATTERNS = {"audioset": "audioset_*", "yt8m-frame": "yt8m_frame/*", "yt8m-video": "yt8m_video/*"}
TINY = DatasetSpec("tiny", {"rgb": (3, 3), "audio": (2, 2)}, 5, ("train*.tfrecord",), ("test*.tfrecord",), max_frames=4)
LONGEST_SENTENCE = 600  # characters of an error without its path
NUMBERS = (0, 1, 127, 128, 255, 2**14, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
NAMES = ("id", "video_id", "labels", "segment_start_times", "segment_labels", "segment_scores", "mean_rgb", "rgb")


class Finding(Exception):
    """Something was read that must be refused, or not in time."""


# ---------------------------------------------------------------- seeds


def rated_record() -> bytes:
    """A video with rated segments."""
    context = {"id": "seg", "labels": [0, 3], "segment_start_times": [0, 5], "segment_labels": [1, 2]}
    lists = {"rgb": np.arange(36).reshape(12, 3), "audio": np.ones((12, 2), int)}
    return encode_sequence_example(context | {"segment_scores": np.float32([1, 0])}, lists)


def seeds() -> list[tuple[DatasetSpec, bytes]]:
    """Records with what they should hold."""
    frames = {"rgb": np.arange(9).reshape(3, 3), "audio": np.zeros((3, 2), int)}
    found = [
        (TINY, encode_sequence_example({"id": "v0", "labels": [1, 4]}, frames)),
        (TINY, rated_record()),
        (SPECS["yt8m-video"], encode_example({"id": "m", "labels": [1], **means()})),
    ]
    folder = os.environ.get("AART_REAL_DATA")
    for name, pattern in PATTERNS.items() if folder else ():
        for path in sorted(Path(folder).glob(pattern + ".tfrecord")):
            found += [(SPECS[name], payload) for payload, _ in zip(records.read_records(path), range(8))]  # noqa: B905
    return found


def means() -> dict:
    return {"mean_rgb": np.zeros(1024, np.float32), "mean_audio": np.ones(128, np.float32)}


# ---------------------------------------------------------------- mutations


def varint(value: int) -> bytes:
    return records._varint(value)


def mutated(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """One to four changes, most of them near the beginning, where the structure of a record is."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        reach = len(data) if draw.random() < 0.3 else min(len(data), 200)
        at = draw.randrange(reach) if reach else 0
        size = draw.choice((1, 1, 2, 4, 8, 40))
        kind = draw.randrange(8)
        if kind == 0 and data:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and data:
            data[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x12, draw.randrange(256)))
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = draw.randbytes(size)
        elif kind == 4:
            data[at : at + draw.choice((0, 1, 2))] = varint(draw.choice(NUMBERS))
        elif kind == 5:
            data[at:at] = data[at : at + size] * draw.choice((1, 2, 30))
        elif kind == 6:
            start = draw.randrange(len(other)) if other else 0
            data[at : at + size] = other[start : start + size]
        else:
            del data[at:]
    return bytes(data)


def composed(draw: random.Random) -> bytes:
    """A well-formed record, some of its features of the wrong kinds, counts and sizes."""
    kinds = (
        lambda: draw.randbytes(draw.choice((0, 1, 11, 5000))),
        lambda: np.array([draw.choice(NUMBERS) - draw.choice((0, 2**63)) for _ in range(draw.choice((0, 1, 2, 9)))]),
        lambda: [draw.randrange(-3, 9) for _ in range(draw.choice((0, 1, 2, 2, 3000)))],
        lambda: np.float32([draw.choice((0, 1, -1, 1e38, np.nan, np.inf)) for _ in range(draw.choice((0, 1, 2)))]),
    )
    context = {"id": b"v", "labels": [1], "segment_scores": np.float32([1, 0])}
    context |= {"segment_start_times": [0, draw.choice((5, 11, 12))], "segment_labels": [1, 2]}
    context |= {name: draw.choice(kinds)() for name in NAMES if draw.random() < 0.15}
    context = {
        name: [(int(v) + 2**63) % 2**64 - 2**63 for v in value] if wide(value) else value
        for name, value in context.items()
    }
    strange = draw.random() < 0.5
    lists = {
        name: np.zeros((draw.choice((0, 1, 12)), draw.choice((0, size, size))) if strange else (12, size), np.uint8)
        for name, size in (("rgb", 3), ("audio", 2), ("evidence", 5))
        if not strange or draw.random() < 0.9
    }
    return raw(context) + encode_sequence_example({}, lists)


def raw(context: dict) -> bytes:
    """A context as a stranger may write it: numbers of any kind under any name, which our own writer refuses."""
    encoded = {name: records._encode_feature("", value) for name, value in context.items()}
    return records._message(1, *records._encode_map(encoded))


def wide(value) -> bool:
    """An array of integers beyond 64 bits, which numpy keeps as objects or floats."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "Ofu" and value.dtype != np.float32


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


def read_payload(spec: DatasetSpec, payload: bytes) -> None:
    """Both ways to index a record, and its features."""
    errors = []
    for segments in (False, True):
        try:
            entries = Entries.of(list(index._scan(Path("x"), spec, [(0, payload)], segments, True)))
            first = features_of(payload, spec, lambda total: chosen_frames(total, spec.max_frames))[0]
            if not (first.ndim == 2 and first.shape[1] == spec.dims and 0 < len(first) <= spec.max_frames):
                raise Finding(f"features of shape {first.shape}")
            for entry in entries:
                if not (0 <= entry.start < 2**31 and all(0 <= k < spec.classes for k in entry.labels)):
                    raise Finding("an entry with numbers that cannot be")
        except RecordError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def read_file(path: Path, data: bytes) -> None:
    """A record file by its heads and in full."""
    path.write_bytes(data)
    errors = []
    for scan in (records.scan_heads, records.scan_records):
        try:
            Entries.of(list(index._scan(path, TINY, scan(path), False, scan is records.scan_records)))
        except RecordError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def read_converted(path: Path, data: bytes) -> None:
    """The index beside a converted file, and every row that it speaks of."""
    path.with_suffix(".npz").write_bytes(data)
    entries = index._converted(path, TINY)
    rows = path.stat().st_size // TINY.dims
    for entry in entries:
        if not (0 <= entry.offset and 0 < entry.frames and entry.offset + entry.frames <= rows):
            raise Finding("rows beyond the file")
        if not all(0 <= label < TINY.classes for label in entry.labels):
            raise Finding("labels that cannot be")


def converted_seed(path: Path) -> bytes:
    """A converted file of two videos; returns the bytes of its index."""
    path.write_bytes(bytes(7 * TINY.dims))
    videos = [Entry(str(path), 0, "a", (1, 3), 0, 4), Entry(str(path), 4, "b", (), 0, 3)]
    save_converted(path, TINY, Entries.of(videos))
    return path.with_suffix(".npz").read_bytes()


def mutated_index(draw: random.Random, data: bytes) -> bytes:
    """Bytes of an index changed anywhere, or one of its arrays with right checksums around it."""
    if draw.random() < 0.3:
        return mutated(draw, data, data)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as stored, zipfile.ZipFile(out, "w") as made:
        names = stored.namelist()
        chosen = draw.choice(names)
        for name in names:
            body = stored.read(name)
            if name == chosen:
                body = mutated(draw, body, body) if draw.random() < 0.4 else body[:128] + changed(draw, body[128:])
            made.writestr(name, body, draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return out.getvalue()


def changed(draw: random.Random, numbers: bytes) -> bytes:
    data = bytearray(numbers)
    if data:
        at = draw.randrange(len(data))
        data[at] = draw.choice((0xFF, 0x80, 1, draw.randrange(256)))
    return bytes(data)


# ---------------------------------------------------------------- the loop


class Fuzzer:
    """Counts outcomes; every input that should not have come to what it came to is kept."""

    def __init__(self, seed: int, slowest: float, folder: Path):
        self.draw, self.limit, self.folder = random.Random(seed), slowest, folder
        self.seeds, self.index = seeds(), converted_seed(folder / "c.frames")
        self.outcomes, self.reasons, self.found, self.slowest = Counter(), Counter(), {}, (0.0, "")

    def one(self) -> None:
        draw = self.draw
        (spec, payload), (_, other) = draw.choice(self.seeds), draw.choice(self.seeds)
        dice = draw.random()
        if dice < 0.60:
            data = mutated(draw, payload, other)
            self.run("record", data, lambda: read_payload(spec, data))
        elif dice < 0.75:
            data = composed(draw)
            spec = SPECS["yt8m-video"] if draw.random() < 0.1 else TINY
            self.run("composed record", data, lambda: read_payload(spec, data))
        elif dice < 0.97:
            small = [seed[1] for seed in self.seeds if seed[0] is TINY]
            data = framed(draw, [draw.choice(small) for _ in range(draw.randrange(1, 4))])
            data = mutated(draw, data, other) if draw.random() < 0.5 else data
            self.run("file", data, lambda: read_file(self.folder / "f.tfrecord", data))
        else:
            data = mutated_index(draw, self.index)
            self.run("converted index", data, lambda: read_converted(self.folder / "c.frames", data))

    def run(self, kind: str, data: bytes, call) -> None:
        begun, outcome = time.perf_counter(), "read"
        signal.setitimer(signal.ITIMER_REAL, 10 * self.limit)
        try:
            call()
        except RecordError as error:
            outcome = "RecordError"
            self.reasons[" ".join("#" if any(c.isdigit() for c in w) else w for w in error.reason.split()[:6])] += 1
            if len(error.reason) > LONGEST_SENTENCE:
                outcome = f"a sentence of {len(error.reason)} characters"
        except ValueError as error:
            own = kind == "converted index" and "convert" in str(error)
            outcome = "ValueError" if own else f"ValueError without place: {str(error)[:80]}"
        except (Exception, Finding) as error:
            outcome = f"{type(error).__name__}: {str(error)[:80]}"
        signal.setitimer(signal.ITIMER_REAL, 0)
        took = time.perf_counter() - begun
        if took > self.slowest[0]:
            self.slowest = took, f"{kind} of {len(data)} bytes"
        if took > self.limit and outcome in ("read", "RecordError", "ValueError"):
            outcome = f"slower than {self.limit} s"
        outcome = f"{kind}: {re.sub('[0-9]+', '#', outcome)}"
        self.outcomes[outcome] += 1
        if not outcome.endswith((": read", ": RecordError", ": ValueError")):
            self.found.setdefault(outcome, data)


def hang(number, frame):
    raise Finding("a hang")


def peak() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def guided(seconds: int, folder: Path) -> None:
    """Coverage-guided: libFuzzer changes the bytes, atheris tells it which lines they reached."""
    import atheris

    atheris.instrument_all()
    fuzzer = Fuzzer(0, 5.0, folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for i, (spec, payload) in enumerate(fuzzer.seeds):
        if len(payload) < 20_000:
            (corpus / str(i)).write_bytes(bytes([0 if spec is TINY else 1]) + payload)
    (corpus / "file").write_bytes(b"\x02" + framed(random.Random(3), [fuzzer.seeds[0][1], b""]))
    specs = (TINY, SPECS["yt8m-video"])

    def one(data: bytes) -> None:
        kind, body = (data[0] % 3 if data else 0), data[1:]
        try:
            if kind == 2:
                read_file(folder / "f.tfrecord", body)
            else:
                read_payload(specs[kind], body)
        except RecordError as error:
            assert len(error.reason) <= LONGEST_SENTENCE, error.reason

    limits = [
        f"-max_total_time={seconds}",
        "-max_len=16384",
        "-timeout=5",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], str(corpus), *limits], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="mutated records (default 10,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slowest", type=float, default=2.0, metavar="S", help="seconds a record may take")
    parser.add_argument("--memory", type=int, default=512, metavar="MB", help="growth of memory that is allowed")
    parser.add_argument("--coverage", type=int, metavar="S", help="run atheris for so many seconds instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.coverage:
            guided(options.coverage, Path(folder))  # does not return
        fuzzer, before, begun = Fuzzer(options.seed, options.slowest, Path(folder)), peak(), time.perf_counter()
        signal.signal(signal.SIGALRM, hang)
        warnings.simplefilter("ignore")  # numpy's remarks on strange headers
        for _ in range(options.count):
            fuzzer.one()
    grown = peak() - before
    print(f"{options.count:,} mutated records of {len(fuzzer.seeds)} seeds in {time.perf_counter() - begun:.0f} s")
    for outcome, count in sorted(fuzzer.outcomes.items()):
        print(f"  {count:9,} {outcome}")
    print("reasons:", *(f"{count:,} {reason!r}" for reason, count in fuzzer.reasons.most_common(40)), sep="\n  ")
    print(f"slowest: {fuzzer.slowest[0]:.3f} s, {fuzzer.slowest[1]}")
    print(f"peak memory: {peak():.0f} MB, {grown:.0f} MB more than before the first record")
    for outcome, data in list(fuzzer.found.items())[:50]:
        print(f"FOUND {outcome}, {len(data)} bytes: {data[:400].hex()}")
    if grown > options.memory:
        print(f"FOUND memory grew by {grown:.0f} MB")
    return int(bool(fuzzer.found) or grown > options.memory)


if __name__ == "__main__":
    sys.exit(main())
