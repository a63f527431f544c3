"""The video Transformer whose temporal attention we watch, attack and repair.

    frames [B,T,D] ─ linear ─► tokens, a learned [CLS] token in front, learned positions added
                   ─ pre-norm blocks (attention over time, then a two-layer perceptron)
                   ─ the [CLS] token of the last block ─► one logit a label

Source: Vaswani et al. 2017 (attention), Xiong et al. 2020 (pre-norm), Abnar & Zuidema 2020 (rollout). The paper's own
model is not public: width, depth and head are this project's choice. There is no dropout, so that maps differ by the
attack and not by a mask.

What a model of your own must offer, as a module or any other callable:

    for                                          call                                    that gives
    `score`, `perturb`                           model(frames, mask)                     logits [B,C], or `.logits`
    maps (`evaluate`, objectives and terms       model(..., return_attention=True)       `.attention`: a layer each
    that need them, drift, explorer)                                                     [B,H,T+1,T+1], token 0 is [CLS]
    `SteadyAttention`, view "detached"           model(..., held=maps)                   the same with these maps
    views "softer" and "sharper"                 model.tempered(temperature)             a copy, scores divided by it
    attention that cannot move, on purpose       model.fixed_attention = True
"""

import inspect
from collections.abc import Callable
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aart_lib.data.exact import one_of

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


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
    attention: str = "learned"  # or "uniform": every query weighs all real tokens alike
    pooling: str = "cls"  # or "mean": the mean of the frame tokens is read out, not [CLS]
    bound: float | None = None  # c: a score s becomes c·tanh(s / c), so that no frame outweighs another by over e^2c
    bounded: str = "all"  # or "last": the blocks whose scores are bounded

    def __post_init__(self):
        one_of("activation", self.activation, ACTIVATIONS)
        one_of("attention", self.attention, ("learned", "uniform"))
        one_of("pooling", self.pooling, ("cls", "mean"))
        one_of("choice of bounded blocks", self.bounded, ("all", "last"))
        if self.bound is not None and not 0 < self.bound < 1e6:
            raise ValueError(f"bound must be a positive number or None, got {self.bound}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width={self.width}, heads={self.heads}")


class Output(NamedTuple):
    """What a forward pass gives."""

    logits: Tensor  # [B,C]
    attention: tuple[Tensor, ...] | None  # of layers: [B,H,T+1,T+1], rows are queries, token 0 is [CLS]


def predict(model, frames: Tensor, mask: Tensor, *, return_attention: bool | str = False, held=None) -> Output:
    """The output of any model of the table above, in single precision or better, so that no log of it is infinite.

    Frames [B,T,D] are given in the precision of the model's weights. Raises: ValueError for a model that does not offer
    what is asked of it.
    """
    asked = {"return_attention": return_attention} if return_attention else {}
    asked |= {} if held is None else {"held": held}
    if missing := [option for option in asked if not _takes(model, option)]:
        raise ValueError(f"{_name(model)} takes no `{missing[0]}=`, which this needs; see `aart_lib.model`")
    found = model(frames.to(precision(model) or frames.dtype), mask, **asked)
    logits = found if isinstance(found, Tensor) else getattr(found, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(frames):
        got = f"{type(found).__name__} {tuple(logits.shape) if isinstance(logits, Tensor) else 'without `.logits`'}"
        raise ValueError(f"{_name(model)} must return logits [B,C] with B={len(frames)}, or `.logits`; got {got}")
    return Output(wide(logits), _maps(model, found, frames.shape[1]) if return_attention else None)


def wide(x: Tensor) -> Tensor:
    """The tensor in single precision, if it has less."""
    return x.float() if x.is_floating_point() and x.itemsize < 4 else x


def _takes(model, option: str) -> bool:
    known = inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters.values()
    return any(p.name == option or p.kind is p.VAR_KEYWORD for p in known)


def _name(model) -> str:
    return f"the model {type(model).__name__ if isinstance(model, nn.Module) else getattr(model, '__name__', model)}"


def precision(model) -> torch.dtype | None:
    """Of the model's weights; None if it has none."""
    weights = model.parameters() if isinstance(model, nn.Module) else ()
    return next((weight.dtype for weight in weights if weight.is_floating_point()), None)


def _maps(model, found, frames: int) -> tuple[Tensor, ...]:
    maps = getattr(found, "attention", None)
    if not maps or any(m.ndim != 4 or m.shape[3] != frames + 1 for m in maps):
        got = [tuple(m.shape) for m in maps or ()] or "none"
        raise ValueError(f"{_name(model)} must return maps [B,H,T+1,T+1] as `.attention`, T={frames}; got {got}")
    return tuple(map(wide, maps))


@contextmanager
def evaluating(model):
    """The model in eval mode inside, every module back in its own mode after."""
    modes = {module: module.training for module in model.modules()} if isinstance(model, nn.Module) else {}
    if modes:
        model.eval()
    try:
        yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


class Block(nn.Module):
    """One pre-norm Transformer block over tokens [B,N,d]."""

    def __init__(self, config: ModelConfig, *, last: bool = False):
        super().__init__()
        self.heads, self.uniform, d = config.heads, config.attention == "uniform", config.width
        self.bound = config.bound if last or config.bounded == "all" else None
        self.norm_attention, self.norm_mlp = nn.LayerNorm(d), nn.LayerNorm(d)
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), ACTIVATIONS[config.activation](), nn.Linear(4 * d, d))

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
            if maps or self.bound:  # the same numbers as the fused path below, but they can be looked at
                scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5  # [B,H,rows,N]
                bounded = self.bound * (scores / self.bound).tanh() if self.bound else scores
                attention = torch.softmax(bounded + bias, -1)
        if attention is None:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        else:
            mixed = attention[:, :, :rows] @ value  # [B,H,rows,d/H]
        x = x[:, :rows] + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_mlp(x)), attention if maps else None

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B,N,d] -> [B,H,N,d/H]


