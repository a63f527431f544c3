"""A-ART: understand, attack and repair the temporal attention of a video Transformer.

Names are imported when first used, so that ``import aart_lib`` costs nothing and matplotlib and ipywidgets load only
where something is drawn.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "data": "Batch BOX Item LEVEL SPECS Splits VideoDataset collate dequantize open_data open_splits quantize",
    "data.records": "RecordError read_records write_records",
    "model": "ModelConfig Output VideoTransformer",
    "attention": "SteadyAttention attention_divergence attention_entropy cls_attention evidence_share rollout",
    "losses": "DEFENSES Defense bce bernoulli_kl",
    "threats": "ThreatModel",
    "attacks": "Attack fgsm noise perturb pgd",
    "metrics": "gap hit_at_one perr mean_average_precision Accumulator",
    "steps": "TrainConfig",
    "training": "train",
    "scoring": "probabilities score",
    "experiment.presets": "calibrate default_threat model_config",
    "experiment.suites": "suite",
    "experiment.judge": "evaluate judge",
    "experiment.reproduce": "reproduce",
}
_MODULES = {"checkpoint", "runtime", "viz", "experiment", "cli", "objectives", *(m for m in _HOME if "." not in m)}
_ORIGIN = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = sorted({*_ORIGIN, *_MODULES})


def __getattr__(name: str):
    if name in _ORIGIN:
        return getattr(import_module(f"aart_lib.{_ORIGIN[name]}"), name)
    if name in _MODULES:
        return import_module(f"aart_lib.{name}")
    raise AttributeError(f"aart_lib has no {name!r}; it has {', '.join(__all__)}")


def __dir__():
    return __all__
