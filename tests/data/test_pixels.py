"""Attacks on pixels: gradients through an image network, and what a stored picture keeps of an attack."""

import numpy as np
import pytest
import torch

from aart_lib import ThreatModel, perturb, pgd
from aart_lib.data import extractor as extracting
from aart_lib.data.pixels import PIXEL, FilmModel, as_pictures, pixel_batch, stored_pictures
from aart_lib.model import ModelConfig, VideoTransformer


class Tiny(torch.nn.Module):
    """An image network of a test's own: pictures [N,3,H,W] to the means of 2 x 2 fields, [N,12]."""

    def forward(self, pictures):
        return torch.nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1)


@pytest.fixture
def film_model():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    mean, components = extracting.fit([rng.random((60, 12))], 6)
    extractor = extracting.Extractor(Tiny(), mean, components * 0.2, {"size": 4, "dims": 6})
    films = [list(rng.integers(0, 256, (length, 4, 4, 3), dtype=np.uint8)) for length in (5, 3)]
    batch = pixel_batch(films, torch.tensor([[1.0, 0, 1], [0, 1, 0]]))
    return FilmModel(extractor, VideoTransformer(ModelConfig(6, 3, max_frames=5, width=16))).eval(), batch


def test_the_gradient_of_the_pixels_is_that_of_finite_differences(film_model):
    model, batch = film_model[0].double(), film_model[1]
    frames = batch.frames.double().requires_grad_()

    def logits(frames) -> torch.Tensor:
        return model(frames, batch.mask).logits

    assert torch.autograd.gradcheck(logits, frames, fast_mode=True)
    (gradient,) = torch.autograd.grad(logits(frames).sum(), frames)
    assert not gradient[1, 3:].any() and gradient[1, :3].any()  # padding


@pytest.mark.parametrize("few", [None, 1])
def test_attacks_on_pixels_stay_in_the_ball_and_the_box_of_the_stored_picture(film_model, few):
    model, batch = film_model
    threat = ThreatModel("linf", 2 * PIXEL, max_frames=few, box=(0, 1))
    attacked = perturb(model, batch, pgd(threat, 5, 1), generator=torch.Generator().manual_seed(0))
    stored = stored_pictures(attacked, batch.frames)
    for found, clean, real in zip(stored, batch.frames, batch.mask, strict=True):
        was, now = (np.stack(as_pictures(table[real], 4)).astype(int) for table in (clean, found))
        assert np.abs(now - was).max() == 2 and (now != was).any((1, 2, 3)).sum() == (few or len(was))
    assert 0 <= stored.min() and stored.max() <= 1 and not stored[1, 3:].any()
    assert (stored - attacked).abs().max() <= PIXEL / 2 + 1e-6


def test_pictures_of_another_size_are_refused(film_model):
    with pytest.raises(ValueError, match="3 x 4 x 4"):
        film_model[0](torch.zeros(1, 2, 27), torch.ones(1, 2, dtype=torch.bool))
