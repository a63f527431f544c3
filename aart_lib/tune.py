"""Equal tuning effort: the same number of trials for every defense, judged on the validation split, all of them kept.

A trial is a defense with other weights, another training ε or other settings of the loop. None sees the test split.
"""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from aart_lib.attacks import ThreatModel, pgd
from aart_lib.data import Splits
from aart_lib.evaluate import few_frames_epsilon, score
from aart_lib.losses import changed
from aart_lib.records import write_json
from aart_lib.reproduce import Preset, model_config, train_config
from aart_lib.train import train

SCALES = {"synthetic": (3.0, 4.0), "audioset": (2.0, 3.0)}  # training ε over the test's; found by a first look
_MIXED, _MOSTLY = {"task": 0.5, "robust": 0.5}, {"task": 0.2, "robust": 0.8}
_PAIRED = (_MIXED | {"pairing": 0.03}, _MOSTLY | {"pairing": 0.1})
WEIGHTS = {
    "adversarial": (_MIXED, _MOSTLY),
    "logit-pairing": _PAIRED,
    "trades": ({"consistency": 1.0}, {"consistency": 3.0}),
    "vat": ({"consistency": 1.0}, {"consistency": 3.0}),
    "a-art": (_PAIRED[0] | {"attention": 0.3}, _PAIRED[1] | {"attention": 1.0}),
    "adversarial-uniform": (_MIXED, _MOSTLY),
}


def grid(data: str) -> dict[str, list[dict]]:
    """The trials of each defense on a data set, as changes of the defense; as many for each."""
    scales = SCALES.get(data, SCALES["audioset"])
    rates = [{"rate": rate, "weight_decay": decay} for rate, decay in product((1e-3, 2e-3, 4e-3), (0.01, 0.1))]
    trials = {"standard": rates[: 2 * len(scales)]}
    for name, weights in WEIGHTS.items():
        trials[name] = [{"epsilon_scale": scale, "weights": weight} for scale, weight in product(scales, weights)]
    return trials


def trial(name: str, changes: dict, splits: Splits, threat: ThreatModel, preset: Preset) -> dict:
    """Train one setting (seed 0) and measure it on the validation split: clean, PGD-10 at ε and 2ε, one frame."""
    recipe, settings = changed(name, changes)
    config = train_config(splits, preset, **settings)
    model, _ = train(recipe, splits, model_config(splits, preset), threat, config, progress=name)
    one_frame = ThreatModel(threat.norm, few_frames_epsilon(threat), 1)
    attacks = {"clean": None, "pgd": threat, "pgd@2": threat.times(2), "frames-1": one_frame}
    gaps = {
        key: score(model, splits.validation, found and pgd(found, steps=10, restarts=1))["gap"]
        for key, found in attacks.items()
    }
    return {"changes": changes, "epochs": config.epochs} | gaps


def merit(result: dict, name: str) -> float:
    """What a trial is chosen by: the mean of GAP at ε and 2ε; the baseline, which defends nothing, by its clean GAP."""
    return result["clean"] if name == "standard" else (result["pgd"] + result["pgd@2"]) / 2


def tune(splits: Splits, threat: ThreatModel, preset: Preset, out, *, defenses: Sequence[str] | None = None) -> dict:
    """Run the trials of `grid`; ``out`` (JSON) is written after each, and what it holds already is not run again."""
    path, plan = Path(out), grid(splits.spec.name)
    about = {"norm": threat.norm, "epsilon": threat.epsilon, "split": "validation", "seed": 0}
    ledger = json.loads(path.read_text())["trials"] if path.exists() else {}
    for name in defenses or plan:
        done = ledger.setdefault(name, [])
        for changes in plan[name]:
            if not any(known["changes"] == changes for known in done):
                done.append(trial(name, changes, splits, threat, preset))
            best = {key: max(found, key=lambda t, key=key: merit(t, key)) for key, found in ledger.items() if found}
            chosen = {key: found["changes"] for key, found in best.items()}
            write_json(path, {"data": splits.spec.name, "threat": about, "chosen": chosen, "trials": ledger})
    return ledger
