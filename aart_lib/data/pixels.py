"""From pixels to labels: an image network and a model of its features as one model, which attacks can go through.

Frames [B,T,D] are pictures here, D = 3·size·size numbers in 0..1, so that every attack of the library runs on them:
``ThreatModel("linf", 1 / 255, box=(0, 1))``. Robustness in feature space is not robustness to pixels: the image network
is a lever that was not trained to be robust.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aart_lib.data.batch import Batch, Item, collate
from aart_lib.data.extractor import FRAMES, Extractor, as_tensor

PIXEL = 1 / 255  # one step of a stored picture: the unit in which ε is spoken of


class FilmModel(nn.Module):
    """Pictures in, what ``model`` gives for their features out; differentiable.

    Pictures go through the image network some at a time, and again in the backward pass, so that memory is bounded
    whatever the length of a film. Features are not rounded to bytes.
    """

    def __init__(self, extractor: Extractor, model: nn.Module):
        super().__init__()
        self.extractor, self.model = extractor, model

    def forward(self, frames: Tensor, mask: Tensor, **options):
        """The model's output for pictures [B,T,3·size·size] in 0..1; mask [B,T]; options are the model's own.

        Raises: ValueError for pictures of another size than the extractor was fitted with.
        """
        size = self.extractor.size
        if frames.shape[2:] != (3 * size * size,):
            raise ValueError(f"pictures must be [B,T,n], n = 3 x {size} x {size}, got {tuple(frames.shape)}")
        features = frames.new_zeros(*mask.shape, self.extractor.components.shape[1])
        pictures = frames[mask].unflatten(1, (3, size, size))
        parts = [checkpoint(self.extractor, part, use_reentrant=False) for part in pictures.split(FRAMES)]
        return self.model(features.masked_scatter(mask[..., None], torch.cat(parts)), mask, **options)


def pixel_batch(films: Sequence[Sequence[np.ndarray]], labels: Tensor) -> Batch:
    """Films as sequences of pictures, uint8 [size,size,3] each, with labels [B,C]: a `Batch` for a `FilmModel`."""
    frames = (as_tensor(np.stack(list(film))).flatten(1) for film in films)
    return collate([Item(f, row, str(i)) for i, (f, row) in enumerate(zip(frames, labels, strict=True))])


def stored_pictures(frames: Tensor, clean: Tensor) -> Tensor:
    """Attacked pictures as an 8-bit file holds them, in 0..1: the nearest step, or the one before where that is farther
    from the clean picture than the attack went. ``clean`` lies on steps."""
    steps = (frames - clean) / PIXEL
    nearest = steps.round()
    nearest = torch.where(nearest.abs() > steps.abs() + 1e-3, nearest - nearest.sign(), nearest)
    return (clean / PIXEL + nearest).round() * PIXEL


def as_pictures(frames: Tensor, size: int) -> list[np.ndarray]:
    """Frames [T,3·size·size] in 0..1 as T pictures, uint8 [size,size,3]."""
    return list((frames.unflatten(1, (3, size, size)).permute(0, 2, 3, 1) / PIXEL).round().byte().numpy())
