"""Measure every row, write figures/benchmarks.json, and from it the table.

    python tests/benchmarks/run.py --out figures              # all rows; minutes
    python tests/benchmarks/run.py --only gap --only step     # some; other rows of an older run are kept
    python tests/benchmarks/run.py --quick --out somewhere    # tiny sizes: shows that it works, measures nothing

`make bench` does the first in an environment with the peers (requirements-peers.txt).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import report  # noqa: E402
from bench import Settings, load, versions  # noqa: E402

# The quick ones first; a row is a function of its module.
ROWS = {
    "import": ("bench_program", "imports"),
    "read": ("bench_read", "read"),
    "shuffled": ("bench_read", "shuffled"),
    "step": ("bench_training", "step"),
    "pgd": ("bench_attacks", "pgd10"),
    "gap": ("bench_metrics", "gap"),
}


def measure(names, settings: Settings) -> list[dict]:
    """The entries of the named rows, each with the machine's load before and after its row."""
    entries = []
    for name in names:
        module, function = ROWS[name]
        started, before = time.perf_counter(), load()
        found = getattr(__import__(module), function)(settings)
        entries += [entry | {"load": [before, load()]} for entry in found]
        print(*map(report.line, found), f"  ({name}: {time.perf_counter() - started:.0f} s)", sep="\n")
    return entries


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder of the results")
    parser.add_argument("--only", action="append", choices=list(ROWS), help="this row, may be repeated")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds, for tests")
    parser.add_argument("--repeats", type=int, default=7, help="rounds after the one that warms up")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    path, names, kept = options.out / "benchmarks.json", options.only or list(ROWS), []
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))["entries"]
        kept = [entry for entry in stored if entry["row"] in ROWS and entry["row"] not in names]
    repeats = 2 if options.quick else options.repeats
    with tempfile.TemporaryDirectory() as folder:
        entries = kept + measure(names, Settings(Path(folder), options.quick, repeats))
    entries.sort(key=lambda entry: list(ROWS).index(entry["row"]))
    options.out.mkdir(parents=True, exist_ok=True)
    results = {"versions": versions(), "quick": options.quick, "repeats": repeats, "entries": entries}
    path.write_text(json.dumps(results, indent=1, allow_nan=False), encoding="utf-8")
    report.write(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
