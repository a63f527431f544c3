"""attacks.py against an attacker that others wrote: the Adversarial Robustness Toolbox (ART) does no more harm than we.

Source: Nicolae et al. 2018, arXiv 1807.01069.
"""

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.peers_attacks import ART, NORMS, SummedBCE
from torch import Tensor

from aart_lib import checkpoint
from aart_lib.attacks import ThreatModel, perturb, pgd
from aart_lib.data.batch import BOX, Batch
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.formats import SPECS
from aart_lib.model import VideoTransformer

pytestmark = pytest.mark.skipif(not find_spec("art"), reason="needs the `test` extra: adversarial-robustness-toolbox")

CHECKPOINTS = Path(__file__).parent.parent / "notebooks" / "checkpoints"
# The ε of the synthetic results and that of the results on AudioSet; ART knows no norm of single frames.
THREATS = {"linf": ThreatModel("linf", 0.0416), "l2-clip": ThreatModel("l2-clip", 0.704)}
DUELS = (("standard", "linf"), ("standard", "l2-clip"), ("a-art", "linf"))
STEPS = 10
VIDEOS = 400  # with fewer, one random start is lucky by more than the half per cent that is allowed


@pytest.fixture(scope="module")
def batch(written) -> Batch:
    folder = written(train_videos=1, test_videos=VIDEOS)
    (batch,) = VideoDataset(sorted(folder.glob("test*")), SPECS["synthetic"]).batches(VIDEOS)
    assert not batch.mask.all(), "without padding there is nothing to leave alone"
    return batch


def mean_loss(model: VideoTransformer, batch: Batch, frames: Tensor) -> float:
    with torch.no_grad():
        return float(SummedBCE()(model(frames, batch.mask).logits, batch.labels)) / len(batch)


@dataclass(repr=False)
class Duel:
    """The same model, videos, budget and steps for both attackers."""

    name: str
    threat: ThreatModel
    ours: Tensor
    theirs: Tensor
    losses: dict[str, float]


def duel(batch: Batch, name: str, norm: str, steps: int = STEPS, **options) -> Duel:
    model, _ = checkpoint.load(CHECKPOINTS / f"{name}-seed0.safetensors")
    attack = pgd(THREATS[norm], steps, restarts=1, **{"start": "random"} | options)  # what ART draws
    ours = perturb(model, batch, attack, generator=torch.Generator().manual_seed(0))
    np.random.seed(0)  # noqa: NPY002  ART draws its start from there
    theirs = ART(model, batch, attack)()
    shown = {"clean": batch.frames, "ours": ours, "ART": theirs}
    losses = {who: mean_loss(model, batch, frames) for who, frames in shown.items()}
    return Duel(f"{name}, {norm}", attack.threat, ours, theirs, losses)


@pytest.fixture(scope="module", params=DUELS, ids="-".join)
def fought(request, batch) -> Duel:
    return duel(batch, *request.param)


def test_our_pgd_reaches_at_least_the_loss_of_arts(fought, capsys):
    clean, ours, theirs = fought.losses.values()
    with capsys.disabled():  # the ratio belongs in the log of every run; pytest-xdist lets only stderr through
        said = f"clean {clean:.3f}, ours {ours:.3f}, ART {theirs:.3f}, ours / ART {ours / theirs:.4f}"
        print(f"\nPGD-{STEPS} on {fought.name}: {said}", file=sys.stderr, flush=True)
    assert theirs > 1.05 * clean, "ART's attack does not work: there is nothing to compare with"
    assert ours >= 0.995 * theirs


def test_arts_attack_uses_the_same_budget_box_and_real_frames(fought, batch):
    change, threat = fought.theirs - batch.frames, fought.threat
    most = torch.linalg.vector_norm(change.flatten(1), NORMS[threat.norm], dim=1)
    assert (most <= threat.epsilon * (1 + 1e-4)).all()
    assert (most >= 0.99 * threat.epsilon).all(), "ART leaves some of the budget unused"
    assert fought.theirs.min() >= BOX[0] - 1e-6 and fought.theirs.max() <= BOX[1] + 1e-6
    assert (fought.theirs[~batch.mask] == 0).all() and (change[batch.mask] != 0).any(1).all()


@pytest.mark.parametrize("norm", THREATS)
def test_from_zero_and_to_the_last_step_both_are_the_same_search(norm, batch):
    losses = duel(batch[:100], "standard", norm, steps=5, start="zero", keep_best=False).losses
    assert losses["ours"] == pytest.approx(losses["ART"], rel=5e-3)
