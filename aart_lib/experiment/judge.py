"""The one pass that judges a model: every attack of a suite, the worst for each video, and where attention went.

Every attack is made for the model it is used on. An attack made for another model flatters a defense.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from aart_lib.attacks import Attack, loss_and_gradient, perturb, pgd
from aart_lib.attention import SteadyAttention, attention_divergence, attention_entropy, evidence_share, hijacked
from aart_lib.data.batch import BOX, Batch, dequantize, quantize
from aart_lib.data.dataset import VideoDataset
from aart_lib.experiment.suites import FREE_VIDEOS, suite, transfer
from aart_lib.losses import bce
from aart_lib.metrics import Accumulator, average_precision_per_video
from aart_lib.model import Output, evaluating, predict
from aart_lib.runtime import processes
from aart_lib.scoring import batches, device_of, generator_for, merged, probabilities
from aart_lib.threats import NORMS, ThreatModel


class Evaluation(NamedTuple):
    """A row of results, and the scores behind it for those who resample videos."""

    row: dict
    scores: dict[str, Tensor]  # "clean", "worst", "worst@2", "frames-1": probabilities [N,C]; "labels" [N,C]


KEPT = ("clean", "worst", "worst@2", "frames-1")


def evaluate(model, dataset: VideoDataset, threat: ThreatModel, **options) -> dict:
    """One row of results: `judge` without the scores of single videos."""
    return judge(model, dataset, threat, **options).row


@torch.inference_mode(False)
def judge(
    model,
    dataset: VideoDataset,
    threat: ThreatModel,
    *,
    name: str = "standard",
    seed: int = 0,
    surrogates: Mapping[str, nn.Module] | None = None,
    only: Collection[str] | None = None,
    progress: bool = True,
) -> Evaluation:
    """A model clean, under every attack of a suite and under the worst of them, and what attention did.

    Processes share the batches; each gets the whole result.

    Args:
        surrogates: other models by name, whose attacks are tried on this one (suite "strong").
        only: attacks of the suite to run beside those of the standard suite; None = all.
    """
    trial = _trial(model, threat, name, _threshold(model, dataset), surrogates or {}, only)
    share, seen = min(1.0, FREE_VIDEOS / len(dataset)), 0  # of the videos, searched without gradients
    found: dict[int, _Found] = {}  # of this process's batches, by index
    quiet = not (progress and processes.is_main())
    with tqdm(total=len(dataset), desc="evaluate", unit="video", disable=quiet, mininterval=1) as bar:
        for index, batch in enumerate(batches(dataset, model)):
            free = round(share * (seen + len(batch))) - round(share * seen)
            if index % processes.count() == processes.rank():
                with evaluating(model):
                    found[index] = _OneBatch(trial, batch, free, partial(generator_for, seed, index)).judged()
            seen += len(batch)
            bar.update(len(batch))
    everybodys = {index: one for part in processes.gathered(found) for index, one in part.items()}
    ordered = [everybodys[index] for index in sorted(everybodys)]
    scores = {key: torch.cat([one.kept[key] for one in ordered]) for key in (*KEPT, "labels")}
    return Evaluation(_row(trial, ordered), scores)


@torch.no_grad()
def _threshold(model, dataset: VideoDataset) -> float:
    """The logit above which a data set has as many scores as true labels."""
    pairs = [(predict(model, b.frames, b.mask).logits.cpu(), b.labels.cpu()) for b in batches(dataset, model)]
    logits, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return float(logits.flatten().sort(descending=True).values[min(int(labels.sum()), logits.numel() - 1)])


# ---------------------------------------------------------------- what is tried


@dataclass(frozen=True)
class _Trial:
    """A model and the attacks it meets."""

    model: nn.Module
    threat: ThreatModel
    within: dict[str, Attack]
    beyond: dict[str, Attack]
    made_for: Mapping[str, nn.Module]  # attacks that are made for another model, and which
    thorough: bool  # whether the attacks themselves are checked

    @property
    def farther(self) -> dict[str, ThreatModel]:
        """Threat models beyond the own one under which the worst of several attacks counts."""
        found = {"worst@2": self.threat.times(2)}
        return found | ({"splice": self.threat.spliced()} if self.threat.box else {})

    @property
    def groups(self) -> dict[str, list[str]]:
        """The attacks whose worst case for each video counts, by the name of that case."""
        beyond = {
            name: [key for key, attack in self.beyond.items() if attack.threat == threat]
            for name, threat in self.farther.items()
        }
        return {"worst": [*self.within]} | {name: keys for name, keys in beyond.items() if keys}


def _trial(model, threat: ThreatModel, name: str, threshold: float, surrogates: Mapping, only) -> _Trial:
    within, beyond = suite(name, threat, threshold=threshold, surrogates=tuple(surrogates))
    made_for = {transfer(key): other.to(device_of(model)) for key, other in surrogates.items()}
    trial = _Trial(model, threat, within, beyond, made_for, thorough=name == "strong")
    if only is None:
        return trial
    plain, farther = suite("standard", threat)
    kept = {key: attack for key, attack in within.items() if key in {*plain, *only}}
    grouped = {key for keys in trial.groups.values() for key in keys}
    more = {key: attack for key, attack in beyond.items() if key in {*farther, *grouped}}
    return replace(trial, within=kept, beyond=more)


# ---------------------------------------------------------------- one batch


class _Found:
    """What is found on one batch."""

    def __init__(self, labels: Tensor, searched: int):
        self.labels, self.searched = labels.cpu(), searched  # how many videos were searched without gradients
        self.totals: dict[str, Accumulator] = {}  # by attack, and "clean", "worst", ...
        self.blind: dict[str, Accumulator] = {}  # "gap" of the search without gradients, "pgd" on the same videos
        self.measures: dict[tuple[str, str], list[float]] = defaultdict(list)  # by name and attack
        self.kept: dict[str, Tensor] = {"labels": self.labels}

    def add(self, key: str, scores: Tensor) -> None:
        self.totals[key] = Accumulator().update(scores, self.labels)
        if key in KEPT:
            self.kept[key] = scores


class _WorstCase:
    """Keeps, for every video, the scores of the attack that hurt it most: lowest AP@20, ties by BCE."""

    def __init__(self, labels: Tensor):
        self.labels, self.scores = labels, torch.zeros_like(labels, dtype=torch.float64)  # [B,C]
        self.precision, self.loss = labels.new_full((2, len(labels)), torch.inf).double()  # [B]

    def offer(self, scores: Tensor, loss: Tensor) -> None:
        precision = torch.from_numpy(average_precision_per_video(scores, self.labels))
        worse = (precision < self.precision) | ((precision == self.precision) & (loss > self.loss))
        self.precision = torch.where(worse, precision, self.precision)
        self.loss = torch.where(worse, loss, self.loss)
        self.scores = torch.where(worse[:, None], scores, self.scores)


class _OneBatch:
    """A batch under every attack of a trial; its first ``free`` videos are searched without gradients too.

    ``draw`` gives the noise for the attack of a name.
    """

    pgd_frames: Tensor  # known when PGD was tried, which stands before all that needs them

    def __init__(self, trial: _Trial, batch: Batch, free: int, draw: Callable):
        self.trial, self.batch, self.free, self.draw = trial, batch, free, draw
        self.found, self.clean = _Found(batch.labels, free), self.output(batch.frames)

    def judged(self) -> _Found:
        found, clean, batch = self.found, self.clean, self.batch
        found.add("clean", probabilities(clean.logits))
        self.measure("clean", attention_measures(clean, clean, batch))
        members = self.trial.groups
        cases = {key: _WorstCase(found.labels) for key in members}
        for key, attack in (self.trial.within | self.trial.beyond).items():
            output = self.measured(key, attack)
            scores, loss = probabilities(output.logits), bce(output.logits, batch.labels).cpu()
            found.add(key, scores)
            for worst, case in cases.items():
                if key in members[worst]:
                    case.offer(scores, loss)
        for worst, case in cases.items():
            found.add(worst, case.scores)
        self.hold_attention()
        if self.trial.thorough:
            self.check_attacks()
        return found

    def measured(self, key: str, attack: Attack) -> Output:
        """The output under an attack, once the change and what it did to attention are measured."""
        frames = self.attacked(key, attack)
        output = self.output(frames)
        self.measure("all", {"violation": [violation(attack.threat, frames, self.batch)]})
        if key in ("noise", "pgd"):
            self.measure(key, attention_measures(self.clean, output, self.batch))
        if key == "frames-1":
            self.measure(key, {"hijacked": hijacked(self.clean, output, self.batch, frames).tolist()})
        if key == "pgd":
            self.pgd_frames = frames
        return output

    def measure(self, key: str, found: dict[str, list[float]]) -> None:
        for name, values in found.items():
            self.found.measures[name, key] += values

    def attacked(self, key: str, attack: Attack) -> Tensor:
        if attack.search == "random":
            return self.searched(attack, self.draw(key))
        model = self.trial.made_for.get(key, self.trial.model)
        return perturb(model, self.batch, attack, generator=self.draw(key))

    def searched(self, attack: Attack, generator: torch.Generator) -> Tensor:
        """Some videos are searched without gradients, which is slow; the others keep what PGD found."""
        if not self.free:
            return self.pgd_frames
        few = self.batch[: self.free].trimmed()
        length, frames = few.frames.shape[1], self.pgd_frames.clone()
        frames[: self.free, :length] = perturb(self.trial.model, few, attack, generator=generator)
        for key, shown in (("gap", frames), ("pgd", self.pgd_frames)):
            scores = probabilities(self.output(shown[: self.free, :length], few).logits)
            self.found.blind[key] = Accumulator().update(scores, few.labels)
        return frames

    def output(self, frames: Tensor, batch: Batch | None = None) -> Output:
        with torch.no_grad():
            return predict(self.trial.model, frames, (batch or self.batch).mask, return_attention=True)

    def hold_attention(self) -> None:
        """The same model with its attention held at the clean maps, attacked by someone who knows it."""
        held, threat = SteadyAttention(self.trial.model, self.clean.attention or ()), self.trial.threat
        for key, budget in (("steady", threat), ("steady@2", threat.times(2))):
            frames = perturb(held, self.batch, pgd(budget, 10, 1), generator=self.draw(key))
            with torch.no_grad():
                self.found.add(key, probabilities(predict(held, frames, self.batch.mask).logits))

    def check_attacks(self) -> None:
        """Is there a gradient, are two answers alike, does the attack survive storage in bytes?"""
        batch, start = self.batch, torch.zeros_like(self.batch.frames)
        _, gradient = loss_and_gradient(self.trial.model, batch, Attack(self.trial.threat), start)
        apart = (self.output(batch.frames).logits - self.clean.logits).abs().amax(1)
        zero = (gradient.abs().amax((1, 2)) < 1e-12).float()
        self.measure("clean", {"zero gradient": zero.tolist(), "repeat": apart.tolist()})
        if self.trial.threat.box == BOX:  # others' features are not stored in bytes
            stored = torch.from_numpy(dequantize(quantize(self.pgd_frames.cpu().numpy())))
            stored = stored.to(batch.frames) * batch.mask[..., None]
            self.found.add("pgd-stored", probabilities(self.output(stored).logits))


# ---------------------------------------------------------------- from batches to a row


def _row(trial: _Trial, found: list[_Found]) -> dict:
    scores = {key: merged([one.totals[key] for one in found]).result() for key in found[0].totals}
    measures = {key: [value for one in found for value in one.measures[key]] for key in found[0].measures}
    mean = {key: float(np.mean(values)) for key, values in measures.items() if values}
    attacked = {key: scores[key] for key in trial.within}
    for key, attack in trial.within.items():
        if attack.search == "random":
            attacked[key] = attacked[key] | _blind(found)
    other = {key: _beyond(attack.threat, scores[key]) for key, attack in trial.beyond.items()}
    for name, threat in trial.farther.items():
        if name in scores:
            lowest = min(scores[key]["gap"] for key in (name, *trial.groups[name]))
            other[name] = {"threat": threat.described(), "gap": lowest}
    if "pgd-stored" in scores:
        other["pgd-stored"] = _beyond(trial.threat, scores["pgd-stored"])
    evidence = None
    if ("chance", "clean") in mean:
        sides = {"clean": mean["evidence", "clean"], "attacked": mean["evidence", "pgd"]}
        evidence = sides | {"chance": mean["chance", "clean"]}
    row = {
        "clean": scores["clean"],
        "attacked": attacked,
        "worst": {"gap": min(scores["worst"]["gap"], *(result["gap"] for result in attacked.values()))},
        "other": other,
        "attention_drift": mean["drift", "pgd"],
        "attention_drift_noise": mean["drift", "noise"],
        "attention_drift_all": mean["drift-all", "pgd"],
        "attention_entropy": mean["entropy", "clean"],
        "attention_entropy_attacked": mean["entropy", "pgd"],
        "attention_hijacked": mean["hijacked", "frames-1"],
        "steady_attention": {"gap": scores["steady"]["gap"], "gap@2": scores["steady@2"]["gap"]},
        "evidence_share": evidence,
    }
    if trial.thorough:
        row["checks"] = {
            "zero_gradient": mean["zero gradient", "clean"],
            "repeat": max(measures["repeat", "clean"]),
            "violation": max(measures["violation", "all"]),
            "floor": merged([Accumulator().update(-one.labels.double(), one.labels) for one in found]).result()["gap"],
        }
    return row


def _beyond(threat: ThreatModel, scores: dict) -> dict:
    return {"threat": threat.described(), "gap": scores["gap"]}


def _blind(found: list[_Found]) -> dict:
    """How many videos were searched without gradients, and GAP on these alone, beside PGD's."""
    parts = [one.blind for one in found if one.blind]
    same = {key: merged([part[key] for part in parts]).result()["gap"] for key in ("gap", "pgd")}
    return {"same_videos": same, "videos": sum(one.searched for one in found)}


