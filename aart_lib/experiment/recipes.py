"""How the defenses are trained on each data set, and the trials that chose it."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

from aart_lib.losses import Defense, defense

MIXED, MOSTLY = {"task": 0.5, "robust": 0.5}, {"task": 0.2, "robust": 0.8}
SIX = ("standard", "adversarial", "logit-pairing", "trades", "vat", "a-art")
# What the trials on each data set's validation split chose (figures/trials-*.json, a test compares); all else as above.
TUNED: dict[str, dict[str, dict]] = {
    "synthetic": {
        "standard": {"rate": 0.004, "weight_decay": 0.1},
        "adversarial": {"epsilon_scale": 4.0, "weights": MOSTLY},
        "logit-pairing": {"epsilon_scale": 3.0, "weights": MIXED | {"pairing": 0.03}},
        "trades": {"epsilon_scale": 4.0, "weights": {"consistency": 1.0}},
        "vat": {"epsilon_scale": 4.0, "weights": {"consistency": 1.0}},
        "a-art": {"epsilon_scale": 4.0, "weights": {"consistency": 1.0, "attention": 0.3}},
        "a-art-fast": {"epsilon_scale": 3.0, "weights": MIXED | {"pairing": 0.03, "attention": 0.3}},
        "adversarial-uniform": {"epsilon_scale": 4.0, "weights": MOSTLY},
        "adversarial-mean": {"epsilon_scale": 4.0, "weights": MOSTLY},  # as the control beside it
    },
    "audioset": {
        "standard": {"rate": 0.002, "weight_decay": 0.1},
        "adversarial": {"epsilon_scale": 4.0, "weights": MOSTLY},
        "logit-pairing": {"epsilon_scale": 4.0, "weights": MOSTLY | {"pairing": 0.1}},
        "trades": {"epsilon_scale": 4.0, "weights": {"consistency": 6.0}},
        "vat": {"epsilon_scale": 3.0, "weights": {"consistency": 3.0}},
        "a-art": {"epsilon_scale": 4.0, "weights": {"consistency": 6.0, "attention": 0.3}},
        "a-art-fast": {"epsilon_scale": 3.0, "weights": MOSTLY | {"pairing": 0.1, "attention": 1.0}},
        "adversarial-uniform": {"epsilon_scale": 3.0, "weights": MOSTLY},
    },
}


def changed(name: str, changes: Mapping) -> tuple[Defense, dict]:
    """A defense with changes, ``weights`` among them term by term; settings of the loop are handed back apart."""
    recipe, changes = defense(name), dict(changes)
    settings = {key: changes.pop(key) for key in ("rate", "weight_decay") if key in changes}
    weights = dict(recipe.weights) | changes.pop("weights", {})
    return replace(recipe, weights=weights, **changes), settings


def tuned(data: str, name: str) -> tuple[Defense, dict]:
    """The defense as tuned for a data set, and settings of the training loop.

    A data set without trials of its own gets what the trials on the embedded data chose, for every defense alike.
    """
    return changed(name, TUNED.get(data, TUNED["synthetic"]).get(name, {}))


_PAIRED = (MIXED | {"pairing": 0.03}, MOSTLY | {"pairing": 0.1})
_KEEP = ({"consistency": 1.0}, {"consistency": 3.0}, {"consistency": 6.0})
_STEADY = [{"consistency": c, "attention": beta} for c, beta in ((1.0, 0.3), (1.0, 1.0), (3.0, 0.3), (6.0, 0.3))]
# Pairs of (training ε over the test's, weights). Four for each; where the best lay at an edge, simple extensions got
# trials beyond it, so that none had fewer than A-ART.
GRIDS = {
    "synthetic": {
        "adversarial": [*product((3.0, 4.0, 5.0), (MIXED, MOSTLY))],
        "logit-pairing": [*product((3.0, 4.0, 5.0), _PAIRED)],
        "trades": [*product((3.0, 4.0), _KEEP[:2])],
        "vat": [*product((3.0, 4.0), _KEEP[:2])],
        "a-art": [*product((3.0, 4.0), _STEADY[:2])],
        "adversarial-uniform": [*product((3.0, 4.0), (MIXED, MOSTLY))],
    },
    "audioset": {
        "adversarial": [*product((2.0, 3.0), (MIXED, MOSTLY)), (4.0, MOSTLY)],
        "logit-pairing": [*product((2.0, 3.0), _PAIRED), (4.0, _PAIRED[1])],
        "trades": [*product((2.0, 3.0), _KEEP[:2]), (3.0, _KEEP[2]), (4.0, _KEEP[2])],
        "vat": [*product((2.0, 3.0), _KEEP[:2])],
        "a-art": [*product((3.0, 4.0), _STEADY[2:])],
        "adversarial-uniform": [*product((2.0, 3.0), (MIXED, MOSTLY))],
    },
}
RATES = {"synthetic": (1e-3, 2e-3, 4e-3), "audioset": (1e-3, 2e-3)}  # of the baseline, which has no training ε


def grid(data: str) -> dict[str, list[dict]]:
    """The trials of each defense on a data set, as changes of the defense; other data sets use AudioSet's."""
    data = data if data in GRIDS else "audioset"
    baseline = [{"rate": rate, "weight_decay": decay} for rate, decay in product(RATES[data], (0.01, 0.1))]
    others = {
        name: [{"epsilon_scale": scale, "weights": weights} for scale, weights in pairs]
        for name, pairs in GRIDS[data].items()
    }
    return {"standard": baseline} | others
