"""What a training step of A-ART costs beside a standard one."""

from dataclasses import fields

import models
import torch
from bench import DEARER, Settings, in_turns

from aart_lib.losses import DEFENSES, Defense

NAIVE = "naive three-pass A-ART"
STEPS = 3  # a round takes the time of this many steps


class ThreePasses(Defense):
    """The single-step form done naively: a pass for the attack, then a clean and an attacked one to learn from."""

    shares_clean_pass = False


def _weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _bound(shape, options) -> float:
    """Operations of a step that learns from attacked frames and from both sides of each pair, over a standard step's.

    It takes a forward pass and the gradient of the frames to attack, a standard step on the attacked frames, and the
    backward half of one on the clean side.
    """
    model, batch = models.make(shape, options)

    def forward(frames=batch.frames):
        return model(frames, batch.mask).logits.sum()

    def attack():
        frames = batch.frames.detach().requires_grad_()
        torch.autograd.grad(forward(frames), frames)

    once, attacked, standard = map(models.counted, (forward, attack, lambda: forward().backward()))
    return (attacked + standard + (standard - once)) / standard


def step(settings: Settings) -> list[dict]:
    """Steps of A-ART beside a standard step of the same model and batch."""
    shape, options = settings.size(models.SMALL, models.TINY)
    _, batch = models.make(shape, options)
    fast = DEFENSES["a-art-fast"]
    naive = ThreePasses(**{f.name: getattr(fast, f.name) for f in fields(fast)})
    defenses = {"standard": DEFENSES["standard"], "fast": fast, NAIVE: naive, "two-step": DEFENSES["a-art"]}
    trained = {name: models.stepping(defense, [batch], **options) for name, defense in defenses.items()}
    jobs = {name: lambda take=take: [take() for _ in range(STEPS)] for name, (_, take) in trained.items()}
    for name in ("fast", NAIVE):
        jobs[name]()
    # three steps from the same start; Adam divides tiny gradients by their size, so rounding shows
    apart = float((_weights(trained["fast"][0]) - _weights(trained[NAIVE][0])).abs().max())
    times = in_turns(jobs, settings.repeats)
    for name in jobs:
        times.wall[name] = [spent / STEPS for spent in times.wall[name]]
    bound = (
        f"{_bound(shape, options):.2f} by counted operations: one forward pass, the gradient of the frames, a "
        "standard step on the attacked frames, the backward half of one on the clean side of the pairs"
    )
    single, more = "A-ART step, single-step attack", {"meaning": DEARER}
    same = f"after three steps no weight differs by more than {apart:.1g}"
    return [
        times.entry("step", single, "fast", "standard", target=2.4, note=bound, **more),
        times.entry("step", single, "fast", NAIVE, holds=apart < 1e-3, note=same),
        times.entry("step", "A-ART step, two-step attack", "two-step", "standard", note="two passes more", **more),
    ]
