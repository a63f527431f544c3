"""What the commands of the command line do; one function each, given the parsed options."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from aart_lib import checkpoint
from aart_lib.attacks import Attack, perturb
from aart_lib.cli import asked
from aart_lib.data import extractor as extracting
from aart_lib.data.batch import Batch, Item, collate, dequantize, quantize
from aart_lib.data.catalog import data_name, find_shards, open_data
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.describe import describe
from aart_lib.data.download import download
from aart_lib.data.films import Joins, films
from aart_lib.data.formats import chosen_frames
from aart_lib.data.pictures import pictures
from aart_lib.data.pixels import PIXEL, FilmModel, as_pictures, pixel_batch, stored_pictures
from aart_lib.data.vocabulary import read_vocabulary
from aart_lib.experiment.judge import evaluate
from aart_lib.experiment.presets import default_threat, model_config
from aart_lib.experiment.report import insert_results, write_report
from aart_lib.experiment.reproduce import Experiment, described, reproduce, with_notes
from aart_lib.experiment.summary import read_results, summarize
from aart_lib.losses import defense
from aart_lib.model import VideoTransformer
from aart_lib.runtime import jobs, processes
from aart_lib.runtime.files import reserved, write_json
from aart_lib.steps import TrainConfig
from aart_lib.threats import ThreatModel
from aart_lib.viz import explorer, plots
from aart_lib.viz.film import plot_film
from aart_lib.viz.page import page

SMALL = 2**20  # bytes: reports and figures


def _say(text: str) -> None:
    if processes.is_main():
        print(text)


def _reserve(options, out: Path, needed: int, *, resume: bool = True) -> None:
    """The output folder for this command alone; what an earlier run left there is never overwritten unasked."""
    if processes.is_main():
        options.held.enter_context(reserved(out, needed))
        if not resume and any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise ValueError(f"{out} is not empty; add --resume to go on with the run, or choose another --out")
    processes.gathered(None)  # nothing is done before the main process has looked


def _bytes(splits, preset, models: int) -> int:
    """About what a run writes: models and their scores, a training state and its successor, small things."""
    with torch.device("meta"):
        model = 4 * sum(p.numel() for p in VideoTransformer(model_config(splits, preset)).parameters())
    scores = 20 * len(splits.labels) * min(len(splits.test), preset.test_videos or len(splits.test))
    return models * (model + scores + SMALL // 4) + 6 * model + SMALL


def run_reproduce(options) -> None:
    preset = asked.preset(options)
    names = asked.defenses(options)
    asked.check_threat(options)
    splits = asked.splits(options, preset)
    threat = asked.threat(options, splits)
    needed = _bytes(splits, preset, options.seeds * len(names or preset.defenses) + 1)
    _reserve(options, options.out, needed, resume=options.resume)
    results = reproduce(
        splits,
        options.out,
        preset=preset,
        seeds=options.seeds,
        defenses=names,
        threat=threat,
        skipped=options.skipped,
        jobs=options.jobs or jobs.most(len(names or preset.defenses) * options.seeds),
    )
    if not processes.is_main():
        return
    print(write_report(results, options.out))
    if options.preset == "quick":
        print("This was a first taste: few epochs, not converged. Do not compare defenses by it.")
    print(f"Written: {options.out / 'results.json'}, {options.out / 'report.md'} and figures beside them.")


def run_train(options) -> None:
    preset = asked.preset(options)
    defense(options.defense)
    TrainConfig(seed=options.seed)
    asked.check_threat(options)
    splits = asked.splits(options, preset)
    threat = asked.threat(options, splits) or default_threat(splits)
    _reserve(options, options.out, _bytes(splits, preset, 1), resume=options.resume)
    experiment = Experiment(splits, preset, options.out)
    _, notes = experiment.train(options.defense, options.seed, threat, path=options.out / "model.safetensors")
    last = notes["history"][-1]
    gaps = f"validation GAP {last['clean']:.3f} clean, {last['attacked']:.3f} under PGD-7"
    _say(f"{gaps}; {options.out}/model.safetensors")


def run_evaluate(options) -> None:
    preset = asked.preset(options)
    if options.surrogates is not None and options.suite != "strong":
        raise ValueError(f"the suite {options.suite} tries no --surrogates; take --suite strong, or leave them out")
    model, notes = checkpoint.load(options.checkpoint)
    model = model.float().to(processes.device())
    asked.check_model(options, model.config, notes)
    others = _surrogates(options, model.config, notes) if options.suite == "strong" else {}
    splits, test = _open_for(options, replace(preset, max_frames=model.config.max_frames), notes)
    threat = ThreatModel(**notes["threat"])
    _reserve(options, options.out, SMALL)
    found = evaluate(model, test, threat, name=options.suite, seed=notes["seed"], surrogates=others)
    row, raised = with_notes(found, notes)
    results = {
        "data": described(splits, test, options.skipped) | {"segments": options.segments},
        "threat": notes["threat"] | {"epsilon_levels": threat.levels, "calibration": None},
        "rows": [row],
        "summary": summarize([row]),
        "flags": raised,
    }
    processes.write(write_json, options.out / "results.json", results)
    gaps = {key: row[key] for key in ("clean", "worst")} | row["attacked"]
    attacked = ", ".join(f"{name} {found['gap']:.3f}" for name, found in gaps.items())
    _say(f"GAP {attacked}; {options.out}/results.json")


def _open_for(options, preset, notes: dict):
    """The splits with a model's labels, and the test videos or segments it is judged on."""
    splits = open_data(options.data, options.data_dir, skipped=options.skipped, **preset.reading)
    if data_name(splits) != (trained := notes["data"]):
        raise ValueError(f"{options.checkpoint} was trained on {trained}; evaluate it with --data {trained}")
    asked.check_labels(options, splits.spec, notes["labels"])
    for part in (splits.train, splits.validation, splits.test):
        part.keep(notes["labels"])
    test, what = splits.test, "test video"
    if options.segments:
        shards, what = find_shards(splits.spec, options.data_dir, "test"), "rated segment (version 3)"
        how = {"labels": notes["labels"], "max_frames": preset.max_frames, "skipped": options.skipped}
        test = VideoDataset(shards, splits.spec, segments=True, **how)
    if not len(test):
        raise ValueError(f"{options.data_dir} has no {what} with one of the model's labels; fetch more shards")
    return splits, test.select(range(len(test))[: preset.test_videos])


