"""How much is done (`PRESETS`), and what follows from it: the data, the model and the training loop's settings."""

from dataclasses import dataclass, field
from pathlib import Path

from aart_lib import synthetic
from aart_lib.data import BOX, SPECS, DatasetSpec, Splits, open_splits
from aart_lib.losses import SIX
from aart_lib.model import ModelConfig
from aart_lib.records import Skipped
from aart_lib.steps import Hardware, TrainConfig
from aart_lib.threats import ThreatModel
from aart_lib.vocabulary import chosen


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
    sampling: str = "uniform"
    hardware: Hardware = Hardware()  # noqa: RUF009 (frozen)
    skipped: Skipped | None = None  # where bad records are counted that are left out; None = they stop the run


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
        hardware=Hardware(workers=2),
    ),
}


def preset_named(name: str) -> Preset:
    """Raises: ValueError that lists the known presets."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]


def open_data(
    name: str, data_dir=None, *, labels: int | str | list[int] | None = None, preset: Preset = PRESETS["small"]
) -> Splits:
    """The splits of a data set by name; the synthetic one is generated on first use. Raises: ValueError.

    labels: how many, the most frequent; or names of labels or verticals, see `vocabulary.chosen`; or class indices.
    "synthetic:short" and its like are the unseen variants of the synthetic data, on which nothing is tuned.
    """
    name, _, variant = name.partition(":")
    spec = spec_named(name, preset)
    if name == "synthetic":
        settings = synthetic.settings_named(variant or "default")
        data_dir = data_dir or synthetic.ensure(settings)
    elif variant:
        raise ValueError(f"{name} has no variants, got {variant!r}; leave out what follows the colon")
    elif data_dir is None:
        raise ValueError(f"{name} needs --data-dir, the folder with its shards; `python -m aart_lib download` fetches")
    kept = chosen(labels, spec, data_dir)
    splits = open_splits(spec, data_dir, labels=kept, max_frames=preset.max_frames, skipped=preset.skipped)
    if variant and variant_of(splits) != variant:
        raise ValueError(f"{data_dir} was not generated as {name}:{variant}; leave out the variant, or --data-dir")
    return splits


def spec_named(name: str, preset: Preset = PRESETS["small"]) -> DatasetSpec:
    """What a data set's files hold, with the dimensions a preset uses. Raises: ValueError for an unknown name."""
    if name not in SPECS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(SPECS)}")
    return SPECS[name] if name == "synthetic" else SPECS[name].leading(**preset.dims)


def model_config(splits: Splits, preset: Preset = PRESETS["small"]) -> ModelConfig:
    """The model a data set calls for."""
    frames = splits.train.max_frames
    return ModelConfig(splits.spec.dims, len(splits.labels), max_frames=frames, **preset.model)


def train_config(splits: Splits, preset: Preset = PRESETS["small"], **settings) -> TrainConfig:
    """The training loop's settings for a data set."""
    settings = {"sampling": preset.sampling} | settings
    return TrainConfig(preset.epochs or splits.spec.epochs, preset.batch_size, **settings)


def default_threat(splits: Splits) -> ThreatModel:
    """The data set's own norm and range, and the ε at which the calibration starts."""
    return ThreatModel(splits.spec.norm, splits.spec.epsilon, box=splits.spec.box or BOX)


def settings_hash(splits: Splits) -> str | None:
    """Of what the videos were generated with; None for genuine data, and where nothing is known of that."""
    generated = splits.spec.name == "synthetic"
    return synthetic.made_with(Path(splits.train.entries[0].path).parent) if generated else None


def data_name(splits: Splits) -> str:
    """The name by which `open_data` opens these videos, "synthetic:short" for a variant of the synthetic data."""
    variant = variant_of(splits)
    return splits.spec.name if variant in (None, "default") else f"{splits.spec.name}:{variant}"


def variant_of(splits: Splits) -> str | None:
    """Name of the generator's settings that made the videos; None where it has no name."""
    known: dict = {synthetic.settings_hash(settings): name for name, settings in synthetic.SETTINGS.items()}
    return known.get(settings_hash(splits))
