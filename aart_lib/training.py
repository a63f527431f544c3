"""The one training loop, for every defense, every data set and any number of processes; see `steps` for one step.

What it carries is kept every two minutes, after every epoch and when a signal ends it, so that it goes on from there.
"""

import hashlib
import json
import math
import time
from collections import Counter
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from aart_lib.attacks import ThreatModel, fgsm, pgd
from aart_lib.data.catalog import Splits
from aart_lib.losses import Defense
from aart_lib.model import ModelConfig, VideoTransformer
from aart_lib.runtime import processes
from aart_lib.runtime.files import load_state, save_state
from aart_lib.runtime.signals import on_signals
from aart_lib.scoring import score
from aart_lib.steps import Hardware, Learner, TrainConfig, TrainingStopped

CHECKS = 10  # times validated in a run
CHECK_VIDEOS = 256
SAVE_SECONDS = 120  # between two saved states


@torch.inference_mode(False)
@torch.enable_grad()
def train(
    defense: Defense,
    splits: Splits,
    model: ModelConfig,
    threat: ThreatModel,
    config: TrainConfig,
    *,
    state: Path | None = None,
    hardware: Hardware | None = None,
    progress: str | None = "train",
    kind: type["Run"] | None = None,
) -> tuple[VideoTransformer, list[dict]]:
    """A trained model and its validation history.

    Args:
        threat: the *test* threat model; the training ε is ``defense.epsilon_scale`` times its ε, reached after the
            first half of the training.
        state: where to keep what a killed run needs to go on, with any number of processes. It holds the finished
            run at the end; whoever has saved the model deletes it.
        progress: name on the progress bar, None for none.
        kind: a `Run` of your own, which learns in another way.
    Raises: TrainingStopped when a loss is not finite or the single-step attack is overfitted; KeyboardInterrupt after
        a signal, when the state is saved; ProcessLost when a process of the run died; ValueError if ``state`` belongs
        to a run with other settings.
    """
    run = (kind or Run)(defense, splits, model, threat, config, Accelerator(), hardware)
    if state and Path(state).exists():
        run.restore(load_state(state), state)
    steps, done = run.steps_per_epoch, run.epoch * run.steps_per_epoch + run.step
    shown: dict = {"unit": "step", "mininterval": 1, "disable": progress is None or not processes.is_main()}
    with tqdm(desc=progress, total=config.epochs * steps, initial=done, **shown) as bar, on_signals(run.stop):
        while run.epoch < config.epochs:
            run.one_epoch(bar, state)
    if run.stopped:  # after the last step
        raise KeyboardInterrupt
    return run.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False).eval(), run.history


def fingerprint(defense: Defense, splits: Splits, model: ModelConfig, threat: ThreatModel, config: TrainConfig) -> str:
    """16 hex digits that tell runs with other settings, other videos or another model apart."""
    videos = "\n".join(f"{entry.id} {entry.labels}" for entry in splits.train.entries)
    videos = hashlib.sha256(videos.encode()).hexdigest()
    parts = [_changed(part) for part in (defense, model, threat, config)]
    # What is not set does not count, so that options that come later leave fingerprints as they were.
    spec = {key: value for key, value in asdict(splits.spec).items() if value is not None}
    text = json.dumps([parts, spec, splits.labels, videos], sort_keys=True, default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _changed(settings) -> dict:
    """What differs from the defaults: an option that came later does not make older runs look different."""
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(settings)}
    return {key: value for key, value in asdict(settings).items() if value != defaults[key]}


