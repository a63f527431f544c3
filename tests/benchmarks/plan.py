"""What A-ART on all of YouTube-8M would cost: a step measured on a GPU, counted operations, reading, and a division.

    python tests/benchmarks/plan.py --out figures             # counts and measures, then writes the page
    python tests/benchmarks/plan.py --out figures --redraw    # the page anew from scale-plan.json

Source: Patarasuk & Yuan 2009 (the ring that sums gradients over devices).
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import models
import torch
from peers_read import SPEC, write_shard
from torch.nn.attention import SDPBackend, sdpa_kernel

from aart_lib.data.dataset import VideoDataset
from aart_lib.data.records import HEAD
from aart_lib.experiment.judge import evaluate
from aart_lib.experiment.presets import PRESETS
from aart_lib.losses import DEFENSES
from aart_lib.model import ModelConfig, VideoTransformer
from aart_lib.runtime.files import write_json
from aart_lib.threats import ThreatModel
from aart_lib.viz import plots

VIDEOS, TESTED = 3.9e6, 3000  # of the training split; enough tested ones for a difference of a few points
FRAMES, PRESET, DEVICES = SPEC.max_frames, PRESETS["full"], (1, 8, 64)
MODEL = ModelConfig(SPEC.dims, SPEC.classes, max_frames=FRAMES, **PRESET.model)
MEASURED = 2  # videos of the step that is counted and timed; its work is proportional to them
FIGURES = Path(__file__).resolve().parents[2] / "figures"


@dataclass(frozen=True)
class Machine:
    """What one device sustains, and what stands around it."""

    flops: float  # a second, in a whole training step
    reader_bytes: float  # of videos a second, one reader core: read, checked, decoded, batched
    reader_cores: int = 8  # a device
    network: float = 10e9  # bytes a second and device for the sum of gradients
    storage: float = 2e9  # bytes a second for all devices together


GPU = json.loads((FIGURES / "gpu.json").read_text(encoding="utf-8"))  # made by tests/benchmarks/gpu.py


# ---------------------------------------------------------------- counted and measured


def counted(run) -> int:
    """FLOPs with fused attention taken apart."""
    with sdpa_kernel(SDPBackend.MATH):
        return models.counted(run)


def stepping(frames: int, videos: int):
    """A function that takes an A-ART step of the preset with videos of so many frames."""
    _, batch = models.make((videos, frames, SPEC.dims, SPEC.classes), {}, padded=False)
    return models.stepping(DEFENSES["a-art"], [batch], **PRESET.model)[1]


def measure_step(rounds: int) -> dict:
    """FLOPs of a step, and its seconds on one core of this machine."""
    step, seconds = stepping(FRAMES, MEASURED), []
    flops = counted(step)
    for _ in range(rounds):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    return {"flops": flops, "seconds": seconds}


def count_evaluation(frames: int = 30) -> float:
    """How many training steps' operations the standard suite takes for as many videos, counted on short ones."""
    with tempfile.TemporaryDirectory() as folder:
        write_shard(path := Path(folder) / "test.tfrecord", MEASURED, frames)
        model, videos = VideoTransformer(replace(MODEL, max_frames=frames)), VideoDataset([path], SPEC)
        judged = counted(lambda: evaluate(model, videos, ThreatModel("linf", 0.04), progress=False))
    return judged / counted(stepping(frames, MEASURED))


def measure_reading(videos: int = 96, rounds: int = 5) -> float:
    """Bytes of videos a second that one core reads, checks, decodes and batches."""
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        write_shard(path := Path(folder) / "train.tfrecord", videos, FRAMES)
        for _ in range(rounds):
            dataset, started = VideoDataset([path], SPEC), time.process_time()
            for _batch in dataset.batches(PRESET.batch_size):
                pass
            rates.append(videos * FRAMES * SPEC.dims / (time.process_time() - started))
    return statistics.median(rates)


# ---------------------------------------------------------------- the division


