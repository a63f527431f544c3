"""One training step, for every defense: make attacked frames, learn from them, update the weights.

With a single-step attack the clean forward pass is shared: its backward pass fills the gradients of the parameters
and of the frames, the attack steps along the frames', and one more forward and backward pass learns from it.

A batch may be cut into parts, over processes and over smaller steps one after another, and that changes no result but
for rounding: gradients are added up, weighted so that they are those of the whole batch, and what is drawn for a video,
or decided by its place, is what it would be within the whole batch.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aart_lib.attacks import Attack, AttackFailed, noise, one_step, perturb
from aart_lib.data.batch import Batch, Part, drawn
from aart_lib.data.exact import one_of
from aart_lib.data.formats import SAMPLINGS
from aart_lib.losses import Defense, bce, terms
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
        one_of("sampling", self.sampling, SAMPLINGS)


@dataclass(frozen=True)
class Hardware:
    """What changes speed and memory, and no result but for rounding."""

    workers: int = 0  # processes that read, for each process that trains
    accumulate: int = 1  # parts of a batch, one after another, for each process
    recompute: bool = False  # activations in the backward pass instead of keeping them


class Learner:
    """A model, its optimizer, and the step that a defense takes with a batch."""

    def __init__(self, defense: Defense, model: ModelConfig, config: TrainConfig, steps, accelerator, hardware=None):
        self.defense, self.config, self.accelerator = defense, config, accelerator
        self.hardware = hardware = hardware or Hardware()
        torch.manual_seed(config.seed)
        self.network = VideoTransformer(replace(model, **defense.model))
        self.network.recompute = hardware.recompute
        adam = torch.optim.AdamW(self.network.parameters(), config.rate, weight_decay=config.weight_decay, fused=True)
        self.model = accelerator.prepare_model(self.network, evaluation_mode=True)  # `update` adds up the gradients
        self.optimizer = accelerator.prepare(adam)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, config.rate, total_steps=max(steps, 2))
        self.parts = max(hardware.accumulate, accelerator.gradient_accumulation_steps)
        accelerator.gradient_accumulation_steps = 1  # they are counted here
        self.generator = torch.Generator(accelerator.device)
        self.stopped, self.ending = False, False  # a signal came to this process; all processes know

    # ---------------------------------------------------------------- the step of every defense, A-ART's too

    def gradients(self, batch: Batch, threat: ThreatModel, part: Part) -> dict[str, Tensor]:
        """Attack the batch and add the gradients of all loss terms to the weights'; returns the terms, unweighted.

        A pair term compares two outputs. Two-sided, it moves both toward each other. Else the clean side learns its own
        terms first, and stands still while the attacked side is drawn to it.
        """
        defense, share = self.defense, len(batch) / part.videos
        one_sided, shared = not (defense.needs_attacked and defense.two_sided), defense.shares_clean_pass
        attacked = self.attacked(batch, threat, part) if defense.needs_attacked and not shared else None
        frames = batch.frames.detach().requires_grad_() if shared else batch.frames
        clean = self.forward(frames, batch)  # [B,C], and the maps
        losses: dict[str, Tensor] = {}
        if one_sided:
            losses, clean = self.backward(clean, None, batch, defense.clean_terms, share), _detached(clean)
        if shared:  # one clean pass for the loss and for the attack, whose single step follows the task's gradient
            if not one_sided:
                bce(clean.logits, batch.labels).mean().backward(inputs=[frames], retain_graph=True)
            attacked = one_step(batch, frames.grad, threat)  # type: ignore[arg-type]  # a backward pass has filled it
        if attacked is None:
            return losses
        rest = [name for name in defense.weights if name not in losses]
        weights = list(self.model.parameters())  # nobody reads the frames' gradient again
        return losses | self.backward(clean, self.forward(attacked, batch), batch, rest, share, inputs=weights)

    def forward(self, frames: Tensor, batch: Batch) -> Output:
        return self.model(frames, batch.mask, return_attention=self.defense.needs_maps)

    def backward(self, clean: Output, attacked: Output | None, batch: Batch, names, share: float, **only) -> dict:
        """Add the gradients of the named terms, each the mean over the batch; returns the terms."""
        losses = terms(self.defense, clean, attacked, batch.labels, batch.mask, names)
        if losses:
            total = sum(self.defense.weights[name] * value for name, value in losses.items())
            self.accelerator.backward(share * total, **only)
        return losses

    def attacked(self, batch: Batch, threat: ThreatModel, part: Part) -> Tensor:
        """Attacked frames [B,T,D]; the last videos of the whole batch meet an attacker of one frame, where wanted."""
        defense = self.defense
        if defense.objective == "shuffled":
            return _shuffled(batch, part)
        attack = noise(threat)
        if defense.objective != "noise":
            attack = Attack(threat, defense.objective, defense.steps, start=defense.start, keep_best=False)
        few = threat.spliced() if defense.splice else threat.few().times(1 / defense.epsilon_scale)
        one = replace(attack, threat=few)
        many = max(0, part.videos - round(defense.few * part.videos) - part.first)  # of this part, at most all
        turns = (batch[:many], attack, part), (batch[many:], one, part.at(part.first + many))
        try:
            return torch.cat([perturb(self.model, some, how, generator=own) for some, how, own in turns if len(some)])
        except AttackFailed as error:
            raise TrainingStopped(f"{error}; lower the rate or the weights of the terms") from error

    # ---------------------------------------------------------------- the same for a batch cut into parts

    def learn(self, parts: list[Batch | None], videos: int, threat: ThreatModel) -> dict[str, float]:
        """One update from this process's parts of a batch of so many videos; the unweighted loss terms of all."""
        self.optimizer.zero_grad()
        sums: Counter = Counter()
        for batch, part in self.placed(parts, videos):
            losses = self.gradients(batch.to(self.accelerator.device), threat, part)
            sums.update({name: float(value.detach()) * len(batch) / videos for name, value in losses.items()})
        return self.update(sums)

    def placed(self, parts: list[Batch | None], videos: int) -> Iterator[tuple[Batch, Part]]:
        """The parts that hold a video, each with its place in the whole batch."""
        each, more = divmod(videos, processes.count() * self.parts)  # the first parts hold one video more
        own = processes.rank() * self.parts
        frames = max(processes.gathered(max((b.mask.shape[1] for b in parts if b), default=0)))
        whole = Part(self.generator, videos, frames, first=own * each + min(own, more))
        for batch in filter(None, parts):
            yield batch, whole
            whole = whole.at(whole.first + len(batch))

    def update(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Add up gradients and losses over the processes, and take the step."""
        names, weights = list(self.defense.weights), list(self.network.parameters())
        stopped, *losses = processes.added_up(weights, [float(self.stopped), *(sums.get(name, 0.0) for name in names)])
        self.ending, values = stopped > 0, dict(zip(names, losses, strict=True))
        norm = self.accelerator.clip_grad_norm_(weights, self.config.clip)
        if not math.isfinite(float(norm)) and self.accelerator.scaler is None:  # half precision skips such a step
            shown = ", ".join(f"{name}={value:g}" for name, value in values.items())
            raise TrainingStopped(f"the loss is not finite ({shown}); lower the rate or the weights of the terms")
        self.optimizer.step()
        self.schedule.step()
        return values


def _shuffled(batch: Batch, generator) -> Tensor:
    """The real frames [B,T,D] of each video in another order, padding last as before."""
    place = drawn(batch.mask.shape, generator).to(batch.frames).masked_fill(~batch.mask, torch.inf)
    return batch.frames.gather(1, place.argsort(1)[..., None].expand_as(batch.frames))


def _detached(output: Output) -> Output:
    maps = tuple(m.detach() for m in output.attention) if output.attention is not None else None
    return Output(output.logits.detach(), maps)
