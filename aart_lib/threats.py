"""Which change of the frames is allowed: a norm, its size ε, and how many frames.

Source: Madry et al. 2018 (the norm ball as threat model). L2 a frame and L2 a clip are this project's choice for
sequences.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from aart_lib.data import BOX, LEVEL


class Norm(NamedTuple):
    """A set of allowed perturbations, as three functions of tensors [B,T,D] that are zero on closed frames."""

    start: Callable  # (noise in [-1,1], ε) -> a random perturbation inside the ball
    ascend: Callable  # gradient -> the direction of steepest ascent, of norm 1
    project: Callable  # (perturbation, ε) -> the nearest one inside the ball


def _length(x: Tensor, dims) -> Tensor:
    return x.square().sum(dims, keepdim=True).sqrt()


def _l2(dims) -> Norm:
    unit = lambda x: x / _length(x, dims).clamp_min(1e-30)  # noqa: E731
    return Norm(
        start=lambda noise, epsilon: epsilon * unit(noise),
        ascend=unit,
        project=lambda x, epsilon: x * (epsilon / _length(x, dims).clamp_min(1e-30)).clamp_max(1),
    )


NORMS = {
    "linf": Norm(lambda noise, e: e * noise, torch.sign, lambda x, e: x.clamp(-e, e)),
    "l2-frame": _l2((2,)),
    "l2-clip": _l2((1, 2)),
}


@dataclass(frozen=True)
class ThreatModel:
    """What the attacker may change.

    Args:
        norm: "linf" (each number by at most ε), "l2-frame" (each frame), "l2-clip" (the whole video).
        epsilon: ε in feature units; one byte step of the stored features is `LEVEL` = 4/255.
        max_frames: at most this many frames, None = all.
    Raises: ValueError for an unknown norm, a negative ε or no frame.
    """

    norm: str
    epsilon: float
    max_frames: int | None = None

    def __post_init__(self):
        if self.norm not in NORMS:
            raise ValueError(f"unknown norm {self.norm!r}; known: {', '.join(NORMS)}")
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"epsilon must be a number of at least 0, got {self.epsilon}")
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {self.max_frames}")

    def times(self, factor: float) -> "ThreatModel":
        return replace(self, epsilon=self.epsilon * factor)

    @property
    def levels(self) -> float:
        return self.epsilon / LEVEL

    def project(self, delta: Tensor, frames: Tensor) -> Tensor:
        """The perturbation [B,T,D] brought back into the ball and, with the frames, into the box."""
        return self.projection(frames)(delta)

    def projection(self, frames: Tensor) -> Callable:
        """`project` as a function of the perturbation alone, for many of the same frames."""
        low, high = BOX
        inside = low <= frames.min() <= frames.max() <= high  # a clean value outside may stay where it is
        box = BOX if inside else (frames.clamp_max(low), frames.clamp_min(high))
        ball = NORMS[self.norm].project
        return lambda delta: ball(delta, self.epsilon).add_(frames).clamp_(*box).sub_(frames)


def few_frames_epsilon(threat: ThreatModel) -> float:
    """ε for an attacker of few frames: eight times the budget of one who may touch all (L∞, L2 a frame); L2 a clip
    is a budget for the clip already."""
    return threat.epsilon * (1 if threat.norm == "l2-clip" else 8)
