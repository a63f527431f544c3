"""Real training steps and real reading, measured: the processor's seconds and the bytes kept for backward passes."""

import statistics
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from work import Passes, Work, passes, work

from aart_lib.data.batch import LEVEL, Batch
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.formats import SPECS
from aart_lib.data.records import encode_sequence_example, write_records
from aart_lib.losses import DEFENSES
from aart_lib.model import ModelConfig
from aart_lib.threats import ThreatModel
from aart_lib.training import Run, TrainConfig


class Kept:
    """Bytes that autograd keeps for backward passes, each tensor once, the model's own not: ``now`` and the ``peak``.

    Use: ``with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack)``.
    """

    def __init__(self, model):
        self.own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.holders, self.now, self.peak = Counter(), 0, 0

    def pack(self, tensor):
        storage, hold = tensor.untyped_storage(), lambda: tensor
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self.own:
            self._count(key, size, 1)
            weakref.finalize(hold, self._count, key, size, -1)  # when the graph lets go of it
        return hold

    def unpack(self, hold):
        return hold()

    def _count(self, key: int, size: int, change: int) -> None:
        was = self.holders[key]
        self.holders[key] += change
        self.now += size * ((was + change > 0) - (was > 0))
        self.peak = max(self.peak, self.now)


class _None(list):
    """A data set without videos: the steps are given their batch."""

    select = lambda self, indices: self  # noqa: E731


class Shape(NamedTuple):
    """A step to measure."""

    defense: str
    features: int
    labels: int
    width: int
    heads: int
    layers: int
    frames: int
    batch: int

    @property
    def model(self) -> ModelConfig:
        own = DEFENSES[self.defense].model
        return ModelConfig(self.features, self.labels, self.frames, self.width, self.heads, self.layers, **own)

    @property
    def passes(self) -> Passes:
        return passes(DEFENSES[self.defense])

    @property
    def work(self) -> Work:
        return work(self.model, self.frames, self.batch, self.passes)

    def step(self):
        """(model, function that makes one real training step) on random numbers."""
        splits = SimpleNamespace(train=range(self.batch), validation=_None())
        config, threat = TrainConfig(epochs=10**6, batch_size=self.batch), ThreatModel("linf", LEVEL)
        run = Run(DEFENSES[self.defense], splits, self.model, threat, config, Accelerator())
        draw = torch.Generator().manual_seed(0)
        frames = torch.randn(self.batch, self.frames, self.features, generator=draw)
        labels = (torch.rand(self.batch, self.labels, generator=draw) < 0.05).float()
        videos = Batch(frames, torch.ones(frames.shape[:2], dtype=torch.bool), labels, ("",) * self.batch)
        return run.model.train(), lambda: run.learn([videos], len(videos), threat)


def kept_bytes(shape: Shape) -> int:
    """The most bytes that one training step keeps for its backward passes."""
    model, step = shape.step()
    kept = Kept(model)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        step()
    return kept.peak


def measure(shapes: Sequence[Shape], rounds: int = 7) -> list[dict]:
    """Seconds of the processor (one thread) of a step of each shape, a number a round, and the bytes it keeps.

    The shapes take turns, in another order each round, so that what disturbs disturbs all.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    steps = [shape.step()[1] for shape in shapes]
    found = [{"shape": shape._asdict(), "kept": kept_bytes(shape), "seconds": []} for shape in shapes]
    for turn in range(rounds):
        for i in np.random.default_rng(turn).permutation(len(shapes)):
            steps[i]()  # its numbers are in the cache now
            started, count = time.process_time(), 0
            while count < 10 and (count == 0 or time.process_time() - started < 0.05):
                steps[i]()
                count += 1
            found[i]["seconds"].append((time.process_time() - started) / count)
    torch.set_num_threads(threads)
    return found


def measure_reading(videos: int = 96, rounds: int = 5) -> dict[str, float]:
    """Bytes of videos a second that one core reads, checks, decodes and batches, and that it indexes."""
    spec, rng, rates = SPECS["yt8m-frame"].leading(rgb=1024, audio=128), np.random.default_rng(0), ([], [])
    draw = lambda dims: rng.integers(0, 256, (spec.max_frames, dims), np.uint8)  # noqa: E731
    made = ({name: draw(dims) for name, (dims, _) in spec.features.items()} for _ in range(videos))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.tfrecord"
        write_records(path, (encode_sequence_example({"id": str(i), "labels": [i]}, x) for i, x in enumerate(made)))
        for _ in range(rounds):
            times = [time.process_time()]
            dataset = VideoDataset([path], spec)
            times.append(time.process_time())
            for _batch in dataset.batches(32):
                pass
            times.append(time.process_time())
            for kept, took in zip(rates, np.diff(times), strict=True):
                kept.append(videos * spec.max_frames * spec.dims / took)
    return {"index_bytes": statistics.median(rates[0]), "reader_bytes": statistics.median(rates[1])}


# What is measured for the page.
_A = "a-art"
FITTED = (  # defense, features, labels, width, heads, layers, frames, batch; some too large for the cache
    *(Shape(_A, 320, 40, width, 4, 2, 32, 16) for width in (32, 64, 128)),
    *(Shape(_A, 320, 40, 64, 4, layers, 32, 16) for layers in (1, 3)),
    *(Shape(_A, 320, 40, 64, 4, 2, frames, batch) for frames, batch in ((16, 16), (96, 16), (64, 4), (48, 32))),
    *(Shape(_A, 1152, labels, 64, 4, 2, 48, 8) for labels in (40, 3862)),
    *(Shape(_A, 320, 40, 128, 8, 3, frames, batch) for frames, batch in ((64, 8), (96, 16))),
    *(Shape(_A, 320, 40, 32, heads, 3, 96, 8) for heads in (2, 4)),
    *(Shape(_A, 1152, 3862, 128, 8, 3, frames, 32) for frames in (32, 64)),
    Shape(_A, 1152, 40, 32, 4, 1, 96, 32),
    Shape(_A, 320, 40, 64, 8, 3, 96, 32),
    Shape("standard", 320, 40, 64, 4, 2, 32, 16),
    Shape("standard", 320, 40, 128, 8, 3, 96, 16),
    Shape("standard", 1152, 3862, 32, 4, 2, 64, 32),
    Shape("adversarial", 320, 40, 64, 4, 3, 96, 16),
    Shape("trades", 1152, 40, 128, 8, 3, 64, 8),
)
HELD_OUT = (  # beyond those: up to four times the frames, twice the width, four times the batch, a layer more
    *(Shape(_A, 320, 40, width, heads, 2, 384, 8) for width, heads in ((32, 2), (64, 4))),
    Shape(_A, 320, 40, 256, 8, 2, 48, 16),
    Shape(_A, 320, 40, 64, 4, 2, 32, 128),
    Shape(_A, 640, 400, 96, 6, 3, 200, 8),
    Shape(_A, 1152, 3862, 192, 6, 3, 150, 4),
    Shape(_A, 1152, 3862, 256, 8, 4, 300, 2),
    Shape("a-art-fast", 320, 40, 96, 6, 3, 256, 16),
    Shape("standard", 1152, 3862, 256, 8, 4, 200, 4),
    Shape("adversarial", 1152, 400, 64, 2, 3, 320, 8),
    Shape("logit-pairing", 320, 40, 192, 6, 2, 128, 16),
    Shape("trades", 640, 40, 128, 8, 4, 224, 4),
    Shape("vat", 320, 40, 64, 4, 3, 256, 8),
)
