"""Which change of the frames is allowed: a norm, its size ε, and how many frames.

Source: Madry et al. 2018 (the norm ball as threat model). L2 a frame and L2 a clip are this project's choice for
sequences.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aart_lib.data.batch import BOX, LEVEL
from aart_lib.data.exact import one_of


class LInf:
    """Each number by at most ε. A norm is three functions of tensors [B,T,D], zero in frames that may not change."""

    def start(self, noise: Tensor, epsilon: float) -> Tensor:
        """A random perturbation inside the ball, from noise in [-1,1]."""
        return epsilon * noise

    def ascend(self, gradient: Tensor) -> Tensor:
        """The direction of steepest ascent, of norm 1."""
        return gradient.sign()

    def project(self, delta: Tensor, epsilon: float) -> Tensor:
        """The nearest perturbation inside the ball."""
        return delta.clamp(-epsilon, epsilon)


@dataclass(frozen=True)
class L2:
    """The same three for the length over some dimensions: (2,) of each frame, (1, 2) of the whole video."""

    dims: tuple[int, ...]

    def start(self, noise: Tensor, epsilon: float) -> Tensor:
        return epsilon * self.ascend(noise)

    def ascend(self, gradient: Tensor) -> Tensor:
        return gradient / self._length(gradient)

    def project(self, delta: Tensor, epsilon: float) -> Tensor:
        return delta * (epsilon / self._length(delta)).clamp_max(1)

    def _length(self, x: Tensor) -> Tensor:
        return x.square().sum(self.dims, keepdim=True).sqrt().clamp_min(1e-30)


NORMS: dict[str, Any] = {"linf": LInf(), "l2-frame": L2((2,)), "l2-clip": L2((1, 2))}


@dataclass(frozen=True)
class ThreatModel:
    """What the attacker may change.

    Args:
        norm: "linf" (each number by at most ε), "l2-frame" (each frame), "l2-clip" (the whole video).
        epsilon: ε in feature units; one byte step of the stored features is `LEVEL` = 4/255.
        max_frames: at most this many frames, None = all.
        box: the range that features stay in, None = any; default: that of stored features. Single clean values outside
            may stay where they are, and go no further.
    Raises: ValueError for an unknown norm, a negative ε, no frame or an empty box.
    """

    norm: str
    epsilon: float
    max_frames: int | None = None
    box: tuple[float, float] | None = BOX

    def __post_init__(self):
        one_of("norm", self.norm, NORMS)
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"epsilon must be a number of at least 0, got {self.epsilon}")
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {self.max_frames}")
        if self.box is not None:
            if len(self.box) != 2 or not self.box[0] < self.box[1]:
                raise ValueError(f"box must be (lowest, highest) value of a feature or None, got {self.box}")
            object.__setattr__(self, "box", tuple(map(float, self.box)))  # a list or numpy numbers would not hash

    def times(self, factor: float) -> "ThreatModel":
        return replace(self, epsilon=self.epsilon * factor)

    def few(self, frames: int = 1) -> "ThreatModel":
        """An attacker of so many frames only, with more to spend on each: eight times ε (L∞, L2 a frame).

        L2 a clip is a budget for the clip already.
        """
        return replace(self, epsilon=self.epsilon * (1 if self.norm == "l2-clip" else 8), max_frames=frames)

    def spliced(self) -> "ThreatModel":
        """An attacker who replaces one frame by anything in the box. Raises: ValueError if there is no box."""
        if self.box is None:
            raise ValueError("a frame that may be anything needs a box: ThreatModel(..., box=(lowest, highest))")
        return replace(self, norm="linf", epsilon=self.box[1] - self.box[0], max_frames=1)

    @property
    def levels(self) -> float:
        return self.epsilon / LEVEL

    def described(self) -> dict:
        """For JSON: norm, ε, number of frames, and the box if it is another than that of stored features."""
        found = {"norm": self.norm, "epsilon": self.epsilon, "max_frames": self.max_frames}
        return found if self.box == BOX else found | {"box": self.box and list(self.box)}

    def check(self, frames: Tensor) -> None:
        """Raises: ValueError if over a tenth of these features lie outside the box: they could only move inward."""
        if self.box is None or not frames.numel():
            return
        outside = ((frames < self.box[0]) | (frames > self.box[1])).float().mean()
        if outside > 0.1:
            raise ValueError(
                f"{outside:.0%} of the features lie outside the threat model's box, {self.box[0]:.4g} to "
                f"{self.box[1]:.4g} (they go from {frames.min():.4g} to {frames.max():.4g}); give it the range of "
                "yours, ThreatModel(..., box=(lowest, highest)), or box=None"
            )

    def bounds(self, frames: Tensor) -> tuple[Any, Any]:
        """The lowest and highest values allowed beside clean frames; one outside the box may stay where it is."""
        low, high = self.box or (-torch.inf, torch.inf)
        inside = low <= frames.min() <= frames.max() <= high
        return (low, high) if inside else (frames.clamp_max(low), frames.clamp_min(high))

    def project(self, delta: Tensor, frames: Tensor, bounds: tuple[Any, Any] | None = None) -> Tensor:
        """The perturbation [B,T,D] brought back into the ball and, with the frames, into the box.

        ``bounds`` are those of the frames, if they are known: a search asks many times for the same frames.
        """
        inside = NORMS[self.norm].project(delta, self.epsilon)
        return inside.add_(frames).clamp_(*bounds or self.bounds(frames)).sub_(frames) if self.box else inside

    def full_step(self, direction: Tensor, frames: Tensor) -> Tensor:
        """The perturbation [B,T,D] of one step of size ε from clean frames along a direction, inside ball and box."""
        return self.project(self.epsilon * NORMS[self.norm].ascend(direction), frames)


def store(frames: Tensor, clean: Tensor, dtype: torch.dtype) -> Tensor:
    """Attacked frames as ``dtype`` can hold them, rounded toward the clean ones, so that rounding leaves no ball."""
    if torch.finfo(dtype).bits >= 32:
        return frames
    moved, nearest = (frames - clean).abs(), frames.to(dtype)
    inward = torch.nextafter(nearest, clean.to(dtype)).to(clean)
    stored = torch.where((nearest.to(clean) - clean).abs() > moved, inward, nearest.to(clean))
    return torch.where((stored - clean).abs() > moved, clean, stored)
