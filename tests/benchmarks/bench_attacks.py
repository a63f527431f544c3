"""PGD-10 against other libraries' and against its own bound, ten forward passes and ten gradients of the input."""

from dataclasses import replace

import models
import torch
import torch.nn.functional as F
from bench import Entry, Settings, in_turns, missing, peer
from peers_attacks import ART, Foolbox, TorchAttacks

from aart_lib import attacks
from aart_lib.attacks import pgd
from aart_lib.threats import ThreatModel

STEPS, EPSILON = 10, 0.0416
SAME = 1e-4  # relative difference of two losses that counts as equal: sums are rounded in another order
_BOUNDS = "10 x (forward + input gradient)", "one forward pass"
MODULES = {"ART": "art", "foolbox": "foolbox", "torchattacks": "torchattacks"}


def _cross_entropy(output, clean, batch):
    """An objective for exclusive labels, the only ones that two of the peers know."""
    return F.cross_entropy(output.logits, batch.labels.argmax(1), reduction="none")


def _final_loss(model, batch, objective: str, frames) -> float:
    with torch.no_grad():
        output = model(frames, batch.mask)
        return float(attacks.OBJECTIVES[objective](output, None, batch).mean())


def _passes(model, batch, objective: str):
    """Ten forward passes and gradients of the frames, and nothing else."""
    for _ in range(STEPS):
        frames = batch.frames.detach().requires_grad_()
        loss = attacks.OBJECTIVES[objective](model(frames, batch.mask), None, batch).sum()
        torch.autograd.grad(loss, frames)


def pgd10(settings: Settings) -> list[Entry]:
    """PGD-10 from zero with the same budget and step for all, on a small and on a 300-frame model."""
    shapes = {"small model": models.SMALL, "300-frame model": models.LONG}
    entries = []
    for name, shape in shapes.items():
        shape = settings.size(shape, models.TINY)
        entries += _duels(settings, f"PGD-10, {name}", *models.make(*shape), "bce", {"ART": ART})
        if name == "small model":
            model, batch = models.make(*shape, padded=False)  # these two know no mask
            labels = F.one_hot(model(batch.frames, batch.mask).logits.argmax(1), batch.labels.shape[1])
            batch = replace(batch, labels=labels.float())
            attacks.OBJECTIVES["cross-entropy"] = attacks.Objective(_cross_entropy, False, False)
            chosen = labels.argmax(1)
            others = {
                kind: lambda *a, make=make, chosen=chosen: make(*a, chosen)
                for kind, make in (("foolbox", Foolbox), ("torchattacks", TorchAttacks))
            }
            entries += _duels(settings, f"PGD-10, {name}, one label", model, batch, "cross-entropy", others)
            del attacks.OBJECTIVES["cross-entropy"]
    return entries


def _duels(settings: Settings, what: str, model, batch, objective: str, makers: dict) -> list[Entry]:
    attack = pgd(ThreatModel("linf", EPSILON), STEPS, restarts=1, start="zero", objective=objective)
    last = replace(attack, keep_best=False)
    jobs = {
        "ours": lambda: attacks.perturb(model, batch, attack),
        "ours, last iterate": lambda: attacks.perturb(model, batch, last),
        _BOUNDS[0]: lambda: _passes(model, batch, objective),
        _BOUNDS[1]: torch.no_grad()(lambda: model(batch.frames, batch.mask)),
    }
    jobs |= {name: make(model, batch, attack) for name, make in makers.items() if peer(MODULES[name])}
    times = in_turns(jobs, settings.repeats)
    losses = {name: _final_loss(model, batch, objective, job()) for name, job in jobs.items() if name not in _BOUNDS}
    entries = []
    for ours in ("ours", "ours, last iterate"):
        said = what + (", last iterate" if "last" in ours else ", best iterate")
        for name in makers:
            if name not in jobs:
                entries.append(missing("pgd", said, name, target=1.0))
                continue
            note = f"final loss {losses[ours]:.5f}, {name} {losses[name]:.5f}"
            holds = losses[ours] >= losses[name] * (1 - SAME)
            entries.append(times.entry("pgd", said, ours, name, target=1.0, holds=holds, note=note))
        bound, extra = _BOUNDS
        most = times.median(bound) / (times.median(bound) + times.median(extra))
        note = f"knowing the best iterate costs an eleventh forward pass: {most:.2f}x is the most" * (ours == "ours")
        entries.append(times.entry("pgd", said, ours, bound, target=0.9, note=note))
    return entries
