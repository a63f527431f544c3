"""One A-ART step at the size of the paper's data set: 300 frames x 1,152, batch 32, width 256, 4 layers, 8 heads.

python tests/benchmarks/full_size.py [--accumulate 4] [--recompute]
"""

import argparse
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from aart_lib.data.batch import Batch
from aart_lib.experiment.presets import PRESETS
from aart_lib.losses import DEFENSES
from aart_lib.model import ModelConfig
from aart_lib.steps import Hardware, Learner, TrainConfig
from aart_lib.threats import ThreatModel

FRAMES, FEATURES, LABELS, VIDEOS = 300, 1152, 3862, 32


def part(videos: int, generator: torch.Generator) -> Batch:
    frames = torch.randn(videos, FRAMES, FEATURES, generator=generator)
    labels = (torch.rand(videos, LABELS, generator=generator) < 3 / LABELS).float()
    return Batch(frames, torch.ones(videos, FRAMES, dtype=torch.bool), labels, ("",) * videos)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--defense", default="a-art")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    shape = ModelConfig(FEATURES, LABELS, max_frames=FRAMES, **PRESETS["full"].model)
    hardware = Hardware(accumulate=options.accumulate, recompute=options.recompute)
    config = TrainConfig(batch_size=VIDEOS)
    learner = Learner(DEFENSES[options.defense], shape, config, 1000, Accelerator(), hardware)
    learner.model.train()
    batch = [part(VIDEOS // options.accumulate, generator) for _ in range(options.accumulate)]
    for _ in range(options.steps):
        started = time.perf_counter()
        losses = learner.learn(batch, VIDEOS, ThreatModel("linf", 0.04))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        print(f"{time.perf_counter() - started:.1f} s a step of {VIDEOS} videos; {shown}", flush=True)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    print(f"peak memory {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