def _surrogates(options, config, notes: dict) -> dict:
    """Other models by file name; only those that take the same frames and labels can serve."""
    beside = sorted(options.checkpoint.parent.glob("*.safetensors"))
    given = beside if options.surrogates is None else options.surrogates
    paths = {path.resolve(): path for path in given}
    paths.pop(options.checkpoint.resolve(), None)
    fitting = {}
    for path in paths.values():
        model, found = checkpoint.load(path)
        same = found["labels"] == notes["labels"] and model.config.features == config.features
        if same and model.config.max_frames >= config.max_frames:
            fitting[path] = model.float()
        elif options.surrogates is not None:
            raise ValueError(f"surrogate {path} takes other frames or labels than {options.checkpoint}; leave it out")
    return dict(zip(_told_apart([*fitting]), fitting.values(), strict=True))


def _told_apart(paths: list[Path]) -> list[str]:
    """Names of files, with as many of their folders as it takes: `train` calls every model "model"."""
    parts = [path.resolve().with_suffix("").parts for path in paths]
    endings = (["-".join(part[-depth:]) for part in parts] for depth in range(1, 99))
    return next(names for names in endings if len({*names}) == len(names))


def run_download(options) -> None:
    found = download(
        options.dataset,
        split=options.split,
        shards=options.shards,
        mirror=options.mirror,
        base_url=options.base_url,
        version=options.version,
        out=options.out,
    )
    verified = sum(file.md5 is not None for file in found)
    bare = f", {len(found) - verified} came without a checksum to compare" * (verified < len(found))
    print(f"{len(found)} files in {options.out}: {verified} verified{bare}")


def run_page(options) -> None:
    print(page(options.out))


def run_describe(options) -> None:
    how = {"labels": options.labels, "skipped": options.skipped}
    print(describe(options.data, options.data_dir, **how, **asked.preset(options).reading))


def run_report(options) -> None:
    results, out = read_results(options.results), options.out or options.results.parent
    if options.readme:  # first, since it may have no place for them
        insert_results(options.readme, results)
    print(write_report(results, out, options.results.with_suffix(".md").name.replace("results", "report")))


