"""Trained models on disk: safetensors weights with a JSON description in the header, nothing that can run code."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from aart_lib.attacks import ThreatModel
from aart_lib.model import ModelConfig, VideoTransformer
from aart_lib.runtime.files import replacing

VERSION = 1
LARGEST_HEADER = 2**22  # bytes; descriptions are a few kB, tensors a line each
FORMER = {"head": "logistic", "experts": 2, "dropout": 0.0}  # options of older files, read only with these values
REQUIRED = {"data": str, "labels": list, "defense": str, "seed": int, "threat": dict, "version": int}


def save(path, model: VideoTransformer, notes: dict) -> None:
    """Write a model and its notes; the file appears under its name only when it is complete.

    Args:
        notes: JSON-able; at least data, labels (class indices), defense, seed and threat {"norm", "epsilon"}.
    """
    notes = {"version": VERSION} | notes
    if missing := [key for key in REQUIRED if key not in notes]:
        raise ValueError(f"notes of a checkpoint must hold {', '.join(REQUIRED)}; missing: {', '.join(missing)}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    description = json.dumps({"config": asdict(model.config), "notes": notes})
    with replacing(path) as file:
        file.write(to_bytes(tensors, metadata={"aart": description}))


@torch.inference_mode(False)  # else what is loaded in it could never be attacked
def load(path) -> tuple[VideoTransformer, dict]:
    """A model in eval mode and its notes, on the CPU and with the numbers of the file: torch's defaults do not matter.

    Raises: ValueError if the file is not such a checkpoint, or holds other tensors than its description says, or NaN.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the path of a model.safetensors")
    _check_header(path)
    try:
        with safe_open(path, "pt") as file:
            description = json.loads((file.metadata() or {}).get("aart", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, json.JSONDecodeError, RecursionError, OSError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from error
    model, notes = _build(path, description)
    kind = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)
    expected, found = ({k: (v.shape, v.dtype) for k, v in s.items()} for s in (model.to(kind).state_dict(), tensors))
    if wrong := sorted(name for name, _ in expected.items() ^ found.items()):
        raise ValueError(f"{path}: tensor {wrong[0]!r} is not what the model of its description has")
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"{path}: tensor {broken[0]!r} holds NaN or infinity")
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    return model.eval(), notes


def _check_header(path: Path) -> None:
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > min(LARGEST_HEADER, os.path.getsize(path)):  # before anything is allocated
        raise ValueError(f"{path} is not a checkpoint: its header claims {header} bytes")


def _build(path: Path, description) -> tuple[VideoTransformer, dict]:
    try:
        choices, notes = dict(description["config"]), dict(description["notes"])
        if {key: choices.pop(key, value) for key, value in FORMER.items()} != FORMER:
            raise ValueError(f"a head or a dropout that this version does not know: {description['config']}")
        config = ModelConfig(**choices)
        sizes = config.features, config.labels, config.max_frames, config.width, config.heads, config.layers
        if not all(isinstance(size, int) and 0 < size < 2**20 for size in sizes):
            raise ValueError(f"sizes {sizes} that no model has")
        if config.layers > 1000 or notes["version"] != VERSION:
            raise ValueError(f"version {notes['version']} or a size that this version does not read")
        if missing := [key for key, kind in REQUIRED.items() if not isinstance(notes.get(key), kind)]:
            raise KeyError(*missing)
        if len(notes["labels"]) != config.labels or {type(label) for label in notes["labels"]} != {int}:
            raise ValueError(f"labels {str(notes['labels'])[:80]} for a model of {config.labels}")
        ThreatModel(**notes["threat"])
        with torch.device("meta"):  # allocates nothing, whatever sizes the description claims
            return VideoTransformer(config), notes
    except (TypeError, KeyError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{path} has no description of a video Transformer of this project: {error}") from error