class Run(Learner):
    """Everything one training carries from epoch to epoch."""

    def __init__(self, defense, splits, model, threat, config, accelerator, hardware=None):
        self.steps_per_epoch = math.ceil(len(splits.train) / config.batch_size)
        super().__init__(defense, model, config, config.epochs * self.steps_per_epoch, accelerator, hardware)
        self.splits, self.threat, self.mark = splits, threat, fingerprint(defense, splits, model, threat, config)
        self.checked = splits.validation.select(range(min(CHECK_VIDEOS, len(splits.validation))))
        self.epoch, self.step, self.history, self.seconds = 0, 0, [], 0.0
        self.sums = Counter[str]()

    def stop(self, number, frame) -> None:
        """The first SIGINT or SIGTERM ends the run after its step, with its state saved; the next one at once."""
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True

    def state(self) -> dict:
        return {
            "fingerprint": self.mark,
            "epoch": self.epoch,
            "step": self.step,
            "sums": dict(self.sums),
            "noise": [self.generator.get_state()],
            "device": self.generator.device.type,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "history": self.history,
            "seconds": self.seconds + time.perf_counter() - self.started,
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if not k.startswith("_")},
        }

    def restore(self, state: dict, path) -> None:
        if state.get("fingerprint") != self.mark:
            raise ValueError(f"{path} belongs to a run with other settings; use another --out, or delete it")
        try:
            self.network.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.epoch, self.step, self.sums = state["epoch"], state["step"], Counter(state["sums"])
            self.history, self.seconds = state["history"], state["seconds"]
            self.generator.manual_seed(self._seed())
            if state.get("device", "cpu") == self.generator.device.type:  # each kind of device draws its own numbers
                self.generator.set_state(state["noise"][-1])  # older states hold another one before it
            if self.accelerator.scaler and state.get("scaler"):
                self.accelerator.scaler.load_state_dict(state["scaler"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # torch's own kinds
            raise ValueError(f"{path} is damaged; delete it to start the training anew") from error

    def one_epoch(self, bar, state: Path | None = None) -> None:
        """Train to the end of the epoch, from wherever the run stands in it."""
        if self.step == 0:
            self.generator.manual_seed(self._seed())
        loader = iter(self._loader())
        self.model.train()
        self.started = saved = time.perf_counter()
        while self.step < self.steps_per_epoch:
            threat = self._rising(self.step)
            first = self.step * self.config.batch_size
            videos = min(self.config.batch_size, len(self.splits.train) - first)
            parts = [next(loader) for _ in range(self.parts)]
            try:
                losses = self.learn(parts, videos, threat)
            except TrainingStopped as error:
                kept = f"the last good state is {state}" if state and Path(state).exists() else "no state was saved"
                raise TrainingStopped(f"in epoch {self.epoch + 1}, step {self.step + 1}: {error}; {kept}") from error
            self.sums.update({name: value * videos for name, value in losses.items()})
            self.step += 1
            bar.update()
            if self.step % 10 == 1:
                seen = first + videos
                bar.set_postfix({name: f"{total / seen:.3f}" for name, total in self.sums.items()}, refresh=False)
            if self.ending or time.perf_counter() - saved > SAVE_SECONDS:
                self._save(state)
                saved = time.perf_counter()
            if self.ending:
                raise KeyboardInterrupt
        self._finish_epoch()  # also when a resumed run had no step left in this epoch
        self._save(state)

    def _rising(self, step: int) -> ThreatModel:
        """What a step of this epoch trains against: the full training ε after half of the training."""
        done = (self.epoch + step / self.steps_per_epoch) / self.config.epochs
        return self.threat.times(self.defense.epsilon_scale * min(1.0, 2 * done))

    def _seed(self) -> int:
        """Of this epoch's order and noise, the same in every process, so that a resumed run sees the same."""
        return self.config.seed * 100_003 + self.epoch

    def _loader(self):
        """This process's parts of the epoch's batches, from the step where the run stands."""
        own = processes.rank() * self.parts, (processes.rank() + 1) * self.parts
        cut: dict = {"first": self.step, "pieces": processes.count() * self.parts, "own": own}
        how: dict = {"sampling": self.config.sampling, "workers": self.hardware.workers}
        return self.splits.train.batches(self.config.batch_size, seed=self._seed(), **how, **cut)

    def _save(self, state: Path | None) -> None:
        if state and processes.is_main():
            save_state(state, self.state())

    def _finish_epoch(self) -> None:
        threat = self._rising(self.steps_per_epoch - 1)
        self.epoch, self.step = self.epoch + 1, 0
        self.seconds += time.perf_counter() - self.started  # of training alone, since the last check
        self.started = time.perf_counter()
        means = {name: total / len(self.splits.train) for name, total in self.sums.items()}
        self.sums.clear()
        if self.epoch % max(1, self.config.epochs // CHECKS) == 0 or self.epoch == self.config.epochs:
            self._check({"epoch": self.epoch, "loss": means, "epsilon": threat.epsilon, "seconds": self.seconds})
            self.seconds, self.started = 0.0, time.perf_counter()

    def _check(self, entry: dict) -> None:
        """Validate; stop if FGSM and PGD part, the mark of an overfitted single-step attack (Wong et al. 2020)."""
        attacks = {"clean": None, "attacked": pgd(self.threat, steps=7, restarts=1), "fgsm": fgsm(self.threat)}
        entry |= {name: score(self.model, self.checked, attack)["gap"] for name, attack in attacks.items()}
        best = max((past["attacked"] for past in self.history), default=0.0)
        if self.defense.needs_attacked and entry["attacked"] < best - 0.15 and entry["fgsm"] > entry["attacked"] + 0.25:
            raise TrainingStopped(
                f"catastrophic overfitting in epoch {self.epoch}: GAP under FGSM {entry['fgsm']:.3f}, under PGD "
                f"{entry['attacked']:.3f}; train with a smaller ε, a random start or more steps"
            )
        self.history.append(entry)
