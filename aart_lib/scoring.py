"""A model's score on a data set, clean or attacked, and the ε that brings a baseline down to a wanted score."""

import zlib
from collections.abc import Iterator
from functools import reduce
from itertools import islice

import torch

from aart_lib.attacks import Attack, perturb
from aart_lib.data.batch import Batch
from aart_lib.data.dataset import VideoDataset
from aart_lib.metrics import Accumulator
from aart_lib.model import evaluating, predict
from aart_lib.runtime import processes

BATCH, BLOCK = 100, 500  # videos attacked at once, and among how many those of like length are put together


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """On the CPU and in float64, so that no two confident labels round to the same score."""
    return torch.sigmoid(logits.cpu().double())


def generator_for(*key) -> torch.Generator:
    """Noise that depends on what it is for and on nothing else: the order of attacks and batches does not matter."""
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


@torch.inference_mode(False)
@torch.no_grad()
def score(model, dataset: VideoDataset, attack: Attack | None = None, *, seed: int = 0) -> dict[str, float]:
    """GAP, mAP, Hit@1 and PERR of a model on a data set, attacked if an attack is given; processes share the work."""
    total = Accumulator()
    with evaluating(model):
        for index, batch in islice(enumerate(batches(dataset, model)), processes.rank(), None, processes.count()):
            frames = batch.frames
            if attack is not None:
                frames = perturb(model, batch, attack, generator=generator_for(seed, index))
            total.update(probabilities(predict(model, frames, batch.mask).logits), batch.labels)
    return merged(processes.gathered(total)).result()


def merged(parts: list[Accumulator]) -> Accumulator:
    return reduce(Accumulator.merge, parts)


def device_of(model) -> torch.device:
    """Where the weights of a model lie; the CPU if it has none."""
    weights = model.parameters() if isinstance(model, torch.nn.Module) else ()
    return next((weight.device for weight in weights), torch.device("cpu"))


def batches(dataset: VideoDataset, model) -> Iterator[Batch]:
    """Videos of like length side by side: a fifth of the padding needs not be computed."""
    device = device_of(model)
    for block in dataset.batches(BLOCK):
        for rows in block.mask.sum(1).argsort(stable=True).split(BATCH):
            yield block[rows].trimmed().to(device)
