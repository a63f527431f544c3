"""The one pass that judges a model: every attack of a suite, the worst for each video, and where attention went.

Every attack is made for the model it is used on. An attack made for another model flatters a defense.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from aart_lib.attacks import Attack, loss_and_gradient, perturb, pgd
from aart_lib.attention import SteadyAttention, attention_measures, hijacked
from aart_lib.data.batch import BOX, Batch, dequantize, quantize
from aart_lib.data.dataset import VideoDataset
from aart_lib.experiment.suites import FREE_VIDEOS, suite
from aart_lib.losses import bce
from aart_lib.metrics import Accumulator, average_precision_per_video
from aart_lib.model import evaluating, predict
from aart_lib.runtime import processes
from aart_lib.scoring import batches, device_of, generator_for, merged, probabilities
from aart_lib.threats import ThreatModel, violation


class _WorstCase:
    """Keeps, for every video, the scores of the attack that hurt it most: lowest AP@20, ties by BCE."""

    def __init__(self):
        self.scores: torch.Tensor | None = None

    def offer(self, scores: torch.Tensor, loss: torch.Tensor, labels: torch.Tensor) -> None:
        precision = torch.from_numpy(average_precision_per_video(scores, labels))
        if self.scores is None:
            self.precision, self.loss, self.scores = precision, loss, scores
            return
        worse = (precision < self.precision) | ((precision == self.precision) & (loss > self.loss))
        self.precision = torch.where(worse, precision, self.precision)
        self.loss = torch.where(worse, loss, self.loss)
        self.scores = torch.where(worse[:, None], scores, self.scores)


class Evaluation(NamedTuple):
    """A row of results, and the scores behind it for those who resample videos."""

    row: dict
    scores: dict[str, torch.Tensor]  # "clean", "worst", "worst@2", "frames-1": probabilities [N,C]; "labels" [N,C]


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
    surrogates: Mapping[str, torch.nn.Module] | None = None,
    only: Collection[str] | None = None,
    progress: bool = True,
) -> Evaluation:
    """A model clean, under every attack of a suite and under the worst of them, and what attention did.

    Processes share the batches; each gets the whole result.

    Args:
        surrogates: other models by name, whose attacks are tried on this one (suite "strong").
        only: attacks of the suite to run beside those of the standard suite; None = all.
    """
    surrogates = {key: other.to(device_of(model)) for key, other in (surrogates or {}).items()}
    within, beyond = suite(name, threat, threshold=_threshold(model, dataset), surrogates=tuple(surrogates))
    if only is not None:
        plain, doubled = suite("standard", threat)
        within = {key: attack for key, attack in within.items() if key in {*plain, *only}}
        beyond = {key: attack for key, attack in beyond.items() if key in doubled or _doubled(key)}
    judging = _Judging(model, threat, within, beyond, surrogates, seed, len(dataset))
    quiet = not (progress and processes.is_main())
    bar = tqdm(total=len(dataset), desc="evaluate", unit="video", disable=quiet, mininterval=1)
    for index, batch in enumerate(batches(dataset, model)):
        if index % processes.count() == processes.rank():
            with evaluating(model):
                judging.batch(batch, index)
        judging.seen += len(batch)
        bar.update(len(batch))
    bar.close()
    judging.share()
    return judging.result()


@torch.no_grad()
def _threshold(model, dataset: VideoDataset) -> float:
    """The logit above which a data set has as many scores as true labels."""
    pairs = [(predict(model, b.frames, b.mask).logits.cpu(), b.labels.cpu()) for b in batches(dataset, model)]
    logits, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return float(logits.flatten().sort(descending=True).values[min(int(labels.sum()), logits.numel() - 1)])


class _Judging:
    """What accumulates over the batches of one evaluation."""

    def __init__(self, model, threat, within, beyond, surrogates, seed, videos):
        self.model, self.threat, self.within, self.beyond = model, threat, within, beyond
        self.surrogates, self.seed, self.strong = surrogates, seed, "apgd" in within or "apgd@2" in beyond
        self.totals: dict[str, Accumulator] = defaultdict(Accumulator)
        self.measures: dict[str, list] = defaultdict(list)
        self.kept: dict[str, list] = defaultdict(list)
        self.checks: dict = {"zero_gradient": [], "repeat": 0.0, "violation": 0.0}
        self.steady = {"steady": pgd(threat, 10, 1), "steady@2": pgd(threat.times(2), 10, 1)}
        self.free, self.seen = min(1.0, FREE_VIDEOS / videos), 0  # share of videos searched without gradients

    def batch(self, batch: Batch, index: int) -> None:
        draw = lambda key: generator_for(self.seed, index, key)  # noqa: E731
        clean = self._output(batch.frames, batch)
        self._score("clean", clean, batch)
        worst = {"worst": _WorstCase(), "worst@2": _WorstCase()}
        made: dict[str, torch.Tensor] = {}
        for key, attack in (self.within | self.beyond).items():
            frames = made[key] = self._attacked(key, attack, batch, draw(key), made)
            output = self._output(frames, batch)
            scores = self._score(key, output, batch)
            if key in self.within or _doubled(key):
                place = "worst" if key in self.within else "worst@2"
                worst[place].offer(scores, bce(output.logits, batch.labels).cpu(), batch.labels)
            if key in ("noise", "pgd"):
                attention_measures(self.measures, key, clean, output, batch)
            if key == "frames-1":
                self.measures["hijacked"] += hijacked(clean, output, batch, frames).tolist()
            self.checks["violation"] = max(self.checks["violation"], violation(attack.threat, frames, batch))
        for key, case in worst.items():
            self.totals[key].update(case.scores, batch.labels)
            self.kept[key].append(case.scores)
        held = SteadyAttention(self.model, clean.attention)
        for key, attack in self.steady.items():
            frames = perturb(held, batch, attack, generator=draw(key))
            with torch.no_grad():
                self._score(key, predict(held, frames, batch.mask), batch)
        attention_measures(self.measures, "clean", clean, clean, batch)
        self.kept["labels"].append(batch.labels.cpu())
        if self.strong:
            self._sanity(clean, made["pgd"], batch)

    def _attacked(self, key: str, attack: Attack, batch: Batch, generator, made: dict) -> torch.Tensor:
        if attack.search == "random":
            return self._searched(attack, batch, generator, made["pgd"])
        model = self.surrogates[key.removeprefix("transfer-")] if key.startswith("transfer-") else self.model
        return perturb(model, batch, attack, generator=generator)

    def _searched(self, attack: Attack, batch: Batch, generator, pgd_frames: torch.Tensor) -> torch.Tensor:
        """A share of each batch is searched without gradients, which is slow; the others keep what PGD found."""
        count = round(self.free * (self.seen + len(batch))) - round(self.free * self.seen)
        if not count:
            return pgd_frames
        few = batch[:count].trimmed()
        length, frames = few.frames.shape[1], pgd_frames.clone()
        frames[:count, :length] = perturb(self.model, few, attack, generator=generator)
        for name, shown in (("free", frames), ("free pgd", pgd_frames)):
            self._score(name, self._output(shown[:count, :length], few), few)
        return frames

    def _output(self, frames: torch.Tensor, batch: Batch):
        with torch.no_grad():
            return predict(self.model, frames, batch.mask, return_attention=True)

    def _score(self, key: str, output, batch: Batch) -> torch.Tensor:
        scores = probabilities(output.logits)
        self.totals[key].update(scores, batch.labels)
        if key in KEPT:
            self.kept[key].append(scores)
        return scores

    def _sanity(self, clean, frames: torch.Tensor, batch: Batch) -> None:
        """Is there a gradient, are two answers alike, does the attack survive storage in bytes?"""
        _, gradient = loss_and_gradient(self.model, batch, Attack(self.threat), torch.zeros_like(batch.frames))
        self.checks["zero_gradient"] += (gradient.abs().amax((1, 2)) < 1e-12).float().tolist()
        again = self._output(batch.frames, batch)
        self.checks["repeat"] = max(self.checks["repeat"], float((again.logits - clean.logits).abs().amax()))
        if self.threat.box == BOX:  # others' features are not stored in bytes
            stored = torch.from_numpy(dequantize(quantize(frames.cpu().numpy()))).to(frames) * batch.mask[..., None]
            self._score("pgd-stored", self._output(stored, batch), batch)

    def share(self) -> None:
        """Put together what the processes found, batches in their order."""
        parts = processes.gathered((dict(self.totals), dict(self.measures), dict(self.kept), self.checks))
        if len(parts) == 1:
            return
        totals, measures, kept, checks = zip(*parts, strict=True)
        keys = lambda found: dict.fromkeys(key for part in found for key in part)  # noqa: E731
        self.totals = {key: merged([part[key] for part in totals if key in part]) for key in keys(totals)}
        self.measures = {key: [v for part in measures for v in part.get(key, [])] for key in keys(measures)}
        turns = zip_longest(*(part.get("labels", []) for part in kept))  # the batches were dealt out in turn
        places = [(turn, k) for turn, dealt in enumerate(turns) for k, given in enumerate(dealt) if given is not None]
        self.kept = {key: [kept[k][key][turn] for turn, k in places] for key in keys(kept)}
        self.checks["zero_gradient"] = [v for found in checks for v in found["zero_gradient"]]
        for key in ("repeat", "violation"):
            self.checks[key] = max(found[key] for found in checks)

    def result(self) -> Evaluation:
        mean = {key: float(np.mean(values)) for key, values in self.measures.items() if values}
        row = _row(self.totals, mean, self.within, self.beyond)
        if "gradient-free" in row["attacked"]:
            row["attacked"]["gradient-free"]["videos"] = round(self.free * self.seen)
        if self.strong:
            if "pgd-stored" in self.totals:
                stored = self.totals["pgd-stored"].result()["gap"]
                row["other"]["pgd-stored"] = {"threat": self.threat.described(), "gap": stored}
            row["checks"] = self.checks | {"zero_gradient": float(np.mean(self.checks["zero_gradient"]))}
        return Evaluation(row, {key: torch.cat(parts) for key, parts in self.kept.items()})


def _doubled(key: str) -> bool:
    """Whether an attack has twice the ε and counts in "worst@2"."""
    return key.endswith("@2") and not key.startswith("curve")


def _row(totals, mean: dict[str, float], within, beyond) -> dict:
    attacked = {key: totals[key].result() for key in within}
    evidence = None
    if "chance" in mean:
        evidence = {"clean": mean["evidence clean"], "attacked": mean["evidence pgd"], "chance": mean["chance"]}
    if "gradient-free" in attacked:
        same = {"gap": totals["free"].result()["gap"], "pgd": totals["free pgd"].result()["gap"]}
        attacked["gradient-free"] |= {"same_videos": same}
    other = {key: {"threat": a.threat.described(), "gap": totals[key].result()["gap"]} for key, a in beyond.items()}
    doubled = [found["gap"] for key, found in other.items() if _doubled(key)]
    other["worst@2"] = other["pgd@2"] | {"gap": min(totals["worst@2"].result()["gap"], *doubled)}
    return {
        "clean": totals["clean"].result(),
        "attacked": attacked,
        "worst": {"gap": min(totals["worst"].result()["gap"], *(result["gap"] for result in attacked.values()))},
        "other": other,
        "attention_drift": mean["drift pgd"],
        "attention_drift_noise": mean["drift noise"],
        "attention_drift_all": mean["drift-all pgd"],
        "attention_entropy": mean["entropy clean"],
        "attention_entropy_attacked": mean["entropy pgd"],
        "attention_hijacked": mean["hijacked"],
        "steady_attention": {"gap": totals["steady"].result()["gap"], "gap@2": totals["steady@2"].result()["gap"]},
        "evidence_share": evidence,
    }
