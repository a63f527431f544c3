"""Projected gradient attacks as other libraries do them, on the same model, budget, steps and start.

Each class is made once and called in every round; the call gives attacked frames [B,T,D].
"""

import os
import tempfile
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aart_lib.attacks import Attack
from aart_lib.data.batch import BOX, Batch

NORMS = {"linf": np.inf, "l2-clip": 2}  # as ART calls them


class Logits(nn.Module):
    """The model as a function of the frames alone; it knows the mask of its one batch."""

    def __init__(self, model: nn.Module, mask: Tensor):
        super().__init__()
        self.model, self.mask = model, mask

    def forward(self, frames: Tensor) -> Tensor:
        return self.model(frames, self.mask).logits


class SummedBCE(nn.Module):
    """A class of its own: torch's BCE losses make ART reduce the labels of a video to one."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")


class ART:
    """ART's PGD; it wants numpy arrays and knows a mask. Where it draws its start, it does so from numpy's own seed."""

    def __init__(self, model, batch: Batch, attack: Attack):
        # its first import makes a folder in the home folder, so it is given another home
        with tempfile.TemporaryDirectory() as home, mock.patch.dict(os.environ, HOME=home):
            from art.attacks.evasion import ProjectedGradientDescentPyTorch
            from art.estimators.classification import PyTorchClassifier
        size, labels = tuple(batch.frames.shape[1:]), batch.labels.shape[1]
        logits = Logits(model, batch.mask)
        self.search = ProjectedGradientDescentPyTorch(
            PyTorchClassifier(logits, SummedBCE(), size, labels, clip_values=BOX, device_type="cpu"),
            norm=NORMS[attack.threat.norm],
            eps=attack.threat.epsilon,
            eps_step=attack.size,
            max_iter=attack.steps,
            num_random_init=int(attack.start == "random"),
            batch_size=len(batch),
            verbose=False,
        )
        self.frames, self.labels = batch.frames.numpy(), batch.labels.numpy()
        self.mask = batch.mask[..., None].numpy()

    def __call__(self) -> Tensor:
        return torch.from_numpy(self.search.generate(self.frames, self.labels, mask=self.mask))


class Foolbox:
    """foolbox's linf PGD with cross-entropy, one label a video; ``run`` leaves out the checks around it."""

    def __init__(self, model, batch: Batch, attack: Attack):
        import foolbox

        self.model = foolbox.PyTorchModel(Logits(model, batch.mask).eval(), bounds=BOX, device="cpu")
        self.search = foolbox.attacks.LinfPGD(abs_stepsize=attack.size, steps=attack.steps, random_start=False)
        self.frames, self.criterion = batch.frames, foolbox.criteria.Misclassification(batch.labels.argmax(1))
        self.epsilon = attack.threat.epsilon

    def __call__(self) -> Tensor:
        return self.search.run(self.model, self.frames, self.criterion, epsilon=self.epsilon)