def hours(results: dict, machine: Machine, devices: int) -> dict[str, float]:
    """Hours of the run by part. Computing (with the sum of gradients), reading and storage overlap.

    *Opening*: every process reads the head of each record once, to know where its videos lie.
    """
    batch, size = PRESET.batch_size, VIDEOS * FRAMES * SPEC.dims  # bytes: a byte a number
    step = results["step"]["flops"] / MEASURED * batch / machine.flops
    steps = PRESET.epochs * math.ceil(VIDEOS / (batch * devices))
    ring = 2 * (devices - 1) / devices * 4 * parameters() / machine.network
    streamed = results["streamed"]
    seconds = {
        "computing": steps * (step + ring),
        "reading": PRESET.epochs * size / (devices * machine.reader_cores * machine.reader_bytes),
        "storage": PRESET.epochs * size / machine.storage,
        "opening": VIDEOS * max(streamed["seconds"] / streamed["videos"], devices * HEAD / machine.storage),
        "evaluation": TESTED / devices * results["evaluation"] * step / batch,
    }
    return {part: value / 3600 for part, value in seconds.items()}


def total(found: dict[str, float]) -> float:
    """Hours from start to end: what overlaps counts once."""
    return max(found["computing"], found["reading"], found["storage"]) + found["opening"] + found["evaluation"]


def parameters() -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VideoTransformer(MODEL).parameters())


# ---------------------------------------------------------------- the page


def as_table(head: Sequence, lines: Sequence[Sequence]) -> str:
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, ["---:"] * len(head), *lines))


def gpu_table() -> str:
    """Steps a second of each kind beside what bus and multiplications would allow, and what of the time they are."""
    lines = []
    for row in GPU["rows"]:
        precision = {"no": "float32", "bf16": "bfloat16"}[row["precision"]]
        bounds = [f"{1e3 * row[name]:.2f}" for name in ("bound_transfer", "bound_operations")]
        times = [f"{row['steps_per_second']:.1f}", f"{1e3 * row['seconds']:.1f}", *bounds]
        features, memory = f"{1e3 * row['seconds_to_features']:.2f}", f"{row['peak_bytes'] / 1e9:.2f}"
        lines.append([row["defense"], precision, row["frames"], *times, features, memory])
    head = "step", "precision", "frames as", "steps per second", "ms", "transfer alone, ms", "operations alone, ms"
    return as_table([*head, "until float32 features, ms", "memory, GB"], lines)


def measured_card(results: dict) -> Machine:
    (row,) = [r for r in GPU["rows"] if (r["defense"], r["precision"], r["frames"]) == ("a-art", "no", "bytes")]
    return Machine(row["flops"] / row["seconds"], results["reading"])


def draw(results: dict):
    """Hours against GPUs, a line for each part that overlaps with the others."""
    runs = {n: hours(results, measured_card(results), n) for n in (1, 2, 4, 8, 16, 32, 64)}
    curves = {part: {n: run[part] for n, run in runs.items()} for part in ("computing", "reading", "storage")}
    log = {"xscale": "log", "xticks": list(runs), "xticklabels": list(runs), "yscale": "log"}
    marks = {"yticks": (0.01, 0.1, 1, 10), "yticklabels": (0.01, 0.1, 1, 10), "ylabel": "hours of the full run"}
    title = "More GPUs compute faster; the storage stays as slow"
    return plots.plot_curves(curves, title=title, xlabel="GPUs", **log, **marks)


