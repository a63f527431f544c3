"""A small network and random videos, which the tests of the core share."""

import torch

from aart_lib.data.batch import BOX, Batch
from aart_lib.model import ModelConfig, VideoTransformer

D, C = 5, 4  # numbers a frame, labels


def network(seed=0, **changes) -> VideoTransformer:
    """In eval mode, with weights large enough for attention that is far from uniform."""
    torch.manual_seed(seed)
    shape = {"features": D, "labels": C, "max_frames": 8, "width": 8, "heads": 2, "layers": 2} | changes
    model = VideoTransformer(ModelConfig(**shape)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(2.5)
    return model


def linear(weights: torch.Tensor):
    """A model whose logits are linear in the frames: weights [T,D,C]."""

    def model(frames, mask):
        return torch.einsum("btd,tdc->bc", frames * mask[..., None], weights)

    return model


def videos(count=6, frames=5, seed=0, lengths=None, spread=0.8) -> Batch:
    """Random videos inside the box, zero padding, random labels."""
    draw = generator(seed)
    lengths = torch.tensor(lengths) if lengths else torch.randint(1, frames + 1, (count,), generator=draw)
    mask = torch.arange(frames) < lengths[:, None]
    drawn = (torch.randn(len(lengths), frames, D, generator=draw) * spread).clamp(*BOX)
    labels = (torch.rand(len(lengths), C, generator=draw) < 0.4).float()
    return Batch(drawn * mask[..., None], mask, labels, tuple(f"v{i}" for i in range(len(lengths))))


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def size(norm: str, delta: torch.Tensor) -> float:
    """The norm of a perturbation [B,T,D], the largest in the batch."""
    if norm == "linf":
        return float(delta.abs().max())
    return float(delta.square().sum((2,) if norm == "l2-frame" else (1, 2)).sqrt().max())
