"""The one pass that judges a model: every attack of a suite, the worst for each video, and where attention went.

Every attack is made for the model it is used on. An attack made for another model flatters a defense.
"""

import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import torch
from tqdm import tqdm

from aart_lib.attacks import Attack, ThreatModel, fgsm, noise, perturb, pgd
from aart_lib.data import Batch, VideoDataset
from aart_lib.losses import attention_divergence, attention_entropy, bce
from aart_lib.metrics import Accumulator, average_precision_per_video
from aart_lib.model import SteadyAttention

BATCH = 250
CURVE = (0.5, 1.5, 3.0)  # multiples of ε beside 1 and 2


def suite(name: str, threat: ThreatModel) -> tuple[dict[str, Attack], dict[str, Attack]]:
    """Attacks within the threat model, whose worst case counts, and those beyond it. Raises: ValueError."""
    if name not in ("quick", "standard"):
        raise ValueError(f"unknown suite {name!r}; known: quick, standard")
    steps, restarts = (20, 2) if name == "standard" else (10, 1)
    within = {"noise": noise(threat), "fgsm": fgsm(threat), "pgd": pgd(threat, steps, restarts)}
    one_frame = ThreatModel(threat.norm, few_frames_epsilon(threat), 1)
    beyond = {"pgd@2": pgd(threat.times(2), steps, 1), "frames-1": pgd(one_frame, steps, 1)}
    if name == "standard":
        beyond |= {f"curve@{factor:g}": pgd(threat.times(factor), 10, 1) for factor in CURVE}
    return within, beyond


def few_frames_epsilon(threat: ThreatModel) -> float:
    """ε for an attacker of few frames: eight times the budget of one who may touch all (L∞, L2 a frame); L2 a clip
    is a budget for the clip already."""
    return threat.epsilon * (1 if threat.norm == "l2-clip" else 8)


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """On the CPU and in float64, so that no two confident labels round to the same score."""
    return torch.sigmoid(logits.cpu().double())


def generator_for(*key) -> torch.Generator:
    """Noise that depends on what it is for and on nothing else: the order of attacks and batches does not matter."""
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


@torch.no_grad()
def score(model, dataset: VideoDataset, attack: Attack | None = None, *, seed: int = 0) -> dict[str, float]:
    """GAP, mAP, Hit@1 and PERR of a model on a data set, attacked if an attack is given."""
    model.eval()
    total = Accumulator()
    for index, batch in enumerate(_batches(dataset, model)):
        frames = batch.frames
        if attack is not None:
            with torch.enable_grad():
                frames = perturb(model, batch, attack, generator=generator_for(seed, index))
        total.update(probabilities(model(frames, batch.mask).logits), batch.labels)
    return total.result()


def _batches(dataset: VideoDataset, model):
    device = next((parameter.device for parameter in model.parameters()), "cpu")
    return (batch.to(device) for batch in dataset.batches(BATCH))


def calibrate(
    model, dataset: VideoDataset, threat: ThreatModel, *, target=0.80, tolerance=0.004
) -> tuple[float, float]:
    """The ε at which attacked GAP / clean GAP is ``target``, and the ratio reached; attack: `pgd`.

    The paper's baseline falls from about 91 (assumed) to 72.9, a ratio of .80. Found by interpolation between a too
    weak and a too strong ε, rounded to three digits. Raises: ValueError if eleven doublings of ε do not get there.
    """
    clean = score(model, dataset)["gap"]
    ratio = lambda epsilon: score(model, dataset, pgd(ThreatModel(threat.norm, epsilon)))["gap"] / clean  # noqa: E731
    low, high, epsilon, tried = (0.0, 1.0), None, threat.epsilon, {}
    for _ in range(12):
        epsilon = float(f"{epsilon:.3g}")
        tried[epsilon] = reached = ratio(epsilon)
        if abs(reached - target) <= tolerance:
            break
        low, high = ((epsilon, reached), high) if reached > target else (low, (epsilon, reached))
        if high is None:
            epsilon = 2 * epsilon
        else:
            along = (low[1] - target) / max(low[1] - high[1], 1e-9)
            epsilon = low[0] + (high[0] - low[0]) * min(max(along, 0.1), 0.9)
    else:
        if high is None:
            raise ValueError(
                f"no ε up to {epsilon:g} brings the baseline to {target:.0%} of its clean GAP; train longer"
            )
    epsilon = min(tried, key=lambda e: abs(tried[e] - target))  # a small split may have no score nearer to the target
    return epsilon, tried[epsilon]


class _WorstCase:
    """Keeps, for every video, the scores of the attack that hurt it most: lowest AP@20, ties by BCE."""

    def __init__(self):
        self.precision, self.loss, self.scores = None, None, None

    def offer(self, scores: torch.Tensor, loss: torch.Tensor, labels: torch.Tensor) -> None:
        precision = torch.from_numpy(average_precision_per_video(scores, labels))
        if self.scores is None:
            self.precision, self.loss, self.scores = precision, loss, scores
            return
        worse = (precision < self.precision) | ((precision == self.precision) & (loss > self.loss))
        self.precision = torch.where(worse, precision, self.precision)
        self.loss = torch.where(worse, loss, self.loss)
        self.scores = torch.where(worse[:, None], scores, self.scores)


