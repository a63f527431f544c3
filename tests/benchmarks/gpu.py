"""Training steps per second of the full preset on a GPU, beside what its bus and its multiplications allow.

    python tests/benchmarks/gpu.py --out gpu.json          # minutes on one card
    python tests/benchmarks/gpu.py --device cpu --tiny     # shows that it works, measures nothing

It needs no network and no files: videos are random bytes. Of packages it needs torch, accelerate and what they bring.
A step begins with a batch in pinned memory, as a loader hands it over, and ends when the weights are updated.
"""

import argparse
import json
import sys
import time
import types
from itertools import cycle, product
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
try:
    import google_crc32c  # noqa: F401 (the library reads files with it, this program reads none)
except ImportError:
    sys.modules["google_crc32c"] = types.ModuleType("google_crc32c")

import models

from aart_lib.data.batch import Batch, features
from aart_lib.experiment.presets import PRESETS
from aart_lib.losses import DEFENSES
from aart_lib.model import ModelConfig
from aart_lib.steps import Learner, TrainConfig
from aart_lib.threats import ThreatModel

FULL = {"videos": 32, "frames": 300, "features": 1152, "labels": 3862, "steps": 30}
TINY = {"videos": 4, "frames": 6, "features": 12, "labels": 5, "steps": 2}
NAMES = "standard", "a-art", "a-art-fast"  # the last one attacks in a single step, from the pass that it learns from
WARM = 4  # steps before the clock starts, and batches that take turns


def seconds(device: torch.device, call, repeats: int) -> float:
    """Of one call, after some that warm up."""
    wait = torch.cuda.synchronize if device.type == "cuda" else int
    for turn in range(WARM + repeats):
        if turn == WARM:
            wait()
            started = time.perf_counter()
        call()
    wait()
    return (time.perf_counter() - started) / repeats


def machine(device: torch.device, size: int) -> dict:
    """Measured: bytes a second over the bus from pinned memory, operations a second of a large multiplication."""
    block = torch.zeros(size**2, dtype=torch.uint8, pin_memory=device.type == "cuda")
    found = {"bus_bytes_per_second": len(block) / seconds(device, lambda: block.to(device, copy=True), 10)}
    for name, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        table = torch.randn(size, size, device=device, dtype=dtype)
        found[f"flops_per_second_{name}"] = 2 * size**3 / seconds(device, lambda t=table: t @ t, 10)
    return found


def batches(size: dict, device: torch.device, floats: bool) -> list[Batch]:
    """Full-length videos in pinned memory, as bytes or as floats."""
    generator = torch.Generator().manual_seed(0)
    shape, made = [size[name] for name in ("videos", "frames", "features")], []
    for _ in range(WARM):
        stored = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        mask = torch.ones(shape[:2], dtype=torch.bool)
        labels = (torch.rand(shape[0], size["labels"], generator=generator) < 3 / size["labels"]).float()
        batch = Batch(features(stored, mask) if floats else stored, mask, labels, ("",) * shape[0])
        made.append(batch.pin_memory() if device.type == "cuda" else batch)
    return made


def learner(name: str, size: dict, precision: str, device: torch.device) -> Learner:
    AcceleratorState._reset_state(reset_partial_state=True)  # one of each precision in this process
    accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
    shape = ModelConfig(size["features"], size["labels"], max_frames=size["frames"], **PRESETS["full"].model)
    made = Learner(DEFENSES[name], shape, TrainConfig(batch_size=size["videos"]), 10_000, accelerator)
    made.model.train()
    return made


def measure(name: str, precision: str, floats: bool, size: dict, device: torch.device, known: dict) -> dict:
    """Steps of one kind beside their bounds."""
    own, threat = learner(name, size, precision, device), ThreatModel("linf", 0.04)
    ready = batches(size, device, floats)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    turns = cycle(ready)
    spent = seconds(device, lambda: own.learn([next(turns)], size["videos"], threat), size["steps"])
    moved = sum(tensor.nbytes for tensor in (ready[0].stored, ready[0].mask, ready[0].labels))
    flops = models.counted(lambda: own.learn([ready[0]], size["videos"], threat))
    bounds = moved / known["bus_bytes_per_second"], flops / known[f"flops_per_second_{precision}"]
    kind = "floats" if floats else "bytes"
    print(f"{name:12} {precision:5} {kind:7} {1 / spent:7.2f} steps/s, bound {1 / sum(bounds):.2f}", flush=True)
    return {
        **{"defense": name, "precision": precision, "frames": kind, "steps_per_second": 1 / spent, "seconds": spent},
        **{"bound_transfer": bounds[0], "bound_operations": bounds[1], "bytes": moved, "flops": flops},
        "seconds_to_features": seconds(device, lambda: ready[0].to(device).frames, size["steps"]),
        "maps": DEFENSES[name].needs_maps,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the numbers here (.json)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device, size = torch.device(options.device), TINY if options.tiny else FULL
    card = torch.cuda.get_device_name() if device.type == "cuda" else "processor"
    known = machine(device, 256 if options.tiny else 8192)
    rows = [measure(*kind, size, device, known) for kind in product(NAMES, ("no", "bf16"), (False, True))]
    found = {"card": card, "torch": torch.__version__, "size": size, "measured": known, "rows": rows}
    if options.out:
        options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
