"""attacks.py against an attacker that others wrote: the Adversarial Robustness Toolbox (ART) does no more harm than we.

Source: Nicolae et al. 2018, arXiv 1807.01069.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aart_lib import checkpoint
from aart_lib.attacks import Attack, ThreatModel, perturb, pgd
from aart_lib.data import synthetic
from aart_lib.data.batch import BOX, Batch
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.formats import SPECS
from aart_lib.model import VideoTransformer

CHECKPOINTS = Path(__file__).parent.parent / "notebooks" / "checkpoints"
# The ε of the synthetic results and that of the results on AudioSet.
THREATS = {"linf": ThreatModel("linf", 0.0416), "l2-clip": ThreatModel("l2-clip", 0.704)}
ORDERS = {"linf": np.inf, "l2-clip": 2}  # ART knows no norm of single frames
DUELS = (("standard", "linf"), ("standard", "l2-clip"), ("a-art", "linf"))
STEPS = 20
VIDEOS = 400  # with fewer, one random start is lucky by more than the half per cent that is allowed


@pytest.fixture(scope="module")
def toolbox(tmp_path_factory):
    """ART's attack and estimator; its import makes a folder in the home folder, so it is given another home."""
    home = str(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("HOME", "USERPROFILE"):
            patch.setenv(variable, home)
        missing = "needs the `test` extra: adversarial-robustness-toolbox"
        evasion = pytest.importorskip("art.attacks.evasion", reason=missing)
        classification = pytest.importorskip("art.estimators.classification", reason=missing)
    return evasion.ProjectedGradientDescentPyTorch, classification.PyTorchClassifier


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> Batch:
    folder = tmp_path_factory.mktemp("videos") / "data"
    synthetic.write(replace(synthetic.SETTINGS["default"], train_videos=1, test_videos=VIDEOS), folder)
    (batch,) = VideoDataset(sorted(folder.glob("test*")), SPECS["synthetic"]).batches(VIDEOS)
    assert not batch.mask.all(), "without padding there is nothing to leave alone"
    return batch


class Logits(nn.Module):
    """The model as ART wants it, a function of the frames alone: it knows the mask of its one batch."""

    def __init__(self, model: VideoTransformer, mask: Tensor):
        super().__init__()
        self.model, self.mask = model, mask

    def forward(self, frames: Tensor) -> Tensor:
        return self.model(frames, self.mask).logits


class SummedBCE(nn.Module):
    """A class of its own: torch's BCE losses make ART reduce the labels of a video to one."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")


def mean_loss(model: VideoTransformer, batch: Batch, frames: Tensor) -> float:
    with torch.no_grad():
        return float(SummedBCE()(model(frames, batch.mask).logits, batch.labels)) / len(batch)


def attacked_by_art(toolbox, model: VideoTransformer, batch: Batch, attack: Attack) -> Tensor:
    """Frames after ART's PGD with the budget, steps and start of ``attack``; one start, one batch."""
    art_pgd, estimator = toolbox
    size, labels = tuple(batch.frames.shape[1:]), batch.labels.shape[1]
    logits = Logits(model, batch.mask)
    classifier = estimator(logits, SummedBCE(), size, labels, clip_values=BOX, device_type="cpu")
    np.random.seed(0)  # noqa: NPY002  ART draws its start from there
    search = art_pgd(
        classifier,
        norm=ORDERS[attack.threat.norm],
        eps=attack.threat.epsilon,
        eps_step=attack.size,
        max_iter=attack.steps,
        num_random_init=int(attack.start == "random"),
        batch_size=len(batch),
        verbose=False,
    )
    padding = batch.mask[..., None].numpy()
    return torch.from_numpy(search.generate(batch.frames.numpy(), batch.labels.numpy(), mask=padding))


@dataclass(repr=False)
class Duel:
    """The same model, videos, budget and steps for both attackers."""

    name: str
    model: VideoTransformer
    attack: Attack
    ours: Tensor
    theirs: Tensor


def duel(toolbox, batch: Batch, name: str, norm: str, steps: int = STEPS, **options) -> Duel:
    model, _ = checkpoint.load(CHECKPOINTS / f"{name}-seed0.safetensors")
    attack = pgd(THREATS[norm], steps, restarts=1, **{"start": "random"} | options)  # what ART draws
    ours = perturb(model, batch, attack, generator=torch.Generator().manual_seed(0))
    return Duel(f"{name}, {norm}", model, attack, ours, attacked_by_art(toolbox, model, batch, attack))


@pytest.fixture(scope="module", params=DUELS, ids="-".join)
def fought(request, toolbox, batch) -> Duel:
    return duel(toolbox, batch, *request.param)


def test_our_pgd_reaches_at_least_the_loss_of_arts(fought, batch, capsys):
    clean, ours, theirs = (
        mean_loss(fought.model, batch, frames) for frames in (batch.frames, fought.ours, fought.theirs)
    )
    with capsys.disabled():  # the ratio belongs in the log of every run; pytest-xdist lets only stderr through
        said = f"clean {clean:.3f}, ours {ours:.3f}, ART {theirs:.3f}, ours / ART {ours / theirs:.4f}"
        print(f"\nPGD-{STEPS} on {fought.name}: {said}", file=sys.stderr, flush=True)
    assert theirs > 1.05 * clean, "ART's attack does not work: there is nothing to compare with"
    assert ours >= 0.995 * theirs


def test_arts_attack_uses_the_same_budget_box_and_real_frames(fought, batch):
    change = fought.theirs - batch.frames
    most = torch.linalg.vector_norm(change.flatten(1), ORDERS[fought.attack.threat.norm], dim=1)
    assert (most <= fought.attack.threat.epsilon * (1 + 1e-4)).all()
    assert (most >= 0.99 * fought.attack.threat.epsilon).all(), "ART leaves some of the budget unused"
    assert fought.theirs.min() >= BOX[0] - 1e-6 and fought.theirs.max() <= BOX[1] + 1e-6
    assert (fought.theirs[~batch.mask] == 0).all() and (change[batch.mask] != 0).any(1).all()


@pytest.mark.parametrize("norm", THREATS)
def test_from_zero_and_to_the_last_step_both_are_the_same_search(norm, toolbox, batch):
    found = duel(toolbox, batch, "standard", norm, steps=5, start="zero", keep_best=False)
    ours, theirs = (mean_loss(found.model, batch, frames) for frames in (found.ours, found.theirs))
    assert ours == pytest.approx(theirs, rel=5e-3)
