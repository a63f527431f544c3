"""What a run costs in hours: a plan on paper, checked by measured steps, and the page that shows both.

``python tests/benchmarks/plan.py --out figures`` measures, fits, checks and writes the page; `make plan` keeps memory
between steps, which makes their times steady.

Source: Patarasuk & Yuan 2009 (the ring that sums gradients over devices).
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from timing import FITTED, HELD_OUT, Shape, measure, measure_reading
from work import (
    A100,
    FLOAT,
    PEAK_BYTES,
    PEAK_FLOPS,
    Machine,
    fit,
    memory,
    parameters,
    passes,
    suite_passes,
    work,
)

from aart_lib.data.formats import SPECS
from aart_lib.data.records import HEAD
from aart_lib.experiment.presets import PRESETS
from aart_lib.losses import DEFENSES, Defense
from aart_lib.model import ModelConfig
from aart_lib.runtime.files import write_json

VIDEOS = 3.9e6  # of YouTube-8M's training split
STREAMED = json.loads((Path(__file__).parents[2] / "figures" / "streaming.json").read_text(encoding="utf-8"))
HEAD_SECONDS = STREAMED["index_seconds"] / STREAMED["epoch"]["videos"]  # to read and index a video's head, one core
TESTED = 3000  # enough for a difference of a few points


def plan(
    model: ModelConfig,
    frames: int,
    batch: int,
    defense: Defense,
    machine: Machine,
    *,
    devices: int = 1,
    videos: float = VIDEOS,
    epochs: int = 10,
    tested: int = TESTED,
    indexed: bool = False,
) -> dict[str, float]:
    """Hours of a run by part. Computing, reading and storage overlap, the others follow each other.

    Args:
        batch: videos a device and step; tested: videos that meet the standard suite at the end, shared by the devices.
        indexed: the index of the files is there. Without one every process reads and checks each file once, to know
            where its videos lie ("opening").
    """
    p, size = passes(defense), videos * frames * model.features  # bytes: a byte a number
    steps = epochs * math.ceil(videos / (batch * devices))
    judged = suite_passes("standard", frames)
    ring = 2 * (devices - 1) / devices * FLOAT * parameters(model) / machine.network
    seconds = {
        "computing": steps * machine.seconds(work(model, frames, batch, p)),
        "all-reduce": steps * ring,
        "reading": epochs * size / (devices * max(machine.reader_cores, 1) * machine.reader_bytes),
        "storage": epochs * size / machine.storage,
        "opening": 0.0 if indexed else videos * max(HEAD_SECONDS, devices * HEAD / machine.storage),
        "evaluation": tested / devices * machine.seconds(work(model, frames, 100, judged)) / 100,
    }
    return {part: value / 3600 for part, value in seconds.items()}


def total(hours: dict[str, float], machine: Machine) -> float:
    """Hours from start to end: what overlaps counts once."""
    busy, reading = hours["computing"] + hours["all-reduce"], hours["reading"]
    pace = max(busy, reading) if machine.reader_cores else busy + reading
    return max(pace, hours["storage"]) + hours["opening"] + hours["evaluation"]


def longest(hours: dict[str, float]) -> str:
    """The part that takes longest."""
    return max(hours, key=hours.get)


def moves(counts: Sequence[int], hours_of: Callable[[int], dict]) -> list[tuple[int, str]]:
    """(number of devices, bottleneck) where it changes; ``hours_of(devices)`` gives the hours by part."""
    parts = [(devices, longest(hours_of(devices))) for devices in counts]
    return [parts[i] for i in range(len(parts)) if i == 0 or parts[i][1] != parts[i - 1][1]]


# ---------------------------------------------------------------- checked


def checked(results: dict) -> tuple[Machine, list[dict]]:
    """One core of the machine that measured, as fitted, and each shape: seconds and kept bytes, measured, predicted.

    results: {"reading": `measure_reading`, "steps": `measure`, each with "held": whether the fit must not see it}.
    """
    shapes = [Shape(**row["shape"]) for row in results["steps"]]
    seconds = [statistics.median(row["seconds"]) for row in results["steps"]]
    used = [(s.work, t) for s, t, row in zip(shapes, seconds, results["steps"], strict=True) if not row["held"]]
    one = fit(*zip(*used, strict=True), replace(A100, name="one core", reader_cores=0, **results["reading"]))
    rows = []
    for shape, measured, row in zip(shapes, seconds, results["steps"], strict=True):
        kept, predicted = shape.memory["activations"] + shape.memory["maps"], one.seconds(shape.work)
        errors = {"error": predicted / measured - 1, "kept error": kept / row["kept"] - 1}
        rows.append(row | {"shape": shape, "seconds": measured, "predicted": predicted} | errors)
    return one, rows


def worst(rows: Sequence[dict], key: str, *, held: bool) -> float:
    """The largest relative error of the shapes that were held out, or of those that were fitted."""
    return max(abs(row[key]) for row in rows if row["held"] == held)


# ---------------------------------------------------------------- the page

DEVICES = (1, 8, 64)
FULL = ModelConfig(SPECS["yt8m-frame"].leading(rgb=1024, audio=128).dims, 3862, 300, **PRESETS["full"].model)


def card_of(results: dict) -> Machine:
    """The assumed card, its reader cores as measured."""
    return replace(A100, **results["reading"])


def full_run(machine: Machine, devices: int, **options) -> dict[str, float]:
    """Hours by part of A-ART on all of YouTube-8M, preset "full"."""
    batch, epochs = PRESETS["full"].batch_size, PRESETS["full"].epochs
    return plan(FULL, FULL.max_frames, batch, DEFENSES["a-art"], machine, devices=devices, epochs=epochs, **options)


def _table(head: Sequence, lines: Sequence[Sequence]) -> str:
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, ["---:"] * len(head), *lines))


def _hours(card: Machine) -> str:
    """Hours by number of devices, and where the longest part changes."""
    lines, alone = [], replace(card, reader_cores=0)
    for n in DEVICES:
        run, indexed = full_run(card, n), full_run(card, n, indexed=True)
        ends = total(run, card), total(indexed, card), total(indexed, alone)
        lines.append([n, *(f"{hours:.3g}" for hours in (*run.values(), *ends)), longest(run)])
    head = ["GPUs", *run, "start to end", "… with an index", "… and no reader cores", "longest part"]
    moved = [
        ", ".join(f"{part} from {n} GPU{'s' * (n > 1)} on" for n, part in moves(range(1, 257), hours_of))
        for hours_of in (lambda n: full_run(card, n), lambda n: full_run(card, n, indexed=True))
    ]
    return f"{_table(head, lines)}\n\nThe longest part is {moved[0]}.\nWith an index on disk it is {moved[1]}."


def _assumptions(card: Machine) -> str:
    share = lambda value, peak: f"{value / peak:.0%} of {peak:.4g}, data sheet of the NVIDIA A100 (40 GB)"  # noqa: E731
    lines = (
        (card.name, f"{card.flops:.3g} FLOPs a second", share(card.flops, PEAK_FLOPS) + ", float32"),
        ("its memory", f"{card.bytes:.3g} bytes a second", share(card.bytes, PEAK_BYTES)),
        ("starting a block", f"{1e3 * card.call:.2f} ms", "some 30 operations of 8 µs, one after the other"),
        ("reader cores", f"{card.reader_cores} a GPU", "each as fast as the core measured below"),
        ("network", f"{card.network / 1e9:.0f} GB/s a GPU", "the sum of gradients does not overlap with computing"),
        ("storage", f"{card.storage / 1e9:.0f} GB/s for all GPUs", "a shared file system; nothing stays in memory"),
    )
    return _table(("what", "value", "why"), lines)


def _checks(rows: Sequence[dict]) -> str:
    lines = []
    for row in rows:
        times = f"{1e3 * row['seconds']:.1f}", f"{1e3 * row['predicted']:.1f}", f"{row['error']:+.0%}"
        kept = f"{row['kept'] / 1e6:.1f}", f"{row['kept error']:+.0%}"
        lines.append(["held out" if row["held"] else "fitted", *row["shape"], *times, *kept])
    return _table(["", *Shape._fields, "measured, ms", "predicted, ms", "error", "kept, MB", "error"], lines)


def page(results: dict) -> str:
    """The page in Markdown, from the measurements alone."""
    card, (one, rows), preset, frames = card_of(results), checked(results), PRESETS["full"], FULL.max_frames
    p, size = passes(DEFENSES["a-art"]), VIDEOS * frames * FULL.features
    done, held = work(FULL, frames, preset.batch_size, p), memory(FULL, frames, preset.batch_size, p)
    share = [f"{part / done.flops:.1%} {name}" for name, part in zip(done._fields[:3], done[:3], strict=True)]
    kinds = zip(card.costs, done.kinds, ("multiplying", "maps", "other numbers", "starting operations"), strict=True)
    times = ", ".join(f"{kind} {1e3 * cost * amount:.0f} ms" for cost, amount, kind in kinds)
    days = math.ceil(VIDEOS / preset.batch_size) * preset.epochs * one.seconds(done) / 3600 / 24
    errors = [f"{worst(rows, key, held=out):.0%}" for key in ("error", "kept error") for out in (False, True)]
    counts = [sum(row["held"] == out for row in rows) for out in (False, True)]
    return f"""# What the full run would cost

