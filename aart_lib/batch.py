"""What models and attacks are given: one video, and videos side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info


@dataclass(frozen=True)
class Item:
    """One video."""

    frames: Tensor  # [T,D] float32
    labels: Tensor  # [C] float32, multi-hot
    id: str
    evidence: Tensor | None = None  # [T,C] bool: frames that show a label


@dataclass(frozen=True)
class Batch:
    """Videos side by side, padded with zeros to the longest."""

    frames: Tensor  # [B,T,D] float32
    mask: Tensor  # [B,T] bool, True = real frame
    labels: Tensor  # [B,C] float32, multi-hot
    ids: tuple[str, ...]
    evidence: Tensor | None = None  # [B,T,C] bool

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device) -> "Batch":
        return self._each(lambda tensor: tensor.to(device))

    def pin_memory(self) -> "Batch":
        """What torch's loader asks for where ``pin_memory=True``."""
        return self._each(Tensor.pin_memory)

    def __getstate__(self) -> dict:
        # A reader process sends what is not in shared memory as bytes: torch would share it, an open file a tensor.
        bare = lambda v: isinstance(v, Tensor) and not v.is_shared() and get_worker_info() is not None  # noqa: E731
        return {key: value.numpy() if bare(value) else value for key, value in vars(self).items()}

    def __setstate__(self, state: dict) -> None:
        found = {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in state.items()}
        vars(self).update(found)

    def _each(self, change: Callable) -> "Batch":
        return replace(self, **{k: change(v) for k, v in vars(self).items() if isinstance(v, Tensor)})


def collate(items: Sequence[Item]) -> Batch:
    """A `Batch` of videos of any lengths; evidence only if all have it. Serves torch's loader as ``collate_fn``.

    Raises: ValueError without a video.
    """
    if not items:
        raise ValueError("a batch needs at least one video, got none")
    lengths = torch.tensor([len(item.frames) for item in items])
    if not lengths.all():
        raise ValueError(f"video {items[int((lengths == 0).nonzero()[0])].id!r} has no frame; leave it out")
    pad = lambda parts: torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)  # noqa: E731
    evidence = pad([i.evidence for i in items]) if all(i.evidence is not None for i in items) else None
    return Batch(
        frames=pad([item.frames for item in items]),
        mask=torch.arange(int(lengths.max())) < lengths[:, None],
        labels=torch.stack([item.labels for item in items]),
        ids=tuple(item.id for item in items),
        evidence=evidence,
    )
