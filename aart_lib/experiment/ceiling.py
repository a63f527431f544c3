"""How well any model could do: a matched filter that knows the patterns of the synthetic videos."""

from functools import lru_cache

import numpy as np

from aart_lib.data import synthetic
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.synthetic import Settings, facts, patterns, per_dim, spread
from aart_lib.experiment.flags import curve
from aart_lib.metrics import gap


def ceiling(variant: str | None, test: VideoDataset, rows: list[dict]) -> list[dict]:
    """GAP that the matched filter, told when evidence is visible, is certain to keep at each ε of the rows (L∞).

    ``variant`` names the generator's settings that made the videos; without it there is no known ceiling.
    """
    if variant is None or rows[0]["other"]["pgd@2"]["threat"]["norm"] != "linf":
        return []
    settings, doubled = synthetic.SETTINGS[variant], rows[0]["other"]["pgd@2"]["threat"]["epsilon"]
    batches = list(test.batches(250))
    labels = np.concatenate([batch.labels.numpy() for batch in batches])
    gaps = []
    for epsilon in sorted({0.0, doubled / 2, doubled, *(epsilon for epsilon, _ in curve(rows[0]))}):
        parts = [matched_filter(settings, b.frames, b.evidence, labels=b.labels, epsilon=epsilon) for b in batches]
        gaps.append({"epsilon": epsilon, "gap": gap(np.concatenate(parts), labels)})
    return gaps


@lru_cache(maxsize=256)
def _filter(settings: Settings, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [C, D] that estimate each label's strength (1 = typical) from a mean over ``frames`` frames.

    The linear minimum-mean-square-error filter for patterns in independent noise, and the error variance [C].
    """
    scenes = max(1.0, frames / settings.scene_frames)
    noise = spread(settings) ** 2 + per_dim(settings, settings.scene_std) ** 2 / scenes
    noise += per_dim(settings, settings.noise_std) ** 2 / frames
    scaled = patterns(settings) / noise
    precision = scaled @ patterns(settings).T + np.eye(settings.labels)  # prior variance of a strength: 1
    return np.linalg.solve(precision, scaled), np.diag(np.linalg.inv(precision))


def _evidence_ratio(strength: np.ndarray, variance: np.ndarray, jitter: float) -> np.ndarray:
    """log P(strength | there, 1 ± jitter) - log P(strength | not there, 0), Gaussian; rises with strength >= 0."""
    there = variance + jitter**2
    return strength**2 / (2 * variance) - (strength - 1) ** 2 / (2 * there) + np.log(variance / there) / 2


def matched_filter(settings: Settings, frames, evidence, *, labels=None, epsilon: float = 0.0) -> np.ndarray:
    """Scores [B, C] of a detector that knows the patterns and *when* something is visible, but not *what*.

    It is told the evidence windows of a video (not whose they are), estimates in each window's mean every label's
    strength, and takes the log-likelihood ratio of the best window. No trained model has that knowledge, so its GAP
    is the ceiling to compare models with (close to the best, not proven: linear, clipping is not modelled).
    With ``epsilon`` (feature units, needs ``labels`` [B, C]) each score is moved by the most that any L-infinity
    perturbation of that size can move it, downward where the label is right and upward where it is wrong. GAP of
    these scores is a certified lower bound on what the filter keeps under every such attack: that much robustness
    is possible.

    Arguments: frames [B, T, D], evidence [B, T, C] (zero on padding, some in every video), as in a Batch.
    """
    frames, evidence = np.asarray(frames, np.float64), np.asarray(evidence) > 0
    signs = np.zeros(evidence.shape[::2]) if labels is None else 1 - 2.0 * (np.asarray(labels) > 0)  # +1: wrong
    prior = np.log(np.array(facts()["frequencies"])[: settings.labels])
    scores = np.empty((len(frames), settings.labels))
    for row, (video, visible) in enumerate(zip(frames, evidence, strict=True)):
        ratios = []
        for window in np.unique(visible.T[visible.any(0)], axis=0):
            weights, variance = _filter(settings, int(window.sum()))
            strength = weights @ video[window].mean(0) + epsilon * signs[row] * np.abs(weights).sum(1)
            ratios.append(_evidence_ratio(np.maximum(strength, 0), variance, settings.jitter))
        scores[row] = prior + np.max(ratios, axis=0)
    return scores