def violation(threat: ThreatModel, frames: torch.Tensor, batch: Batch) -> float:
    """By how much norm, box or padding is overstepped, in units of ε if that is not 0; too many frames add 1 / ε."""
    delta = frames - batch.frames
    over = (delta - NORMS[threat.norm].project(delta, threat.epsilon)).abs().amax()
    padding = (delta * ~batch.mask[..., None]).abs().amax()
    low, high = threat.bounds(batch.frames)
    outside = torch.maximum(low - frames, frames - high).amax()
    touched = int((delta != 0).any(2).sum(1).max())
    too_many = touched > (threat.max_frames or touched)
    return float(max(over, padding, outside) + too_many) / (threat.epsilon or 1.0)


def attention_measures(clean: Output, output: Output, batch: Batch) -> dict[str, list[float]]:
    """Of each video of a batch: drift (total variation) of the last [CLS] row and of all rows, and entropy.

    Where evidence is known also the share of attention on it, and what chance would have there.
    """
    assert clean.attention is not None and output.attention is not None
    pair, kind = (clean.attention, output.attention, batch.mask), "total-variation"
    found = {
        "drift": attention_divergence(*pair, kind=kind),
        "drift-all": attention_divergence(*pair, kind=kind, layers="all", rows="all"),
        "entropy": attention_entropy(output.attention, batch.mask),
    }
    if batch.evidence is not None:
        found["evidence"], found["chance"] = evidence_share(output.attention, batch)
    return {name: values.tolist() for name, values in found.items()}
