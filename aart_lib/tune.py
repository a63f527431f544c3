"""Equal tuning effort: the same number of trials for every defense, judged on the validation split, all of them kept.

A trial is a defense with other weights, another training ε or other settings of the loop. None sees the test split.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

from aart_lib.attacks import ThreatModel, pgd
from aart_lib.data import Splits
from aart_lib.evaluate import few_frames_epsilon, score
from aart_lib.losses import DEFENSES, Defense
from aart_lib.reproduce import Preset, model_config, with_weights, write_json
from aart_lib.train import TrainConfig, train

# The two things that matter for each: the training ε over the test's, and one weight.
_MIXED, _MOSTLY = {"task": 0.5, "robust": 0.5}, {"task": 0.2, "robust": 0.8}
GRID: dict[str, list[dict]] = {
    "standard": [{"rate": r, "weight_decay": w} for r, w in product((1e-3, 2e-3, 4e-3), (0.01, 0.1))],
    "adversarial": [{"epsilon_scale": s, "weights": w} for s, w in product((1.5, 2.0, 3.0), (_MIXED, _MOSTLY))],
    "logit-pairing": [
        {"epsilon_scale": s, "weights": {"pairing": w}} for s, w in product((1.5, 2.0, 3.0), (0.03, 0.3))
    ],
    "trades": [{"epsilon_scale": s, "weights": {"consistency": w}} for s, w in product((1.5, 2.0, 3.0), (1.0, 3.0))],
    "vat": [{"epsilon_scale": s, "weights": {"consistency": w}} for s, w in product((1.5, 2.0, 3.0), (1.0, 3.0))],
    "a-art": [{"epsilon_scale": s, "weights": {"attention": w}} for s, w in product((1.5, 2.0, 3.0), (3.0, 10.0))],
    "adversarial-uniform": [{"epsilon_scale": s, "weights": w} for s, w in product((1.5, 2.0, 3.0), (_MIXED, _MOSTLY))],
}


def trial(name: str, changes: dict, splits: Splits, threat: ThreatModel, preset: Preset) -> dict:
    """Train one setting (seed 0) and measure it on the validation split: clean, PGD-10 at ε and 2ε, one frame."""
    changes = dict(changes)
    settings = {key: changes.pop(key) for key in ("rate", "weight_decay") if key in changes}
    recipe: Defense = with_weights(DEFENSES[name], **changes.pop("weights", {}))
    recipe = replace(recipe, **changes)
    config = TrainConfig(preset.epochs, preset.batch_size, seed=0, **settings)
    model, history = train(recipe, splits, model_config(splits, preset), threat, config, progress=name)
    one_frame = ThreatModel(threat.norm, few_frames_epsilon(threat), 1)
    attacks = {"clean": None, "pgd": threat, "pgd@2": threat.times(2), "frames-1": one_frame}
    gaps = {
        key: score(model, splits.validation, found and pgd(found, steps=10, restarts=1))["gap"]
        for key, found in attacks.items()
    }
    return {
        "epochs": preset.epochs,
        "recipe": asdict(recipe),
        **settings,
        **gaps,
        "seconds": sum(e["seconds"] for e in history),
    }


def merit(result: dict, name: str) -> float:
    """What a trial is chosen by: the mean of GAP at ε and 2ε; the baseline, which defends nothing, by its clean GAP."""
    return result["clean"] if name == "standard" else (result["pgd"] + result["pgd@2"]) / 2


def tune(splits: Splits, threat: ThreatModel, preset: Preset, out, *, defenses: Sequence[str] | None = None) -> dict:
    """Run all trials of `GRID`; ``out`` (JSON) is written after each, and what it holds already is not run again."""
    path, ledger = Path(out), {}
    if path.exists():
        ledger = json.loads(path.read_text())["trials"]
    for name in defenses or GRID:
        for changes in GRID[name]:
            done = ledger.setdefault(name, [])
            if any(known["changes"] == changes and known["epochs"] == preset.epochs for known in done):
                continue
            done.append({"changes": changes} | trial(name, changes, splits, threat, preset))
            best = {key: max(trials, key=lambda t, key=key: merit(t, key)) for key, trials in ledger.items() if trials}
            chosen = {key: {"changes": b["changes"], "merit": merit(b, key)} for key, b in best.items()}
            about = {"norm": threat.norm, "epsilon": threat.epsilon, "split": "validation", "seed": 0}
            write_json(path, {"data": splits.spec.name, "threat": about, "chosen": chosen, "trials": ledger})
    return ledger
