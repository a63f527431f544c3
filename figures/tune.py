"""The trials by which the defenses' settings were chosen: for no defense fewer than for A-ART, all of them kept.

    python figures/tune.py --out figures/trials-synthetic.json      # goes on with what the ledger holds already
    python figures/tune.py --data audioset --data-dir FOLDER --labels 50 --out figures/trials-audioset.json

A trial is a defense with other weights, another training ε or other settings of the loop, judged on the validation
split. None sees the test split.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from aart_lib.attacks import ThreatModel, pgd
from aart_lib.cli import asked
from aart_lib.data.catalog import Splits, data_name
from aart_lib.experiment.presets import Preset, calibrate, default_threat, model_config, train_config
from aart_lib.experiment.recipes import MIXED, MIXED_PAIRED, MOSTLY, MOSTLY_PAIRED, changed, tuned
from aart_lib.runtime.files import read_json, reserved, write_json
from aart_lib.scoring import score
from aart_lib.training import train

# ---------------------------------------------------------------- what is tried


def _baseline(rates: Sequence[float]) -> list[dict]:
    """The baseline has no training ε: its trials vary the training loop."""
    return [{"rate": rate, "weight_decay": decay} for rate, decay in product(rates, (0.01, 0.1))]


def _trials(scales: Sequence[float], *weights: dict) -> list[dict]:
    """Each training ε, in units of the test's, with each choice of weights."""
    return [{"epsilon_scale": scale, "weights": chosen} for scale, chosen in product(scales, weights)]


def _stay(consistency: float, **more: float) -> dict:
    return {"consistency": consistency, **more}


# Four trials for each; where the best lay at an edge, simple extensions got trials beyond it, so that none had fewer
# than A-ART.
GRIDS = {
    "synthetic": {
        "standard": _baseline((1e-3, 2e-3, 4e-3)),
        "adversarial": _trials((3.0, 4.0, 5.0), MIXED, MOSTLY),
        "logit-pairing": _trials((3.0, 4.0, 5.0), MIXED_PAIRED, MOSTLY_PAIRED),
        "trades": _trials((3.0, 4.0), _stay(1.0), _stay(3.0)),
        "vat": _trials((3.0, 4.0), _stay(1.0), _stay(3.0)),
        "a-art": _trials((3.0, 4.0), _stay(1.0, attention=0.3), _stay(1.0, attention=1.0)),
        "adversarial-uniform": _trials((3.0, 4.0), MIXED, MOSTLY),
    },
    "audioset": {
        "standard": _baseline((1e-3, 2e-3)),
        "adversarial": _trials((2.0, 3.0), MIXED, MOSTLY) + _trials([4.0], MOSTLY),
        "logit-pairing": _trials((2.0, 3.0), MIXED_PAIRED, MOSTLY_PAIRED) + _trials([4.0], MOSTLY_PAIRED),
        "trades": _trials((2.0, 3.0), _stay(1.0), _stay(3.0)) + _trials((3.0, 4.0), _stay(6.0)),
        "vat": _trials((2.0, 3.0), _stay(1.0), _stay(3.0)),
        "a-art": _trials((3.0, 4.0), _stay(3.0, attention=0.3), _stay(6.0, attention=0.3)),
        "adversarial-uniform": _trials((2.0, 3.0), MIXED, MOSTLY),
    },
}


def grid(data: str) -> dict[str, list[dict]]:
    """The trials of each defense on a data set, as changes of the defense; other data sets use AudioSet's."""
    return GRIDS.get(data, GRIDS["audioset"])


def with_grid(data: str, names: Sequence[str] | None = None) -> list[str]:
    """The defenses to tune: those named, or all. Raises: ValueError for one that has no grid."""
    plan = grid(data)
    if bare := [name for name in names or () if name not in plan]:
        raise ValueError(f"{bare[0]} has no grid of trials on {data}; those with one: {', '.join(plan)}")
    return list(names or plan)


# ---------------------------------------------------------------- one trial


def trial(name: str, changes: dict, splits: Splits, threat: ThreatModel, preset: Preset) -> dict:
    """Train one setting (seed 0) and measure it on the validation split: clean, PGD-10 at ε and 2ε, one frame."""
    recipe, settings = changed(name, changes)
    config = train_config(splits, preset, **settings)
    how: dict = {"hardware": preset.hardware, "progress": name}
    model, _ = train(recipe, splits, model_config(splits, preset), threat, config, **how)
    attacks: dict = {"clean": None, "pgd": threat, "pgd@2": threat.times(2), "frames-1": threat.few()}
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


def calibrated(splits: Splits, preset: Preset) -> ThreatModel:
    """The threat model that brings a baseline of seed 0, trained here, down to the target."""
    start, (recipe, settings) = default_threat(splits), tuned(splits.spec.name, "standard")
    config, shape = train_config(splits, preset, **settings), model_config(splits, preset)
    how: dict = {"hardware": preset.hardware, "progress": "standard"}
    model, _ = train(recipe, splits, shape, start, config, **how)
    return replace(start, epsilon=calibrate(model, splits.validation, start)[0])


# ---------------------------------------------------------------- the ledger


def read_ledger(path) -> dict:
    """A ledger that `tune` wrote; {} if there is none yet. Raises: ValueError if it is something else."""
    found = read_json(path)
    if Path(path).exists() and not {"data", "threat", "trials"} <= set(found):
        raise ValueError(f"{path} is not a ledger of trials; choose another --out")
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


# ---------------------------------------------------------------- the command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="synthetic", metavar="NAME")
    parser.add_argument("--data-dir", type=Path, metavar="DIR")
    parser.add_argument("--labels", metavar="K|A,B,...", help="only the K most frequent labels, or those named")
    parser.add_argument("--preset", default="small", metavar="NAME", help="quick, small (default) or full")
    parser.add_argument("--epochs", type=int, help="instead of the preset's")
    parser.add_argument("--defenses", metavar="A,B,...", help="only these; default: all that have a grid")
    parser.add_argument("--epsilon", type=float, metavar="E", help="default: the ledger's, else calibrated")
    parser.add_argument("--norm", metavar="N", help="linf, l2-frame or l2-clip (default: the data set's own)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the ledger (.json), gone on with")
    parser.set_defaults(skipped=None)
    return parser


def _run(options) -> None:
    preset = asked.preset(options)
    asked.check_threat(options)
    names = with_grid(options.data.partition(":")[0], asked.defenses(options))
    known = read_ledger(options.out)
    splits = asked.splits(options, preset)
    with reserved(options.out.parent, 2**20, name=options.out.name):  # other ledgers may lie beside it
        threat = asked.threat(options, splits) or threat_of(known) or calibrated(splits, preset)
        for name, trials in tune(splits, threat, preset, options.out, defenses=names).items():
            found = best(trials, name)
            gaps = f"GAP {found['pgd']:.3f} at ε, {found['pgd@2']:.3f} at 2ε"
            print(f"{name:20} {len(trials)} trials, best {found['changes']}: {gaps}")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one sentence for a mistake or bad data."""
    try:
        _run(_parser().parse_args(arguments))
    except (ValueError, OSError) as error:
        print(f"tune: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