# ---------------------------------------------------------------- video files; these need the extra ``films``


def run_films(options) -> None:
    """Videos that are left out are told on standard error."""
    names = tuple(name.strip() for name in (options.background or "").split(",") if name.strip())
    if names and not options.join:
        raise ValueError("--background is for joined clips; add --join N")
    _reserve(options, options.out, SMALL)
    left_out: list[ValueError] = []
    how: dict = {"bad": left_out.append} if options.on_bad_video == "skip" else {}
    join = None if options.join is None else Joins(options.join, names)
    print(films(options.source, options.out, fps=options.fps, join=join, dims=options.dims, size=options.size, **how))
    if left_out:
        print(f"aart: left out {len(left_out)} videos that cannot be used; first: {left_out[0]}", file=sys.stderr)


def run_look(options) -> None:
    """Draw one video under attack, and print what the model says of it."""
    model, notes = checkpoint.load(options.checkpoint)
    folder = _films_of(options.checkpoint, options.data_dir)
    extractor = extracting.load(folder)
    if (got := extractor.about["dims"]) != model.config.features:
        raise ValueError(f"{options.checkpoint} takes {model.config.features} numbers a frame, {folder} makes {got}")
    known = read_vocabulary(folder / "vocabulary.csv").names
    names = [known.get(label, f"label {label}") for label in notes["labels"]]
    film = list(pictures(options.video, fps=extractor.about["fps"], size=extractor.size))
    film = [film[t] for t in chosen_frames(len(film), model.config.max_frames)]
    seen, batch, attack = _searched(options, extractor, model.float(), film, ThreatModel(**notes["threat"]))
    attacked = perturb(seen, batch, attack, generator=torch.Generator().manual_seed(0))
    shown: dict = {"attacked_frames": None, "attacked_pictures": None}
    if options.attack == "pixels":
        attacked = stored_pictures(attacked, batch.frames)
        shown["attacked_pictures"] = as_pictures(attacked[0], extractor.size)
    view = explorer.look(seen, batch, attacked)
    if options.attack == "frame":
        shown["attacked_frames"] = view.attacked_frames
    said = {key: _likeliest(scores, names) for key, scores in view.scores.items()}
    title = f"{options.video.name}: {view.moved:.0%} of the attention moved"
    plots.save(plot_film(film, view.attention, said=said, title=title, **shown), options.out)
    print(f"clean: {said['clean']}; attacked: {said['attacked']}; {options.out}")


def _likeliest(scores: np.ndarray, names: list[str]) -> str:
    return ", ".join(f"{names[c]} {scores[c]:.2f}" for c in np.argsort(-scores)[:3])


def _searched(options, extractor, model, film: list, threat: ThreatModel) -> tuple[torch.nn.Module, Batch, Attack]:
    """The model that is attacked, the film as it takes it, and the attack; the labels to lose are those predicted."""
    aim: dict = {"steps": 10, "labels": "predicted"}
    none = torch.zeros(1, model.config.labels)
    if options.attack == "pixels":
        threat = ThreatModel("linf", options.epsilon or PIXEL, box=(0, 1))
        return FilmModel(extractor, model), pixel_batch([film], none), Attack(threat, **aim)
    features = torch.from_numpy(extracting.network_features(extractor.network, film))
    frames = torch.from_numpy(dequantize(quantize(extractor.project(features).numpy())))
    threat = replace(threat, epsilon=options.epsilon or threat.epsilon)
    threat = threat.few() if options.attack == "frame" else threat
    return model, collate([Item(frames, none[0], "film")]), Attack(threat, **aim)


def _films_of(path: Path, data_dir: Path | None) -> Path:
    """The folder with the extractor of a model: the one given, or one near the checkpoint. Raises: ValueError."""
    near = [folder / name for folder in path.resolve().parents[:2] for name in ("", "films")]
    for folder in [data_dir] if data_dir else near:
        if (folder / extracting.FILES[0]).is_file():
            return folder
    where = f"in {data_dir}" if data_dir else f"near {path}"
    told = "which tells how features are made; give --data-dir, the films that the model was trained on"
    raise ValueError(f"there is no {extracting.FILES[0]} {where}, {told}")
