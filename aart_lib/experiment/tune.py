"""Tuning: for no defense fewer trials than for A-ART, judged on the validation split, all of them kept.

A trial is a defense with other weights, another training ε or other settings of the loop. None sees the test split.
"""

from collections.abc import Sequence
from pathlib import Path

from aart_lib.attacks import ThreatModel, pgd
from aart_lib.data.catalog import Splits, data_name
from aart_lib.experiment.presets import Preset, model_config, train_config
from aart_lib.experiment.recipes import changed, grid
from aart_lib.runtime.files import read_json, write_json
from aart_lib.scoring import score
from aart_lib.training import train


def trial(name: str, changes: dict, splits: Splits, threat: ThreatModel, preset: Preset) -> dict:
    """Train one setting (seed 0) and measure it on the validation split: clean, PGD-10 at ε and 2ε, one frame."""
    recipe, settings = changed(name, changes)
    config = train_config(splits, preset, **settings)
    how: dict = {"hardware": preset.hardware, "progress": name}
    model, _ = train(recipe, splits, model_config(splits, preset), threat, config, **how)
    one_frame = threat.few()
    attacks: dict = {"clean": None, "pgd": threat, "pgd@2": threat.times(2), "frames-1": one_frame}
    gaps = {
        key: score(model, splits.validation, found and pgd(found, steps=10, restarts=1))["gap"]
        for key, found in attacks.items()
    }
    return {"changes": changes, "epochs": config.epochs} | gaps


def merit(result: dict, name: str) -> float:
    """What a trial is chosen by: the mean of GAP at ε and 2ε; the baseline, which defends nothing, by its clean GAP."""
    return result["clean"] if name == "standard" else (result["pgd"] + result["pgd@2"]) / 2


def best(trials: list[dict], name: str) -> dict:
    """The trial that is chosen, of equals the first."""
    merits = [merit(result, name) for result in trials]
    return trials[merits.index(max(merits))]


def with_grid(data: str, names: Sequence[str] | None = None) -> list[str]:
    """The defenses to tune: those named, or all. Raises: ValueError for one that has no grid."""
    plan = grid(data)
    if bare := [name for name in names or () if name not in plan]:
        raise ValueError(f"{bare[0]} has no grid of trials on {data}; those with one: {', '.join(plan)}")
    return list(names or plan)


def read_ledger(path) -> dict:
    """A ledger that `tune` wrote; {} if there is none yet. Raises: ValueError if it is something else."""
    found = read_json(path)
    if Path(path).exists() and not {"data", "threat", "trials"} <= set(found):
        raise ValueError(f"{path} is not a ledger that `tune` wrote; choose another --out")
    return found


def threat_of(ledger: dict) -> ThreatModel | None:
    """The threat model that all trials of a ledger meet; None if it is empty."""
    return ThreatModel(ledger["threat"]["norm"], ledger["threat"]["epsilon"]) if ledger else None


def _check_same(path: Path, ledger: dict, header: dict, epochs: int) -> None:
    """Trials of one ledger must be comparable. Raises: ValueError."""
    known = {"data": ledger["data"], "labels": ledger.get("labels", header["labels"])} | ledger["threat"]
    done = [trial for trials in ledger["trials"].values() for trial in trials]
    known |= {"epochs": done[0]["epochs"]} if done else {}
    wanted = {"data": header["data"], "labels": header["labels"], "epochs": epochs} | header["threat"]
    for key in wanted:
        if known.get(key, wanted[key]) != wanted[key]:
            raise ValueError(f"{path} has trials with {key} {known[key]}, not {wanted[key]}; choose another --out")


def tune(splits: Splits, threat: ThreatModel, preset: Preset, out, *, defenses: Sequence[str] | None = None) -> dict:
    """Run the trials of `grid`; ``out`` (JSON) is written after each, and what it holds already is not run again.

    Raises: ValueError for a defense without a grid, and for a ledger of other data, labels, ε or epochs.
    """
    path, plan, names = Path(out), grid(splits.spec.name), with_grid(splits.spec.name, defenses)
    about = {"norm": threat.norm, "epsilon": threat.epsilon, "split": "validation", "seed": 0}
    header = {"data": data_name(splits), "labels": len(splits.labels), "threat": about}
    if known := read_ledger(path):
        _check_same(path, known, header, train_config(splits, preset).epochs)
    ledger = known.get("trials", {})
    for name in names:
        done = ledger.setdefault(name, [])
        for changes in plan[name]:
            if not any(known["changes"] == changes for known in done):
                done.append(trial(name, changes, splits, threat, preset))
            chosen = {key: best(trials, key)["changes"] for key, trials in ledger.items() if trials}
            write_json(path, header | {"chosen": chosen, "trials": ledger})
    return ledger
