"""The explorer shows what can be computed without it, for every setting; a browser is not needed to know that."""

import base64
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from aart_lib.attention import cls_attention, rollout
from aart_lib.data import synthetic
from aart_lib.data.batch import collate
from aart_lib.data.catalog import open_splits
from aart_lib.data.formats import SPECS
from aart_lib.model import ModelConfig, VideoTransformer
from aart_lib.threats import NORMS, ThreatModel
from aart_lib.viz import explorer as module

THREAT = ThreatModel("linf", 0.04)


@pytest.fixture(scope="module")
def dataset(written):
    return open_splits(SPECS["synthetic"], written(train_videos=6, test_videos=6)).test


@pytest.fixture(scope="module")
def models():
    made = {}
    for seed, name in enumerate(("standard", "a-art")):
        torch.manual_seed(seed)
        model = VideoTransformer(ModelConfig(320, 40, width=16, heads=2)).eval()
        for block in model.blocks:  # attention that is not flat, so that it can move
            block.query.weight.data *= 8
            block.key.weight.data *= 8
        made[name] = model
    return made


@pytest.fixture
def explorer(models, dataset):
    return module.Explorer(models, dataset, synthetic.names(synthetic.SETTINGS["default"]), THREAT)


@pytest.fixture
def undrawn(monkeypatch):
    """Empty pictures, which cost nothing, where only what they would show is compared."""
    monkeypatch.setattr(module.plots, "plot_timeline", lambda *_, **__: Figure(figsize=(1, 1)))


def choose(explorer, **values):
    for name, value in values.items():
        explorer.controls[name].value = value


SETTINGS = [
    {},
    {"video": 3, "frames": 2, "head": 1, "model": "a-art"},
    {"norm": "l2-clip", "layer": 0, "epsilon": 3.0},
    {"norm": "l2-frame", "layer": "rollout", "attack": "PGD on the attention alone"},
]


@pytest.mark.parametrize("values", SETTINGS, ids=lambda values: " ".join(map(str, values.values())) or "start")
def test_explorer_shows_what_is_computed_directly(undrawn, explorer, models, dataset, values):
    choose(explorer, **values)
    batch = collate([dataset[values.get("video", 0)]])
    model, options = models[values.get("model", "standard")], {"search": values.get("attack", "PGD, 10 steps")}
    options |= {"norm": values.get("norm", "linf"), "few": values.get("frames")}
    attack = module.attack(batch, THREAT, values.get("epsilon", 1.0), **options)
    attacked = module.craft(model, batch, attack)
    layer, head = values.get("layer", 1), values.get("head")
    for key, frames in {"clean": batch.frames, "attacked": attacked}.items():
        output = model(frames, batch.mask, return_attention=True)
        if layer == "rollout":
            line = rollout(output.attention)[0]
        else:
            rows = cls_attention(output.attention)[0, layer]
            line = rows.mean(0) if head is None else rows[head]
        np.testing.assert_allclose(explorer.view.attention[key], line.detach(), atol=1e-7)
        np.testing.assert_allclose(explorer.view.scores[key], torch.sigmoid(output.logits[0]).detach(), atol=1e-6)
    assert (explorer.view.attacked_frames == (attacked != batch.frames)[0].any(1).numpy()).all()
    assert explorer.view.attacked_frames.sum() == values.get("frames", len(batch.frames[0]))
    assert f"epsilon = {attack.threat.epsilon:.4f}, norm = {attack.threat.norm}" in explorer.status.value
    assert f"model = {values.get('model', 'standard')}, video = {values.get('video', 0)}" in explorer.status.value


def test_setting_seen_before_comes_back_at_once(explorer, monkeypatch):
    before = explorer.picture.value, explorer.status.value
    choose(explorer, epsilon=2.0)
    assert (explorer.picture.value, explorer.status.value) != before
    monkeypatch.setattr(module, "perturb", None)  # a new search would fail
    monkeypatch.setattr(module.plots, "plot_timeline", None)  # a new drawing too
    choose(explorer, epsilon=1.0)
    assert (explorer.picture.value, explorer.status.value) == before


def test_controls_have_labels_the_slider_waits_and_without_a_kernel_the_picture_is_there(undrawn, explorer):
    assert all(control.description == name for name, control in explorer.controls.items())
    assert explorer.controls["epsilon"].continuous_update is False
    shown = explorer._repr_mimebundle_()
    assert base64.b64decode(shown["image/png"]) == explorer.picture.value
    assert "application/vnd.jupyter.widget-view+json" in shown


def test_attention_that_cannot_move_is_left_alone(dataset, models):
    uniform = VideoTransformer(replace(models["standard"].config, attention="uniform")).eval()
    batch = collate([dataset[0]])
    attack = module.attack(batch, THREAT, search="PGD on the attention alone")
    assert torch.equal(module.craft(uniform, batch, attack), batch.frames)


def test_corners_of_the_linf_ball_lie_on_the_other_spheres(dataset):
    batch = collate([dataset[1]])
    length = {norm: module.attack(batch, THREAT, 2.0, norm=norm).threat.epsilon for norm in NORMS}
    corner = torch.full_like(batch.frames[0], length["linf"])
    assert length["linf"] == 0.08
    assert corner.norm(dim=1).numpy() == pytest.approx(length["l2-frame"], rel=1e-4)
    assert float(corner.norm()) == pytest.approx(length["l2-clip"], rel=1e-4)
    back = module.attack(batch, ThreatModel("l2-clip", length["l2-clip"]), norm="linf")
    assert back.threat.epsilon == pytest.approx(0.08)
