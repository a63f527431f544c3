"""What an attacker maximizes, one function each.

Every objective gives one number a video, [B], higher = worse for the defender. It is given the output under attack, the
output on clean frames and the batch.

Source: Carlini & Wagner 2017 (margin), Kurakin et al. 2017 (one wrong label as the target), Zhang et al. 2019 (KL). The
others are this project's, for several labels and for attention.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from aart_lib.attention import attention_divergence
from aart_lib.data.batch import Batch
from aart_lib.losses import bce, bernoulli_kl
from aart_lib.model import Output


@dataclass(frozen=True)
class Objective:
    """What the attacker maximizes: ``of(output, clean, batch)`` -> [B], higher = worse for the defender.

    It says itself what it needs: the clean `Output` (else None), attention maps. An objective with one number to choose
    takes it as a fourth argument, ``value``; each restart adds ``stride`` to it.
    """

    of: Callable[..., Tensor]
    needs_clean: bool = True
    needs_maps: bool = True
    value: float | None = None
    stride: int = 0

    def __call__(self, output: Output, clean: Output | None, batch: Batch) -> Tensor:
        return self.of(output, clean, batch, *(() if self.value is None else (self.value,)))

    def at(self, value: float) -> "Objective":
        """The same with another number."""
        return replace(self, value=value)

    def after(self, restarts: int) -> "Objective":
        return self if self.value is None else self.at(self.value + restarts * self.stride)


def _bce(output: Output, clean, batch: Batch) -> Tensor:
    return bce(output.logits, batch.labels)


def _kl(output: Output, clean: Output, batch: Batch) -> Tensor:
    return bernoulli_kl(clean.logits, output.logits)


def _margin(output: Output, clean, batch: Batch) -> Tensor:
    wrong = output.logits.masked_fill(batch.labels > 0, -torch.inf).amax(1)
    right = output.logits.masked_fill(batch.labels == 0, torch.inf).amin(1)
    # Videos without a label, or with all of them, have one side only.
    return torch.where(wrong.isfinite(), wrong, 0) - torch.where(right.isfinite(), right, 0)


def _targeted(output: Output, clean: Output, batch: Batch, rank: float) -> Tensor:
    """One wrong label, the ``rank``-th most likely on clean frames, shall stand above the weakest right one."""
    ranked = clean.logits.masked_fill(batch.labels > 0, -torch.inf).argsort(1, descending=True)
    place = int(rank) % (batch.labels == 0).sum(1, keepdim=True).clamp_min(1)  # after the last wrong label the first
    target = ranked.gather(1, place)
    right = output.logits.masked_fill(batch.labels == 0, torch.inf).amin(1)
    return output.logits.gather(1, target)[:, 0] - torch.where(right.isfinite(), right, 0)


def _gap(output: Output, clean, batch: Batch, threshold: float) -> Tensor:
    above = torch.sigmoid(output.logits - threshold)  # pooled GAP suffers most from confident false positives
    return (above * (1 - batch.labels) + (1 - above) * batch.labels).sum(1)


def _attention(output: Output, clean: Output, batch: Batch) -> Tensor:
    assert clean.attention is not None and output.attention is not None
    return attention_divergence(clean.attention, output.attention, batch.mask)


def _attention_scores(output: Output, clean: Output, batch: Batch) -> Tensor:
    """How far the [CLS] row moved before the softmax, where a saturated map still has a gradient."""

    def centered(maps):  # the log of a softmax is its score up to a constant a row
        real = F.pad(batch.mask, (1, 0), value=True)[:, None]  # [B,1,T+1]
        logs = maps[-1][:, :, 0].clamp_min(1e-30).log().masked_fill(~real, 0)
        return (logs - logs.sum(-1, keepdim=True) / real.sum(-1, keepdim=True)).masked_fill(~real, 0)

    return (centered(output.attention) - centered(clean.attention)).square().sum(-1).mean(1)


def _bce_attention(output: Output, clean: Output, batch: Batch, weight: float) -> Tensor:
    return _bce(output, clean, batch) + weight * _attention(output, clean, batch)


OBJECTIVES: dict[str, Objective] = {
    "bce": Objective(_bce, needs_clean=False, needs_maps=False),
    "margin": Objective(_margin, needs_clean=False, needs_maps=False),  # where the BCE's gradient is exactly zero
    "targeted": Objective(_targeted, needs_maps=False, value=0, stride=1),  # 0: the most likely wrong label
    "gap": Objective(_gap, needs_clean=False, needs_maps=False, value=0.0),  # the logit that it pushes across
    "kl": Objective(_kl, needs_maps=False),
    "attention": Objective(_attention),
    "attention-scores": Objective(_attention_scores),
    "bce-attention": Objective(_bce_attention, value=1.0),  # the attention's weight; negative keeps attention still
}
