"""Attacks on frame features: which change is allowed (`ThreatModel`), what it is after (`OBJECTIVES`), how it is found.

Robustness here is robustness *in feature space*: no pixel is touched. All attacks leave padding as it is and keep
features inside the box of stored values.

Source: Goodfellow et al. 2015 (FGSM), Madry et al. 2018 (PGD), Dong et al. 2018 (momentum), Andriushchenko et al. 2020
(Square, for the gradient-free search).
"""

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from aart_lib.data import BOX, LEVEL, Batch
from aart_lib.losses import attention_divergence, bce, bernoulli_kl
from aart_lib.model import Output

# ---------------------------------------------------------------- norms


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
        delta = NORMS[self.norm].project(delta, self.epsilon)
        low, high = frames.clamp_max(BOX[0]), frames.clamp_min(BOX[1])  # a clean value outside may stay where it is
        return torch.minimum(torch.maximum(frames + delta, low), high) - frames


# ---------------------------------------------------------------- objectives


def _margin(attack, output: Output, clean: Output | None, batch: Batch) -> Tensor:
    wrong = output.logits.masked_fill(batch.labels > 0, -torch.inf).amax(1)
    right = output.logits.masked_fill(batch.labels == 0, torch.inf).amin(1)
    # Videos without a label, or with all of them, have one side only.
    return torch.where(wrong.isfinite(), wrong, 0) - torch.where(right.isfinite(), right, 0)


def _gap(attack, output: Output, clean: Output | None, batch: Batch) -> Tensor:
    above = torch.sigmoid(output.logits - attack.threshold)  # pooled GAP suffers most from confident false positives
    return (above * (1 - batch.labels) + (1 - above) * batch.labels).sum(1)


def _attention(attack, output: Output, clean: Output | None, batch: Batch) -> Tensor:
    return attention_divergence(clean.attention, output.attention, batch.mask)


# Each: attack, output under attack, clean output (or None), batch -> [B], higher = worse for the defender.
OBJECTIVES = {
    "bce": lambda attack, output, clean, batch: bce(output.logits, batch.labels),
    "margin": _margin,  # for models so sure of themselves that the gradient of the BCE is exactly zero
    "gap": _gap,
    "kl": lambda attack, output, clean, batch: bernoulli_kl(clean.logits, output.logits),
    "attention": _attention,
    "bce-attention": lambda attack, output, clean, batch: (
        bce(output.logits, batch.labels) + attack.mixture * _attention(attack, output, clean, batch)
    ),
}
NEEDS_CLEAN = {"kl", "attention", "bce-attention"}
NEEDS_ATTENTION = {"attention", "bce-attention"}


