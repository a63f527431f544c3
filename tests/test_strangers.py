"""Strangers' cases of attacks: what cannot be searched is told; anybody's model, labels and range are attacked."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from small import C, D, generator, linear, network, size, videos
from torch import nn

from aart_lib.attacks import OBJECTIVES, Attack, AttackFailed, fgsm, perturb, pgd
from aart_lib.attention import SteadyAttention
from aart_lib.data.batch import Batch
from aart_lib.losses import bce
from aart_lib.model import Output
from aart_lib.threats import NORMS, ThreatModel

T = 5  # frames of the longest video
THREAT = ThreatModel("linf", 0.2)


def attacked(model, batch=None, attack=None) -> torch.Tensor:
    return perturb(model, batch or videos(), attack or pgd(THREAT, 4, 1), generator=generator())


class Own(nn.Module):
    """Somebody's model without attention; the arguments spoil its forward pass."""

    def __init__(self, how=lambda x: x, give=lambda logits: logits, mode=nullcontext):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.how, self.give, self.mode = nn.Linear(D, C), how, give, mode

    def forward(self, frames, mask):
        with self.mode():
            pooled = (self.how(frames) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            return self.give(self.head(pooled))


@pytest.mark.parametrize("search", ["gradient", "auto", "random"])
def test_whatever_the_caller_switched_off_the_same_attack_is_made(search):
    attack = Attack(THREAT, steps=4, search=search)
    for model in (network(), Own()):
        plain = attacked(model, attack=attack)
        for outside in (torch.inference_mode, torch.no_grad):
            with outside():
                assert torch.equal(attacked(model, videos(), attack), plain)  # videos of inference tensors


BLIND = {
    "no_grad": Own(mode=torch.no_grad),
    "inference_mode": Own(mode=torch.inference_mode),
    "detached": Own(lambda x: x.detach()),
    "numpy": Own(lambda x: torch.from_numpy(x.detach().numpy().copy())),
    "bytes": Own(lambda x: (x * 50).to(torch.int8).float() / 50),
}


@pytest.mark.parametrize("how", BLIND)
def test_a_model_that_gives_no_gradient_is_told_and_can_be_searched_without(how):
    model, batch = BLIND[how], videos()
    for attack in (fgsm(THREAT), pgd(THREAT, 2, 1), Attack(THREAT, steps=3, search="auto")):
        with pytest.raises(AttackFailed, match="no gradient of the objective 'bce' comes back to the frames through "):
            attacked(model, attack=attack)
    blindly = attacked(model, attack=Attack(THREAT, steps=60, search="random"))
    with torch.no_grad():
        losses = [bce(model(frames, batch.mask), batch.labels).mean() for frames in (batch.frames, blindly)]
    assert losses[1] > losses[0] + 0.05


class Cliff(Own):
    """NaN as soon as the input changes."""

    seen = None

    def forward(self, frames, mask):
        self.seen = frames.detach().clone() if self.seen is None else self.seen
        changed = (frames.detach() != self.seen).flatten(1).any(1)[:, None]
        return super().forward(frames, mask).masked_fill(changed, torch.nan)


def steep(logits):
    return logits + (0 * logits).sqrt()  # 0 forward, an infinite slope times 0 backward


@pytest.mark.parametrize("search", [{}, {"search": "auto", "start": "zero", "steps": 3}])
def test_an_objective_that_is_nan_is_named(search):
    for model in (Cliff(), Own(give=steep)):
        with pytest.raises(AttackFailed, match=r"objective 'bce' is (NaN on video|not finite)"):
            attacked(model, attack=replace(fgsm(THREAT), keep_best=True, **search))


class Fixed(nn.Module):
    """Logits that depend on the frames, maps that do not."""

    def forward(self, frames, mask, *, return_attention=False):
        maps = torch.full((len(frames), 1, frames.shape[1] + 1, frames.shape[1] + 1), 0.1)
        return Output(frames.sum(1)[:, :C], (maps,))


def test_attention_that_cannot_move_must_be_declared():
    attack, declared = Attack(THREAT, "attention", steps=2), Fixed()
    for model, found in ((network(), replace(attack, view="detached")), (declared, attack)):
        with pytest.raises(AttackFailed, match="no gradient of the objective 'attention'"):
            attacked(model, attack=found)
    declared.fixed_attention = True
    model, batch = network(), videos()
    steady = SteadyAttention(model, model(batch.frames, batch.mask, return_attention=True).attention)
    for still in (network(attention="uniform"), steady, declared):
        attacked(still, batch, attack)


@pytest.mark.parametrize("view", ["softer", "sharper", "detached"])
def test_a_view_that_a_model_does_not_offer_is_refused(view):
    with pytest.raises(ValueError, match=r"Own .*needs `tempered|Own takes no `return_attention=`"):
        attacked(Own(), attack=pgd(THREAT, 2, 1, view=view))
    if view != "detached":
        model = network()
        model.tempered = lambda temperature: Own()
        assert not torch.equal(attacked(model, attack=pgd(THREAT, 2, 1, view=view)), attacked(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("objective", ["bce", "attention"])
def test_half_precision_is_attacked_within_its_budget_after_rounding(dtype, norm, objective):
    model, batch = network().to(dtype), videos()
    attack = Attack(ThreatModel(norm, 0.05, box=(-1, 1)), objective, steps=5)
    halves = replace(batch, frames=batch.frames.clamp(-1, 1).to(dtype))
    for given in (halves, replace(halves, frames=halves.frames.float())):
        frames = attacked(model, given, attack)
        assert frames.dtype == given.frames.dtype and torch.equal(frames, frames.to(dtype).to(frames.dtype))
        delta = frames.double() - given.frames.double()
        assert delta.flatten(1).abs().amax(1).gt(0).all() and not delta[~batch.mask].any()
        assert size(norm, delta) <= 0.05 + 1e-9 and frames.abs().max() <= 1


def test_under_autocast_an_attack_is_made_and_weights_of_inference_mode_are_told():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        frames = attacked(network(), attack=Attack(THREAT, "attention", steps=2))
    assert (frames != videos().frames).flatten(1).any(1).all()
    with torch.inference_mode():
        model = network()
    with pytest.raises(AttackFailed, match="made under inference_mode"):
        attacked(model)


@pytest.mark.parametrize("norm", NORMS)
def test_on_features_of_another_range_pgd_reaches_the_known_optimum(norm):
    torch.manual_seed(0)
    frames = (5 * torch.randn(8, T, D).relu()).clamp(0, 12)  # half of them lie on the box
    batch = Batch(frames, torch.ones(8, T, dtype=torch.bool), torch.zeros(8, 1), tuple("abcdefgh"))
    weights, threat = torch.randn(T, D), ThreatModel(norm, 0.4, box=(0, 12))
    model = linear(weights[..., None])
    with pytest.raises(ValueError, match=r"features lie outside the threat model's box, -1\.992 to 2\.008 .*box="):
        attacked(model, batch, pgd(ThreatModel(norm, 0.4), objective="margin"))
    if norm == "linf":
        found = attacked(model, batch, pgd(threat, objective="margin"))
        best = (frames + 0.4 * weights.sign()).clamp(0, 12)
        torch.testing.assert_close(model(found, batch.mask), model(best, batch.mask), rtol=0.01, atol=0)
    free = attacked(model, replace(batch, frames=30 * frames), pgd(replace(threat, box=None), objective="margin"))
    dual = {"linf": weights.abs().sum(), "l2-frame": weights.norm(dim=1).sum(), "l2-clip": weights.norm()}[norm]
    gained = model(free - 30 * frames, batch.mask)
    torch.testing.assert_close(gained, (0.4 * dual).expand_as(gained), rtol=0.01, atol=0)


def test_other_attackers_of_a_threat_keep_its_box():
    threat = ThreatModel("linf", 0.1, box=[0, 1])
    assert {t.box for t in (threat.times(2), threat.few(2))} == {(0.0, 1.0)}
    assert ThreatModel(**threat.few().described()) == threat.few()
    for without_room in [(1, 0), (0,), (0, float("nan"))]:
        with pytest.raises(ValueError, match="box must be"):
            ThreatModel("linf", 0.1, box=without_room)


def test_logits_may_come_alone_or_as_an_attribute_of_a_module_or_a_function():
    model = Own()
    for other in (Own(give=lambda logits: Output(logits, None)), model.forward):
        torch.testing.assert_close(attacked(other), attacked(model))


def test_what_a_model_must_return_is_told():
    for give in (lambda logits: (logits, None), lambda logits: {"logits": logits}, lambda logits: logits[0]):
        with pytest.raises(ValueError, match=r"the model Own must return logits \[B,C\] with B=6, or `.logits`; got "):
            attacked(Own(give=give))


def test_maps_that_are_missing_or_of_another_shape_are_told():
    with pytest.raises(ValueError, match="the model Own takes no `return_attention=`"):
        attacked(Own(), attack=Attack(THREAT, "attention", steps=1))
    for maps in (None, (torch.ones(6, 1, T, T),)):
        model = Own()
        model.forward = lambda frames, mask, maps=maps, **options: Output(frames.sum(1)[:, :C], maps)
        with pytest.raises(ValueError, match=r"must return maps \[B,H,T\+1,T\+1\] as `.attention`, T=5; got"):
            attacked(model, attack=Attack(THREAT, "attention", steps=1))


@pytest.mark.parametrize("objective", ["bce", "gap", "margin", "targeted"])
def test_labels_may_be_of_any_kind(objective):
    batch, attack = videos(), Attack(THREAT, objective, steps=2)
    plain = attacked(Own(), batch, attack)
    for dtype in (torch.int64, torch.bool, torch.float64):
        torch.testing.assert_close(attacked(Own(), replace(batch, labels=batch.labels.to(dtype)), attack), plain)


def test_an_objective_of_ones_own_says_what_it_needs(monkeypatch):
    def first_label(output, clean, batch):
        assert (clean is None, output.attention is None) == needs
        return output.logits[:, 0]

    monkeypatch.setitem(OBJECTIVES, "first", first_label)  # a plain function is given everything
    needs = (False, False)
    everything = attacked(network(), attack=Attack(THREAT, "first", steps=2))
    needs = (True, True)
    record = type(OBJECTIVES["bce"])(first_label, needs_clean=False, needs_maps=False)
    torch.testing.assert_close(attacked(network(), attack=Attack(THREAT, record, steps=2)), everything)
