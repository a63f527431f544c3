"""What A-ART costs: the time of a training step, beside that of a standard step, measured in turns."""

import statistics
import time
from dataclasses import replace

import torch
from accelerate import Accelerator

from aart_lib import train as training
from aart_lib.attacks import ThreatModel
from aart_lib.data import LEVEL, Batch, DatasetSpec, Splits
from aart_lib.losses import DEFENSES
from aart_lib.model import ModelConfig
from aart_lib.train import TrainConfig

LIMIT = 2.2  # on a quiet machine
MARGIN = 2.6  # on a noisy one
VIDEOS, FRAMES, FEATURES, LABELS = 64, 32, 320, 40  # the small model on embedded data
ROUNDS, STEPS = 9, 3


class _None(list):
    """A data set without videos; the steps are given their batch."""

    entries = ()
    select = lambda self, indices: self  # noqa: E731


def make_run(name: str) -> training._Run:
    spec = DatasetSpec("timing", {"rgb": (FEATURES, FEATURES)}, LABELS, (), ())
    nothing = _None()
    config = TrainConfig(epochs=10_000, batch_size=VIDEOS)
    splits = Splits(spec, nothing, nothing, nothing)
    run = training._Run(
        DEFENSES[name], replace(splits, train=range(VIDEOS)), ModelConfig(FEATURES, LABELS), ThreatModel("linf", LEVEL),
        config, Accelerator(),
    )  # fmt: skip
    run.model.train()
    return run


def a_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(16, FRAMES + 1, (VIDEOS,), generator=generator)
    lengths[0] = FRAMES
    mask = torch.arange(FRAMES) < lengths[:, None]
    frames = torch.randn(VIDEOS, FRAMES, FEATURES, generator=generator) * mask[..., None]
    labels = (torch.rand(VIDEOS, LABELS, generator=generator) < 0.05).float()
    return Batch(frames, mask, labels, ("",) * VIDEOS)


def seconds(run: training._Run, batch: Batch) -> float:
    """Of one step, the mean of a few."""
    started = time.perf_counter()
    for _ in range(STEPS):
        run._step(batch, run.threat, None)
    return (time.perf_counter() - started) / STEPS


def test_an_a_art_step_costs_about_two_standard_steps():
    batch, runs = a_batch(), {name: make_run(name) for name in ("standard", "a-art")}
    for run in runs.values():
        seconds(run, batch)  # the first steps set up memory and optimizer
    rounds = [{name: seconds(run, batch) for name, run in runs.items()} for _ in range(ROUNDS)]
    standard, a_art = (1e3 * statistics.median(times[name] for times in rounds) for name in runs)
    ratio = statistics.median(times["a-art"] / times["standard"] for times in rounds)
    print(
        f"\n| standard step | A-ART step | ratio | limit |\n| ---: | ---: | ---: | ---: |\n"
        f"| {standard:.1f} ms | {a_art:.1f} ms | {ratio:.2f} | {LIMIT} |"
    )
    assert ratio <= MARGIN, f"an A-ART step costs {ratio:.2f} standard steps, the limit is {LIMIT}"