def page(results: dict) -> str:
    """The page in Markdown, from what was counted and measured alone."""
    card = measured_card(results)
    flops, peaks = results["step"]["flops"] / MEASURED, GPU["measured"]
    bus, single = peaks["bus_bytes_per_second"] / 1e9, peaks["flops_per_second_no"] / 1e12
    half = peaks["flops_per_second_bf16"] / 1e12
    runs = {devices: hours(results, card, devices) for devices in DEVICES}
    seconds = statistics.median(results["step"]["seconds"])
    head = ["GPUs", *runs[1], "start to end"]
    lines = [[n, *(f"{value:.3g}" for value in (*run.values(), total(run)))] for n, run in runs.items()]
    table = as_table(head, lines)
    waits = next(n for n in range(1, 1000) if (run := hours(results, card, n))["storage"] > run["computing"])
    one, days = MEASURED * flops / seconds / 1e9, VIDEOS * PRESET.epochs * seconds / MEASURED / 3600 / 24
    maps = "" if "maps" in GPU["rows"][0] else " Steps still kept the maps of all layers then; now A-ART's keep a row."
    terabytes, million = VIDEOS * FRAMES * SPEC.dims / 1e12, parameters() / 1e6
    return f"""# What the full run would cost

Made by `make plan` (`python tests/benchmarks/plan.py --out figures`) from [scale-plan.json](scale-plan.json). The run:
A-ART on {VIDEOS:,.0f} videos of {FRAMES} frames and {SPEC.dims:,} numbers, {SPEC.classes:,} labels,
preset `full`: width {MODEL.width}, {MODEL.heads} heads, {MODEL.layers} layers, batch {PRESET.batch_size} a GPU,
{PRESET.epochs} epochs.

## Hours, by number of GPUs

{table}

Computing (with the sum of gradients), reading and storage overlap: the run takes the longest of them, and opening and
evaluation come on top. From {waits} GPUs on storage takes longer than computing. *Opening*: every process reads the
head of each record once (`python tests/benchmarks/stream.py`, one core here); the index is kept for the next time.
*Evaluation*: {TESTED:,} videos under the standard suite, shared by the GPUs; a video costs as many operations there as
{results["evaluation"]:.0f} training steps. Every video is taken as {FRAMES} frames long; shorter ones cost less. Not
counted: validation while training, starting the processes.

## Measured on a GPU

{GPU["card"]}, PyTorch {GPU["torch"]}, `python tests/benchmarks/gpu.py --out figures/gpu.json`: {GPU["size"]["steps"]}
steps of each kind after some that warm up, batches of random bytes in pinned memory. The bus moved {bus:.0f} GB/s, a
large multiplication ran at {single:.0f} TFLOP/s in float32 and {half:.0f} in bfloat16. `a-art-fast` attacks in one
step, `a-art` in two.{maps}

{gpu_table()}

Bytes reach the card and become features in half the time that floats take. It is a small part of a step: this model is
too narrow for the card, which waits for the start of small operations (in float32 a step of A-ART reaches
{card.flops / 1e12:.0f} TFLOP/s, {card.flops / 1e12 / single:.0%} of a large multiplication), and bfloat16 gains little.
Larger batches would use it better. One training of four epochs on this card, stopped by SIGINT in the second and
resumed, ended with the same weights as one that was not stopped, to the bit. One card was at hand: two processes were
run on CPUs alone.

## Counted and measured

- A training step takes {flops / 1e9:.1f} GFLOP a video: PyTorch's own count of a real step of the preset.
- One core of the machine at hand takes {seconds:.2f} s of its time for {MEASURED} videos ({one:.0f} GFLOP/s). All steps
  of the full run would take it {days:,.0f} days.
- One core reads, checks, decodes and batches {results["reading"] / 1e6:.0f} MB of videos a second. An epoch is
  {terabytes:.2f} TB.
- The model has {million:.2f} million numbers: each GPU sends and receives {4 * million:.1f} MB about twice a step.
- Memory: `python tests/benchmarks/full_size.py`.

## Assumed, not measured

- More cards are each as fast as the one measured.
- {card.reader_cores} reader cores a GPU, each as fast as the one measured.
- Network: {card.network / 1e9:.0f} GB/s a GPU; the sum of gradients does not overlap with computing.
- Storage: {card.storage / 1e9:.0f} GB/s for all GPUs together; nothing stays in memory.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder of the page")
    parser.add_argument("--rounds", type=int, default=9, help="times the step is measured")
    parser.add_argument("--redraw", action="store_true", help="use the measurements that lie in the folder")
    options = parser.parse_args(arguments)
    stored = options.out / "scale-plan.json"
    if not options.redraw:
        torch.set_num_threads(1)
        streamed = json.loads((FIGURES / "streaming.json").read_text(encoding="utf-8"))
        results = {"step": measure_step(options.rounds), "evaluation": count_evaluation(), "reading": measure_reading()}
        results["streamed"] = {"seconds": streamed["index_seconds"], "videos": streamed["epoch"]["videos"]}
        write_json(stored, results)
    results = json.loads(stored.read_text(encoding="utf-8"))
    (options.out / "scale-plan.md").write_text(page(results), encoding="utf-8")
    plots.save(draw(results), options.out / "scale-plan.png")


if __name__ == "__main__":
    main()