class VideoTransformer(nn.Module):
    """A Transformer over the frames of a video with one logit a label."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, self.recompute = config, False  # recompute activations in the backward pass: slower, less memory
        self.embed = nn.Linear(config.features, config.width)
        self.cls = nn.Parameter(torch.randn(config.width) * 0.02)
        self.positions = nn.Parameter(torch.randn(config.max_frames + 1, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config, last=i == config.layers - 1) for i in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.labels)

    @property
    def fixed_attention(self) -> bool:
        """Whether the maps do not depend on the frames, on purpose."""
        return self.config.attention == "uniform"

    def forward(self, frames: Tensor, mask: Tensor, *, return_attention=False, held=None) -> Output:
        """Logits, and on request the attention maps of the same pass.

        Args:
            frames: [B,T,D] float, padding anything finite; mask: [B,T] bool, True = real frame.
            return_attention: True for the maps of all layers, explicit softmax instead of the fused kernel; "cls" for
                the last layer's map alone, and of it the row of [CLS], which A-ART reads (a third less memory).
            held: maps of an earlier pass, used in place of this one's ("steady attention").
        Raises: ValueError for shapes that do not fit and for a video without a real frame.
        """
        self._check(frames, mask)
        x = self.embed(frames)
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], 1) + self.positions[: x.shape[1] + 1]  # [B,T+1,d]
        bias = F.pad(torch.zeros_like(x[:, 1:, 0]).masked_fill(~mask, -torch.inf), (1, 0))[:, None, None]  # [B,1,1,T+1]
        maps = []
        for i, block in enumerate(self.blocks):
            last = block is self.blocks[-1]
            cls_only = last and self.config.pooling == "cls"
            wanted = return_attention if last else return_attention is True
            run = partial(checkpoint, block, use_reentrant=False) if self.recompute and x.requires_grad else block
            x, attention = run(x, bias, cls_only=cls_only, maps=wanted, held=held[i] if held else None)
            maps += [attention] if wanted else []
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


class DetachedAttention(nn.Module):
    """The same outputs, but gradients take the attention maps for constants."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor, mask: Tensor, *, return_attention=False) -> Output:
        with torch.no_grad():
            maps = predict(self.model, frames, mask, return_attention=True).attention
        return predict(self.model, frames, mask, return_attention=return_attention, held=maps)


def tempered(model: nn.Module, temperature: float) -> nn.Module:
    """A copy whose attention scores are divided by ``temperature`` before the softmax: above 1 is softer.

    Raises: ValueError for a model of another kind that has no ``tempered(temperature)``.
    """
    if (own := getattr(model, "tempered", None)) is not None:
        return own(temperature)
    changed = deepcopy(model)
    blocks = [module for module in changed.modules() if isinstance(module, Block)]
    if not blocks:
        raise ValueError(f"{_name(model)} has attention of its own; it needs `tempered(temperature)` for this view")
    for parameter in (parameter for block in blocks for parameter in block.query.parameters()):
        parameter.data /= temperature
    return changed


def unbounded(model: nn.Module) -> nn.Module:
    """A copy whose attention scores are free, whatever `ModelConfig.bound` says."""
    changed = deepcopy(model)
    for block in changed.modules() if isinstance(changed, nn.Module) else ():
        if isinstance(block, Block):
            block.bound = None
    return changed


# What the attacker's gradients are taken from, made of the model. The perturbation is for the model itself.
VIEWS: dict[str, Callable] = {
    "own": lambda model: model,
    "detached": DetachedAttention,  # past the attention
    "softer": partial(tempered, temperature=2.0),  # where the softmax is saturated, its gradient vanishes
    "sharper": partial(tempered, temperature=0.5),
    "unbounded": unbounded,  # where a bounded score no longer moves
}
