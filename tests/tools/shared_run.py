"""A program that several processes run together, for test_processes.py: train and judge on the videos of a folder."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from aart_lib import scoring, training
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


def main(folder: str, out: str, name: str, **options) -> None:
    torch.set_num_threads(1)
    processes.start()
    if name == "every defense":
        weights = {key: stepped(key, open_splits(SPEC, folder), **options) for key in DEFENSES}
        torch.save(weights, Path(out) / f"rank{processes.rank()}.pt")
        return
    losses, own = [], training.Run.learn

    def step(self, parts, videos, threat):
        if options.get("kill") == len(losses) and processes.rank() == 1:
            os.kill(os.getpid(), 9)
        if options.get("stop") == len(losses) and processes.rank() == processes.count() - 1:
            self.stopped = True  # as after a signal to this process alone
        found = own(self, parts, videos, threat)
        losses.append(found)
        return found

    training.Run.learn = step
    threat, splits = ThreatModel("linf", 0.1), open_splits(SPEC, folder)
    config = TrainConfig(epochs=options.get("epochs", 13), batch_size=8, seed=1)
    hardware = Hardware(accumulate=options.get("accumulate", 1), workers=options.get("workers", 0))
    state, history = Path(out) / "run.state", []
    try:
        if name == "untrained":
            torch.manual_seed(0)
            model = VideoTransformer(SHAPE)
        else:
            go = {"state": state, "hardware": hardware, "progress": None}
            model, history = training.train(DEFENSES[name], splits, SHAPE, threat, config, **go)
    except processes.ProcessLost as error:
        sys.exit(f"aart: {error}")
    except KeyboardInterrupt:
        sys.exit(f"stopped after {len(losses)} steps")
    scoring.BATCH = options.get("batch", scoring.BATCH)
    suites.FREE_QUERIES, suites.SPLICE_STEPS = 20, (0.1,)  # what takes longest
    row, scores = judge(model, splits.test, threat, name=options.get("suite", "quick"), progress=False)
    found = {"losses": losses, "history": history, "row": row}
    found["scores"] = {key: value.tolist() for key, value in scores.items()}
    found["types"] = sorted({str(parameter.dtype) for parameter in model.parameters()})
    found["weights"] = {key: value.tolist() for key, value in model.state_dict().items()}
    (Path(out) / f"rank{processes.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:4], **json.loads(sys.argv[4]))
