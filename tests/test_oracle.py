"""attacks.py against an attacker that others wrote: the Adversarial Robustness Toolbox (ART) does no more harm than we.

Source: Nicolae et al. 2018, arXiv 1807.01069.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.peers_attacks import ART, NORMS, SummedBCE
from torch import Tensor

from aart_lib import checkpoint
from aart_lib.attacks import Attack, ThreatModel, perturb, pgd
from aart_lib.data.batch import BOX, Batch
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.formats import SPECS

pytestmark = pytest.mark.skipif(not find_spec("art"), reason="needs the `test` extra: adversarial-robustness-toolbox")

CHECKPOINTS = Path(__file__).parent.parent / "notebooks" / "checkpoints"
# The ε of the synthetic results and that of the results on AudioSet; ART knows no norm of single frames.
THREATS = {"linf": ThreatModel("linf", 0.0416), "l2-clip": ThreatModel("l2-clip", 0.704)}
STEPS = 10
VIDEOS = 400  # with fewer, one random start is lucky by more than the half per cent that is allowed


@pytest.fixture(scope="module")
def batch(written) -> Batch:
    folder = written(train_videos=1, test_videos=VIDEOS)
    (batch,) = VideoDataset(sorted(folder.glob("test*")), SPECS["synthetic"]).batches(VIDEOS)
    assert not batch.mask.all(), "without padding there is nothing to leave alone"
    return batch


def duel(batch: Batch, name: str, attack: Attack) -> tuple[Tensor, dict[str, float]]:
    """ART's frames, and the mean losses on clean frames, on ours and on ART's, for the same model and budget."""
    model, _ = checkpoint.load(CHECKPOINTS / f"{name}-seed0.safetensors")
    ours = perturb(model, batch, attack, generator=torch.Generator().manual_seed(0))
    np.random.seed(0)  # noqa: NPY002  ART draws its start from there
    theirs = ART(model, batch, attack)()
    losses = {}
    for who, frames in {"clean": batch.frames, "ours": ours, "ART": theirs}.items():
        with torch.no_grad():
            losses[who] = float(SummedBCE()(model(frames, batch.mask).logits, batch.labels)) / len(batch)
    return theirs, losses


@pytest.mark.parametrize("name, norm", [("standard", "linf"), ("standard", "l2-clip"), ("a-art", "linf")])
def test_our_pgd_reaches_at_least_the_loss_of_arts_within_the_same_bounds(name, norm, batch, capsys):
    threat = THREATS[norm]
    frames, losses = duel(batch, name, pgd(threat, STEPS, restarts=1, start="random"))  # what ART draws
    clean, ours, theirs = losses.values()
    with capsys.disabled():  # the ratio belongs in the log of every run; pytest-xdist lets only stderr through
        said = f"clean {clean:.3f}, ours {ours:.3f}, ART {theirs:.3f}, ours / ART {ours / theirs:.4f}"
        print(f"\nPGD-{STEPS} on {name}, {norm}: {said}", file=sys.stderr, flush=True)
    assert theirs > 1.05 * clean, "ART's attack does not work: there is nothing to compare with"
    assert ours >= 0.995 * theirs
    change = frames - batch.frames
    most = torch.linalg.vector_norm(change.flatten(1), NORMS[norm], dim=1)
    assert (most <= threat.epsilon * (1 + 1e-4)).all()
    assert (most >= 0.99 * threat.epsilon).all(), "ART leaves some of the budget unused"
    assert frames.min() >= BOX[0] - 1e-6 and frames.max() <= BOX[1] + 1e-6
    assert (frames[~batch.mask] == 0).all() and (change[batch.mask] != 0).any(1).all()


@pytest.mark.parametrize("norm", THREATS)
def test_from_zero_and_to_the_last_step_both_are_the_same_search(norm, batch):
    attack = pgd(THREATS[norm], 5, restarts=1, start="zero", keep_best=False)
    _, losses = duel(batch[:100], "standard", attack)
    assert losses["ours"] == pytest.approx(losses["ART"], rel=5e-3)