Made by `make plan` (`python tests/benchmarks/plan.py --out figures`) from [scale-plan.json](scale-plan.json): a plan on
paper, checked on steps that could be measured. The run: A-ART on {VIDEOS:,.0f} videos of {frames} frames and
{FULL.features:,} numbers, {FULL.labels:,} labels, width {FULL.width}, {FULL.heads} heads, {FULL.layers} layers, batch
{preset.batch_size} a GPU, {preset.epochs} epochs.

## Hours, by number of GPUs

{_hours(card)}

Computing with the sum of gradients, reading and storage overlap: the run takes the longest of them, and opening and
evaluation come on top. *Opening*: every process reads the head of each record once, {1e3 * HEAD_SECONDS:.2f} ms a video
(`python tests/benchmarks/stream.py`, one core here); the index is kept for the next time. *No reader cores*: the
training process reads by itself, and computing waits meanwhile. *Evaluation*: {TESTED:,} videos under the standard
suite, shared by the GPUs. Not counted: validation while training, starting
the processes. Every video is taken as {frames} frames long; shorter ones cost less.

## One step of one GPU

{done.flops / 1e12:.3f} TFLOP: {", ".join(share)}.
Maps written and read: {done.maps / 1e9:.1f} GB (with what starting their rows costs); other
numbers: {done.moved / 1e9:.1f} GB.
On the assumed card: {times}.

