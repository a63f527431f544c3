"""One training step, for every defense: make attacked frames, learn from them, update the weights.

With a single-step attack the clean forward pass is shared: its backward pass fills the gradients of the parameters
and of the frames, the latter make the attack, and one more forward and backward pass learns from it.

A batch may be cut into parts, over processes and over smaller steps one after another, and that changes no result but
for rounding: gradients are added up, weighted so that they are those of the whole batch, and what is drawn for a video,
or decided by its place, is what it would be within the whole batch.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from aart_lib.attacks import Attack, AttackFailed, one_step, perturb
from aart_lib.data.batch import Batch, Part, drawn
from aart_lib.data.formats import SAMPLINGS
from aart_lib.losses import Defense, terms
from aart_lib.model import ModelConfig, Output, VideoTransformer
from aart_lib.runtime import processes
from aart_lib.threats import ThreatModel

LARGEST_SEED = 2**40  # each epoch has a seed of its own, 100,003 times this and more


class TrainingStopped(RuntimeError):
    """Training that cannot go on, with the reason."""


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast. Raises: ValueError for values that cannot train."""

    epochs: int = 30
    batch_size: int = 64  # of all processes together
    rate: float = 2e-3  # peak of the one-cycle schedule
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of a step's gradient
    seed: int = 0
    sampling: str = "uniform"  # frames of long videos: one of `SAMPLINGS`

    def __post_init__(self):
        if min(self.epochs, self.batch_size) < 1 or not self.rate > 0:
            raise ValueError(f"epochs, batch_size and rate must be positive, got {self}")
        if not 0 <= self.seed < LARGEST_SEED:
            raise ValueError(f"seed must be from 0 to {LARGEST_SEED - 1}, got {self.seed}")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"unknown sampling {self.sampling!r}; known: {', '.join(SAMPLINGS)}")


@dataclass(frozen=True)
class Hardware:
    """What changes speed and memory, and no result but for rounding."""

    workers: int = 0  # processes that read, for each process that trains
    accumulate: int = 1  # parts of a batch, one after another, for each process
    recompute: bool = False  # activations in the backward pass instead of keeping them


