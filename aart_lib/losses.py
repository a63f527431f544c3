"""What is minimized: loss terms, and the defenses as weighted sums of them.

Every term compares the outputs on clean and on attacked frames and gives one number a video. A `Defense` is data: which
terms count how much, and how the attacked frames are made while training.

The paper's public abstract says that attention maps on clean and adversarial input must agree. The form of that
term, its weight, its layer and the training attack are this project's reconstruction.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aart_lib.attention import DIVERGENCES, attention_divergence
from aart_lib.data.exact import one_of
from aart_lib.model import Output, wide


def bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy summed over the labels: [B,C], [B,C] -> [B] (nats)."""
    return F.binary_cross_entropy_with_logits(wide(logits), labels.to(wide(logits)), reduction="none").sum(1)


def bernoulli_kl(logits: Tensor, other: Tensor) -> Tensor:
    """KL divergence of the labels' probabilities, each a coin of its own: [B,C], [B,C] -> [B] (nats).

    Source: Zhang et al. 2019 (TRADES), whose softmax KL is for exclusive classes; ours are not exclusive.
    """
    logits, other = wide(logits), wide(other)
    probability = torch.sigmoid(logits)
    yes = F.logsigmoid(logits) - F.logsigmoid(other)
    no = F.logsigmoid(-logits) - F.logsigmoid(-other)
    return (probability * yes + (1 - probability) * no).sum(1)


@dataclass(frozen=True)
class Term:
    """A part of the loss: ``of(defense, clean, attacked, labels, mask)`` -> [B], from two `Output`s, [B,C] and [B,T].

    It says itself what it needs. With ``needs_attacked=False`` it is learned on clean frames alone, and ``attacked`` is
    None. ``needs_maps``: False; True for all maps; "rows" for those that the defense's ``layers`` and ``rows`` name.
    """

    of: Callable[..., Tensor]
    needs_attacked: bool = True
    needs_maps: bool | str = True


def _task(defense, clean: Output, attacked, labels: Tensor, mask) -> Tensor:
    return bce(clean.logits, labels)


def _robust(defense, clean, attacked: Output, labels: Tensor, mask) -> Tensor:
    return bce(attacked.logits, labels)


def _pairing(defense, clean: Output, attacked: Output, labels, mask) -> Tensor:
    return (clean.logits - attacked.logits).square().sum(1)


def _consistency(defense, clean: Output, attacked: Output, labels, mask) -> Tensor:
    return bernoulli_kl(clean.logits, attacked.logits)


def _attention(defense: "Defense", clean: Output, attacked: Output, labels, mask: Tensor) -> Tensor:
    assert clean.attention is not None and attacked.attention is not None
    maps = tuple(m.detach() for m in clean.attention) if defense.fixed_maps else clean.attention
    how: dict = {"kind": defense.kind, "layers": defense.layers, "rows": defense.rows}
    return attention_divergence(maps, attacked.attention, mask, **how)


# A plain function may stand here too: it is given everything.
TERMS: dict[str, Term | Callable] = {
    "task": Term(_task, needs_attacked=False, needs_maps=False),
    "robust": Term(_robust, needs_maps=False),
    "pairing": Term(_pairing, needs_maps=False),
    "consistency": Term(_consistency, needs_maps=False),
    "attention": Term(_attention, needs_maps="rows"),
}


def term(name: str) -> Term:
    """The loss term of that name."""
    found = TERMS[name]
    return found if isinstance(found, Term) else Term(found)


def terms(defense: "Defense", clean: Output, attacked: Output | None, labels: Tensor, mask: Tensor, names) -> dict:
    """The named loss terms, unweighted, each the mean over the batch."""
    return {name: term(name).of(defense, clean, attacked, labels, mask).mean() for name in names}


