"""From the options of a command to settings; what is wrong with them is told before data is touched."""

from dataclasses import replace

from aart_lib.data.batch import BOX
from aart_lib.data.catalog import open_data, spec_named
from aart_lib.data.exact import one_of
from aart_lib.data.formats import SAMPLINGS
from aart_lib.data.vocabulary import chosen
from aart_lib.experiment.presets import PRESETS
from aart_lib.experiment.suites import SUITES
from aart_lib.losses import defense
from aart_lib.threats import ThreatModel

AT_LEAST = {"epochs": 1, "seeds": 1, "test_videos": 1, "batch_size": 1, "accumulate": 1, "jobs": 1, "workers": 0}
LARGEST_EPSILON = 1e4


def splits(options, preset):
    how = {"labels": options.labels, "skipped": options.skipped}
    return open_data(options.data, options.data_dir, **how, **preset.reading)


def preset(options):
    """The preset of --preset with what other options change in it. Raises: ValueError."""
    one_of("preset", options.preset, PRESETS)
    preset, given = PRESETS[options.preset], {k: v for k, v in vars(options).items() if v is not None}
    for key, least in AT_LEAST.items():
        if given.get(key, least) < least:
            raise ValueError(f"--{key.replace('_', '-')} must be at least {least}, got {given[key]}")
    one_of("suite", given.get("suite", preset.suite), SUITES)
    if given.get("sampling", "uniform") != "uniform":
        _check_sampling(options)
    hardware = {key: given[key] for key in ("workers", "accumulate", "recompute") if key in given}
    changes = {k: given[k] for k in ("epochs", "suite", "test_videos", "batch_size", "sampling") if k in given}
    return replace(preset, hardware=replace(preset.hardware, **hardware), **changes)


def _check_sampling(options) -> None:
    one_of("sampling", options.sampling, SAMPLINGS)
    if options.data in ("audioset", "yt8m-video") or (options.data.startswith("synthetic") and not options.data_dir):
        longest = spec_named(options.data.partition(":")[0]).max_frames
        raise ValueError(f"--sampling changes nothing: {options.data} has at most {longest} frames; leave it out")


def defenses(options) -> list[str] | None:
    """The names of --defenses, each once; None if it is not given. Raises: ValueError."""
    if options.defenses is None:
        return None
    names = [name.strip() for name in options.defenses.split(",")]
    for name in names:
        defense(name)  # an unknown one is told before hours are spent
    return list(dict.fromkeys(names))


def check_threat(options) -> None:
    """What is wrong with --norm and --epsilon is told before data is touched."""
    if options.epsilon is None and options.norm is not None:
        raise ValueError("--norm needs --epsilon: the size of a perturbation means something else in every norm")
    if options.epsilon is not None:
        ThreatModel(options.norm or "linf", options.epsilon)
        if not 0 < options.epsilon <= LARGEST_EPSILON:
            most = f"{LARGEST_EPSILON:g} feature units, of which features span {BOX[1] - BOX[0]:g}"
            raise ValueError(f"--epsilon must be above 0 and at most {most}, got {options.epsilon:g}")


def threat(options, splits):
    """The threat model of --norm and --epsilon; None if neither is given."""
    return None if options.epsilon is None else ThreatModel(options.norm or splits.spec.norm, options.epsilon)


def check_model(options, config, notes: dict) -> None:
    """Whether the data and the preset are those that a model was made for."""
    asked, trained = options.data.removesuffix(":default"), notes["data"]
    name = asked.partition(":")[0]
    same = asked == trained
    if options.data_dir:  # the shards will tell the variant
        same = name == trained.partition(":")[0]
    if not same:
        raise ValueError(f"{options.checkpoint} was trained on {trained}; evaluate it with --data {trained}")
    if options.segments and name != "yt8m-frame":
        raise ValueError(f"--segments judges the rated segments of yt8m-frame; {name} has none, leave it out")
    sizes = {known: spec_named(name, found.dims, options.data_dir).dims for known, found in PRESETS.items()}
    if sizes[options.preset] != config.features:
        fits = (f"--preset {known}" for known, size in sizes.items() if size == config.features)
        told = f"--preset {options.preset} gives {sizes[options.preset]}; take {next(fits, 'another model')}"
        raise ValueError(f"{options.checkpoint} takes {config.features} numbers a frame, {told}")


def check_labels(options, spec, own: list[int]) -> None:
    """Whether --labels, if given, names a model's own."""
    wanted = chosen(options.labels, spec, options.data_dir)
    same = len(own) == wanted if isinstance(wanted, int) else wanted is None or set(wanted) == set(own)
    if not same:
        given = f"{len(own)} labels of its own, others than --labels {options.labels}"
        raise ValueError(f"{options.checkpoint} has {given}; leave the option out")
