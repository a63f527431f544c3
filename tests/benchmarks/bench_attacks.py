"""PGD-10 against other libraries' and against its own bound, ten forward passes and ten gradients of the input."""

from dataclasses import replace
from functools import partial

import models
import torch
import torch.nn.functional as F
from bench import Settings, in_turns, peer
from peers_attacks import ART, Foolbox

from aart_lib import attacks
from aart_lib.attacks import pgd
from aart_lib.threats import ThreatModel

STEPS, EPSILON = 10, 0.0416
SAME = 1e-4  # relative difference of two losses that counts as equal: sums are rounded in another order
BOUND, PASS = "10 x (forward + input gradient)", "one forward pass"
PEERS = {"ART": ART, "foolbox": Foolbox}  # their modules have the same names in small letters


def _cross_entropy(output, clean, batch):
    """An objective for exclusive labels, the only ones that foolbox knows."""
    return F.cross_entropy(output.logits, batch.labels.argmax(1), reduction="none")


@torch.no_grad()
def _logits(model, frames, mask):
    return model(frames, mask).logits


@torch.no_grad()
def _final_loss(model, batch, objective: str, frames) -> float:
    return float(attacks.OBJECTIVES[objective](model(frames, batch.mask), None, batch).mean())


def _passes(model, batch, objective: str) -> None:
    """Ten forward passes and gradients of the frames, and nothing else."""
    for _ in range(STEPS):
        frames = batch.frames.detach().requires_grad_()
        loss = attacks.OBJECTIVES[objective](model(frames, batch.mask), None, batch).sum()
        torch.autograd.grad(loss, frames)


def pgd10(settings: Settings) -> list[dict]:
    """PGD-10 from zero with the same budget and step for all, on a small and on a 300-frame model."""
    small, long = (settings.size(shape, models.TINY) for shape in (models.SMALL, models.LONG))
    entries = _duel(settings, "PGD-10, small model", "ART", *models.make(*small), "bce")
    model, batch = models.make(*small, padded=False)  # foolbox knows no mask and one label a video
    chosen = _logits(model, batch.frames, batch.mask).argmax(1)
    batch = replace(batch, labels=F.one_hot(chosen, batch.labels.shape[1]).float())
    attacks.OBJECTIVES["cross-entropy"] = attacks.Objective(_cross_entropy, False, False)
    entries += _duel(settings, "PGD-10, small model, one label", "foolbox", model, batch, "cross-entropy")
    del attacks.OBJECTIVES["cross-entropy"]
    return entries + _duel(settings, "PGD-10, 300-frame model", "ART", *models.make(*long), "bce")


def _duel(settings: Settings, what: str, name: str, model, batch, objective: str) -> list[dict]:
    """Ours, with the best iterate and with the last, against the peer of this name and against the bound."""
    attack = pgd(ThreatModel("linf", EPSILON), STEPS, restarts=1, start="zero", objective=objective)
    ours = {"ours": attack, "ours, last iterate": replace(attack, keep_best=False)}
    jobs = {own: partial(attacks.perturb, model, batch, made) for own, made in ours.items()}
    if peer(name.lower()):
        jobs[name] = PEERS[name](model, batch, attack)
    losses = {who: _final_loss(model, batch, objective, job()) for who, job in jobs.items()}
    jobs[BOUND] = partial(_passes, model, batch, objective)
    jobs[PASS] = partial(_logits, model, batch.frames, batch.mask)
    times, entries = in_turns(jobs, settings.repeats), []
    most = times.median(BOUND) / (times.median(BOUND) + times.median(PASS))
    costs = f"knowing the best iterate costs an eleventh forward pass: {most:.2f}x is the most"
    for own, iterate, note in (("ours", "best iterate", costs), ("ours, last iterate", "last iterate", "")):
        said = f"{what}, {iterate}"
        if name in losses:
            holds = losses[own] >= losses[name] * (1 - SAME)
            found = f"final loss {losses[own]:.5f}, {name} {losses[name]:.5f}"
            entries.append(times.entry("pgd", said, own, name, target=1.0, holds=holds, note=found))
        entries.append(times.entry("pgd", said, own, BOUND, target=0.9, note=note))
    return entries
