"""A program that several processes run together, for test_processes.py: one piece of work after another.

python tests/tools/shared_run.py '[["train_and_judge", "VIDEOS", "OUT", {"workers": 1}], ...]'
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator

from aart_lib import scoring, training
from aart_lib.cli.parser import main as command
from aart_lib.data.catalog import open_splits
from aart_lib.data.formats import DatasetSpec
from aart_lib.experiment import suites
from aart_lib.experiment.judge import judge
from aart_lib.losses import DEFENSES
from aart_lib.model import ModelConfig, VideoTransformer
from aart_lib.runtime import processes
from aart_lib.steps import Hardware, TrainConfig
from aart_lib.threats import ThreatModel

SPEC = DatasetSpec("tiny", {"rgb": (6, 6)}, 3, ("train*.tfrecord",), ("test*.tfrecord",), max_frames=5)
SHAPE = ModelConfig(6, 3, max_frames=5, width=8, heads=2, layers=2)
THREAT = ThreatModel("linf", 0.1)


def stepped(name: str, splits, accumulate: int = 1, size: int = 7) -> dict[str, torch.Tensor]:
    """Weights after an epoch of steps in float64, where rounding is far from every difference that counts."""
    config, hardware = TrainConfig(batch_size=size, seed=1), Hardware(accumulate=accumulate)
    made = training.Run(DEFENSES[name], splits, SHAPE, ThreatModel("linf", 0.2), config, Accelerator(), hardware)
    made.model.double().train()
    made.generator.manual_seed(3)
    loader = iter(made._loader())
    for first in range(0, len(splits.train), size):
        parts = [next(loader) for _ in range(accumulate)]
        double = [p and replace(p, frames=p.frames.double(), labels=p.labels.double()) for p in parts]
        made.learn(double, min(size, len(splits.train) - first), made.threat)
    return made.model.state_dict()


def step_every_defense(videos, out) -> None:
    weights = {name: stepped(name, open_splits(SPEC, videos), accumulate=2, size=14) for name in DEFENSES}
    torch.save(weights, Path(out) / f"rank{processes.rank()}.pt")


def train_and_judge(videos, out, *, epochs=4, workers=0, kill=None, stop=None) -> dict:
    """Train with A-ART and judge. In one process, the last, the step ``kill`` is the end, or ``stop`` the last."""
    losses, own = [], training.Run.learn

    def learn(run, *step):
        if processes.rank() == processes.count() - 1:
            if kill == len(losses):
                os.kill(os.getpid(), 9)
            run.stopped = stop == len(losses)  # as after a signal to this process alone
        losses.append(own(run, *step))
        return losses[-1]

    splits, config = open_splits(SPEC, videos), TrainConfig(epochs=epochs, batch_size=8, seed=1)
    how = {"state": Path(out) / "run.state", "hardware": Hardware(workers=workers), "progress": None}
    try:
        with patch.object(training.Run, "learn", learn):
            model, history = training.train(DEFENSES["a-art"], splits, SHAPE, THREAT, config, **how)
    except KeyboardInterrupt:
        return told(out, losses=losses)
    weights = {name: value.tolist() for name, value in model.state_dict().items()}
    types = sorted({str(value.dtype) for value in model.parameters()})
    return judged(model, splits, out, losses=losses, history=history, weights=weights, types=types)


def judge_untrained(videos, out) -> dict:
    torch.manual_seed(0)
    how = {"name": "strong", "only": {"gradient-free"}}
    with patch.object(scoring, "BATCH", 10), patch.multiple(suites, FREE_QUERIES=20, SPLICE_STEPS=(0.1,)):
        return judged(VideoTransformer(SHAPE), open_splits(SPEC, videos), out, **how)  # three batches of 24 videos


def judged(model, splits, out, *, name="quick", only=None, **found) -> dict:
    row, scores = judge(model, splits.test, THREAT, name=name, only=only, progress=False)
    return told(out, row=row, scores={key: value.tolist() for key, value in scores.items()}, **found)


def told(out, **found) -> dict:
    """What was found, which this process writes down too."""
    (Path(out) / f"rank{processes.rank()}.json").write_text(json.dumps(found))
    return found


def command_line(data, out) -> None:
    line = ["train", "--data-dir", data, "--defense", "standard", "--epochs", "1", "--out", out]
    if code := command(line):
        sys.exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        for work, folder, out, options in json.loads(sys.argv[1]):
            if work != "command_line":  # which lets the processes meet by itself
                processes.start()
            globals()[work](folder, out, **options)
    except processes.ProcessLost as error:
        sys.exit(f"aart: {error}")