@dataclass(frozen=True)
class Attack:
    """How a perturbation is searched.

    steps = 0 draws noise; one step of size ε from zero is FGSM; more are PGD. ``search="random"`` uses no gradient,
    ``steps`` is then the number of queries. Raises: ValueError for a choice that does not exist.
    """

    threat: ThreatModel
    objective: str = "bce"
    steps: int = 10
    restarts: int = 1
    start: str = "random"  # or "zero", or "tiny" (a hundredth of ε)
    step_size: float | None = None  # in units of ε; None = 2.5 / steps, at most 1
    momentum: float = 0.0
    keep_best: bool = True  # the best iterate of each video over steps and restarts, not the last
    frames: str = "gradient"  # how the max_frames frames are chosen: "gradient", "attention" or "random"
    search: str = "gradient"  # or "random"
    threshold: float = 0.0  # logit that the objective "gap" pushes across
    mixture: float = 1.0  # weight of the attention in "bce-attention"; negative keeps attention still

    def __post_init__(self):
        choices = {
            "objective": OBJECTIVES,
            "start": ("zero", "random", "tiny"),
            "frames": ("gradient", "attention", "random"),
            "search": ("gradient", "random"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")
        if self.steps < 0 or self.restarts < 1:
            raise ValueError(f"steps must be at least 0 and restarts 1, got {self.steps} and {self.restarts}")

    @property
    def size(self) -> float:
        relative = self.step_size if self.step_size is not None else min(1.0, 2.5 / max(self.steps, 1))
        return relative * self.threat.epsilon


def noise(threat: ThreatModel) -> Attack:
    """Random noise of the norm, the control: corners of the L∞ ball, random directions on the L2 sphere."""
    return Attack(threat, steps=0)


def fgsm(threat: ThreatModel) -> Attack:
    """One full step. Source: Goodfellow et al. 2015."""
    return Attack(threat, steps=1, start="zero", step_size=1.0, keep_best=False)


def pgd(threat: ThreatModel, steps: int = 20, restarts: int = 2, **options) -> Attack:
    """Projected gradient ascent from random starts. Source: Madry et al. 2018."""
    return Attack(threat, steps=steps, restarts=restarts, **options)


# ---------------------------------------------------------------- search


@contextmanager
def evaluating(model):
    """The model in eval mode inside, every module back in its own mode after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


def perturb(model, batch: Batch, attack: Attack, *, generator: torch.Generator | None = None) -> Tensor:
    """Attacked frames [B,T,D]: within ``attack.threat`` of the clean ones, padding untouched, modes restored.

    Gradients are taken for the perturbation only; the model's parameters and their gradients stay as they are.
    ``generator`` (on the CPU) makes noise and random starts repeatable.
    """
    if attack.threat.epsilon == 0:
        return batch.frames.clone()
    with evaluating(model):
        clean = None
        if attack.objective in NEEDS_CLEAN or attack.frames == "attention":
            with torch.no_grad():
                clean = model(batch.frames, batch.mask, return_attention=True)
        open_ = _open_frames(model, batch, attack, clean, generator)
        if attack.steps == 0:
            return batch.frames + _noise(batch, attack, open_, generator)
        search = _ascend if attack.search == "gradient" else _random_search
        best, best_loss = torch.zeros_like(batch.frames), torch.full_like(batch.labels[:, 0], -torch.inf)
        for _ in range(attack.restarts):
            for delta, loss in search(model, batch, attack, open_, clean, generator):
                better = (loss > best_loss) if attack.keep_best else torch.ones_like(loss, dtype=torch.bool)
                best = torch.where(better[:, None, None], delta, best)
                best_loss = torch.where(better, loss, best_loss)
        return batch.frames + best


def one_step(batch: Batch, gradient: Tensor, threat: ThreatModel) -> Tensor:
    """Attacked frames one full step along a gradient [B,T,D] that is there already: FGSM without a pass of its own."""
    ascent = NORMS[threat.norm].ascend(gradient * batch.mask[..., None])
    return batch.frames + threat.project(threat.epsilon * ascent, batch.frames)


@torch.enable_grad()
def loss_and_gradient(model, batch: Batch, attack: Attack, delta: Tensor, clean: Output | None = None):
    """The attack's objective [B] at a perturbation, and its gradient [B,T,D]."""
    delta = delta.detach().requires_grad_()
    output = model(batch.frames + delta, batch.mask, return_attention=attack.objective in NEEDS_ATTENTION)
    loss = OBJECTIVES[attack.objective](attack, output, clean, batch)
    # 0 * delta: a model whose attention cannot move has a gradient too, of zeros
    return loss.detach(), torch.autograd.grad(loss.sum() + 0 * delta.sum(), delta)[0]


def _uniform(batch: Batch, generator) -> Tensor:
    return (torch.rand(batch.frames.shape, generator=generator) * 2 - 1).to(batch.frames)


def _noise(batch: Batch, attack: Attack, open_: Tensor, generator) -> Tensor:
    drawn = _uniform(batch, generator)
    drawn = drawn.sign() if attack.threat.norm == "linf" else drawn
    return attack.threat.project(NORMS[attack.threat.norm].start(drawn * open_, attack.threat.epsilon), batch.frames)


def _open_frames(model, batch: Batch, attack: Attack, clean: Output | None, generator) -> Tensor:
    """[B,T,1] with 1 where the attacker may change a frame: real ones, and at most ``max_frames`` of them."""
    real, most = batch.mask, attack.threat.max_frames
    if most is None or most >= real.shape[1]:
        return real[..., None].to(batch.frames)
    if attack.frames == "random":
        importance = torch.rand(real.shape, generator=generator).to(batch.frames)
    elif attack.frames == "attention":
        importance = clean.attention[-1][:, :, 0, 1:].mean(1)
    else:  # the frames where one step gains most: the dual norm of the clean gradient
        plain = attack if attack.objective not in NEEDS_CLEAN else replace(attack, objective="bce")
        _, gradient = loss_and_gradient(model, batch, plain, torch.zeros_like(batch.frames))
        importance = gradient.abs().sum(2) if attack.threat.norm == "linf" else gradient.square().sum(2)
    chosen = importance.masked_fill(~real, -torch.inf).topk(most, 1).indices
    return (torch.zeros_like(importance).scatter(1, chosen, 1) * real)[..., None]


def _ascend(model, batch: Batch, attack: Attack, open_: Tensor, clean, generator):
    """Yields (perturbation, objective) of every iterate."""
    threat, norm = attack.threat, NORMS[attack.threat.norm]
    delta = torch.zeros_like(batch.frames)
    if attack.start != "zero":
        radius = threat.epsilon * (0.01 if attack.start == "tiny" else 1)
        delta = threat.project(norm.start(_uniform(batch, generator) * open_, radius), batch.frames)
    velocity = torch.zeros_like(delta)
    for _ in range(attack.steps):
        loss, gradient = loss_and_gradient(model, batch, attack, delta, clean)
        yield delta, loss
        if attack.momentum:  # gradients of all sizes count alike
            gradient = gradient / gradient.abs().sum((1, 2), keepdim=True).clamp_min(1e-30)
        velocity = attack.momentum * velocity + gradient
        delta = threat.project(delta + attack.size * norm.ascend(velocity * open_), batch.frames)
    yield delta, _objective(model, batch, attack, delta, clean) if attack.keep_best else loss


def _objective(model, batch: Batch, attack: Attack, delta: Tensor, clean) -> Tensor:
    with torch.no_grad():
        output = model(batch.frames + delta, batch.mask, return_attention=attack.objective in NEEDS_ATTENTION)
        return OBJECTIVES[attack.objective](attack, output, clean, batch)


def _random_search(model, batch: Batch, attack: Attack, open_: Tensor, clean, generator):
    """Gradient-free: a random block of frames and dimensions gets a new value; what hurts stays.

    Yields (perturbation, objective) of the best so far. The block shrinks from a half of the numbers to few.
    """
    delta = _noise(batch, attack, open_, generator)
    best = _objective(model, batch, attack, delta, clean)
    yield delta, best
    for query in range(attack.steps - 1):
        share = max(0.5 * 0.5 ** (8 * query / attack.steps), 1 / batch.frames[0].numel())
        block = torch.rand(batch.frames.shape, generator=generator).to(open_) < share
        fresh = _noise(batch, attack, open_ * block, generator)
        tried = torch.where(block, fresh, delta) if attack.threat.norm == "linf" else delta + fresh * share**0.5
        tried = attack.threat.project(tried * open_, batch.frames)
        loss = _objective(model, batch, attack, tried, clean)
        better = loss > best
        delta, best = torch.where(better[:, None, None], tried, delta), torch.where(better, loss, best)
        yield delta, best
