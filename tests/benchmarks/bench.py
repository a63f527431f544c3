"""How a row is measured: in turns, in one process, medians, ratios of the same round.

A row is a function of `Settings` that gives an entry for every pair it compares. Everything runs on one thread, so
that a busy second core changes little; the load of the machine is kept beside the times.
"""

import importlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from unittest import mock

FASTER, DEARER = "peer / ours", "ours / peer"
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch numpy google-crc32c accelerate tfrecord protobuf tensorflow-cpu tensorflow scikit-learn "
    "adversarial-robustness-toolbox foolbox"
).split()


@dataclass(frozen=True)
class Settings:
    """How much is measured; ``quick`` only shows that every row works."""

    folder: Path  # for files of the rows
    quick: bool = False
    repeats: int = 7  # rounds, after one that warms up

    def size(self, full, quick):
        return quick if self.quick else full


@dataclass(frozen=True)
class Times:
    """Seconds of every round, by the name of what ran."""

    wall: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.wall[name])

    def ratio(self, over: str, under: str) -> float:
        """The median over the rounds of one's time over the other's."""
        return statistics.median(a / b for a, b in zip(self.wall[over], self.wall[under], strict=True))

    def entry(self, row: str, what: str, ours: str, peer: str, *, meaning=FASTER, target=None, holds=None, note=""):
        """The line of the table for two of the names, as a dictionary.

        The ratio is what ``meaning`` says: how many times faster we are, and ``target`` is the least, or how much more
        we pay, and ``target`` is the most. Without a target it is printed only. ``holds`` is whether the equality
        check of the pair held, None where there is nothing to compare; one that failed is a target missed.
        """
        ratio = self.ratio(peer, ours) if meaning == FASTER else self.ratio(ours, peer)
        met = None
        if target is not None:
            met = (ratio >= target if meaning == FASTER else ratio <= target) and holds is not False
        found = {"row": row, "what": what, "peer": peer}
        found |= {"ours_seconds": self.median(ours), "peer_seconds": self.median(peer), "ratio": ratio}
        found |= {"meaning": meaning, "target": target, "holds": holds, "note": note, "unit": "s"}
        return found | {"rounds": {f"wall {name}": self.wall[name] for name in (ours, peer)}, "met": met}


class Stopwatch:
    """Seconds spent inside ``with``, added up: a job that hands one back is charged for these alone."""

    seconds = 0.0

    def __enter__(self):
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error):
        self.seconds += time.perf_counter() - self._started


def in_turns(jobs: Mapping[str, Callable], repeats: int) -> Times:
    """Run the jobs one after the other, ``repeats`` times after a warm-up, starting with another one each round."""
    times = Times({name: [] for name in jobs})
    order = list(jobs)
    for turn in range(repeats + 1):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            with Stopwatch() as spent:
                own = jobs[name]()
            if turn:
                times.wall[name].append((own if isinstance(own, Stopwatch) else spent).seconds)
    return times


def peer(name: str):
    """A peer's module, or None where it is not installed."""
    try:
        if name == "tfrecord":  # it defines the messages that tensorflow defines too: it gets a pool of its own
            from google.protobuf import descriptor_pool

            with mock.patch.object(descriptor_pool, "Default", return_value=descriptor_pool.DescriptorPool()):
                return importlib.import_module(name)
        return importlib.import_module(name)
    except ImportError:
        return None


def peak(pid: int | str = "self") -> int:
    """Largest resident memory of a process so far, bytes (Linux)."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def load() -> float | None:
    """The machine's load average of the last minute; this process is one of it."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def versions() -> dict[str, str]:
    """{package: version}, "not installed" among them, with Python, the system and its processor."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    if tunables := os.environ.get("GLIBC_TUNABLES"):
        found["GLIBC_TUNABLES"] = tunables
    return found | {"cores": str(os.cpu_count()), "threads used": os.environ.get("OMP_NUM_THREADS", "all")}
