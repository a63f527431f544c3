"""What a training step of A-ART costs, and what it costs to look at the attention maps."""

import subprocess
import sys
from dataclasses import fields, replace

import models
import torch
from accelerate import Accelerator
from bench import ROOT, Entry, Settings, in_turns
from torch.utils.flop_counter import FlopCounterMode

from aart_lib import training
from aart_lib.data.batch import LEVEL
from aart_lib.data.catalog import Splits
from aart_lib.data.formats import DatasetSpec
from aart_lib.losses import DEFENSES, Defense
from aart_lib.model import ModelConfig
from aart_lib.threats import ThreatModel
from aart_lib.training import TrainConfig

STEPS = 3  # a round takes the time of this many steps


class ThreePasses(Defense):
    """The single-step form done naively: a pass for the attack, then a clean and an attacked one to learn from."""

    shares_clean_pass = False


class _None(list):
    """A data set without videos; the steps are given their batch."""

    entries = ()
    select = lambda self, indices: self  # noqa: E731


def _run(defense: Defense, shape, options) -> training.Run:
    videos, frames, features, labels = shape
    spec = DatasetSpec("timing", {"rgb": (features, features)}, labels, (), ())
    splits = Splits(spec, _None(), _None(), _None())
    config, threat = TrainConfig(epochs=10_000, batch_size=videos), ThreatModel("linf", LEVEL)
    network = ModelConfig(features, labels, max_frames=frames, **options)
    run = training.Run(defense, replace(splits, train=range(videos)), network, threat, config, Accelerator())
    run.model.train()
    return run


def _weights(run: training.Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def _bound(shape, options) -> float:
    """Operations of a step that learns from attacked frames and from both sides of each pair, over a standard step's.

    It takes a forward pass and the gradient of the frames to attack, a standard step on the attacked frames, and the
    backward half of one on the clean side.
    """
    model, batch = models.make(shape, options)

    def counted(run) -> float:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    def attack():
        delta = torch.zeros_like(batch.frames).requires_grad_()
        torch.autograd.grad(model(batch.frames + delta, batch.mask).logits.sum(), delta)

    forward = counted(lambda: model(batch.frames, batch.mask))
    standard = counted(lambda: model(batch.frames, batch.mask).logits.sum().backward())
    return (counted(attack) + standard + (standard - forward)) / standard


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
        return lambda: [runs[name].learn([batch], len(batch), runs[name].threat) for _ in range(STEPS)]

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
        f"{_bound(shape, options):.2f} by counted operations: one forward pass, the gradient of the frames, a "
        "standard step on the attacked frames, the backward half of one on the clean side of the pairs"
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


def _most_memory(shape, options, maps: bool) -> float | None:
    """MiB by which a forward pass lets a fresh process grow; imports, model and batch are there before. Linux only."""
    if not sys.platform.startswith("linux"):
        return None
    program = (
        "import sys, torch\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests' / 'benchmarks')!r}]\n"
        "import models\n"
        "torch.set_num_threads(1)\n"
        f"tiny, one = models.make(*models.TINY); model, batch = models.make({shape!r}, {options!r})\n"
        "kib = lambda field: int(open('/proc/self/status').read().split(field + ':')[1].split()[0])\n"
        "with torch.no_grad():\n"
        f"    tiny(one.frames, one.mask, return_attention={maps})\n"
        "    open('/proc/self/clear_refs', 'w').write('5')  # the peak so far is forgotten\n"
        "    before = kib('VmRSS')\n"
        f"    model(batch.frames, batch.mask, return_attention={maps})\n"
        "print(kib('VmHWM') - before)\n"
    )
    grown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return float(grown) / 2**10


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
        note = (
            "memory not measured"
            if memory[True] is None
            else (f"memory: {memory[True]:.0f} MiB with maps, {memory[False]:.0f} MiB fused")
        )
        entries.append(
            times.entry(
                "attention", f"forward pass with attention maps, T = {frames}, B = {videos}", "with maps", "fused",
                meaning="ours / peer", holds=torch.allclose(fused, seen, atol=1e-5), note=note,
            )
        )  # fmt: skip
    return entries
