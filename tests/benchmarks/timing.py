"""Real training steps and real reading, measured: the processor's seconds and the bytes kept for backward passes."""

import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import models
import numpy as np
import torch
from peers_read import SPEC, write_shard
from work import Passes, Work, memory, passes, work

from aart_lib.data.dataset import VideoDataset
from aart_lib.losses import DEFENSES
from aart_lib.model import ModelConfig


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

    @property
    def memory(self) -> dict[str, float]:
        return memory(self.model, self.frames, self.batch, self.passes)

    def step(self):
        """(model, function that makes one real training step) on random numbers."""
        _, batch = models.make((self.batch, self.frames, self.features, self.labels), {}, padded=False)
        shape = {"width": self.width, "heads": self.heads, "layers": self.layers}
        return models.stepping(DEFENSES[self.defense], [batch], **shape)


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
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.tfrecord"
        write_shard(path, videos, SPEC.max_frames)
        for _ in range(rounds):
            times = [time.process_time()]
            dataset = VideoDataset([path], SPEC)
            times.append(time.process_time())
            for _batch in dataset.batches(32):
                pass
            times.append(time.process_time())
            rates.append(videos * SPEC.max_frames * SPEC.dims / np.diff(times))
    opened, read = np.median(rates, 0)
    return {"index_bytes": float(opened), "reader_bytes": float(read)}


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