class Learner:
    """A model, its optimizer, and the step that a defense takes with a batch."""

    def __init__(
        self, defense: Defense, model: ModelConfig, config: TrainConfig, steps: int, accelerator, hardware=None
    ):
        self.defense, self.config, self.accelerator = defense, config, accelerator
        self.hardware = hardware = hardware or Hardware()
        torch.manual_seed(config.seed)
        self.network = VideoTransformer(replace(model, **defense.model))
        self.network.recompute = hardware.recompute
        optimizer = torch.optim.AdamW(
            self.network.parameters(), config.rate, weight_decay=config.weight_decay, fused=True
        )
        self.model = accelerator.prepare_model(self.network, evaluation_mode=True)  # `_update` adds up the gradients
        self.optimizer = accelerator.prepare(optimizer)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, config.rate, total_steps=max(steps, 2))
        self.parts = max(hardware.accumulate, accelerator.gradient_accumulation_steps)
        accelerator.gradient_accumulation_steps = 1  # they are counted here
        self.generator = torch.Generator(accelerator.device)
        self.share = 1.0
        self.stopped, self.ending = False, False  # a signal came to this process; all processes know

    def _step(self, parts: list[Batch | None], videos: int, threat: ThreatModel) -> dict[str, float]:
        """One update from this process's parts of a batch of so many videos; the unweighted loss terms of all."""
        self.optimizer.zero_grad()
        sums: Counter = Counter()
        for batch, part in self._placed(parts, videos):
            self.share = len(batch) / videos
            losses = self._gradients(batch.to(self.accelerator.device), threat, part)
            sums.update({name: float(value.detach()) * self.share for name, value in losses.items()})
        return self._update(sums)

    def _placed(self, parts: list[Batch | None], videos: int):
        """The parts that hold a video, each with its place in the whole batch."""
        each, more = divmod(videos, processes.count() * self.parts)  # the first parts hold one video more
        own = processes.rank() * self.parts
        frames = max(processes.gathered(max((b.frames.shape[1] for b in parts if b), default=0)))
        whole = Part(self.generator, videos, frames, first=own * each + min(own, more))
        for batch in filter(None, parts):
            yield batch, whole
            whole = whole.at(whole.first + len(batch))

    def _gradients(self, batch: Batch, threat: ThreatModel, part: Part) -> dict[str, torch.Tensor]:
        """Add the gradients of a part; returns its unweighted loss terms."""
        if not self.defense.pairs:
            return self._learn(self._forward(batch.frames, batch), None, batch, list(self.defense.weights))
        if self.defense.shares_clean_pass:
            return self._shared(batch, threat)
        return self._crafted(batch, threat, part)

    def _update(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Add up gradients and losses over the processes, and take the step."""
        values = self._added_up(sums)
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.clip)
        if not math.isfinite(float(norm)) and self.accelerator.scaler is None:  # half precision skips such a step
            shown = ", ".join(f"{name}={value:g}" for name, value in values.items())
            raise TrainingStopped(f"the loss is not finite ({shown}); lower the rate or β")
        self.optimizer.step()
        self.schedule.step()
        return values

    def _added_up(self, sums: Mapping[str, float]) -> dict[str, float]:
        if processes.count() == 1:
            self.ending = self.stopped
            return dict(sums)
        names, own = list(self.defense.weights), list(self.network.parameters())
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in own]
        used = [float(p.grad is not None) for p in own]  # what no process used must stay without, or it would decay
        told = torch.tensor([*used, float(self.stopped), *(sums.get(name, 0.0) for name in names)])
        whole = processes.added(torch.cat([*(g.flatten() for g in gradients), told.to(gradients[0])]))
        found = whole[-len(told) :].tolist()
        for i, gradient in enumerate(whole[: -len(told)].split([p.numel() for p in own])):
            own[i].grad = gradient.view_as(own[i]) if found[i] else None
        self.ending, losses = found[len(own)] > 0, found[len(own) + 1 :]
        return dict(zip(names, losses, strict=True))

    def _shared(self, batch: Batch, threat: ThreatModel) -> dict:
        """The clean pass serves the attack too; the one backward pass for both, or two, if the clean side is fixed."""
        frames = batch.frames.detach().requires_grad_()
        clean = self._forward(frames, batch)
        if self.defense.two_sided:
            task = terms(self.defense, clean, None, batch.labels, batch.mask, ["task"])["task"]
            (gradient,) = torch.autograd.grad(task, frames, retain_graph=True)
            attacked = self._forward(one_step(batch, gradient, threat), batch)
            weights = list(self.model.parameters())  # nobody reads the frames' gradient again
            return self._learn(clean, attacked, batch, list(self.defense.weights), inputs=weights)
        losses = self._learn(clean, None, batch, ["task"])
        # type: the backward pass just done has filled `frames.grad`
        attacked = self._forward(one_step(batch, frames.grad, threat), batch)  # type: ignore[arg-type]
        rest = [name for name in self.defense.weights if name != "task"]
        return losses | self._learn(_detached(clean), attacked, batch, rest)

    def _crafted(self, batch: Batch, threat: ThreatModel, part: Part) -> dict:
        defense, size = self.defense, 1.0 if self.defense.steps == 1 else None
        if defense.objective == "shuffled":
            frames = _shuffled(batch, part)
        else:
            attack = Attack(threat, steps=0)
            if defense.objective != "noise":
                how: dict = {"start": defense.start, "step_size": size, "keep_best": False}
                attack = Attack(threat, defense.objective, defense.steps, **how)
            frames = self._attacked(batch, attack, part)
        clean = self._forward(batch.frames, batch)
        attacked = self._forward(frames, batch)
        if defense.two_sided:
            return self._learn(clean, attacked, batch, list(defense.weights))
        first = defense.clean_terms
        losses = self._learn(clean, None, batch, first) if first else {}
        rest = [name for name in defense.weights if name not in first]
        return losses | self._learn(_detached(clean), attacked, batch, rest)

    def _attacked(self, batch: Batch, attack: Attack, part: Part) -> torch.Tensor:
        """Attacked frames [B,T,D]; the last videos of the whole batch meet an attacker of one frame, where wanted."""
        many = max(0, part.videos - round(self.defense.few * part.videos) - part.first)  # of this part, at most all
        one = attack.threat.few().times(1 / self.defense.epsilon_scale)
        first, last = _rows(batch, slice(many)), _rows(batch, slice(many, None))
        turns = (first, attack, part), (last, replace(attack, threat=one), part.at(part.first + many))
        try:
            return torch.cat([perturb(self.model, some, how, generator=own) for some, how, own in turns if len(some)])
        except AttackFailed as error:
            raise TrainingStopped(f"{error}; lower the rate or β") from error

    def _forward(self, frames, batch: Batch) -> Output:
        return self.model(frames, batch.mask, return_attention=self.defense.needs_maps)

    def _learn(self, clean: Output, attacked: Output | None, batch: Batch, names: list[str], **only) -> dict:
        losses = terms(self.defense, clean, attacked, batch.labels, batch.mask, names)
        loss = sum(self.defense.weights[name] * value for name, value in losses.items())
        self.accelerator.backward(self.share * loss, **only)
        return losses


def _rows(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.frames[rows], batch.mask[rows], batch.labels[rows], batch.ids[rows])


def _shuffled(batch: Batch, generator) -> torch.Tensor:
    """The real frames [B,T,D] of each video in another order, padding last as before."""
    place = drawn(batch.mask.shape, generator).to(batch.frames).masked_fill(~batch.mask, torch.inf)
    return batch.frames.gather(1, place.argsort(1)[..., None].expand_as(batch.frames))


def _detached(output: Output) -> Output:
    maps = tuple(m.detach() for m in output.attention) if output.attention is not None else None
    return Output(output.logits.detach(), maps)
