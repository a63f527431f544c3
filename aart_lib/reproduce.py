"""The main job: train every defense on every seed, attack each, and write one results.json.

What is finished is kept: a killed run goes on where it stopped.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from aart_lib import checkpoint, synthetic
from aart_lib.attacks import ThreatModel
from aart_lib.data import SPECS, Splits, open_splits
from aart_lib.evaluate import calibrate, evaluate, flags
from aart_lib.losses import SIX, defense, tuned
from aart_lib.model import ModelConfig
from aart_lib.records import write_json
from aart_lib.train import TrainConfig, fingerprint, train

TARGET_RATIO = 0.80  # the paper's baseline falls from about 91 (assumed) to 72.9
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # Student's t


@dataclass(frozen=True)
class Preset:
    """How much is done; a preset names only what differs from ``small``."""

    epochs: int | None = None  # None = the data set's
    suite: str = "standard"
    defenses: tuple[str, ...] = SIX
    test_videos: int | None = 2000  # at most so many test videos are attacked
    batch_size: int = 64
    model: dict = field(default_factory=dict)
    dims: dict = field(default_factory=dict)
    max_frames: int | None = None


PRESETS = {
    "quick": Preset(epochs=8, suite="quick", defenses=("standard", "adversarial", "a-art"), test_videos=300),
    "small": Preset(),
    "full": Preset(
        epochs=10,
        test_videos=None,
        batch_size=32,
        model={"width": 256, "heads": 8, "layers": 4},
        dims={"rgb": 1024, "audio": 128},
        max_frames=300,
    ),
}


def preset_named(name: str) -> Preset:
    """Raises: ValueError that lists the known presets."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]


def open_data(name: str, data_dir=None, *, labels: int | None = None, preset: Preset = PRESETS["small"]) -> Splits:
    """The splits of a data set by name; the embedded one is generated on first use. Raises: ValueError."""
    if name not in SPECS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(SPECS)}")
    spec = SPECS[name]
    if name == "synthetic":
        data_dir = data_dir or synthetic.ensure(synthetic.SETTINGS["default"])
    elif data_dir is None:
        raise ValueError(f"{name} needs --data-dir, the folder with its shards; `python -m aart_lib download` fetches")
    else:
        spec = spec.leading(**preset.dims)
    return open_splits(spec, data_dir, labels=labels, max_frames=preset.max_frames)


def model_config(splits: Splits, preset: Preset = PRESETS["small"]) -> ModelConfig:
    """The model a data set calls for."""
    frames = splits.train.max_frames
    return ModelConfig(splits.spec.dims, len(splits.labels), max_frames=frames, **preset.model)


def train_config(splits: Splits, preset: Preset = PRESETS["small"], **settings) -> TrainConfig:
    """The training loop's settings for a data set."""
    return TrainConfig(preset.epochs or splits.spec.epochs, preset.batch_size, **settings)


def default_threat(splits: Splits) -> ThreatModel:
    """The data set's own norm and the ε at which the calibration starts."""
    return ThreatModel(splits.spec.norm, splits.spec.epsilon)


def calibrated(splits: Splits, preset: Preset, model=None) -> tuple[ThreatModel, float]:
    """ε at which a baseline (trained here with seed 0 if not given) keeps `TARGET_RATIO` of its validation GAP."""
    start = default_threat(splits)
    if model is None:
        recipe, settings = tuned(splits.spec.name, "standard")
        config = train_config(splits, preset, **settings)
        model, _ = train(recipe, splits, model_config(splits, preset), start, config, progress="standard")
    epsilon, reached = calibrate(model, splits.validation, start, target=TARGET_RATIO)
    return ThreatModel(start.norm, epsilon), reached


