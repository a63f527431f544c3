"""The video Transformer whose temporal attention we watch, attack and repair.

    frames [B,T,D] ─ linear ─► tokens, a learned [CLS] token in front, learned positions added
                   ─ pre-norm blocks (attention over time, then a two-layer perceptron)
                   ─ the [CLS] token of the last block ─► one logit a label

Source: Vaswani et al. 2017 (attention), Xiong et al. 2020 (pre-norm), Abu-El-Haija et al. 2016
(mixture-of-experts head), Abnar & Zuidema 2020 (rollout). The paper's own model is not public: width, depth and
head are this project's choice.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial, reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
# What a model does differently from the default: the controls that take attention away.
MODELS = {"transformer": {}, "uniform": {"attention": "uniform"}, "mean": {"pooling": "mean"}}


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a `VideoTransformer`. Raises: ValueError for a choice that does not exist."""

    features: int  # D, numbers a frame
    labels: int  # C
    max_frames: int = 32  # the longest video, T
    width: int = 64
    heads: int = 4
    layers: int = 2
    activation: str = "gelu"
    head: str = "logistic"  # or "experts"
    experts: int = 2
    attention: str = "learned"  # or "uniform": every query weighs all real tokens alike
    pooling: str = "cls"  # or "mean": the mean of the frame tokens is read out, not [CLS]
    dropout: float = 0.0  # 0, so that maps differ by the attack and not by a dropout mask

    def __post_init__(self):
        choices = {
            "activation": tuple(ACTIVATIONS),
            "head": ("logistic", "experts"),
            "attention": ("learned", "uniform"),
            "pooling": ("cls", "mean"),
        }
        for field, known in choices.items():
            if getattr(self, field) not in known:
                raise ValueError(f"{field} must be one of {', '.join(known)}, got {getattr(self, field)!r}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width={self.width}, heads={self.heads}")


class Output(NamedTuple):
    """What a forward pass gives."""

    logits: Tensor  # [B,C]
    attention: tuple[Tensor, ...] | None  # a layer each: [B,H,T+1,T+1], rows are queries, token 0 is [CLS]


