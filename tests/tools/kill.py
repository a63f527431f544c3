"""A program that kills runs with SIGKILL and looks whether what they come to in the end is what it would have been.

    python tests/tools/kill.py --command train --count 50 --seed 1
    python tests/tools/kill.py --command reproduce --count 50 --seed 1
    python tests/tools/kill.py --command side-by-side --count 20 --seed 1

A run is killed at most five times, each time gone on with by --resume, then left to end. Half of the kills come at a
random moment of the run, the other half as soon as a file is being written: a training state, a model, scores, a row,
a table or a figure. In the end the models must be those of a run that nobody killed, to the last bit, and results.json
the same but for times; no defense may have been trained again whose model was there, and nothing unfinished may be
left. What differs is printed, and the exit code is 1. Training states are kept all the time here (the library: every
two minutes), and a written file waits a moment for its name, so that kills find the places that matter.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("train_seconds", "seconds")
SAVE_SECONDS, SLOW_RENAME = 0.1, 0.02
KINDS = (".state", ".safetensors", ".json", ".png", ".md")
LIVES = 5  # kills of one run, at most
COMMANDS = {
    "train": ["train", "--defense", "a-art", "--epochs", "5"],
    "reproduce": ["reproduce", "--preset", "quick", "--defenses", "a-art", "--epochs", "3", "--test-videos", "40"],
}
COMMANDS["side-by-side"] = [*COMMANDS["reproduce"], "--jobs", "2"]  # the states of its jobs are kept as ever


def run(finished: str, arguments: list[str]) -> int:
    """The command line with a state saved at nearly every step and slow renames, which trains no finished model."""
    from aart_lib import training
    from aart_lib.cli import parser as cli
    from aart_lib.experiment import reproduce
    from aart_lib.runtime import files

    rename, train = os.replace, reproduce.train

    def slow_rename(*paths):
        time.sleep(SLOW_RENAME)
        rename(*paths)

    def train_once(*rest, progress, **options):
        if {"model", progress.replace(" seed ", "-seed")} & {*finished.split(",")}:
            sys.exit(f"{progress} was trained again")
        return train(*rest, progress=progress, **options)

    training.SAVE_SECONDS, files.os.replace, reproduce.train = SAVE_SECONDS, slow_rename, train_once
    return cli.main(arguments)


class Life:
    """A process group that runs the command, and what is in its output folder."""

    def __init__(self, arguments: list[str], out: Path, resume: bool):
        self.out, self.errors = out, tempfile.TemporaryFile()
        finished = ",".join(path.stem for path in out.rglob("*.safetensors") if path.parent.name != "rows")
        command = [sys.executable, __file__, "--run", finished, *arguments, "--out", str(out)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        start = {"stdout": subprocess.DEVNULL, "stderr": self.errors, "start_new_session": True}
        self.process = subprocess.Popen([*command, *["--resume"] * resume], env=environment, **start)

    def writing(self, kind: str) -> bool:
        """Whether a file with such an ending is being written just now, as `.NAME.RANDOM.aart-part`."""
        with suppress(FileNotFoundError):  # renamed while we look
            return any(path.with_suffix("").stem.endswith(kind) for path in self.out.rglob(".*.aart-part"))
        return False

    def wait_writing(self, kind: str, which: int) -> None:
        """Until the which-th file with such an ending is being written."""
        before, seen = False, 0
        while self.process.poll() is None and seen < which:
            now = self.writing(kind)
            seen += now and not before
            before = now
            time.sleep(0.002)

    def fault(self) -> list[str]:
        """What is wrong with how it ended, if anything."""
        if self.process.wait() == 0:
            return []
        self.errors.seek(0)
        return [f"exit code {self.process.returncode}: {self.errors.read().decode(errors='replace')[-1500:]}"]


def timeless(value):
    if isinstance(value, dict):
        return {key: timeless(found) for key, found in value.items() if key not in TIMES}
    return [timeless(found) for found in value] if isinstance(value, list) else value


def outcome(out: Path) -> dict:
    """Every file that must be the same: weights and descriptions of models, scores, results without times."""
    from safetensors import safe_open

    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                found[name] = {key: file.get_tensor(key).numpy().tobytes() for key in file.keys()}
                found[f"{name} (description)"] = timeless(json.loads((file.metadata() or {}).get("aart", "null")))
        elif path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        else:
            found[name] = path.read_bytes()
    return found


class Killer:
    """Kills one run after another and compares what they come to."""

    def __init__(self, command: str, folder: Path, seed: int, lives: int = LIVES):
        self.draw, self.folder, self.lives = random.Random(seed), folder, lives
        self.arguments = [*COMMANDS[command], "--data-dir", str(data(folder))]
        self.kinds = KINDS[:2] if command == "train" else KINDS
        self.kills, self.wrong, self.runs, begun = Counter(), [], 0, time.perf_counter()
        whole = Life(self.arguments, folder / "whole", False)
        if wrong := whole.fault():
            sys.exit(f"the run that nobody kills fails: {wrong}")
        self.seconds, self.expected = time.perf_counter() - begun, outcome(whole.out)
        print(f"{command}: a run that nobody kills takes {self.seconds:.1f} s", flush=True)

    def one_run(self, count: int) -> None:
        """A run killed at most so many times."""
        self.runs += 1
        out = self.folder / f"run{self.runs}"
        for killed in range(min(count, self.lives)):
            life = Life(self.arguments, out, killed > 0)
            how = self.kill(life)
            if life.process.wait() != -signal.SIGKILL:
                break  # it ended before
            self.kills[how] += 1
        else:
            life = Life(self.arguments, out, True)
        self.wrong += [f"run {self.runs}, last life: {fault}" for fault in life.fault()]
        found = outcome(out)
        names = sorted(name for name in {*found, *self.expected} if found.get(name) != self.expected.get(name))
        self.wrong += [f"run {self.runs}: {name} differs, or is on one side alone" for name in names]
        print(f"run {self.runs}: {self.kills.total()} kills in all, {len(self.wrong)} wrong", flush=True)

    def kill(self, life: Life) -> str:
        """Returns how."""
        if self.draw.random() < 0.5:
            how = "at a random moment"
            with suppress(subprocess.TimeoutExpired):
                life.process.wait(self.draw.uniform(0, self.seconds))
        else:
            kind = self.draw.choice(self.kinds)
            how = f"while {kind} was written"
            life.wait_writing(kind, self.draw.randrange(1, 13) if kind == ".state" else 1)
        if life.process.poll() is None:
            os.killpg(life.process.pid, signal.SIGKILL)
        return how


def data(folder: Path) -> Path:
    """A small copy of the synthetic data set."""
    from aart_lib.data import synthetic

    small = replace(synthetic.SETTINGS["default"], train_videos=300, test_videos=60, shard_size=300, frames=(6, 12))
    synthetic.write(small, folder / "data")
    return folder / "data"


def main() -> int:
    if sys.argv[1:2] == ["--run"]:
        return run(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", choices=COMMANDS, default="train")
    parser.add_argument("--count", type=int, default=10, help="kills (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(options.command, Path(folder), options.seed)
        while (left := options.count - killer.kills.total()) > 0:
            killer.one_run(left)
    for how, count in sorted(killer.kills.items()):
        print(f"  {count:4} {how}")
    print(*(f"FOUND {wrong}" for wrong in killer.wrong), sep="\n")
    return int(bool(killer.wrong))


if __name__ == "__main__":
    sys.exit(main())
