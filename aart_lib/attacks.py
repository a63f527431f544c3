"""Attacks on frame features: how the change is searched that `ThreatModel` allows and an objective aims at.

Robustness here is robustness *in feature space*: no pixel is touched. All attacks leave padding as it is and keep
features inside the threat model's box.

Source: Goodfellow et al. 2015 (FGSM), Madry et al. 2018 (PGD), Croce & Hein 2020 (steps that halve themselves),
Andriushchenko et al. 2020 (Square, for the gradient-free search), Tramèr et al. 2020 (attacks
that know the defense).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from aart_lib.data.batch import Batch, Part, drawn
from aart_lib.data.exact import one_of
from aart_lib.model import VIEWS, Output, VideoTransformer, evaluating, precision, predict, wide
from aart_lib.objectives import OBJECTIVES, Objective
from aart_lib.threats import NORMS, ThreatModel, store


class AttackFailed(ValueError):
    """An attack that could not be searched: what it found must not count as robustness."""


# How far from the clean frames a search begins, in units of ε: {start: (L∞, L2)}. "near" is anywhere in the L∞ ball; on
# the L2 sphere, where "random" begins, twenty steps do not turn a perturbation all the way to the gradient.
STARTS = {"zero": (0.0, 0.0), "tiny": (0.01, 0.01), "near": (1.0, 0.25), "random": (1.0, 1.0)}
# How few frames are ranked: by the clean gradient, by one full step in that frame alone, by attention, at random.
CHOICES = ("gradient", "trial", "attention", "random")


@dataclass(frozen=True)
class Attack:
    """How a perturbation is searched.

    steps = 0 draws noise; one step of size ε from zero is FGSM; more are PGD. ``search="random"`` uses no gradient,
    ``steps`` is then the number of queries. Raises: ValueError for a choice that does not exist.
    """

    threat: ThreatModel
    objective: str | Objective = "bce"  # a name from `OBJECTIVES`, or one of your own
    steps: int = 10
    restarts: int = 1
    start: str = "near"  # one of `STARTS`
    step_size: float | None = None  # in units of ε; None = 2.5 / steps, at most 1
    keep_best: bool = True  # the best iterate of each video over steps and restarts, not the last
    frames: str = "gradient"  # how the max_frames frames are chosen: one of `CHOICES`; each restart begins one further
    search: str = "gradient"  # or "auto" (the step halves itself when it stops helping) or "random" (no gradient)
    labels: str = "true"  # or "predicted": an attacker who knows no labels
    view: str = "own"  # one of `VIEWS`
    first: "Attack | None" = None  # an attack whose result is this one's start

    def __post_init__(self):
        if not isinstance(self.objective, Objective):
            one_of("objective", self.objective, OBJECTIVES)
        one_of("start", self.start, STARTS)
        one_of("frames", self.frames, CHOICES)
        one_of("search", self.search, ("gradient", "auto", "random"))
        one_of("labels", self.labels, ("true", "predicted"))
        one_of("view", self.view, VIEWS)
        if self.steps < 0 or self.restarts < 1:
            raise ValueError(f"steps must be at least 0 and restarts 1, got {self.steps} and {self.restarts}")

    @property
    def aim(self) -> Objective:
        found = OBJECTIVES[self.objective] if isinstance(self.objective, str) else self.objective
        return found if isinstance(found, Objective) else Objective(found)  # a plain function is given everything

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


def perturb(model, batch: Batch, attack: Attack, *, generator: torch.Generator | Part | None = None) -> Tensor:
    """Attacked frames [B,T,D]: within ``attack.threat`` of the clean ones, padding untouched, modes restored.

    Gradients are taken for the perturbation only, whatever the caller switched off; the model's parameters and their
    gradients stay as they are. Half precision is searched in single precision and rounded toward the clean frames.
    Any model that `aart_lib.model` describes will do.
    Args:
        generator: makes noise and random starts repeatable; a `Part` of one for a part of a batch.
    Raises: AttackFailed (a ValueError) where no gradient comes back or the objective is NaN; ValueError for frames
        outside the box, and for a model that does not offer what the attack needs.
    """
    if attack.threat.epsilon == 0:
        return batch.frames.clone()
    if isinstance(model, nn.Module) and any(weight.is_inference() for weight in model.parameters()):
        raise AttackFailed(f"weights of {type(model).__name__} were made under inference_mode; make or load it outside")
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        attack.threat.check(batch.frames[batch.mask])
        attacked = _search(model, _in_full(batch), attack, generator)
        coarser = min((batch.frames.dtype, precision(model) or torch.float64), key=lambda dtype: dtype.itemsize)
        return store(attacked, wide(batch.frames), coarser).to(batch.frames.dtype)


def _in_full(batch: Batch) -> Batch:
    """The batch as tensors that gradients may be taken through, in single precision or better."""
    frames = wide(batch.frames.clone())  # a clone of an inference tensor is a normal one
    return replace(batch, frames=frames, mask=batch.mask.clone(), labels=batch.labels.clone().to(frames))


def _search(model, batch: Batch, attack: Attack, generator) -> Tensor:
    own, model = model, VIEWS[attack.view](model)
    if attack.labels == "predicted":
        batch = replace(batch, labels=_predicted(own, batch))
    first = _search(own, batch, attack.first, generator) - batch.frames if attack.first else None
    clean = None
    if attack.aim.needs_clean or attack.frames == "attention":
        with torch.no_grad():
            # Maps are asked for even if not needed: explicit softmax rounds otherwise than the fused kernel, and seeded
            # results must stay.
            looked = attack.aim.needs_maps or attack.frames == "attention" or isinstance(model, VideoTransformer)
            clean = predict(model, batch.frames, batch.mask, return_attention=looked)
    importance = _importance(model, batch, attack, clean, generator)
    if attack.steps == 0:
        return batch.frames + _noise(batch, attack, _open_frames(batch, attack, importance), generator)
    search = {"gradient": _ascend, "auto": _ascend_auto, "random": _random_search}[attack.search]
    best, best_loss = torch.zeros_like(batch.frames), batch.frames.new_full((len(batch),), -torch.inf)
    for restart in range(attack.restarts):
        turn = replace(attack, objective=attack.aim.after(restart))
        open_ = _open_frames(batch, attack, importance, restart)
        begin = _start(batch, attack, open_, generator)
        if first is not None:
            begin = attack.threat.project(first * open_, batch.frames)
        for delta, loss in search(model, batch, turn, open_, clean, begin, generator):
            better = (loss > best_loss) | (not attack.keep_best)
            best, best_loss = _chosen(better, (delta, loss), (best, best_loss))
    return batch.frames + best


def _chosen(videos: Tensor, these: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Tensors [B,...] that hold ``these`` for the videos where the mask [B] is True, and ``others`` elsewhere."""
    pairs = zip(these, others, strict=True)
    return tuple(torch.where(videos.view(-1, *[1] * (one.ndim - 1)), one, other) for one, other in pairs)


