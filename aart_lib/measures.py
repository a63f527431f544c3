"""What attention did under an attack, and whether the attack kept its bounds.

Source: Jain & Wallace 2019 and Wiegreffe & Pinter 2019 on what attention can and cannot explain; the measures are this
project's.
"""

from collections.abc import Callable

import torch

from aart_lib.data import Batch
from aart_lib.losses import attention_divergence, attention_entropy
from aart_lib.threats import NORMS, ThreatModel


def attention_measures(measures, key: str, clean, output, batch: Batch) -> None:
    """Add drift, entropy and evidence share of each video of a batch under ``key`` to lists by name."""
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
    assert batch.evidence is not None
    length = batch.mask.sum(1, keepdim=True)
    brief = (batch.labels > 0) & (batch.evidence.sum(1) < length / 2)
    shown = (batch.evidence & brief[:, None]).any(2)
    row = attention[-1][:, :, 0, 1:].mean(1)
    has = brief.any(1)
    share = (row * shown).sum(1) / row.sum(1).clamp_min(1e-12)
    return share[has], (shown.sum(1) / length[:, 0])[has]


def hijacked(clean, attacked, batch: Batch, frames: torch.Tensor) -> torch.Tensor:
    """Attention that the frames an attack touched gained, as a share of the last layer's [CLS] row: [B]."""
    touched = (frames != batch.frames).any(2)
    gained = (attacked.attention[-1] - clean.attention[-1])[:, :, 0, 1:].mean(1)
    return (gained.clamp_min(0) * touched).sum(1)


def violation(threat: ThreatModel, frames: torch.Tensor, batch: Batch) -> float:
    """By how much norm, box or padding is overstepped, in units of ε if that is not 0; too many frames add 1 / ε."""
    delta = frames - batch.frames
    over = (delta - NORMS[threat.norm].project(delta, threat.epsilon)).abs().amax()
    padding = (delta * ~batch.mask[..., None]).abs().amax()
    lowest, highest = threat.box or (-torch.inf, torch.inf)
    low, high = batch.frames.clamp_max(lowest), batch.frames.clamp_min(highest)
    outside = torch.maximum(low - frames, frames - high).amax()
    touched = int((delta != 0).any(2).sum(1).max())
    too_many = touched > (threat.max_frames or touched)
    return float(max(over, padding, outside) + too_many) / (threat.epsilon or 1.0)