@dataclass(frozen=True)
class Defense:
    """How a model is trained.

    Weights name the terms: ``task`` (BCE, clean), ``robust`` (BCE, attacked), ``pairing`` (squared difference of
    logits), ``consistency`` (Bernoulli KL of clean from attacked), ``attention`` (`attention_divergence`).
    """

    weights: dict[str, float]
    objective: str = "bce"  # of the training attack; controls: "noise", "shuffled" (frames in another order)
    steps: int = 1
    start: str = "zero"
    epsilon_scale: float = 1.0  # training ε over test ε
    two_sided: bool = False  # gradients flow through the clean side of a pair too
    fixed_maps: bool = True  # clean maps never get a gradient: two maps that may both move agree by becoming flat
    kind: str = "symmetric-kl"
    layers: str = "last"
    rows: str = "cls"
    few: float = 0.0  # share of the videos whose attacker in training has one frame, see `ThreatModel.few`
    splice: bool = False  # that one frame may then become anything in the box
    model: dict[str, Any] = field(default_factory=dict)  # choices of `ModelConfig` that differ

    def __post_init__(self):
        for name in self.weights:
            one_of("loss term", name, TERMS)
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.weights.values()):
            raise ValueError(f"weights must be numbers of at least 0, got {dict(self.weights)}")
        if not self.weights:
            raise ValueError(f"a defense needs at least one loss term; known: {', '.join(TERMS)}")
        one_of("kind", self.kind, DIVERGENCES)
        one_of("layers", self.layers, ("last", "all"))
        one_of("rows", self.rows, ("cls", "all"))

    @property
    def needs_attacked(self) -> bool:
        """Whether training needs attacked frames at all."""
        return any(term(name).needs_attacked for name in self.weights)

    @property
    def needs_maps(self) -> bool | str:
        """What a forward pass must give for the terms: False, True (all maps) or "cls" (the last layer's [CLS] row)."""
        wanted = {term(name).needs_maps for name in self.weights} - {False}
        one_row = wanted == {"rows"} and (self.layers, self.rows) == ("last", "cls")
        return "cls" if one_row else bool(wanted)

    @property
    def shares_clean_pass(self) -> bool:
        """Whether the clean pass's own gradient serves as the attack's, so that a step costs two passes, not three."""
        single = self.steps == 1 and self.start == "zero" and self.objective == "bce"
        alone = self.clean_terms == ["task"] and self.weights["task"] > 0
        return single and alone and self.needs_attacked and not self.few

    @property
    def clean_terms(self) -> list[str]:
        """The terms that are learned on clean frames alone."""
        return [name for name in self.weights if not term(name).needs_attacked]


_TRADES = Defense(
    {"task": 1.0, "consistency": 1.0}, objective="kl", steps=2, start="random", epsilon_scale=4.0, two_sided=True
)
# A-ART, reconstructed: predictions stay, as in TRADES, and so does the row of attention that pools the frames.
_AART = replace(_TRADES, weights=_TRADES.weights | {"attention": 0.3}, fixed_maps=False)
_ADVERSARIAL = Defense({"task": 0.2, "robust": 0.8}, epsilon_scale=4.0)
_PAIRED = Defense({"task": 0.5, "robust": 0.5, "pairing": 0.03}, epsilon_scale=3.0, two_sided=True)
_SIMPLE = Defense({"task": 0.5, "robust": 0.5})
_ATTENTION = replace(_AART, weights={"task": 1.0, "attention": 0.3})
# Each is what is trained on synthetic data, as trials chose it; `experiment/recipes.py` holds what trials on other data
# chose otherwise.
DEFENSES = {
    "standard": Defense({"task": 1.0}),
    "adversarial": _ADVERSARIAL,  # Goodfellow et al. 2015, Madry et al. 2018: learn from attacked frames too
    "logit-pairing": _PAIRED,  # Kannan et al. 2018: the same video must get the same logits, attacked or not
    "trades": _TRADES,  # Zhang et al. 2019: no label in the attack; clean accuracy against consistency
    # Miyato et al. 2018: the direction in which the prediction changes most, found from a tiny start, without labels.
    "vat": replace(_TRADES, steps=1, start="tiny", two_sided=False),
    "a-art": _AART,
    "a-art-fast": replace(_PAIRED, weights=_PAIRED.weights | {"attention": 0.3}),  # as cheap as adversarial training
    # Controls. If attention that cannot move is as robust, the gain is not attention's.
    "adversarial-uniform": replace(_ADVERSARIAL, model={"attention": "uniform"}),
    "trades-uniform": replace(_TRADES, model={"attention": "uniform"}),
    "adversarial-mean": replace(_ADVERSARIAL, model={"pooling": "mean"}),
    "adversarial-attention": Defense({"task": 0.5, "robust": 0.5, "attention": 1.0}, epsilon_scale=3.0),
    "adversarial-steps": replace(_ADVERSARIAL, steps=2, start="random"),  # as many gradients a step as A-ART
    # A-ART with more of the maps, with clean maps that do not give way, and against one-frame attackers too.
    "a-art-all-layers": replace(_AART, layers="all"),
    "a-art-all-rows": replace(_AART, layers="all", rows="all"),
    "a-art-fixed-maps": replace(_AART, fixed_maps=True),
    "a-art-few": replace(_AART, few=0.5),
    "trades-few": replace(_AART, weights=_TRADES.weights, few=0.5),  # a-art-few without its attention term
    # The paper's staircase as image papers would build it: the test's ε, half clean, half attacked; and with the term.
    "adversarial-simple": _SIMPLE,
    "adversarial-relu": replace(_SIMPLE, model={"activation": "relu"}),
    "adversarial-simple-uniform": replace(_SIMPLE, model={"attention": "uniform"}),
    "a-art-simple": replace(_SIMPLE, weights=_SIMPLE.weights | {"attention": 1.0}),
    # The attention term without any other defense: on attacked, noisy and reordered frames.
    "attention-only": _ATTENTION,
    "attention-noise": replace(_ATTENTION, objective="noise", steps=1, start="zero"),
    "attention-shuffled": replace(_ATTENTION, objective="shuffled", steps=1, start="zero"),
}


def defense(name: str) -> Defense:
    """The defense of that name. Raises: ValueError that lists the known ones."""
    one_of("defense", name, DEFENSES)
    return DEFENSES[name]
