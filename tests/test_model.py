"""model.py: padding is invisible, maps are what the logits were made of, controls really take attention away."""

import math
from dataclasses import replace

import pytest
import torch

from aart_lib.attention import SteadyAttention, rollout
from aart_lib.attention import cls_attention as cls_rows
from aart_lib.model import ModelConfig, VideoTransformer, unbounded

CONFIG = ModelConfig(features=6, labels=5, max_frames=8, width=16, heads=4, layers=3)
LENGTHS = (7, 1, 4)
VARIANTS = {"default": {}, "uniform": {"attention": "uniform"}, "mean": {"pooling": "mean"}, "one-layer": {"layers": 1}}


def build(**changes) -> VideoTransformer:
    """A random model in eval mode with weights large enough for attention that is far from uniform."""
    torch.manual_seed(0)
    model = VideoTransformer(replace(CONFIG, **changes)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "head" not in name:
                weight.mul_(2)
    return model


def videos(lengths=LENGTHS, frames=7):
    """frames [B,T,D] with zero padding, mask [B,T]."""
    mask = torch.arange(frames) < torch.tensor(lengths)[:, None]
    drawn = torch.randn(len(lengths), frames, CONFIG.features, generator=torch.Generator().manual_seed(1))
    return drawn * mask[..., None], mask


@pytest.fixture(params=VARIANTS)
def model(request) -> VideoTransformer:
    return build(**VARIANTS[request.param])


def test_padding_does_not_change_logits(model):
    frames, mask = videos()
    together = model(frames, mask).logits
    for row, length in enumerate(LENGTHS):
        alone = model(frames[row : row + 1, :length], mask[row : row + 1, :length]).logits
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_padding_reaches_neither_logits_nor_maps_and_gets_no_gradient(model):
    frames, mask = videos()
    rubbish = torch.where(mask[..., None], frames, 100 * torch.randn(frames.shape)).requires_grad_()
    clean, other = (model(x, mask, return_attention=True) for x in (frames, rubbish))
    assert torch.equal(clean.logits, other.logits)
    for a, b in zip(clean.attention, other.attention, strict=True):
        assert torch.equal(a[:, :, 0], b[:, :, 0])
    other.logits.square().sum().backward()
    assert rubbish.grad[~mask].abs().max() == 0 and (rubbish.grad[mask].abs().sum(1) > 0).all()


def test_attention_rows_sum_to_one_and_are_zero_on_padding(model):
    frames, mask = videos()
    attention = model(frames, mask, return_attention=True).attention
    assert len(attention) == model.config.layers
    for layer in attention:
        assert layer.shape == (3, CONFIG.heads, 8, 8)
        torch.testing.assert_close(layer.sum(-1), torch.ones(3, CONFIG.heads, 8))
        assert layer[..., 1:].masked_select(~mask[:, None, None]).abs().max() == 0
        assert layer.min() >= 0


def test_explicit_and_fused_attention_agree(model):
    frames, mask = videos()
    fused = model(frames, mask)
    assert fused.attention is None
    for wanted in (True, "cls"):
        explicit = model(frames, mask, return_attention=wanted).logits
        torch.testing.assert_close(explicit, fused.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bounded", ["all", "last"])
def test_no_frame_outweighs_another_by_more_than_the_bound_allows(bounded):
    torch.manual_seed(0)
    model = VideoTransformer(replace(CONFIG, bound=0.5, bounded=bounded)).eval()
    for block in model.blocks:
        block.query.weight.data *= 30
    frames, mask = videos()
    output = model(frames, mask, return_attention=True)
    torch.testing.assert_close(output.logits, model(frames, mask).logits)
    ratios = [(m.amax(-1) / m.masked_fill(m == 0, torch.inf).amin(-1)).max() for m in output.attention]
    assert ratios[-1] <= math.exp(2 * 0.5) * (1 + 1e-5) and (ratios[0] <= math.e * (1 + 1e-5)) == (bounded == "all")
    free = unbounded(model)(frames, mask, return_attention=True).attention
    assert (free[-1].amax(-1) / free[-1].masked_fill(free[-1] == 0, torch.inf).amin(-1)).max() > 10
    assert model.blocks[-1].bound == 0.5  # the model itself stays as it is
    with pytest.raises(ValueError, match="bound must be a positive number"):
        replace(CONFIG, bound=-1.0)


def test_cls_is_the_last_layers_first_row(model):
    frames, mask = videos()
    every = model(frames, mask, return_attention=True).attention
    (short,) = model(frames, mask, return_attention="cls").attention
    torch.testing.assert_close(every[-1][:, :, 0], short[:, :, 0])
    assert torch.equal(cls_rows(every)[:, -1], every[-1][:, :, 0, 1:])  # [B,L,H,T]


def test_rollout_is_the_hand_computed_one():
    first = torch.tensor([[[[0.5, 0.5], [0.0, 1.0]]]])
    second = torch.tensor([[[[0.2, 0.8], [0.4, 0.6]]]])
    # Half of every token passes by: [[.75,.25],[0,1]] first, then [[.6,.4],[.2,.8]]; [CLS] to frame: .6*.25 + .4*1.
    torch.testing.assert_close(rollout((first, second)), torch.tensor([[0.55]]))


def test_held_maps_reproduce_the_logits(model):
    frames, mask = videos()
    output = model(frames, mask, return_attention=True)
    held = SteadyAttention(model, output.attention)(frames, mask, return_attention=True)
    torch.testing.assert_close(held.logits, output.logits, atol=1e-5, rtol=1e-5)
    for a, b in zip(held.attention, output.attention, strict=True):
        assert torch.equal(a, b)


def test_held_attention_ignores_queries_and_keys_and_stays_when_frames_change():
    model, (frames, mask) = build(), videos()
    maps = model(frames, mask, return_attention=True).attention
    held = SteadyAttention(model, maps)
    before, free = held(frames, mask).logits, model(frames, mask).logits
    with torch.no_grad():
        for block in model.blocks:
            block.query.weight.normal_()
            block.key.weight.normal_()
    assert torch.equal(held(frames, mask).logits, before)
    assert (model(frames, mask).logits - free).abs().max() > 1e-3
    other = held(frames + 0.5 * mask[..., None], mask, return_attention=True)
    assert all(torch.equal(a, b) for a, b in zip(other.attention, maps, strict=True))
    assert (other.logits - before).abs().max() > 1e-3


def test_uniform_attention_weighs_all_real_tokens_alike():
    model, (frames, mask) = build(attention="uniform"), videos()
    for layer in model(frames, mask, return_attention=True).attention:
        for row, length in enumerate(LENGTHS):
            expected = torch.full((4, 8, length + 1), 1 / (length + 1.0))
            torch.testing.assert_close(layer[row, :, :, : length + 1], expected)


def test_mean_pooling_reads_the_mean_of_the_real_frames():
    model, (frames, mask) = build(pooling="mean"), videos()
    seen = []
    model.blocks[-1].register_forward_hook(lambda module, given, result: seen.append(result[0]))
    logits = model(frames, mask).logits
    tokens = seen[0][:, 1:]
    means = torch.stack([tokens[row, :length].mean(0) for row, length in enumerate(LENGTHS)])
    torch.testing.assert_close(logits, model.head(model.norm(means)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "shape, mask, message",
    [
        ((2, 7, 5), torch.ones(2, 7, dtype=torch.bool), r"frames must be \[B,T,6\], got \(2, 7, 5\)"),
        ((7, 6), torch.ones(7, 6, dtype=torch.bool), r"frames must be \[B,T,6\], got \(7, 6\)"),
        ((2, 9, 6), torch.ones(2, 9, dtype=torch.bool), "up to 8 frames, got 9"),
        ((2, 7, 6), torch.ones(2, 6, dtype=torch.bool), r"mask must be \[B,T\]=\(2, 7\) of bool, got \(2, 6\)"),
        ((2, 7, 6), torch.ones(2, 7), "mask must be .* got .* of torch.float32; use collate"),
        ((2, 7, 6), torch.tensor([[True] * 7, [False] * 7]), "video 1 of the batch has no real frame"),
    ],
)
def test_input_that_does_not_fit_is_named(shape, mask, message):
    with pytest.raises(ValueError, match=message):
        build()(torch.zeros(shape), mask)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"attention": "none"}, "unknown attention 'none'; known: learned, uniform"),
        ({"pooling": "max"}, "unknown pooling 'max'; known: cls, mean"),
        ({"width": 15}, "width must be a multiple of heads, got width=15, heads=4"),
    ],
)
def test_choices_that_do_not_exist_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)
