"""Whole programs: importing the library, and the main job before and after."""

import json
import os
import subprocess
import sys
import tarfile
import time
from io import BytesIO

from bench import ROOT, Entry, Settings, in_turns, missing


def _python(*arguments: str, folder=ROOT, threads: str = "1") -> None:
    """Run Python on the library in a folder; without ``threads`` on as many as it chooses itself."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": threads}
    environment = {name: value for name, value in environment.items() if value}
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True, capture_output=True)


def imports(settings: Settings) -> list[Entry]:
    """Importing the library beside importing torch, each in a fresh interpreter."""
    all_of_it = "import all that training and evaluation need"
    programs = {"import aart_lib": "import aart_lib", all_of_it: "import aart_lib.experiment.reproduce"}
    programs["import torch"] = "import torch"
    times = in_turns({name: lambda text=text: _python("-c", text) for name, text in programs.items()}, settings.repeats)
    said = {"import aart_lib": (1.2, "names are imported when first used")}
    said[all_of_it] = None, "torch and accelerate among it"
    return [
        times.entry("import", ours, ours, "import torch", meaning="ours / peer", target=target, note=note)
        for ours, (target, note) in said.items()
    ]


def _unpacked(revision: str, folder) -> bool:
    """The library as it was at a revision, in a folder; False where git does not know it."""
    packed = subprocess.run(["git", "archive", revision, "aart_lib"], cwd=ROOT, capture_output=True)
    if not packed.returncode:
        with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
    return not packed.returncode


def _table(folder) -> str:
    """What must not change: all of the results but how long it took."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for row in results["rows"]:
        row.pop("train_seconds", None)
        for entry in row.get("history", []):
            entry.pop("seconds", None)
    return json.dumps({key: results[key] for key in ("threat", "rows")}, sort_keys=True)


def reproduce(settings: Settings) -> list[Entry]:
    """`make reproduce` with one seed, before and now, once each: it takes minutes. The table must stay the same."""
    what, peer = "make reproduce, one seed, same table", f"revision {settings.before}"
    before, preset = settings.folder / "before", settings.size("small", "quick")
    if not settings.before or not _unpacked(settings.before, before):
        return [missing("reproduce", what, peer, target=2.0)]
    seconds, tables = [], []
    _python("-c", "from aart_lib.data import open_data; open_data('synthetic')")  # made once, untimed
    for folder in (ROOT, before):
        out = settings.folder / f"reproduce-{folder.name}"
        command = ["-m", "aart_lib", "reproduce", "--data", "synthetic", "--preset", preset, "--out", str(out)]
        started = time.perf_counter()
        _python(*command, folder=folder, threads="")
        seconds.append(time.perf_counter() - started)
        tables.append(_table(out))
    same = tables[0] == tables[1]
    note = f"preset {preset}, one run each, all cores" + "; the tables differ" * (not same)
    return [Entry("reproduce", what, peer, *seconds, seconds[1] / seconds[0], target=2.0, holds=same, note=note)]
