"""The one training loop, for every defense and every data set.

With a single-step attack the clean forward pass is shared: its backward pass fills the gradients of the parameters
and of the frames, the latter make the attack, and one more forward and backward pass learns from it. An A-ART step so
costs two passes, not three.
"""

import hashlib
import json
import math
import time
from collections import Counter
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from aart_lib.attacks import Attack, ThreatModel, fgsm, one_step, perturb, pgd
from aart_lib.checkpoint import load_state, save_state
from aart_lib.data import Batch, Splits
from aart_lib.evaluate import score
from aart_lib.losses import Defense, terms
from aart_lib.model import ModelConfig, Output, VideoTransformer
from aart_lib.threats import few_frames_epsilon

CHECKS = 10  # times validated in a run
CHECK_VIDEOS = 256


class TrainingStopped(RuntimeError):
    """Training that cannot go on, with the reason."""


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast. Raises: ValueError for values that cannot train."""

    epochs: int = 30
    batch_size: int = 64
    rate: float = 2e-3  # peak of the one-cycle schedule
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of a step's gradient
    seed: int = 0

    def __post_init__(self):
        if min(self.epochs, self.batch_size) < 1 or not self.rate > 0:
            raise ValueError(f"epochs, batch_size and rate must be positive, got {self}")


def train(
    defense: Defense,
    splits: Splits,
    model: ModelConfig,
    threat: ThreatModel,
    config: TrainConfig,
    *,
    state: Path | None = None,
    progress: str | None = "train",
) -> tuple[VideoTransformer, list[dict]]:
    """A trained model and its validation history.

    Args:
        threat: the *test* threat model; the training ε is ``defense.epsilon_scale`` times its ε, reached after the
            first half of the training.
        state: where to keep what a killed run needs to go on; gone when the run is complete.
        progress: name on the progress bar, None for none.
    Raises: TrainingStopped when a loss is not finite or the single-step attack is overfitted;
        ValueError if ``state`` belongs to a run with other settings.
    """
    accelerator = Accelerator()
    run = _Run(defense, splits, model, threat, config, accelerator)
    if state and Path(state).exists():
        run.restore(load_state(state), state)
    bar = tqdm(
        total=config.epochs * run.steps_per_epoch,
        initial=run.epoch * run.steps_per_epoch,
        desc=progress,
        unit="step",
        disable=progress is None or not accelerator.is_main_process,
        mininterval=1,
    )
    while run.epoch < config.epochs:
        run.one_epoch(bar)
        if state and accelerator.is_main_process and run.epoch < config.epochs:
            save_state(state, run.state())
    bar.close()
    if state and accelerator.is_main_process:
        Path(state).unlink(missing_ok=True)
    return accelerator.unwrap_model(run.model).eval(), run.history


def fingerprint(defense: Defense, splits: Splits, model: ModelConfig, threat: ThreatModel, config: TrainConfig) -> str:
    """16 hex digits that tell runs with other settings, other videos or another model apart."""
    videos = hashlib.sha256(
        "\n".join(f"{entry.id} {entry.labels}" for entry in splits.train.entries).encode()
    ).hexdigest()
    parts = [_changed(part) for part in (defense, model, threat, config)]
    text = json.dumps([parts, asdict(splits.spec), splits.labels, videos], sort_keys=True, default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _changed(settings) -> dict:
    """What differs from the defaults: an option that came later does not make older runs look different."""
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(settings)}
    return {key: value for key, value in asdict(settings).items() if value != defaults[key]}


class _Run:
    """Everything one training carries from epoch to epoch."""

    def __init__(self, defense, splits, model, threat, config, accelerator):
        self.defense, self.splits, self.threat, self.config, self.accelerator = (
            defense,
            splits,
            threat,
            config,
            accelerator,
        )
        torch.manual_seed(config.seed)
        self.shape = model
        network = VideoTransformer(replace(model, **defense.model))
        optimizer = torch.optim.AdamW(network.parameters(), config.rate, weight_decay=config.weight_decay, fused=True)
        self.model, self.optimizer = accelerator.prepare(network, optimizer)
        share = config.batch_size * accelerator.num_processes
        self.steps_per_epoch = math.ceil(len(splits.train) / share)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.rate, total_steps=max(config.epochs * self.steps_per_epoch, 2)
        )
        self.checked = splits.validation.select(range(min(CHECK_VIDEOS, len(splits.validation))))
        self.epoch, self.history, self.seconds = 0, [], 0.0

    def fingerprint(self) -> str:
        return fingerprint(self.defense, self.splits, self.shape, self.threat, self.config)

    def state(self) -> dict:
        return {
            "fingerprint": self.fingerprint(),
            "epoch": self.epoch,
            "history": self.history,
            "seconds": self.seconds,
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if not k.startswith("_")},
        }

    def restore(self, state: dict, path) -> None:
        if state.get("fingerprint") != self.fingerprint():
            raise ValueError(f"{path} belongs to a run with other settings; use another --out, or delete it")
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.epoch, self.history, self.seconds = state["epoch"], state["history"], state["seconds"]

    def one_epoch(self, bar) -> None:
        started, sums, videos = time.perf_counter(), Counter(), 0
        seed = self.config.seed * 100_003 + self.epoch  # of this epoch alone, so that a resumed run sees the same
        torch.manual_seed(seed)  # dropout
        generator = torch.Generator().manual_seed(seed)
        loader = self.splits.train.batches(self.config.batch_size, seed=seed)
        if self.accelerator.num_processes > 1:
            loader = self.accelerator.prepare_data_loader(loader)
        self.model.train()
        for step, batch in enumerate(loader):
            done = (self.epoch + step / self.steps_per_epoch) / self.config.epochs
            threat = self.threat.times(self.defense.epsilon_scale * min(1.0, 2 * done))
            losses = self._step(batch.to(self.accelerator.device), threat, generator)
            sums.update({name: value * len(batch) for name, value in losses.items()})
            videos += len(batch)
            bar.update()
            if step % 10 == 0:
                bar.set_postfix({name: f"{total / videos:.3f}" for name, total in sums.items()}, refresh=False)
        self.epoch += 1
        self.seconds += time.perf_counter() - started  # of training alone, since the last check
        means = {name: total / videos for name, total in sums.items()}
        if self.epoch % max(1, self.config.epochs // CHECKS) == 0 or self.epoch == self.config.epochs:
            self._check({"epoch": self.epoch, "loss": means, "epsilon": threat.epsilon, "seconds": self.seconds})
            self.seconds = 0.0

    def _step(self, batch: Batch, threat: ThreatModel, generator) -> dict[str, float]:
        """One update; returns the unweighted loss terms."""
        self.optimizer.zero_grad()
        if not self.defense.pairs:
            losses = self._learn(self._forward(batch.frames, batch), None, batch, ["task"])
        elif self.defense.shares_clean_pass:
            losses = self._shared(batch, threat)
        else:
            losses = self._crafted(batch, threat, generator)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not math.isfinite(float(norm)):
            shown = ", ".join(f"{name}={value:g}" for name, value in values.items())
            raise TrainingStopped(f"the loss is not finite in epoch {self.epoch + 1} ({shown}); lower the rate or β")
        self.optimizer.step()
        self.schedule.step()
        return values

    def _shared(self, batch: Batch, threat: ThreatModel) -> dict:
        """The clean pass serves the attack too; the one backward pass for both, or two, if the clean side is fixed."""
        frames = batch.frames.detach().requires_grad_()
        clean = self._forward(frames, batch)
        if self.defense.two_sided:
            task = terms(self.defense, clean, None, batch.labels, batch.mask, ["task"])["task"]
            (gradient,) = torch.autograd.grad(task, frames, retain_graph=True)
            attacked = self._forward(one_step(batch, gradient, threat), batch)
            return self._learn(clean, attacked, batch, list(self.defense.weights))
        losses = self._learn(clean, None, batch, ["task"])
        attacked = self._forward(one_step(batch, frames.grad, threat), batch)
        rest = [name for name in self.defense.weights if name != "task"]
        return losses | self._learn(_detached(clean), attacked, batch, rest)

    def _crafted(self, batch: Batch, threat: ThreatModel, generator) -> dict:
        defense, size = self.defense, 1.0 if self.defense.steps == 1 else None
        if defense.objective == "shuffled":
            frames = _shuffled(batch, generator)
        else:
            attack = Attack(threat, steps=0)
            if defense.objective != "noise":
                how = {"start": defense.start, "step_size": size, "keep_best": False}
                attack = Attack(threat, defense.objective, defense.steps, **how)
            frames = self._attacked(batch, attack, generator)
        clean = self._forward(batch.frames, batch)
        attacked = self._forward(frames, batch)
        if defense.two_sided:
            return self._learn(clean, attacked, batch, list(defense.weights))
        losses = self._learn(clean, None, batch, ["task"]) if "task" in defense.weights else {}
        rest = [name for name in defense.weights if name != "task"]
        return losses | self._learn(_detached(clean), attacked, batch, rest)

    def _attacked(self, batch: Batch, attack: Attack, generator) -> torch.Tensor:
        """Attacked frames [B,T,D]; the last of the videos meet an attacker of one frame, if the defense wants some."""
        count = len(batch) - round(self.defense.few * len(batch))
        one = ThreatModel(attack.threat.norm, few_frames_epsilon(attack.threat) / self.defense.epsilon_scale, 1)
        parts = [(_part(batch, slice(count)), attack), (_part(batch, slice(count, None)), replace(attack, threat=one))]
        return torch.cat([perturb(self.model, part, how, generator=generator) for part, how in parts if len(part)])

    def _forward(self, frames, batch: Batch) -> Output:
        wanted = "attention" in self.defense.weights
        if wanted and self.defense.rows == "cls":
            wanted = "cls"  # the last layer's other rows are read by nobody
        return self.model(frames, batch.mask, return_attention=wanted)

    def _learn(self, clean: Output, attacked: Output | None, batch: Batch, names: list[str]) -> dict:
        losses = terms(self.defense, clean, attacked, batch.labels, batch.mask, names)
        self.accelerator.backward(sum(self.defense.weights[name] * value for name, value in losses.items()))
        return losses

    def _check(self, entry: dict) -> None:
        """Validate; stop if FGSM and PGD part, the mark of an overfitted single-step attack (Wong et al. 2020)."""
        model = self.accelerator.unwrap_model(self.model)
        entry["clean"] = score(model, self.checked)["gap"]
        entry["attacked"] = score(model, self.checked, pgd(self.threat, steps=7, restarts=1))["gap"]
        entry["fgsm"] = score(model, self.checked, fgsm(self.threat))["gap"]
        best = max((past["attacked"] for past in self.history), default=0.0)
        if self.defense.pairs and entry["attacked"] < best - 0.15 and entry["fgsm"] > entry["attacked"] + 0.25:
            raise TrainingStopped(
                f"catastrophic overfitting in epoch {self.epoch}: GAP under FGSM {entry['fgsm']:.3f}, under PGD "
                f"{entry['attacked']:.3f}; train with a smaller ε, a random start or more steps"
            )
        self.history.append(entry)


def _part(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.frames[rows], batch.mask[rows], batch.labels[rows], batch.ids[rows])


def _shuffled(batch: Batch, generator) -> torch.Tensor:
    """The real frames [B,T,D] of each video in another order, padding last as before."""
    drawn = torch.rand(batch.mask.shape, generator=generator).to(batch.frames).masked_fill(~batch.mask, torch.inf)
    return batch.frames.gather(1, drawn.argsort(1)[..., None].expand_as(batch.frames))


def _detached(output: Output) -> Output:
    maps = tuple(m.detach() for m in output.attention) if output.attention is not None else None
    return Output(output.logits.detach(), maps)