{_table((*held, "together"), [[f"{part / 1e9:.2f} GB" for part in (*held.values(), sum(held.values()))]])}

*Weights*: {parameters(FULL) / 1e6:.2f} million, with gradient and Adam's two means. *Activations* and *maps* wait for
the backward pass, clean and attacked at once; what an operation needs while it runs comes on top.
Storage: {size / 1e12:.2f} TB, read once an epoch. The sum of gradients: {FLOAT * parameters(FULL) / 1e6:.1f} MB,
which each GPU sends and receives about twice a step.

## Assumed, not measured

{_assumptions(card)}

## Measured, on one core

Reading with checksums, decoding and batching: {card.reader_bytes / 1e6:.0f} MB/s of videos.
Opening a small data set, every record checked in full: {card.index_bytes / 1e6:,.0f} MB/s.
(Records of {frames} x {FULL.features:,} bytes, processor time: the disk's own time is not in it.)

Four costs, fitted to {counts[0]} shapes of real training steps: {one.flops / 1e9:.0f} GFLOP/s,
maps {one.map_bytes / 1e9:.1f} GB/s, other numbers {one.bytes / 1e9:.1f} GB/s, {1e3 * one.call:.2f} ms a block and pass.
Largest error in time: {errors[0]} on these shapes, **{errors[1]} on the {counts[1]} held out**. In memory kept for the
backward pass, where nothing is fitted: {errors[2]} and {errors[3]}. The held-out shapes are not fully blind: an earlier
count of the maps missed some of them by more than a fifth; count, fitted shapes and the keeping of memory between steps
were changed after that had been seen. Seven of the thirteen had not been measured before.
The steps of the full run alone would take this core {days:.0f} days.

{_checks(rows)}

Milliseconds of the processor, one thread, median of {len(results["steps"][0]["seconds"])} rounds in which the shapes
take turns. *Kept*: the most bytes that waited for a backward pass in a real step. The hours of the GPUs rest on the
assumptions above; what is checked here is the counting of work and bytes.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure (or, with --redraw, take what was measured), and write scale-plan.json and .md."""
    parser = argparse.ArgumentParser(description="What the full run costs, checked.")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder of the page")
    parser.add_argument("--rounds", type=int, default=9, help="times each step is measured")
    parser.add_argument("--redraw", action="store_true", help="use the measurements that lie in the folder")
    options = parser.parse_args(arguments)
    stored = options.out / "scale-plan.json"
    if not options.redraw:
        steps = [row | {"held": i >= len(FITTED)} for i, row in enumerate(measure(FITTED + HELD_OUT, options.rounds))]
        write_json(stored, {"reading": measure_reading(), "steps": steps})
    results = json.loads(stored.read_text(encoding="utf-8"))
    (options.out / "scale-plan.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
