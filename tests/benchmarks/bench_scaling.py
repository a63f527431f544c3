"""How cost grows with the length of the videos, their number, and the number of labels: fitted exponents."""

import models
import peers_read as readers
import torch
from bench import Entry, Settings, exponent, in_turns
from bench_metrics import batches
from bench_training import _run

from aart_lib.attacks import perturb, pgd
from aart_lib.losses import DEFENSES
from aart_lib.metrics import Accumulator
from aart_lib.threats import ThreatModel

SLACK = 0.15  # by which a fitted exponent may lie above the model's own: caches overflow, machines are noisy


def operations(videos: int, frames: int, features: int, labels: int, width: int = 64, layers: int = 2) -> float:
    """Multiplications of a forward pass of the `VideoTransformer`, the last layer for the [CLS] row alone."""
    tokens, total = frames + 1, frames * features * width + width * labels
    for layer in range(layers):
        rows = 1 if layer == layers - 1 else tokens
        total += 2 * tokens * width**2 + 2 * rows * tokens * width + 10 * rows * width**2
    return float(videos * total)


def scaling(settings: Settings) -> list[Entry]:
    """Time of a forward pass, of PGD and of an A-ART step against T, B and C; of reading against T, of GAP against C.

    The measured exponent is compared with that of the model's number of multiplications over the same sizes; linear
    work (reading, scores) with 1.
    """
    videos, frames, features, labels = settings.size(models.SMALL, models.TINY)[0]
    sweeps = {
        "T": [(16, n, features, labels) for n in settings.size((30, 60, 120, 300), (6, 12))],
        "B": [(n, frames, features, labels) for n in settings.size((8, 16, 32, 64, 128), (2, 4))],
        "C": [(videos, frames, features, n) for n in settings.size((40, 200, 1000, 3862), (5, 10))],
    }
    entries = []
    for axis, shapes in sweeps.items():
        sizes = [shape["BTFC".index(axis)] for shape in shapes]
        own = exponent(sizes, [operations(*shape) for shape in shapes])
        for what, make in (("forward pass", _forward), ("PGD-2", _attack), ("A-ART step", _step)):
            jobs = dict(zip(sizes, map(make, shapes), strict=True))
            entries.append(_entry(f"{what} against {axis}", jobs, sizes, own, settings))
    lengths, counts = settings.size((30, 60, 120, 300), (6, 12)), settings.size((40, 200, 1000, 3862), (50, 100))
    entries.append(_entry("reading against T", {n: _read(settings, n) for n in lengths}, lengths, 1.0, settings))
    entries.append(_entry("GAP@20 against C", {n: _score(n) for n in counts}, counts, 1.0, settings))
    return entries


def _entry(what: str, jobs: dict, sizes, own: float, settings: Settings) -> Entry:
    times = in_turns(jobs, settings.repeats)
    seconds = [times.median(size) for size in sizes]
    found = exponent(sizes, seconds)
    shown = ", ".join(f"{size}: {1e3 * spent:.3g} ms" for size, spent in zip(sizes, seconds, strict=True))
    return Entry(
        "scaling", f"exponent, {what}", "complexity", found, own, found - own, "ours - peer", SLACK,
        None, shown, "", {str(size): times.wall[size] for size in sizes},
    )  # fmt: skip


def _forward(shape):
    model, batch = models.make(shape, {})

    @torch.no_grad()
    def run():
        model(batch.frames, batch.mask)

    return run


def _attack(shape):
    model, batch = models.make(shape, {})
    attack = pgd(ThreatModel("linf", 0.04), 2, restarts=1, start="zero", keep_best=False)
    return lambda: perturb(model, batch, attack)


def _step(shape):
    run, (_, batch) = _run(DEFENSES["a-art-fast"], shape, {}), models.make(shape, {})
    return lambda: run.learn([batch], len(batch), run.threat)


def _read(settings: Settings, frames: int):
    path = settings.folder / f"scaling-{frames}.tfrecord"
    readers.write_shard(path, settings.size(100, 4), frames)
    return lambda: [None for _ in readers.batched(readers.ours_stored(path))]


def _score(classes: int):
    ((scores, labels),) = batches(1000)
    scores, labels = scores[:, :classes].copy(), labels[:, :classes].copy()
    return lambda: Accumulator(20).update(scores, labels).gap()