def _predicted(model, batch: Batch) -> Tensor:
    """The labels [B,C] the model itself gives the clean frames: those above a half, at least the likeliest."""
    with torch.no_grad():
        logits = predict(model, batch.frames, batch.mask).logits
    return torch.maximum(logits > 0, logits == logits.amax(1, keepdim=True)).to(batch.labels)


def one_step(batch: Batch, gradient: Tensor, threat: ThreatModel) -> Tensor:
    """Attacked frames one full step along a gradient [B,T,D] that is there already: FGSM without a pass of its own."""
    return batch.frames + threat.full_step(gradient * batch.mask[..., None], batch.frames)


def loss_and_gradient(model, batch: Batch, attack: Attack, delta: Tensor, clean: Output | None = None):
    """The attack's objective [B] at a perturbation, and its gradient [B,T,D]. Raises: AttackFailed."""
    with torch.enable_grad():
        delta = delta.detach().requires_grad_()
        loss = _objective(model, batch, attack, delta, clean)
        gradient = torch.autograd.grad(loss.sum(), delta, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None and attack.aim.needs_maps and getattr(model, "fixed_attention", False):
        return loss.detach(), torch.zeros_like(batch.frames)  # maps that cannot move, on purpose
    if gradient is None:
        raise AttackFailed(
            f"no gradient of the objective {_called(attack)} comes back to the frames through {type(model).__name__}: "
            f"its forward runs under no_grad or inference_mode, or detaches; {_SEARCHED_BLIND}"
        )
    if not math.isfinite(gradient.sum()):
        raise AttackFailed(f"the gradient of the objective {_called(attack)} is not finite; {_SEARCHED_BLIND}")
    return loss.detach(), gradient


_SEARCHED_BLIND = 'attack with search="random", which needs no gradient, or mend the model'


def _called(attack: Attack) -> str:
    return repr(attack.aim.of.__name__.strip("_").replace("_", "-"))


def _uniform(batch: Batch, generator) -> Tensor:
    return (drawn(batch.frames.shape, generator) * 2 - 1).to(batch.frames)


def _noise(batch: Batch, attack: Attack, open_: Tensor, generator) -> Tensor:
    return attack.threat.full_step(_uniform(batch, generator) * open_, batch.frames)


def _importance(model, batch: Batch, attack: Attack, clean, generator) -> Tensor | None:
    """[B,T] by which an attacker of few frames ranks them; None if all may change."""
    real, most = batch.mask, attack.threat.max_frames
    if most is None or most >= real.shape[1]:
        return None
    if attack.frames == "random":
        return drawn(real.shape, generator).to(batch.frames)
    if attack.frames == "attention":
        return clean.attention[-1][:, :, 0, 1:].mean(1)
    plain = replace(attack, objective="bce") if attack.aim.needs_clean else attack
    _, gradient = loss_and_gradient(model, batch, plain, torch.zeros_like(batch.frames))
    if attack.frames == "gradient":  # where one step gains most, to first order: the dual norm
        return gradient.abs().sum(2) if attack.threat.norm == "linf" else gradient.square().sum(2)
    gained = []
    for frame in range(real.shape[1]):
        alone = torch.zeros_like(gradient)
        alone[:, frame] = gradient[:, frame]
        step = attack.threat.full_step(alone * real[..., None], batch.frames)
        gained.append(_value(model, batch, plain, step, None))
    return torch.stack(gained, 1)


def _open_frames(batch: Batch, attack: Attack, importance: Tensor | None, restart: int = 0) -> Tensor:
    """[B,T,1] with 1 where the attacker may change a frame: real ones, at most ``max_frames``; restarts move on."""
    real, most = batch.mask, attack.threat.max_frames
    if importance is None or most is None:
        return real[..., None].to(batch.frames)
    last = min(most + restart, real.shape[1])
    chosen = importance.masked_fill(~real, -torch.inf).topk(last, 1).indices[:, last - most :]
    return (torch.zeros_like(importance).scatter(1, chosen, 1) * real)[..., None]


def _start(batch: Batch, attack: Attack, open_: Tensor, generator) -> Tensor:
    if attack.start == "zero":
        return torch.zeros_like(batch.frames)
    radius = attack.threat.epsilon * STARTS[attack.start][attack.threat.norm != "linf"]
    begin = NORMS[attack.threat.norm].start(_uniform(batch, generator) * open_, radius)
    return attack.threat.project(begin, batch.frames)


def _ascend(model, batch: Batch, attack: Attack, open_: Tensor, clean, delta: Tensor, generator):
    """Yields (perturbation, objective) of every iterate."""
    threat, norm = attack.threat, NORMS[attack.threat.norm]
    bounds = threat.bounds(batch.frames)
    for _ in range(attack.steps):
        loss, gradient = loss_and_gradient(model, batch, attack, delta, clean)
        yield delta, loss
        delta = threat.project(norm.ascend(gradient * open_).mul_(attack.size).add_(delta), batch.frames, bounds)
    yield delta, _value(model, batch, attack, delta, clean) if attack.keep_best else loss


def _ascend_auto(model, batch: Batch, attack: Attack, open_: Tensor, clean, delta: Tensor, generator):
    """Yields (perturbation, objective) of every iterate; each video has a step size of its own.

    It starts at 2ε. At checkpoints ever closer to each other a video whose objective rose in fewer than three quarters
    of the steps, or whose best has not changed since the last checkpoint with the same step, goes back to its best
    point with half the step. Source: Croce & Hein 2020, algorithm 1 (APGD).
    """
    threat, norm = attack.threat, NORMS[attack.threat.norm]
    loss, gradient = loss_and_gradient(model, batch, attack, delta, clean)
    yield delta, loss
    best: tuple[Tensor, ...] = (loss, delta, gradient)
    before, size = delta, torch.full_like(loss, 2 * threat.epsilon)
    rises, halved, best_then = torch.zeros_like(loss), torch.zeros_like(loss, dtype=torch.bool), loss
    checks, last = _checkpoints(attack.steps), 0
    for step in range(1, attack.steps + 1):
        reached = threat.project(delta + size[:, None, None] * norm.ascend(gradient * open_), batch.frames)
        if step > 1:
            reached = threat.project(delta + 0.75 * (reached - delta) + 0.25 * (delta - before), batch.frames)
        before, delta, old = delta, reached, loss
        loss, gradient = loss_and_gradient(model, batch, attack, delta, clean)
        yield delta, loss
        rises += loss > old
        best = _chosen(loss > best[0], (loss, delta, gradient), best)
        if step in checks:
            stuck = (rises < 0.75 * (step - last)) | (~halved & (best[0] == best_then))
            size = torch.where(stuck, size / 2, size)
            loss, delta, gradient, before = _chosen(stuck, (*best, best[1]), (loss, delta, gradient, before))
            rises, halved, best_then, last = torch.zeros_like(rises), stuck, best[0], step


def _checkpoints(steps: int) -> set[int]:
    """Steps after .22 of the way, and then after parts that shrink by .03 each time down to .06."""
    place, part, found = 0.0, 0.22, set()
    while place + part < 1:
        place, part = place + part, max(part - 0.03, 0.06)
        found.add(math.ceil(round(place * steps, 6)))  # .57 · 100 is a little more than 57
    return found


def _objective(model, batch: Batch, attack: Attack, delta: Tensor, clean) -> Tensor:
    """The objective [B], with a graph where gradients are on. Raises: AttackFailed where it is NaN."""
    output = predict(model, batch.frames + delta, batch.mask, return_attention=attack.aim.needs_maps)
    loss = attack.aim(output, clean, batch)
    if loss.isnan().any():
        video = batch.ids[int(loss.isnan().nonzero()[0])]
        raise AttackFailed(f"the objective {_called(attack)} is NaN on video {video!r}: no search can climb it")
    return loss


_value = torch.no_grad()(_objective)  # without a graph


def _random_search(model, batch: Batch, attack: Attack, open_: Tensor, clean, delta: Tensor, generator):
    """Gradient-free: a random block of frames and dimensions gets a new value; what hurts stays.

    Yields (perturbation, objective) of the best so far. The block shrinks from a half of the numbers to few.
    """
    delta = _noise(batch, attack, open_, generator)  # corners, where a search without gradients does best
    best = _value(model, batch, attack, delta, clean)
    yield delta, best
    for query in range(attack.steps - 1):
        share = max(0.5 * 0.5 ** (8 * query / attack.steps), 1 / batch.frames[0].numel())
        block = drawn(batch.frames.shape, generator).to(open_) < share
        fresh = _noise(batch, attack, open_ * block, generator)
        tried = torch.where(block, fresh, delta) if attack.threat.norm == "linf" else delta + fresh * share**0.5
        tried = attack.threat.project(tried * open_, batch.frames)
        loss = _value(model, batch, attack, tried, clean)
        delta, best = _chosen(loss > best, (tried, loss), (delta, best))
        yield delta, best