class Experiment:
    """One output folder: checkpoints/, rows/ and what belongs to them."""

    def __init__(self, splits: Splits, preset: Preset, out, *, progress=True):
        self.splits, self.preset, self.out, self.progress = splits, preset, Path(out), progress
        order = range(len(splits.test))
        self.test = splits.test.select(order[: preset.test_videos]) if preset.test_videos else splits.test

    def model(self, name: str, seed: int, threat: ThreatModel, *, path: Path | None = None):
        """A trained model and its notes, from its checkpoint (or ``path``) if that was made with the same settings."""
        recipe, settings = tuned(self.splits.spec.name, name)
        config = train_config(self.splits, self.preset, seed=seed, **settings)
        shape = model_config(self.splits, self.preset)
        mark = fingerprint(recipe, self.splits, shape, threat, config)
        path = path or self.out / "checkpoints" / f"{name}-seed{seed}.safetensors"
        if path.exists():
            model, notes = checkpoint.load(path)
            if notes.get("fingerprint") == mark:
                return model, notes
        state = path.with_suffix(".state")
        model, history = train(
            recipe,
            self.splits,
            shape,
            threat,
            config,
            state=state,
            progress=f"{name} seed {seed}" if self.progress else None,
        )
        notes = {
            "data": self.splits.spec.name,
            "labels": self.splits.labels,
            "defense": name,
            "recipe": _plain(asdict(recipe)),
            "seed": seed,
            "threat": {"norm": threat.norm, "epsilon": threat.epsilon},
            "train": asdict(config),
            "history": history,
            "train_seconds": sum(entry["seconds"] for entry in history),
            "fingerprint": mark,
        }
        checkpoint.save(path, model, notes)
        return model, notes

    def calibrated(self) -> tuple[ThreatModel, float]:
        """The threat model all defenses meet, and the ratio reached: `calibrated` on seed 0's baseline, kept."""
        model, notes = self.model("standard", 0, default_threat(self.splits))
        path = self.out / "threat.json"
        if path.exists():
            known = json.loads(path.read_text())
            if known["fingerprint"] == notes["fingerprint"]:
                return ThreatModel(known["norm"], known["epsilon"]), known["reached"]
        threat, reached = calibrated(self.splits, self.preset, model)
        found = {"norm": threat.norm, "epsilon": threat.epsilon, "reached": reached}
        write_json(path, found | {"fingerprint": notes["fingerprint"]})
        return threat, reached

    def row(self, name: str, seed: int, threat: ThreatModel) -> tuple[dict, list[dict]]:
        """A row of results and its flags; trained and evaluated only if that was not done before."""
        # The baseline is trained before ε is known; ε only serves to watch it.
        model, notes = self.model(name, seed, default_threat(self.splits) if name == "standard" else threat)
        path = self.out / "rows" / f"{name}-seed{seed}.json"
        if notes["threat"]["epsilon"] != threat.epsilon:  # so that `evaluate` attacks the baseline as this table does
            notes["threat"] = {"norm": threat.norm, "epsilon": threat.epsilon}
            checkpoint.save(self.out / "checkpoints" / f"{name}-seed{seed}.safetensors", model, notes)
        mark = [notes["fingerprint"], self.preset.suite, asdict(threat), len(self.test)]
        if path.exists():
            known = json.loads(path.read_text())
            if known["mark"] == mark:
                return known["row"], known["flags"]
        row = {"defense": name, "seed": seed} | evaluate(
            model, self.test, threat, name=self.preset.suite, seed=seed, progress=self.progress
        )
        row |= {"train_seconds": notes["train_seconds"], "history": notes["history"]}
        raised = [flag | {"seed": seed} for flag in flags(name, row, notes["history"])]
        write_json(path, {"mark": mark, "row": row, "flags": raised})
        return row, raised


