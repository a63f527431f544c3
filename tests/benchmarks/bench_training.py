"""What a training step of A-ART costs, and what it costs to look at the attention maps."""

import subprocess
import sys
from dataclasses import fields, replace

import models
import torch
from accelerate import Accelerator
from bench import ROOT, Entry, Settings, in_turns

from aart_lib import train as training
from aart_lib.data import LEVEL, DatasetSpec, Splits
from aart_lib.losses import DEFENSES, Defense
from aart_lib.model import ModelConfig
from aart_lib.threats import ThreatModel
from aart_lib.train import TrainConfig

STEPS = 3  # a round takes the time of this many steps


class ThreePasses(Defense):
    """The single-step form done naively: a pass for the attack, then a clean and an attacked one to learn from."""

    shares_clean_pass = False


class _None(list):
    """A data set without videos; the steps are given their batch."""

    entries = ()
    select = lambda self, indices: self  # noqa: E731


def _run(defense: Defense, shape, options) -> training._Run:
    videos, frames, features, labels = shape
    spec = DatasetSpec("timing", {"rgb": (features, features)}, labels, (), ())
    splits = Splits(spec, _None(), _None(), _None())
    config, threat = TrainConfig(epochs=10_000, batch_size=videos), ThreatModel("linf", LEVEL)
    network = ModelConfig(features, labels, max_frames=frames, **options)
    run = training._Run(defense, replace(splits, train=range(videos)), network, threat, config, Accelerator())
    run.model.train()
    return run


def _weights(run: training._Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def step(settings: Settings) -> list[Entry]:
    """Steps of A-ART beside a standard step of the same model and batch."""
    shape, options = settings.size(models.SMALL, models.TINY)
    _, batch = models.make(shape, options)
    fast = DEFENSES["a-art-fast"]
    naive = ThreePasses(**{f.name: getattr(fast, f.name) for f in fields(fast)})
    defenses = {
        "standard": DEFENSES["standard"],
        "a-art-fast": fast,
        "naive three-pass A-ART": naive,
        "a-art": DEFENSES["a-art"],
    }
    runs = {name: _run(defense, shape, options) for name, defense in defenses.items()}

    def job(name: str):
        return lambda: [runs[name]._step([batch], len(batch), runs[name].threat) for _ in range(STEPS)]

    jobs = {name: job(name) for name in runs}
    for name in ("a-art-fast", "naive three-pass A-ART"):
        jobs[name]()
    # three steps from the same start; Adam divides tiny gradients by their size, so rounding shows
    apart = float((_weights(runs["a-art-fast"]) - _weights(runs["naive three-pass A-ART"])).abs().max())
    times = in_turns(jobs, settings.repeats)
    for kind in (times.wall, times.cpu):
        for name in jobs:
            kind[name] = [spent / STEPS for spent in kind[name]]
    more = {"meaning": "ours / peer"}
    note = (
        "bound: with a forward pass as 1 and a backward pass as 1 for inputs and 1 for weights, a standard step is 3; "
        "A-ART with gradients on both sides of a pair is 1 + 1 (attack) + 3 (attacked) + 2 (clean) = 7, so 2.33 less "
        "what both share (optimizer, clipping)"
    )
    same = f"after three steps no weight differs by more than {apart:.1g}"
    return [
        times.entry("step", "A-ART step, single-step attack", "a-art-fast", "standard", target=2.2, note=note, **more),
        times.entry(
            "step", "A-ART step, single-step attack", "a-art-fast", "naive three-pass A-ART", holds=apart < 1e-3,
            note=same,
        ),
        times.entry("step", "A-ART step, two-step attack", "a-art", "standard", note="two passes more", **more),
    ]  # fmt: skip


def _most_memory(shape, options, maps: bool) -> float:
    """MiB by which a forward pass lets a fresh process grow; imports, model and batch are there before."""
    program = (
        "import resource, sys, torch\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests' / 'benchmarks')!r}]\n"
        "import models\n"
        "torch.set_num_threads(1)\n"
        f"tiny, one = models.make(*models.TINY); model, batch = models.make({shape!r}, {options!r})\n"
        "with torch.no_grad():\n"
        f"    tiny(one.frames, one.mask, return_attention={maps})\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"    model(batch.frames, batch.mask, return_attention={maps})\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown = float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    return grown / (2**20 if sys.platform == "darwin" else 2**10)


def attention(settings: Settings) -> list[Entry]:
    """A forward pass that hands out its attention maps beside the fused one, with the memory of both."""
    entries = []
    for frames in settings.size((32, 128, 300), (6,)):
        (videos, _, features, labels), options = settings.size(models.SMALL, models.TINY)
        shape = (videos, frames, features, labels)
        model, batch = models.make(shape, options, padded=False)

        @torch.no_grad()
        def forward(maps, model=model, batch=batch):
            return model(batch.frames, batch.mask, return_attention=maps)

        fused, seen = forward(False).logits, forward(True).logits
        jobs = {"with maps": lambda f=forward: f(True), "fused": lambda f=forward: f(False)}
        times = in_turns(jobs, settings.repeats)
        memory = {maps: _most_memory(shape, options, maps) for maps in (True, False)}
        note = f"memory: {memory[True]:.0f} MiB with maps, {memory[False]:.0f} MiB fused"
        entries.append(
            times.entry(
                "attention", f"forward pass with attention maps, T = {frames}, B = {videos}", "with maps", "fused",
                meaning="ours / peer", holds=torch.allclose(fused, seen, atol=1e-5), note=note,
            )
        )  # fmt: skip
    return entries
