"""How the defenses are trained on each data set; figures/tune.py ran the trials that chose it.

`losses.DEFENSES` is what is trained on synthetic data, and on every data set without trials of its own.
"""

from collections.abc import Mapping
from dataclasses import replace

from aart_lib.losses import Defense, defense

SIX = ("standard", "adversarial", "logit-pairing", "trades", "vat", "a-art")
MIXED, MOSTLY = {"task": 0.5, "robust": 0.5}, {"task": 0.2, "robust": 0.8}
MIXED_PAIRED, MOSTLY_PAIRED = MIXED | {"pairing": 0.03}, MOSTLY | {"pairing": 0.1}
# What is trained otherwise than `DEFENSES` and `TrainConfig` say, as the trials on each data set's validation split
# chose it (figures/trials-*.json, a test compares).
TUNED: dict[str, dict[str, dict]] = {
    "synthetic": {"standard": {"rate": 0.004, "weight_decay": 0.1}},
    "audioset": {
        "standard": {"rate": 0.002, "weight_decay": 0.1},
        "logit-pairing": {"epsilon_scale": 4.0, "weights": MOSTLY_PAIRED},
        "trades": {"weights": {"consistency": 6.0}},
        "vat": {"epsilon_scale": 3.0, "weights": {"consistency": 3.0}},
        "a-art": {"weights": {"consistency": 6.0}},
        "a-art-fast": {"weights": MOSTLY_PAIRED | {"attention": 1.0}},
        "adversarial-uniform": {"epsilon_scale": 3.0},
        "adversarial-mean": {"epsilon_scale": 2.0, "weights": MIXED},  # no trials: the first guess
    },
}


def changed(name: str, changes: Mapping) -> tuple[Defense, dict]:
    """A defense with changes, ``weights`` among them term by term; settings of the loop are handed back apart."""
    recipe, changes = defense(name), dict(changes)
    settings = {key: changes.pop(key) for key in ("rate", "weight_decay") if key in changes}
    weights = dict(recipe.weights) | changes.pop("weights", {})
    return replace(recipe, weights=weights, **changes), settings


def tuned(data: str, name: str) -> tuple[Defense, dict]:
    """The defense as trained on a data set, and settings of the training loop.

    A data set without trials of its own gets what the trials on synthetic data chose, for every defense alike.
    """
    return changed(name, TUNED.get(data, TUNED["synthetic"]).get(name, {}))