class Block(nn.Module):
    """One pre-norm Transformer block over tokens [B,N,d]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.uniform, d = config.heads, config.attention == "uniform", config.width
        self.norm_attention, self.norm_mlp = nn.LayerNorm(d), nn.LayerNorm(d)
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), ACTIVATIONS[config.activation](), nn.Linear(4 * d, d))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor, *, cls_only=False, maps=None, held=None):
        """Tokens after the block and the attention map, or None.

        bias [B,1,1,N] is 0 for real tokens and -inf for padding. With ``cls_only`` only the [CLS] token leaves the
        block (nothing else is read after the last one), which saves half of a two-layer model. ``maps`` asks for the
        map: True for all rows, "cls" for no more rows than leave the block. ``held`` replaces the map.
        """
        n = self.norm_attention(x)
        value = self._split(self.value(n))
        rows = 1 if cls_only else x.shape[1]
        attention = held
        if held is None and self.uniform:
            attention = torch.softmax(bias, -1).expand(-1, self.heads, x.shape[1], -1)
        elif held is None:
            query = self._split(self.query(n if maps is True else n[:, :rows]))
            key = self._split(self.key(n))
            if maps:  # the same numbers as the fused path below, but they can be looked at
                attention = torch.softmax(query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + bias, -1)
        if attention is None:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        else:
            mixed = attention[:, :, :rows] @ value  # [B,H,rows,d/H]
        x = x[:, :rows] + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.mlp(self.norm_mlp(x))), attention if maps else None

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B,N,d] -> [B,H,N,d/H]


class Experts(nn.Module):
    """Mixture of logistic experts, a gate for each label; the last gate is a dummy expert that always says no."""

    def __init__(self, width: int, labels: int, experts: int):
        super().__init__()
        self.labels, self.experts = labels, experts
        self.gate, self.expert = nn.Linear(width, labels * (experts + 1)), nn.Linear(width, labels * experts)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).unflatten(-1, (self.labels, -1)).log_softmax(-1)
        expert = self.expert(x).unflatten(-1, (self.labels, -1))
        yes = torch.logsumexp(gate[..., :-1] + F.logsigmoid(expert), -1)
        no = torch.logsumexp(torch.cat([gate[..., :-1] + F.logsigmoid(-expert), gate[..., -1:]], -1), -1)
        return yes - no  # log p - log(1-p): a logit, without ever forming a p that rounds to 0 or 1


class VideoTransformer(nn.Module):
    """A Transformer over the frames of a video with one logit a label."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, self.recompute = config, False  # recompute activations in the backward pass: slower, less memory
        self.embed = nn.Linear(config.features, config.width)
        self.cls = nn.Parameter(torch.randn(config.width) * 0.02)
        self.positions = nn.Parameter(torch.randn(config.max_frames + 1, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        size = config.width, config.labels
        self.head = Experts(*size, config.experts) if config.head == "experts" else nn.Linear(*size)

    def forward(self, frames: Tensor, mask: Tensor, *, return_attention=False, held=None) -> Output:
        """Logits, and on request the attention maps of the same pass.

        Args:
            frames: [B,T,D] float, padding anything finite; mask: [B,T] bool, True = real frame.
            return_attention: True for the maps of all layers, explicit softmax instead of the fused kernel;
                "cls" leaves all rows but [CLS] out of the last layer's map, which nothing reads (cheaper to train on).
            held: maps of an earlier pass, used in place of this one's ("steady attention").
        Raises: ValueError for shapes that do not fit and for a video without a real frame.
        """
        self._check(frames, mask)
        x = self.embed(frames)
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], 1) + self.positions[: x.shape[1] + 1]  # [B,T+1,d]
        bias = torch.zeros_like(x[:, None, None, :, 0])  # [B,1,1,T+1]
        bias[:, 0, 0, 1:].masked_fill_(~mask, -torch.inf)
        maps = []
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1 and self.config.pooling == "cls"
            options = {"cls_only": last, "maps": return_attention, "held": held[i] if held else None}
            run = partial(checkpoint, block, use_reentrant=False) if self.recompute and x.requires_grad else block
            x, attention = run(x, bias, **options)
            maps.append(attention)
        return Output(self.head(self.norm(self._pool(x, mask))), tuple(maps) if return_attention else None)

    def _pool(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.config.pooling == "cls":
            return x[:, 0]
        weights = mask / mask.sum(1, keepdim=True)
        return (x[:, 1:] * weights[..., None].to(x)).sum(1)

    def _check(self, frames: Tensor, mask: Tensor) -> None:
        config = self.config
        if frames.ndim != 3 or frames.shape[2] != config.features:
            raise ValueError(f"frames must be [B,T,{config.features}], got {tuple(frames.shape)}")
        if frames.shape[1] > config.max_frames:
            raise ValueError(f"the model takes up to {config.max_frames} frames, got {frames.shape[1]}; set max_frames")
        if mask.shape != frames.shape[:2] or mask.dtype != torch.bool:
            want, got = tuple(frames.shape[:2]), tuple(mask.shape)
            raise ValueError(f"mask must be [B,T]={want} of bool, got {got} of {mask.dtype}; use collate")
        if not mask.any(1).all():
            raise ValueError(f"video {int((~mask.any(1)).nonzero()[0])} of the batch has no real frame; leave it out")


class SteadyAttention(nn.Module):
    """A model whose attention is held at given maps, for the batch they came from.

    What an attacker can still do to it, knowing that, is the most that steadying attention could save.
    """

    def __init__(self, model: VideoTransformer, maps: tuple[Tensor, ...]):
        super().__init__()
        self.model, self.maps = model, tuple(m.detach() for m in maps)

    def forward(self, frames: Tensor, mask: Tensor, *, return_attention=False) -> Output:
        return self.model(frames, mask, return_attention=return_attention, held=self.maps)


class DetachedAttention(nn.Module):
    """The same model to an attacker who looks past its attention: same output, no gradient through the maps."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor, mask: Tensor, *, return_attention=False) -> Output:
        with torch.no_grad():
            maps = self.model(frames, mask, return_attention=True).attention
        return self.model(frames, mask, return_attention=return_attention, held=maps)


def tempered(model: nn.Module, temperature: float) -> nn.Module:
    """A copy whose attention scores are divided by ``temperature`` before the softmax: above 1 is softer."""
    changed = deepcopy(model)
    for block in (module for module in changed.modules() if isinstance(module, Block)):
        for parameter in block.query.parameters():
            parameter.data /= temperature
    return changed


def cls_attention(attention: tuple[Tensor, ...]) -> Tensor:
    """Temporal attention as shown to people: how [CLS] weighs the frames, [B,L,H,T] from maps [B,H,T+1,T+1]."""
    return torch.stack([m[:, :, 0, 1:] for m in attention], 1)


def rollout(attention: tuple[Tensor, ...]) -> Tensor:
    """Attention of [CLS] to the frames through all layers, [B,T]; rows of the maps of all layers are needed.

    Heads are averaged, half of each token is taken to pass by the residual. Source: Abnar & Zuidema 2020, eq. 1.
    """
    means = (layer.mean(1) for layer in attention)
    flow = reduce(lambda flow, mixed: mixed @ flow, ((m + torch.eye(m.shape[-1]).to(m)) / 2 for m in means))
    return flow[:, 0, 1:]