def reproduce(
    splits: Splits,
    out,
    *,
    preset: Preset = PRESETS["small"],
    seeds: int = 1,
    defenses: Sequence[str] | None = None,
    threat: ThreatModel | None = None,
    progress: bool = True,
) -> dict:
    """Train, attack and compare; returns what it writes to ``out``/results.json (see `summarize` for the summary)."""
    names = list(defenses or preset.defenses)
    names = names if "standard" in names else ["standard", *names]
    for name in names:
        defense(name)  # an unknown name is told before hours are spent
    experiment = Experiment(splits, preset, out, progress=progress)
    calibration = {"target_ratio": TARGET_RATIO, "reached": None, "seed": 0, "attack": "pgd"}
    if threat is None:
        threat, calibration["reached"] = experiment.calibrated()
    rows, raised = [], []
    for seed in range(seeds):
        for name in names:
            row, flagged = experiment.row(name, seed, threat)
            rows.append(row)
            raised += flagged
            if progress:
                tqdm.write(
                    f"{name:20} seed {seed}  clean {row['clean']['gap']:.3f}  worst {row['worst']['gap']:.3f}  "
                    f"2ε {row['other']['pgd@2']['gap']:.3f}  drift {row['attention_drift']:.3f}"
                )
    results = {
        "data": {
            "name": splits.spec.name,
            "labels": splits.labels,
            "videos": {
                "train": len(splits.train),
                "validation": len(splits.validation),
                "test": len(experiment.test),
                "test_available": len(splits.test),
                "left_out": splits.train.left_out + splits.test.left_out,
            },
            "settings_hash": settings_hash(splits),
        },
        "train": {
            "epochs": preset.epochs or splits.spec.epochs,
            "batch_size": preset.batch_size,
            "suite": preset.suite,
        },
        "threat": {
            "norm": threat.norm,
            "epsilon": threat.epsilon,
            "epsilon_levels": threat.levels,
            "calibration": calibration,
        },
        "rows": rows,
        "summary": summarize(rows),
        "flags": raised,
    }
    write_json(Path(out) / "results.json", results)
    return results


def settings_hash(splits: Splits) -> str | None:
    """Of the generator's settings, which its folder is named after; None for genuine data and other folders."""
    folder = Path(splits.train.entries[0].path).parent.name
    return folder.removeprefix("synthetic-") if folder.startswith("synthetic-") else None


def summarize(rows: list[dict]) -> dict:
    """Means over seeds for each defense. Recovered share = (worst - baseline worst) / (baseline clean - baseline
    worst), baselines of the same seed; ci95 is Student's interval of the mean, None with one seed."""
    base = {row["seed"]: row for row in rows if row["defense"] == "standard"}
    by_name: dict[str, list[dict]] = {}
    for row in rows:
        by_name.setdefault(row["defense"], []).append(row)
    return {name: _summary(group, base) for name, group in by_name.items()}


def _summary(group: list[dict], base: dict[int, dict]) -> dict:
    worst = [row["worst"]["gap"] for row in group]
    mean = lambda get: statistics.fmean(map(get, group))  # noqa: E731
    half = None
    if len(worst) > 1:
        half = T_95.get(len(worst) - 1, 1.96) * statistics.stdev(worst) / math.sqrt(len(worst))
    summary = {
        "clean_gap": mean(lambda row: row["clean"]["gap"]),
        "worst_gap": statistics.fmean(worst),
        "ci95": [statistics.fmean(worst) - half, statistics.fmean(worst) + half] if half is not None else None,
        "steady_gap": mean(lambda row: row["steady_attention"]["gap"]),
        "steady_gap@2": mean(lambda row: row["steady_attention"]["gap@2"]),
        "attention_drift": mean(lambda row: row["attention_drift"]),
        "attention_entropy": mean(lambda row: row["attention_entropy"]),
        "train_seconds": mean(lambda row: row["train_seconds"]),
        "seeds": len(group),
    }
    for key in ("pgd@2", "frames-1"):
        summary[f"{key}_gap"] = mean(lambda row, key=key: row["other"][key]["gap"])
    if group[0]["evidence_share"]:
        for side in ("clean", "attacked", "chance"):
            summary[f"evidence_{side}"] = mean(lambda row, side=side: row["evidence_share"][side])
    recovered = {
        "recovered_share": lambda row: row["worst"]["gap"],
        "recovered_share@2": lambda row: row["other"]["pgd@2"]["gap"],
        "recovered_share_frames-1": lambda row: row["other"]["frames-1"]["gap"],
    }
    for key, gap in recovered.items():
        shares = [_recovered(gap, row, base[row["seed"]]) for row in group if row["seed"] in base]
        summary[key] = statistics.fmean(shares) if shares and None not in shares else None
    return summary


def _recovered(gap, row: dict, base: dict) -> float | None:
    lost = base["clean"]["gap"] - gap(base)
    return (gap(row) - gap(base)) / lost if lost > 0 else None


def _plain(value):
    return json.loads(json.dumps(value, default=dict))
