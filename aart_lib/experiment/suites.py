"""Which attacks judge a model: a name for each, those within the threat model and those beyond it.

Source: Carlini et al. 2019 (what an evaluation must try), Croce & Hein 2020 (several objectives, automatic steps),
Tramèr et al. 2020 (attacks made for one defense).
"""

from collections.abc import Sequence

from aart_lib.attacks import OBJECTIVES, Attack, fgsm, noise, pgd
from aart_lib.data.exact import one_of
from aart_lib.threats import ThreatModel

SUITES = ("quick", "standard", "splice", "strong")  # "splice": standard, and one frame that may be anything
# Of ε, beside 1 and 2.
CURVE = {"quick": (), "splice": (), "standard": (0.5, 1.5, 3.0), "strong": (0.5, 1.5, 3.0, 4.0, 8.0, 16.0)}
MIXTURES = (-10.0, -1.0, 1.0, 10.0)  # weight of attention moved against BCE: hold it still, or push it away
SPLICE_STEPS = (0.3, 0.1, 0.03)  # of the width of the box
FREE_VIDEOS, FREE_QUERIES = 200, 1000  # the search without gradients


def suite(
    name: str, threat: ThreatModel, *, threshold: float = 0.0, surrogates: Sequence[str] = ()
) -> tuple[dict[str, Attack], dict[str, Attack]]:
    """Attacks within the threat model, whose worst case counts, and those beyond it.

    Args:
        threshold: logit above which a data set has as many scores as true labels, for the objective "gap".
        surrogates: names of other models; what is made for them is tried too (suite "strong").
    Raises: ValueError for an unknown suite.
    """
    one_of("suite", name, SUITES)
    steps, restarts = (10, 1) if name == "quick" else (20, 2)
    within = {"noise": noise(threat), "fgsm": fgsm(threat), "pgd": pgd(threat, steps, restarts)}
    one = threat.few()
    beyond = {"pgd@2": pgd(threat.times(2), steps, 1), "frames-1": pgd(one, steps, 2 * restarts - 1, frames="trial")}
    beyond |= {f"curve@{factor:g}": _far(threat.times(factor), factor) for factor in CURVE[name]}
    if name in ("splice", "strong") and threat.box:
        # One frame may be anything. Where ε is that large, no single size of the steps serves all videos.
        splice = {f"splice-{size:g}": {"frames": "trial", "step_size": size} for size in SPLICE_STEPS}
        beyond |= {key: pgd(threat.spliced(), 20, 3, **how) for key, how in splice.items()}
    if name == "strong":
        within |= _strong(threat, threshold) | _adaptive(threat)
        within |= {transfer(other): pgd(threat, 20, 1) for other in surrogates}
        beyond |= _beyond(threat)
    return within, beyond


def transfer(other: str) -> str:
    """The name of the attack that is made for another model."""
    return f"transfer-{other}"


def _far(threat: ThreatModel, factor: float) -> Attack:
    """Where ε is huge, steps of a fixed share of it are clumsy: there they halve themselves."""
    return Attack(threat, steps=30, search="auto") if factor >= 8 else pgd(threat, 10, 1)


def _strong(threat: ThreatModel, threshold: float) -> dict[str, Attack]:
    return {
        **{f"pgd-{steps}": pgd(threat, steps, 5) for steps in (10, 50, 100)},
        "pgd-margin": pgd(threat, 50, 2, objective="margin"),
        "pgd-targeted": pgd(threat, 20, 3, objective="targeted"),
        "pgd-gap": pgd(threat, 50, 2, objective=OBJECTIVES["gap"].at(threshold)),
        "apgd": Attack(threat, steps=100, search="auto"),
        "label-free": pgd(threat, 50, 1, labels="predicted"),
        "gradient-free": Attack(threat, steps=FREE_QUERIES, search="random"),
    }


def _adaptive(threat: ThreatModel) -> dict[str, Attack]:
    """By an attacker who knows that attention is guarded: around it, through it, and from where it moves most."""
    shift = {kind: pgd(threat, 10, 1, objective=kind) for kind in ("attention", "attention-scores")}
    views = "detached", "softer", "sharper", "unbounded"
    return {
        **{f"adaptive-{view}": pgd(threat, 20, 1, view=view) for view in views},
        "adaptive-start": pgd(threat, 20, 1, first=shift["attention"]),
        "adaptive-scores": pgd(threat, 20, 1, first=shift["attention-scores"]),
        **{f"adaptive-mix{w:+g}": pgd(threat, 20, 1, objective=OBJECTIVES["bce-attention"].at(w)) for w in MIXTURES},
    }


def _beyond(threat: ThreatModel) -> dict[str, Attack]:
    double = threat.times(2)
    found = {"pgd-margin@2": pgd(double, 50, 1, objective="margin"), "apgd@2": Attack(double, steps=50, search="auto")}
    found |= {f"frames-{k}": pgd(threat.few(k), 20, 1, frames="trial") for k in (2, 4)}
    return found | {
        f"frames-1-{how}": pgd(threat.few(), 20, 1, frames=how) for how in ("gradient", "attention", "random")
    }
