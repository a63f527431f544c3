"""The command line: ``python -m aart_lib reproduce | train | evaluate | download | describe | report``."""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

DATA = ("synthetic", "audioset", "yt8m-frame", "yt8m-video")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = _Parser(
        prog="python -m aart_lib", description="Understand, attack and repair the attention of a video model."
    )
    commands = top.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")

    add = _command(commands, "reproduce", _reproduce, "train, attack and compare all defenses; write table and figures")
    _data_options(add)
    add.add_argument("--seeds", type=int, default=1, metavar="N", help="repeat with N seeds (default 1)")
    add.add_argument("--defenses", metavar="A,B,...", help="only these and the baseline (default: the preset's)")
    add.add_argument("--suite", default=None, help="attacks: quick, standard or strong (default: the preset's)")
    add.add_argument("--epochs", type=int, help="instead of the preset's")
    add.add_argument("--test-videos", type=int, metavar="N", help="attack so many (default: the preset's)")
    _threat_options(add)
    add.add_argument("--out", type=Path, default=Path("runs/reproduce"), metavar="DIR", help="results go here")
    add.add_argument("--resume", action="store_true", help="go on with what --out holds already")

    add = _command(commands, "train", _train, "train one defense; write DIR/model.safetensors")
    _data_options(add)
    add.add_argument("--defense", default="a-art", metavar="NAME", help="standard, adversarial, ..., a-art (default)")
    add.add_argument("--seed", type=int, default=0, help="of weights and order (default 0)")
    add.add_argument("--epochs", type=int, help="instead of the preset's")
    _threat_options(add)
    add.add_argument("--out", type=Path, required=True, metavar="DIR", help="the model goes here")
    add.add_argument("--resume", action="store_true", help="go on with a run that was stopped")

    add = _command(commands, "evaluate", _evaluate, "attack a trained model; write its row of results")
    add.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a model.safetensors")
    _data_options(add)
    add.add_argument("--suite", default="standard", help="attacks: quick, standard (default) or strong")
    about = "models whose attacks are tried too (suite strong; default: the others beside CHECKPOINT)"
    add.add_argument("--surrogates", type=Path, nargs="*", metavar="CHECKPOINT", help=about)
    add.add_argument("--out", type=Path, required=True, metavar="DIR", help="results.json goes here")

    add = _command(commands, "tune", _tune, "run the same number of trials for every defense; keep the ledger")
    _data_options(add)
    add.add_argument("--defenses", metavar="A,B,...", help="only these; default: all that have a grid")
    add.add_argument("--epochs", type=int, help="instead of the preset's")
    _threat_options(add)
    add.add_argument("--out", type=Path, required=True, metavar="FILE", help="the ledger (.json), gone on with")

    add = _command(commands, "download", _download, "fetch genuine shards or the vocabulary, verified")
    add.add_argument("dataset", metavar="DATASET", help="yt8m-frame, yt8m-video, audioset or vocabulary")
    add.add_argument("--split", default="train", help="train (default), validate or test")
    add.add_argument("--shards", default="1/1", metavar="X/Y", help="part X of Y, e.g. 1/1000 (default: all)")
    add.add_argument("--mirror", default="us", help="us (default), eu or asia")
    add.add_argument("--base-url", metavar="URL", help="another server with the same layout")
    add.add_argument("--out", type=Path, required=True, metavar="DIR", help="files go here")

    add = _command(commands, "describe", _describe, "statistics of a data set, the embedded one beside genuine ones")
    _data_options(add)

    add = _command(commands, "report", _report, "draw report.md and the figures from results.json")
    add.add_argument("results", type=Path, metavar="RESULTS", help="a results.json")
    add.add_argument("--out", type=Path, metavar="DIR", help="default: beside it")
    add.add_argument("--checkpoints", type=Path, metavar="DIR", help="draw the attention of these models too")
    add.add_argument("--readme", type=Path, metavar="FILE", help="write the table between its result marks too")
    return top


def _command(commands, name: str, run, about: str):
    add = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
    add.set_defaults(run=run)
    return add


