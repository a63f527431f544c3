"""Reading temporal attention: how [CLS] weighs the frames, how far that moved, where it lies, and holding it still.

Source: Abnar & Zuidema 2020 (rollout), Jain & Wallace 2019 and Wiegreffe & Pinter 2019 on what attention can and cannot
explain; the measures are this project's.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aart_lib.data.batch import Batch
from aart_lib.model import Output, predict, wide


class SteadyAttention(nn.Module):
    """A model whose attention is held at given maps, for the batch they came from.

    What an attacker can still do to it, knowing that, is the most that steadying attention could save.
    """

    fixed_attention = True

    def __init__(self, model: nn.Module, maps: tuple[Tensor, ...]):
        super().__init__()
        self.model, self.maps = model, tuple(m.detach() for m in maps)

    def forward(self, frames: Tensor, mask: Tensor, *, return_attention=False) -> Output:
        return predict(self.model, frames, mask, return_attention=return_attention, held=self.maps)


def cls_attention(attention: tuple[Tensor, ...]) -> Tensor:
    """Temporal attention as shown to people: how [CLS] weighs the frames, [B,L,H,T] from maps [B,H,T+1,T+1]."""
    return torch.stack([m[:, :, 0, 1:] for m in attention], 1)


def rollout(attention: tuple[Tensor, ...]) -> Tensor:
    """Attention of [CLS] to the frames through all layers, [B,T]; rows of the maps of all layers are needed.

    Heads are averaged, half of each token is taken to pass by the residual. Source: Abnar & Zuidema 2020, eq. 1.
    """
    flow = residual = torch.eye(attention[0].shape[-1]).to(attention[0])
    for layer in attention:
        flow = (layer.mean(1) + residual) / 2 @ flow  # [B,T+1,T+1]
    return flow[:, 0, 1:]


def _log(p: Tensor) -> Tensor:
    return wide(p).clamp_min(1e-12).log()  # a padded key has probability 0 in both maps and adds nothing


def symmetric_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) + KL(q‖p), in nats."""
    return ((p - q) * (_log(p) - _log(q))).sum(-1)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Mean KL divergence of both from their middle, at most log 2."""
    middle = _log((p + q) / 2)
    return ((p * (_log(p) - middle) + q * (_log(q) - middle)) / 2).sum(-1)


def squared_l2(p: Tensor, q: Tensor) -> Tensor:
    return (p - q).square().sum(-1)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """The share of attention that went elsewhere, 0 to 1."""
    return (p - q).abs().sum(-1) / 2


# How far apart two rows of attention are: [...,T+1], [...,T+1] -> [...].
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "symmetric-kl": symmetric_kl,
    "jensen-shannon": jensen_shannon,
    "squared-l2": squared_l2,
    "total-variation": total_variation,
}


def attention_divergence(
    clean: tuple[Tensor, ...],
    attacked: tuple[Tensor, ...],
    mask: Tensor,
    *,
    kind: str = "symmetric-kl",
    layers: str = "last",
    rows: str = "cls",
) -> Tensor:
    """How far attention moved: [B], summed over keys, averaged over heads, rows and layers.

    Args:
        clean, attacked: maps a layer, [B,H,T+1,T+1]; mask: [B,T] bool.
        kind: one of `DIVERGENCES`; layers: "last" or "all"; rows: "cls" (the row that pools the frames) or "all"
        ([CLS] and every real frame).
    Summed, not averaged, over keys: an entry of a 300-frame map is about 1/300, and a mean of squares vanishes.
    """
    distance = DIVERGENCES[kind]
    pairs = list(zip(clean, attacked, strict=True))[-1 if layers == "last" else 0 :]
    if rows == "cls":
        moved = [distance(p[:, :, 0], q[:, :, 0]).mean(1) for p, q in pairs]  # [B] a layer
    else:
        real = F.pad(mask, (1, 0), value=True)[:, None]  # [B,1,T+1]
        moved = [(distance(p, q) * real).sum(2).mean(1) / real.sum((1, 2)) for p, q in pairs]
    return sum(moved[1:], moved[0]) / len(moved)


def attention_entropy(attention: tuple[Tensor, ...], mask: Tensor) -> Tensor:
    """Entropy of the last layer's [CLS] row as a share of the uniform row's: [B], 1 = flat, 0 = one frame."""
    row = attention[-1][:, :, 0]
    return -(row * _log(row)).sum(-1).mean(1) / (mask.sum(1) + 1.0).log().clamp_min(1e-12)


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


def temporal_attention(maps: tuple[torch.Tensor, ...], layer: int | str = -1, head: int | None = None) -> torch.Tensor:
    """How [CLS] weighs the frames, [B,T]: a layer and a head (None = mean of the heads), or "rollout" through all."""
    if layer == "rollout":
        return rollout(maps)
    rows = cls_attention(maps)[:, int(layer)]  # [B,H,T]
    return rows.mean(1) if head is None else rows[:, head]
