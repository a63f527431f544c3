"""What the commands of the command line do; one function each, given the parsed options."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from aart_lib import checkpoint, processes
from aart_lib import download as fetching
from aart_lib import evaluate as judging
from aart_lib import report as reporting
from aart_lib import reproduce as main_job
from aart_lib import tune as tuning
from aart_lib.data import VideoDataset, find_shards
from aart_lib.data import convert as converted
from aart_lib.flags import flags
from aart_lib.jobs import most as most_jobs
from aart_lib.losses import defense
from aart_lib.model import VideoTransformer
from aart_lib.pictures import draw_attention
from aart_lib.presets import default_threat, model_config, open_data, preset_named, settings_hash, spec_named
from aart_lib.records import Skipped, write_json
from aart_lib.reproduce import Experiment
from aart_lib.running import reserved
from aart_lib.suites import suite
from aart_lib.summary import summarize
from aart_lib.threats import ThreatModel

SMALL = 2**20  # bytes: reports and figures
AT_LEAST_ONE = ("epochs", "test_videos", "batch_size", "accumulate", "jobs")


def tell_skipped(options) -> None:
    """The last word of a command that was told to skip bad records."""
    if hasattr(options, "skipped") and processes.is_main():
        print(f"aart: {options.skipped}", file=sys.stderr)


def _say(text: str) -> None:
    if processes.is_main():
        print(text)


def _open(options, preset):
    return open_data(options.data, options.data_dir, labels=options.labels, preset=preset)


def _preset(options):
    preset, given = preset_named(options.preset), {k: v for k, v in vars(options).items() if v is not None}
    for key in AT_LEAST_ONE:
        if given.get(key, 1) < 1:
            raise ValueError(f"--{key.replace('_', '-')} must be at least 1, got {given[key]}")
    if given.get("workers", 0) < 0:
        raise ValueError(f"--workers must be at least 0, got {given['workers']}")
    hardware = {key: given[key] for key in ("workers", "accumulate", "recompute") if given.get(key)}
    if options.on_bad_record == "skip":
        options.skipped = Skipped()
        preset = replace(preset, skipped=options.skipped)
    changes = {k: given[k] for k in ("epochs", "suite", "test_videos", "batch_size", "sampling") if k in given}
    return replace(preset, hardware=replace(preset.hardware, **hardware), **changes)


def _names(options) -> list[str] | None:
    names = options.defenses.split(",") if options.defenses else None
    for name in names or ():
        defense(name)  # an unknown one is told before hours are spent
    return names


def _threat(options, splits):
    """The threat model of --norm and --epsilon; None if neither is given."""
    if options.epsilon is None and options.norm is None:
        return None
    if options.epsilon is None:
        raise ValueError("--norm needs --epsilon: the size of a perturbation means something else in every norm")
    return ThreatModel(options.norm or splits.spec.norm, options.epsilon)


def _reserve(options, out: Path, needed: int, *, resume: bool = True, **names) -> None:
    """The output folder for this command alone; what an earlier run left there is never overwritten unasked."""
    if processes.is_main():
        options.held.enter_context(reserved(out, needed, **names))
        if not resume and any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise ValueError(f"{out} is not empty; add --resume to go on with the run, or choose another --out")
    processes.gathered(None)  # nothing is done before the main process has looked


def _bytes(splits, preset, models: int) -> int:
    """About what a run writes: models and their scores, a training state and its successor, small things."""
    with torch.device("meta"):
        model = 4 * sum(p.numel() for p in VideoTransformer(model_config(splits, preset)).parameters())
    scores = 20 * len(splits.labels) * min(len(splits.test), preset.test_videos or len(splits.test))
    return models * (model + scores + SMALL // 4) + 6 * model + SMALL


def reproduce(options) -> None:
    preset = _preset(options)
    suite(preset.suite, ThreatModel("linf", 0.0))  # unknown names are told before data is touched
    names = _names(options)
    if options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {options.seeds}")
    if options.epsilon is not None:
        ThreatModel(options.norm or "linf", options.epsilon)
    splits = _open(options, preset)
    threat = _threat(options, splits)
    needed = _bytes(splits, preset, options.seeds * len(names or preset.defenses) + 1)
    _reserve(options, options.out, needed, resume=options.resume)
    jobs = options.jobs or most_jobs(len(names or preset.defenses) * options.seeds)
    how = {"seeds": options.seeds, "defenses": names, "threat": threat, "jobs": jobs}
    results = main_job.reproduce(splits, options.out, preset=preset, **how)
    if not processes.is_main():
        return
    print(reporting.write_report(results, options.out))
    if options.preset == "quick":
        print("This was a first taste: few epochs, not converged. Do not compare defenses by it.")
    print(f"Written: {options.out / 'results.json'}, {options.out / 'report.md'} and figures beside them.")


def train(options) -> None:
    preset = _preset(options)
    defense(options.defense)
    if options.epsilon is not None:
        ThreatModel(options.norm or "linf", options.epsilon)
    splits = _open(options, preset)
    threat = _threat(options, splits) or default_threat(splits)
    _reserve(options, options.out, _bytes(splits, preset, 1), resume=options.resume)
    experiment = Experiment(splits, preset, options.out)
    _, notes = experiment.model(options.defense, options.seed, threat, path=options.out / "model.safetensors")
    last = notes["history"][-1]
    gaps = f"validation GAP {last['clean']:.3f} clean, {last['attacked']:.3f} under PGD-7"
    _say(f"{gaps}; {options.out}/model.safetensors")


def evaluate(options) -> None:
    preset = _preset(options)
    model, notes = checkpoint.load(options.checkpoint)
    if notes["data"] != options.data:
        trained = f"was trained on {notes['data']}; evaluate it with --data {notes['data']}"
        raise ValueError(f"{options.checkpoint} {trained}")
    splits = _open(options, preset)
    splits.test.keep(notes["labels"])
    threat = ThreatModel(notes["threat"]["norm"], notes["threat"]["epsilon"])
    test = splits.test
    if options.segments:
        shards = find_shards(splits.spec, options.data_dir, "test")
        how = {"labels": notes["labels"], "max_frames": model.config.max_frames, "skipped": preset.skipped}
        test = VideoDataset(shards, splits.spec, segments=True, **how)
    if not len(test):
        raise ValueError(f"{options.data_dir} has no test video with one of the model's labels; fetch more shards")
    test, model = test.select(range(len(test))[: preset.test_videos]), model.to(processes.device())
    row = {"defense": notes["defense"], "seed": notes["seed"], "train_seconds": notes.get("train_seconds", 0.0)}
    others = _surrogates(options, model.config) if options.suite == "strong" else {}
    suite(options.suite, threat)  # unknown names are told before the folder is made
    _reserve(options, options.out, SMALL)
    row |= judging.evaluate(model, test, threat, name=options.suite, seed=notes["seed"], surrogates=others)
    videos = {"train": len(splits.train), "validation": len(splits.validation), "test": len(test)}
    about = {"name": options.data, "labels": notes["labels"], "videos": videos}
    about["skipped"] = preset.skipped.files if preset.skipped else {}
    results = {
        "data": about | {"settings_hash": settings_hash(splits)},
        "threat": notes["threat"] | {"epsilon_levels": threat.levels, "calibration": None},
        "rows": [row],
        "summary": summarize([row]),
        "flags": flags(notes["defense"], row, notes.get("history", [])),
    }
    processes.write(write_json, options.out / "results.json", results)
    gaps = {key: row[key] for key in ("clean", "worst")} | row["attacked"]
    attacked = ", ".join(f"{name} {found['gap']:.3f}" for name, found in gaps.items())
    _say(f"GAP {attacked}; {options.out}/results.json")


def _surrogates(options, config) -> dict:
    """Other models by file name; only those that take the same frames and labels can serve."""
    beside = sorted(options.checkpoint.parent.glob("*.safetensors"))
    given = beside if options.surrogates is None else options.surrogates
    paths = [path for path in given if path.resolve() != options.checkpoint.resolve()]
    stems = [path.stem for path in paths]  # `train` calls every model "model"
    unique = lambda p: f"{p.parent.name}-{p.stem}" if stems.count(p.stem) > 1 else p.stem  # noqa: E731
    models = {unique(path): checkpoint.load(path)[0] for path in paths}
    fits = lambda other: (other.features, other.labels) == (config.features, config.labels)  # noqa: E731
    wrong = [name for name, model in models.items() if not fits(model.config)]
    if wrong and options.surrogates is not None:
        raise ValueError(f"surrogate {wrong[0]} takes other frames or labels than {options.checkpoint}; leave it out")
    return {name: model for name, model in models.items() if name not in wrong}


def tune(options) -> None:
    preset = _preset(options)
    splits, names = _open(options, preset), _names(options)
    _reserve(options, options.out.parent, SMALL, name=options.out.name)  # other ledgers may lie beside it
    threat = _threat(options, splits) or main_job.calibrated(splits, preset)[0]
    for name, trials in tuning.tune(splits, threat, preset, options.out, defenses=names).items():
        best = max(trials, key=lambda found: tuning.merit(found, name))
        gaps = f"GAP {best['pgd']:.3f} at ε, {best['pgd@2']:.3f} at 2ε"
        print(f"{name:20} {len(trials)} trials, best {best['changes']}: {gaps}")


def download(options) -> None:
    paths = fetching.download(
        options.dataset,
        split=options.split,
        shards=options.shards,
        mirror=options.mirror,
        base_url=options.base_url,
        version=options.version,
        out=options.out,
    )
    print(f"{len(paths)} files verified in {options.out}")


def convert(options) -> None:
    preset = _preset(options)
    spec = spec_named(options.data, preset)
    if options.data_dir is None:
        raise ValueError(f"{options.data} needs --data-dir, the folder with its shards")
    found = [path for split in ("train", "test") for path in find_shards(spec, options.data_dir, split)]
    found = [path for path in found if path.suffix == ".tfrecord"]
    share = spec.dims / sum(stored for stored, _ in spec.features.values())
    _reserve(options, options.out, int(share * sum(path.stat().st_size for path in found)))
    made = converted(found, spec, options.out, preset.skipped)
    size = sum(path.stat().st_size for path in made)
    print(f"{len(made)} shards, {size / 1e6:,.1f} MB in {options.out}; use it as --data-dir")


def describe(options) -> None:
    print(reporting.describe(options.data, options.data_dir, labels=options.labels, preset=_preset(options)))


def report(options) -> None:

    if not options.results.is_file():
        raise ValueError(f"{options.results} is not a file; give a results.json that `reproduce` wrote")
    out = options.out or options.results.parent
    try:
        results = json.loads(options.results.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{options.results} is not JSON: {error}") from error
    if not isinstance(results, dict) or not {"data", "threat", "rows", "summary", "flags"} <= set(results):
        raise ValueError(f"{options.results} is not a results.json that `reproduce` wrote")
    print(reporting.write_report(results, out, options.results.with_suffix(".md").name.replace("results", "report")))
    if options.readme:
        reporting.insert_results(options.readme, results)
    if options.checkpoints:
        draw_attention(options.checkpoints, out)
