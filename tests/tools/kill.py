"""A program that kills runs with SIGKILL and looks whether what they come to in the end is what it would have been.

    python tests/tools/kill.py --command train --count 50 --seed 1
    python tests/tools/kill.py --command reproduce --count 50 --seed 1
    python tests/tools/kill.py --command side-by-side --count 20 --seed 1

A run is killed at most --lives times, each time gone on with by --resume, then left to end. Half of the kills come at a
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
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("train_seconds", "seconds")
STARTING = 0.4  # share of a run that goes by before it trains; a resumed one has it again
SAVE_SECONDS, SLOW_RENAME = 0.1, 0.02
KINDS = (".state", ".safetensors", ".json", ".png", ".md")
COMMANDS = {
    "train": ["train", "--defense", "a-art", "--epochs", "5"],
    "reproduce": ["reproduce", "--preset", "quick", "--defenses", "a-art", "--epochs", "3", "--test-videos", "40"],
}
COMMANDS["side-by-side"] = [*COMMANDS["reproduce"], "--jobs", "2"]  # the states of its jobs are kept as ever


def run(arguments: list[str], trained: str) -> int:
    """The command line with a state saved at nearly every step, slow renames, and a line for each training."""
    from aart_lib import training
    from aart_lib.cli import parser as cli
    from aart_lib.experiment import reproduce
    from aart_lib.runtime import files

    rename, train = os.replace, reproduce.train

    def slow_rename(*paths):
        time.sleep(SLOW_RENAME)
        rename(*paths)

    def told(*rest, **options):
        with open(trained, "a") as file:
            file.write(f"{options['progress']}\n")
        return train(*rest, **options)

    training.SAVE_SECONDS, files.os.replace, reproduce.train = SAVE_SECONDS, slow_rename, told
    return cli.main(arguments)


# ---------------------------------------------------------------- one life


class Life:
    """A process group that runs the command, and what is in its output folder."""

    def __init__(self, arguments: list[str], out: Path, resume: bool):
        self.out, self.trained = out, out.with_suffix(".trained")
        self.trained.unlink(missing_ok=True)
        given = [*arguments, "--out", str(out), *["--resume"] * resume]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--run", str(self.trained), *given]
        self.finished = {path.stem for path in out.rglob("*.safetensors") if path.parent.name != "rows"}
        self.errors = tempfile.TemporaryFile()
        start = {"stdout": subprocess.DEVNULL, "stderr": self.errors, "start_new_session": True}
        self.begun, self.process = time.perf_counter(), subprocess.Popen(command, env=environment, **start)

    def unfinished(self) -> list[str]:
        """Endings of the files that are being written just now."""
        folders = self.out, self.out / "checkpoints", self.out / "rows"
        names = [entry.name for folder in folders for entry in listed(folder)]
        return [Path(name.split(".aart-part")[0].rsplit(".", 1)[0]).suffix for name in names if ".aart-part" in name]

    def kill_at(self, seconds: float) -> bool:
        """Whether it was killed before its end."""
        try:
            self.process.wait(max(0.0, self.begun + seconds - time.perf_counter()))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL

    def kill_writing(self, kind: str, which: int) -> bool:
        """Kill it when the which-th file with such an ending is being written."""
        before, seen = False, 0
        while self.process.poll() is None:
            now = kind in self.unfinished()
            seen += now and not before
            if seen == which:
                os.killpg(self.process.pid, signal.SIGKILL)
                break
            before = now
            time.sleep(0.002)
        return self.process.wait() == -signal.SIGKILL

    def trained_again(self) -> list[str]:
        """Defenses that were trained although their model was there when this life began."""
        names = self.trained.read_text().splitlines() if self.trained.exists() else []
        return [n for n in names if "model" in self.finished or n.replace(" seed ", "-seed") in self.finished]

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")[-1500:]


def listed(folder: Path) -> list[os.DirEntry]:
    try:
        return list(os.scandir(folder))
    except FileNotFoundError:
        return []


# ---------------------------------------------------------------- what it comes to


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
                notes = json.loads((file.metadata() or {}).get("aart", "null"))
                found[f"{name} (description)"] = timeless(notes)
        elif path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        else:
            found[name] = path.read_bytes()
    return found


class Killer:
    """Kills one run after another and compares what they come to."""

    def __init__(self, command: str, folder: Path, seed: int, lives: int):
        self.draw, self.folder, self.lives = random.Random(seed), folder, lives
        self.arguments = [*COMMANDS[command], "--data-dir", str(data(folder))]
        self.kinds = KINDS[:2] if command == "train" else KINDS
        self.kills, self.wrong, self.runs = Counter(), [], 0
        whole = Life(self.arguments, folder / "whole", False)
        if whole.process.wait():
            sys.exit(f"the run that nobody kills fails: {whole.said()}")
        self.seconds, self.expected = time.perf_counter() - whole.begun, outcome(whole.out)
        print(f"{command}: a run that nobody kills takes {self.seconds:.1f} s", flush=True)

    def one_run(self, count: int) -> None:
        """A run killed at most so many times."""
        self.runs += 1
        out, killed, left = self.folder / f"run{self.runs}", 0, self.seconds
        while killed < min(count, self.lives):
            life = Life(self.arguments, out, killed > 0)
            if not (how := self.kill(life, left)):
                break
            killed += 1
            left -= max(0.0, time.perf_counter() - life.begun - self.seconds * STARTING)
            self.kills[how] += 1
            self.check_life(life, f"run {self.runs}, life {killed} ({how})", -signal.SIGKILL)
        else:
            life = Life(self.arguments, out, True)
        if not life.process.wait() and not killed:
            self.seconds = time.perf_counter() - life.begun  # other work may have come or gone
        self.check_life(life, f"run {self.runs}, last life", 0)
        self.check_end(out)
        print(
            f"run {self.runs}: {killed} kills, {sum(self.kills.values())} in all, {len(self.wrong)} wrong", flush=True
        )

    def kill(self, life: Life, left: float) -> str:
        """How it was killed, "" if it ended before; ``left``: seconds that the run would still take."""
        if self.draw.random() < 0.5:
            return "at a random moment" if life.kill_at(self.draw.uniform(0, left)) else ""
        kind = self.draw.choice(self.kinds)
        which = self.draw.randrange(1, 13) if kind == ".state" else 1
        return f"while {kind} was written" if life.kill_writing(kind, which) else ""

    def check_life(self, life: Life, name: str, code: int) -> None:
        if life.process.returncode != code:
            self.wrong.append(f"{name}: exit code {life.process.returncode}: {life.said()}")
        self.wrong += [f"{name}: {again} was trained again" for again in life.trained_again()]

    def check_end(self, out: Path) -> None:
        found = outcome(out)
        for name in sorted(set(found) | set(self.expected)):
            if found.get(name) != self.expected.get(name):
                lacks = "is missing" * (name not in found) or "should not be there" * (name not in self.expected)
                self.wrong.append(f"run {self.runs}: {name} {lacks or 'differs'}")


def data(folder: Path) -> Path:
    """A small copy of the embedded data set."""
    from aart_lib.data import synthetic

    small = replace(synthetic.SETTINGS["default"], train_videos=300, test_videos=60, shard_size=300, frames=(6, 12))
    synthetic.write(small, folder / "data")
    return folder / "data"


def main() -> int:
    if sys.argv[1:2] == ["--run"]:
        return run(sys.argv[3:], sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", choices=COMMANDS, default="train")
    parser.add_argument("--count", type=int, default=10, help="kills (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lives", type=int, default=5, metavar="N", help="kills of one run (default 5)")
    options = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(options.command, Path(folder), options.seed, options.lives)
        while (left := options.count - sum(killer.kills.values())) > 0:
            killer.one_run(left)
    print(f"{sum(killer.kills.values())} kills in {killer.runs} runs, {time.perf_counter() - begun:.0f} s")
    for how, count in sorted(killer.kills.items()):
        print(f"  {count:4} {how}")
    print(*(f"FOUND {wrong}" for wrong in killer.wrong), sep="\n")
    return int(bool(killer.wrong))


if __name__ == "__main__":
    sys.exit(main())
