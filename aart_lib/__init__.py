"""A-ART: understand, attack and repair the temporal attention of a video Transformer.

Names are imported when first used, so that ``import aart_lib`` costs nothing and matplotlib and ipywidgets load only
where something is drawn.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "records": ("read_records", "write_records", "RecordError"),
    "metrics": ("gap", "hit_at_one", "perr", "mean_average_precision", "Accumulator"),
    "model": ("ModelConfig", "Output", "SteadyAttention", "VideoTransformer", "cls_attention", "rollout"),
    "specs": ("BOX", "LEVEL", "SPECS", "dequantize", "quantize"),
    "batch": ("Batch", "Item", "collate"),
    "data": ("Splits", "VideoDataset", "open_splits"),
    "losses": ("DEFENSES", "Defense", "attention_divergence", "attention_entropy", "bce", "bernoulli_kl"),
    "threats": ("ThreatModel",),
    "attacks": ("Attack", "fgsm", "noise", "perturb", "pgd"),
    "suites": ("suite",),
    "scoring": ("calibrate", "probabilities", "score"),
    "experiment.judge": ("evaluate", "judge"),
    "measures": ("evidence_share",),
    "training": ("TrainConfig", "train"),
    "presets": ("default_threat", "model_config", "open_data"),
    "experiment.reproduce": ("reproduce",),
}
_MODULES = {"checkpoint", "download", "experiment", "pictures", "plots", "report", "synthetic", "widgets"}
_MODULES |= {module for module in _HOME if "." not in module}
_ORIGIN = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted({*_ORIGIN, *_MODULES})


def __getattr__(name: str):
    if name in _ORIGIN:
        return getattr(import_module(f"aart_lib.{_ORIGIN[name]}"), name)
    if name in _MODULES:
        return import_module(f"aart_lib.{name}")
    raise AttributeError(f"aart_lib has no {name!r}; it has {', '.join(__all__)}")


def __dir__():
    return __all__
