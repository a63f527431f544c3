"""losses.py: divergences as torch has them and by hand, attention terms that padding cannot reach, defenses as data."""

import math
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import generator
from torch.distributions import Bernoulli, kl_divergence

from aart_lib.attention import DIVERGENCES, attention_divergence, attention_entropy
from aart_lib.checkpoint import load
from aart_lib.experiment.recipes import TUNED, changed, tuned
from aart_lib.losses import DEFENSES, TERMS, Defense, bce, bernoulli_kl, defense, terms
from aart_lib.model import Output

CHECKPOINTS = Path(__file__).parent.parent / "notebooks" / "checkpoints"


def maps(seed: int, mask: torch.Tensor, layers: int = 2, heads: int = 3) -> tuple[torch.Tensor, ...]:
    """Random attention, 0 on padding."""
    tokens = torch.nn.functional.pad(mask, (1, 0), value=True)[:, None, None]  # [CLS] first
    size = tokens.shape[3]
    drawn = torch.randn(layers, len(mask), heads, size, size, generator=generator(seed))
    return tuple((2 * drawn).masked_fill(~tokens, -torch.inf).softmax(-1))


MASK = torch.tensor([[True] * 5, [True, True, False, False, False]])


def test_bce_is_the_sum_of_minus_log_probabilities():
    logits, labels = torch.tensor([[0.0, 2.0, -1.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    p = [1 / (1 + math.exp(-x)) for x in (0.0, 2.0, -1.0)]
    expected = -math.log(p[0]) - math.log(1 - p[1]) - math.log(1 - p[2])
    assert bce(logits, labels).tolist() == pytest.approx([expected])


@given(st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=1, max_size=6))
def test_bernoulli_kl_is_that_of_torch(pairs):
    p, q = torch.tensor(pairs, dtype=torch.float64).T
    expected = kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q)).sum()
    torch.testing.assert_close(bernoulli_kl(p[None], q[None])[0], expected, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergence_is_zero_on_equal_maps_symmetric_and_positive_elsewhere(kind):
    p, q = maps(0, MASK), maps(1, MASK)
    for layers, rows in product(("last", "all"), ("cls", "all")):
        options = {"kind": kind, "layers": layers, "rows": rows}
        assert attention_divergence(p, p, MASK, **options).abs().max() < 1e-6
        there, back = attention_divergence(p, q, MASK, **options), attention_divergence(q, p, MASK, **options)
        torch.testing.assert_close(there, back)
        assert there.shape == (2,) and (there > 0.01).all()


BY_HAND = {
    "symmetric-kl": math.log(3) / 4,
    "jensen-shannon": math.log(0.8 * 4 / 3) / 4 + math.log(1.2**3 * 2 / 3) / 8,
    "squared-l2": 2 * 0.25**2,
    "total-variation": 0.25,
}


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergence_is_the_hand_computed_one(kind):
    half, sure = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
    assert float(DIVERGENCES[kind](half, sure)) == pytest.approx(BY_HAND[kind])


def test_divergence_of_all_rows_is_the_mean_over_cls_and_every_real_frame():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    p = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(2, 2, 4, 4)
    q = p.clone()
    # Video, head and row (0 is [CLS], the last one is padding's): so much of the attention moved.
    for video, head, row, moved in ((0, 0, 0, 0.25), (0, 0, 1, 0.5), (0, 1, 2, 0.125), (0, 1, 3, 1.0), (1, 0, 1, 0.5)):
        q[video, head, row, :2] = torch.tensor([1 - moved, moved])
    found = {rows: attention_divergence((p,), (q,), mask, kind="total-variation", rows=rows) for rows in ("cls", "all")}
    assert found["all"].tolist() == pytest.approx([(0.25 + 0.5 + 0.125) / 2 / 3, 0.5 / 2 / 2])  # heads, rows
    assert found["cls"].tolist() == pytest.approx([0.25 / 2, 0])


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_padding_adds_nothing_to_a_divergence(kind):
    short = MASK[1:, :2]
    p, q = maps(0, short), maps(1, short)
    padded = [tuple(torch.nn.functional.pad(layer, (0, 3, 0, 3)) for layer in side) for side in (p, q)]
    for rows in ("cls", "all"):
        found = attention_divergence(*padded, MASK[1:], kind=kind, rows=rows)
        torch.testing.assert_close(found, attention_divergence(p, q, short, kind=kind, rows=rows))


def test_the_last_layer_is_told_from_the_others():
    p, q = maps(0, MASK), maps(1, MASK)
    mixed = q[0], p[1]  # the first layer alone has moved
    assert attention_divergence(p, mixed, MASK).abs().max() < 1e-6
    both = attention_divergence(p, mixed, MASK, layers="all")
    torch.testing.assert_close(both, attention_divergence(p[:1], q[:1], MASK) / 2)


def test_divergence_has_finite_gradients_where_a_key_gets_nothing():
    logits = torch.zeros(1, 1, 3, 3, requires_grad=True)
    p = torch.softmax(logits + torch.tensor([0.0, 0.0, -torch.inf]), -1)
    q = torch.tensor([1.0, 0.0, 0.0]).expand(1, 1, 3, 3)
    for kind in DIVERGENCES:
        loss = attention_divergence((p,), (q,), torch.tensor([[True, False]]), kind=kind).sum()
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert gradient.isfinite().all() and gradient[0, 0, 0, :2].abs().min() > 0, kind


def test_entropy_is_one_on_uniform_and_zero_on_one_frame():
    uniform = torch.zeros(2, 3, 6, 6)
    uniform[0], uniform[1, ..., :3] = 1 / 6, 1 / 3
    torch.testing.assert_close(attention_entropy((uniform,), MASK), torch.ones(2))
    short = torch.full((1, 3, 2, 2), 0.5)
    torch.testing.assert_close(attention_entropy((short,), MASK[:1, :1]), torch.ones(1))
    one_frame = torch.zeros(2, 3, 6, 6)
    one_frame[..., 1] = 1
    torch.testing.assert_close(attention_entropy((one_frame,), MASK), torch.zeros(2))
    torch.testing.assert_close(attention_entropy((one_frame, uniform), MASK), torch.ones(2))  # the last layer counts


def test_all_terms_vanish_on_an_untouched_video_but_those_of_the_task():
    output = Output(torch.tensor([[1.0, -2.0], [0.3, 0.0]]), maps(0, MASK))
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = terms(Defense({"task": 1.0}), output, output, labels, MASK, list(TERMS))
    assert float(found["task"]) == float(found["robust"]) == pytest.approx(float(bce(output.logits, labels).mean()))
    assert max(abs(float(found[name])) for name in ("pairing", "consistency", "attention")) < 1e-6


def test_a_defense_that_cannot_be_is_refused():
    for choice in ("kind", "layers", "rows"):
        with pytest.raises(ValueError, match=f"unknown {choice} 'none'; known: "):
            Defense({"attention": 1.0}, **{choice: "none"})
    for weight in (-0.5, math.nan):
        with pytest.raises(ValueError, match="weights must be numbers of at least 0"):
            Defense({"task": weight})
    for weights, message in (({}, "at least one loss term"), ({"atention": 1.0}, "unknown loss term 'atention'")):
        with pytest.raises(ValueError, match=f"{message}; known: task, robust, pairing"):
            Defense(weights)
    with pytest.raises(ValueError, match=r"unknown defense 'aart'; known: standard, adversarial, .*a-art"):
        defense("aart")


def test_only_single_step_attacks_on_the_task_share_the_clean_pass():
    fast = DEFENSES["a-art-fast"]
    assert fast.shares_clean_pass and DEFENSES["adversarial"].shares_clean_pass
    for changes in ({"steps": 2}, {"start": "random"}, {"objective": "kl"}):
        assert not replace(fast, **changes).shares_clean_pass
    assert not replace(fast, weights={"robust": 1.0}).shares_clean_pass
    assert not any(DEFENSES[name].shares_clean_pass for name in ("a-art", "trades", "vat", "attention-noise"))


def test_clean_maps_give_way_only_where_the_defense_lets_them():
    scores = torch.randn(2, 1, 6, 6, generator=generator()).requires_grad_()
    clean, attacked = Output(torch.zeros(2, 2), (scores.softmax(-1),)), Output(torch.zeros(2, 2), maps(1, MASK, 1, 1))
    yielding, fixed = (
        terms(DEFENSES[name], clean, attacked, torch.zeros(2, 2), MASK, ["attention"])["attention"]
        for name in ("a-art", "a-art-fixed-maps")
    )
    assert yielding.requires_grad and not fixed.requires_grad and yielding.item() == fixed.item() > 0


@pytest.mark.parametrize("path", sorted(CHECKPOINTS.glob("*.safetensors")), ids=lambda path: path.stem)
def test_the_committed_models_were_trained_with_the_recipes_as_they_stand(path):
    notes = load(path)[1]
    recipe, settings = tuned("synthetic", notes["defense"])
    assert asdict(recipe).items() >= notes["recipe"].items()  # choices that came later are off
    assert settings.items() <= notes["train"].items()


def test_a_art_is_trades_with_the_attention_term():
    a_art, trades = DEFENSES["a-art"], DEFENSES["trades"]
    weights = trades.weights | {"attention": a_art.weights["attention"]}
    assert replace(trades, weights=weights, epsilon_scale=a_art.epsilon_scale, fixed_maps=False) == a_art
    assert [name for name in DEFENSES if not DEFENSES[name].needs_attacked] == ["standard"]


@pytest.mark.parametrize("data", TUNED)
def test_tuning_changes_weights_and_training_epsilon_and_nothing_else(data):
    for name in TUNED[data]:
        recipe, settings = tuned(data, name)
        assert (recipe, settings) == changed(name, TUNED[data][name])
        assert set(recipe.weights) == set(DEFENSES[name].weights) and set(settings) <= {"rate", "weight_decay"}
        same = {"weights": recipe.weights, "epsilon_scale": recipe.epsilon_scale}
        assert replace(DEFENSES[name], **same) == recipe
    for name in DEFENSES:  # data without trials: what the synthetic ones chose, for every defense alike
        assert tuned("no such data", name) == tuned("synthetic", name)
