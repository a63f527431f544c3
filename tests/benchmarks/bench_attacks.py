"""PGD-10 against other libraries' and against its own bound, ten forward passes and ten gradients of the input."""

from dataclasses import replace

import models
import torch
import torch.nn.functional as F
from bench import Entry, Settings, in_turns, missing, peer
from peers_attacks import ART, Foolbox

from aart_lib import attacks
from aart_lib.attacks import pgd
from aart_lib.threats import ThreatModel

STEPS, EPSILON = 10, 0.0416
SAME = 1e-4  # relative difference of two losses that counts as equal: sums are rounded in another order
BOUND, PASS = "10 x (forward + input gradient)", "one forward pass"
MODULES = {"ART": "art", "foolbox": "foolbox"}


def _cross_entropy(output, clean, batch):
    """An objective for exclusive labels, the only ones that foolbox knows."""
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
    small, long = (settings.size(shape, models.TINY) for shape in (models.SMALL, models.LONG))
    entries = _duels(settings, "PGD-10, small model", *models.make(*small), "bce", {"ART": ART})
    model, batch = models.make(*small, padded=False)  # foolbox knows no mask and one label a video
    chosen = model(batch.frames, batch.mask).logits.argmax(1)
    batch = replace(batch, labels=F.one_hot(chosen, batch.labels.shape[1]).float())
    makers = {"foolbox": lambda *given: Foolbox(*given, chosen)}
    attacks.OBJECTIVES["cross-entropy"] = attacks.Objective(_cross_entropy, False, False)
    entries += _duels(settings, "PGD-10, small model, one label", model, batch, "cross-entropy", makers)
    del attacks.OBJECTIVES["cross-entropy"]
    return entries + _duels(settings, "PGD-10, 300-frame model", *models.make(*long), "bce", {"ART": ART})


def _duels(settings: Settings, what: str, model, batch, objective: str, makers: dict) -> list[Entry]:
    attack = pgd(ThreatModel("linf", EPSILON), STEPS, restarts=1, start="zero", objective=objective)
    ours = {"ours": attack, "ours, last iterate": replace(attack, keep_best=False)}
    jobs = {name: lambda made=made: attacks.perturb(model, batch, made) for name, made in ours.items()}
    jobs |= {name: make(model, batch, attack) for name, make in makers.items() if peer(MODULES[name])}
    losses = {name: _final_loss(model, batch, objective, job()) for name, job in jobs.items()}
    bounds = {BOUND: lambda: _passes(model, batch, objective)}
    bounds[PASS] = torch.no_grad()(lambda: model(batch.frames, batch.mask))
    times, entries = in_turns(jobs | bounds, settings.repeats), []
    most = times.median(BOUND) / (times.median(BOUND) + times.median(PASS))
    for own in ours:
        said = what + (", best iterate" if own == "ours" else ", last iterate")
        for name in makers:
            if name not in jobs:
                entries.append(missing("pgd", said, name, target=1.0))
                continue
            note = f"final loss {losses[own]:.5f}, {name} {losses[name]:.5f}"
            holds = losses[own] >= losses[name] * (1 - SAME)
            entries.append(times.entry("pgd", said, own, name, target=1.0, holds=holds, note=note))
        note = f"knowing the best iterate costs an eleventh forward pass: {most:.2f}x is the most" * (own == "ours")
        entries.append(times.entry("pgd", said, own, BOUND, target=0.9, note=note))
    return entries