def _data_options(add) -> None:
    add.add_argument("--data", default="synthetic", metavar="NAME", help=f"{', '.join(DATA)} (default synthetic)")
    add.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with the shards (synthetic: not needed)")
    add.add_argument("--labels", type=int, metavar="K", help="only the K most frequent labels of the train split")
    add.add_argument("--preset", default="small", metavar="NAME", help="quick, small (default) or full")


def _threat_options(add) -> None:
    add.add_argument("--epsilon", type=float, metavar="E", help="ε in feature units, a byte step is 4/255")
    add.add_argument("--norm", metavar="N", help="linf, l2-frame or l2-clip (default: the data set's own)")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 = done, 2 = the user's mistake or bad input (one sentence), 1 = a training had to stop."""
    options = parser().parse_args(arguments)
    # Threads that wait for each other spin a little, then sleep: beside any other work, endless spinning makes training
    # ten times slower, and sleeping at once costs half as much again on a quiet machine. GNU's OpenMP reads this.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from aart_lib.train import TrainingStopped  # torch loads only when there is work to do

    try:
        options.run(options)
    except (ValueError, OSError) as error:
        if os.environ.get("AART_DEBUG"):
            raise
        print(f"aart: {_sentence(error)}", file=sys.stderr)
        return 2
    except TrainingStopped as error:
        print(f"aart: training stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("aart: stopped; the same command with --resume goes on from the last finished epoch", file=sys.stderr)
        return 130
    return 0


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror.lower()}"
    return " ".join(str(error).split())


def _open(options, preset):
    from aart_lib.reproduce import open_data

    return open_data(options.data, options.data_dir, labels=options.labels, preset=preset)


def _preset(options):
    from aart_lib.reproduce import preset_named

    preset, changes = preset_named(options.preset), {}
    for key in ("epochs", "suite", "test_videos"):
        value = getattr(options, key, None)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"--{key.replace('_', '-')} must be at least 1, got {value}")
        if value is not None:
            changes[key] = value
    return replace(preset, **changes)


def _names(options) -> list[str] | None:
    from aart_lib.losses import defense

    names = options.defenses.split(",") if options.defenses else None
    for name in names or ():
        defense(name)  # an unknown one is told before hours are spent
    return names


def _threat(options, splits):
    """The threat model of --norm and --epsilon; None if neither is given."""
    from aart_lib.attacks import ThreatModel

    if options.epsilon is None and options.norm is None:
        return None
    if options.epsilon is None:
        raise ValueError("--norm needs --epsilon: the size of a perturbation means something else in every norm")
    return ThreatModel(options.norm or splits.spec.norm, options.epsilon)


def _reserve(out: Path, resume: bool) -> None:
    """Create the output folder; what an earlier run left there is never overwritten unasked."""
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise ValueError(f"{out} cannot be written to; choose another --out")
    if not resume and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise ValueError(f"{out} is not empty; add --resume to go on with the run there, or choose another --out")


def _reproduce(options) -> None:
    from aart_lib.attacks import ThreatModel
    from aart_lib.report import write_report
    from aart_lib.reproduce import reproduce
    from aart_lib.suites import suite

    preset = _preset(options)
    suite(preset.suite, ThreatModel("linf", 0.0))  # unknown names are told before data is touched
    names = _names(options)
    if options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {options.seeds}")
    if options.epsilon is not None:
        ThreatModel(options.norm or "linf", options.epsilon)
    splits = _open(options, preset)
    threat = _threat(options, splits)
    _reserve(options.out, options.resume)
    results = reproduce(splits, options.out, preset=preset, seeds=options.seeds, defenses=names, threat=threat)
    print(write_report(results, options.out))
    if options.preset == "quick":
        print("This was a first taste: few epochs, not converged. Do not compare defenses by it.")
    print(f"Written: {options.out / 'results.json'}, {options.out / 'report.md'} and figures beside them.")


def _train(options) -> None:
    from aart_lib.attacks import ThreatModel
    from aart_lib.losses import defense
    from aart_lib.reproduce import Experiment, default_threat

    preset = _preset(options)
    defense(options.defense)
    if options.epsilon is not None:
        ThreatModel(options.norm or "linf", options.epsilon)
    splits = _open(options, preset)
    threat = _threat(options, splits) or default_threat(splits)
    _reserve(options.out, options.resume)
    experiment = Experiment(splits, preset, options.out)
    _, notes = experiment.model(options.defense, options.seed, threat, path=options.out / "model.safetensors")
    last = notes["history"][-1]
    gaps = f"validation GAP {last['clean']:.3f} clean, {last['attacked']:.3f} under PGD-7"
    print(f"{gaps}; {options.out}/model.safetensors")