def evaluate(model, dataset: VideoDataset, threat: ThreatModel, *, name="standard", seed=0, progress=True) -> dict:
    """One row of results: clean, under every attack of the suite, the worst case, and what attention did."""
    model.eval()
    within, beyond = suite(name, threat)
    steady = {"steady": pgd(threat, 10, 1), "steady@2": pgd(threat.times(2), 10, 1)}
    totals, measures = defaultdict(Accumulator), defaultdict(list)
    bar = tqdm(total=len(dataset), desc="evaluate", unit="video", disable=not progress, mininterval=1)
    for index, batch in enumerate(_batches(dataset, model)):
        draw = lambda key: generator_for(seed, index, key)  # noqa: E731, B023 (used in this turn only)
        with torch.no_grad():
            clean = model(batch.frames, batch.mask, return_attention=True)
        totals["clean"].update(probabilities(clean.logits), batch.labels)
        worst = _WorstCase()
        for key, attack in (within | beyond).items():
            output = _under(model, batch, attack, draw(key))
            scores = probabilities(output.logits)
            totals[key].update(scores, batch.labels)
            if key in within:
                worst.offer(scores, bce(output.logits, batch.labels).cpu(), batch.labels)
            if key in ("noise", "pgd"):
                _attention_measures(measures, key, clean, output, batch)
        totals["worst"].update(worst.scores, batch.labels)
        held = SteadyAttention(model, clean.attention)
        for key, attack in steady.items():
            totals[key].update(probabilities(_under(held, batch, attack, draw(key)).logits), batch.labels)
        _attention_measures(measures, "clean", clean, clean, batch)
        bar.update(len(batch))
    bar.close()
    return _row(totals, {key: float(np.mean(values)) for key, values in measures.items() if values}, within, beyond)


def _under(model, batch: Batch, attack: Attack, generator):
    frames = perturb(model, batch, attack, generator=generator)
    with torch.no_grad():
        return model(frames, batch.mask, return_attention=True)


def _attention_measures(measures, key: str, clean, output, batch: Batch) -> None:
    kind = "total-variation"
    moved: Callable = lambda **o: attention_divergence(clean.attention, output.attention, batch.mask, kind=kind, **o)  # noqa: E731
    measures[f"drift {key}"] += moved().tolist()
    measures[f"drift-all {key}"] += moved(layers="all", rows="all").tolist()
    measures[f"entropy {key}"] += attention_entropy(output.attention, batch.mask).tolist()
    if batch.evidence is not None:
        share, chance = evidence_share(output.attention, batch)
        measures[f"evidence {key}"] += share.tolist()
        measures["chance"] += chance.tolist() if key == "clean" else []


def evidence_share(attention, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of the last layer's [CLS]→frames attention on evidence, and what uniform attention would have there.

    Only labels seen in under half of a video count, only videos that have one: [N], [N]. Layers mix tokens, so a
    frame's token knows of other frames: a hint, not a proof.
    """
    length = batch.mask.sum(1, keepdim=True)
    brief = (batch.labels > 0) & (batch.evidence.sum(1) < length / 2)
    shown = (batch.evidence & brief[:, None]).any(2)
    row = attention[-1][:, :, 0, 1:].mean(1)
    has = brief.any(1)
    share = (row * shown).sum(1) / row.sum(1).clamp_min(1e-12)
    return share[has], (shown.sum(1) / length[:, 0])[has]


def _row(totals, mean: dict[str, float], within, beyond) -> dict:
    attacked = {key: totals[key].result() for key in within}
    evidence = None
    if "chance" in mean:
        evidence = {"clean": mean["evidence clean"], "attacked": mean["evidence pgd"], "chance": mean["chance"]}
    return {
        "clean": totals["clean"].result(),
        "attacked": attacked,
        "worst": {"gap": min(totals["worst"].result()["gap"], *(result["gap"] for result in attacked.values()))},
        "other": {key: {"threat": asdict(a.threat), "gap": totals[key].result()["gap"]} for key, a in beyond.items()},
        "attention_drift": mean["drift pgd"],
        "attention_drift_noise": mean["drift noise"],
        "attention_drift_all": mean["drift-all pgd"],
        "attention_entropy": mean["entropy clean"],
        "attention_entropy_attacked": mean["entropy pgd"],
        "steady_attention": {"gap": totals["steady"].result()["gap"], "gap@2": totals["steady@2"].result()["gap"]},
        "evidence_share": evidence,
    }


# ---------------------------------------------------------------- flags


def flags(defense: str, row: dict, history: list[dict]) -> list[dict]:
    """Reasons to disbelieve a row; every flag is listed, raised or not."""
    gaps = {key: result["gap"] for key, result in row["attacked"].items()}
    curve = sorted((other["threat"]["epsilon"], other["gap"]) for k, other in row["other"].items() if k[:4] != "fram")
    up = max((b[1] - a[1] for a, b in pairwise(curve)), default=0.0)
    rise = (
        max((history[-1][key] - history[-2][key] for key in ("clean", "attacked")), default=0.0)
        if len(history) > 1
        else 1.0  # unknown, so the most that GAP can rise
    )
    checks = [
        ("still-rising", rise, 0.01, "validation GAP still rose at the last check: train longer before comparing"),
        ("noise-beats-gradient", gaps["pgd"] - gaps["noise"], 0.0, "noise hurts more than PGD: gradients mislead"),
        ("one-step-beats-many", gaps["pgd"] - gaps["fgsm"], 0.005, "FGSM hurts more than PGD: gradients mislead"),
        ("epsilon-not-monotone", up, 0.005, "a larger ε hurts less: the search fails"),
        ("label-leaking", gaps["fgsm"] - row["clean"]["gap"], 0.005, "attacked above clean: attacks give labels away"),
        ("flat-attention", row["attention_entropy"], 0.98, "attention is nearly uniform: steady because it is flat"),
    ]
    return [
        {"name": n, "defense": defense, "raised": v > limit, "value": v, "threshold": limit, "meaning": meaning}
        for n, v, limit, meaning in checks
    ]