def _evaluate(options) -> None:
    from aart_lib import checkpoint
    from aart_lib.attacks import ThreatModel
    from aart_lib.evaluate import evaluate
    from aart_lib.flags import flags
    from aart_lib.records import write_json
    from aart_lib.reproduce import settings_hash, summarize

    preset = _preset(options)
    model, notes = checkpoint.load(options.checkpoint)
    if notes["data"] != options.data:
        trained = f"was trained on {notes['data']}; evaluate it with --data {notes['data']}"
        raise ValueError(f"{options.checkpoint} {trained}")
    splits = _open(options, preset)
    splits.test.keep(notes["labels"])
    threat = ThreatModel(notes["threat"]["norm"], notes["threat"]["epsilon"])
    test = splits.test.select(range(len(splits.test))[: preset.test_videos])
    row = {"defense": notes["defense"], "seed": notes["seed"], "train_seconds": notes.get("train_seconds", 0.0)}
    others = _surrogates(options, model.config) if options.suite == "strong" else {}
    row |= evaluate(model, test, threat, name=options.suite, seed=notes["seed"], surrogates=others)
    options.out.mkdir(parents=True, exist_ok=True)
    videos = {"train": len(splits.train), "validation": len(splits.validation), "test": len(test)}
    about = {"name": options.data, "labels": notes["labels"], "videos": videos}
    results = {
        "data": about | {"settings_hash": settings_hash(splits)},
        "threat": notes["threat"] | {"epsilon_levels": threat.levels, "calibration": None},
        "rows": [row],
        "summary": summarize([row]),
        "flags": flags(notes["defense"], row, notes.get("history", [])),
    }
    write_json(options.out / "results.json", results)
    gaps = {key: row[key] for key in ("clean", "worst")} | row["attacked"]
    attacked = ", ".join(f"{name} {found['gap']:.3f}" for name, found in gaps.items())
    print(f"GAP {attacked}; {options.out}/results.json")


def _surrogates(options, config) -> dict:
    """Other models by file name; only those that take the same frames and labels can serve."""
    from aart_lib import checkpoint

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


def _tune(options) -> None:
    from aart_lib.reproduce import calibrated
    from aart_lib.tune import merit, tune

    preset = _preset(options)
    splits = _open(options, preset)
    threat = _threat(options, splits) or calibrated(splits, preset)[0]
    for name, trials in tune(splits, threat, preset, options.out, defenses=_names(options)).items():
        best = max(trials, key=lambda found, name=name: merit(found, name))
        gaps = f"GAP {best['pgd']:.3f} at ε, {best['pgd@2']:.3f} at 2ε"
        print(f"{name:20} {len(trials)} trials, best {best['changes']}: {gaps}")


def _download(options) -> None:
    from aart_lib.download import download

    paths = download(
        options.dataset,
        split=options.split,
        shards=options.shards,
        mirror=options.mirror,
        base_url=options.base_url,
        out=options.out,
    )
    print(f"{len(paths)} files verified in {options.out}")


def _describe(options) -> None:
    from aart_lib.report import describe

    print(describe(options.data, options.data_dir, labels=options.labels, preset=_preset(options)))


def _report(options) -> None:
    import json

    from aart_lib.pictures import draw_attention
    from aart_lib.report import insert_results, write_report

    if not options.results.is_file():
        raise ValueError(f"{options.results} is not a file; give a results.json that `reproduce` wrote")
    out = options.out or options.results.parent
    try:
        results = json.loads(options.results.read_text())
    except ValueError as error:
        raise ValueError(f"{options.results} is not JSON: {error}") from error
    if not isinstance(results, dict) or not {"data", "threat", "rows", "summary", "flags"} <= set(results):
        raise ValueError(f"{options.results} is not a results.json that `reproduce` wrote")
    print(write_report(results, out, options.results.with_suffix(".md").name.replace("results", "report")))
    if options.readme:
        insert_results(options.readme, results)
    if options.checkpoints:
        draw_attention(options.checkpoints, out)
