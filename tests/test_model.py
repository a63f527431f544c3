"""model.py: padding is invisible, maps are what the logits were made of, controls really take attention away."""

import math
from dataclasses import replace

import pytest
import torch
from small import D, network
from small import videos as random_videos

from aart_lib.attention import SteadyAttention, cls_attention, rollout
from aart_lib.model import VideoTransformer, unbounded

LENGTHS = (7, 1, 4)
HEADS = 4
VARIANTS = {"default": {}, "uniform": {"attention": "uniform"}, "mean": {"pooling": "mean"}, "one-layer": {"layers": 1}}


def build(**changes) -> VideoTransformer:
    return network(**{"width": 16, "heads": HEADS, "layers": 3} | changes)


def videos() -> tuple[torch.Tensor, torch.Tensor]:
    """frames [B,T,D] with zero padding, mask [B,T]."""
    batch = random_videos(lengths=LENGTHS, frames=7)
    return batch.frames, batch.mask


@pytest.fixture(params=VARIANTS)
def model(request) -> VideoTransformer:
    return build(**VARIANTS[request.param])


def test_padding_reaches_neither_logits_nor_maps_and_gets_no_gradient(model):
    frames, mask = videos()
    rubbish = torch.where(mask[..., None], frames, 100 * torch.randn(frames.shape)).requires_grad_()
    clean, other = (model(x, mask, return_attention=True) for x in (frames, rubbish))
    assert torch.equal(clean.logits, other.logits)
    for a, b in zip(clean.attention, other.attention, strict=True):
        assert torch.equal(a[:, :, 0], b[:, :, 0])
    other.logits.square().sum().backward()
    assert rubbish.grad[~mask].abs().max() == 0 and (rubbish.grad[mask].abs().sum(1) > 0).all()
    for row, length in enumerate(LENGTHS):
        alone = model(frames[row : row + 1, :length], mask[row : row + 1, :length]).logits
        torch.testing.assert_close(clean.logits[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_attention_rows_sum_to_one_and_are_zero_on_padding(model):
    frames, mask = videos()
    attention = model(frames, mask, return_attention=True).attention
    assert len(attention) == model.config.layers
    for layer in attention:
        assert layer.shape == (3, HEADS, 8, 8)
        torch.testing.assert_close(layer.sum(-1), torch.ones(3, HEADS, 8))
        assert layer[..., 1:].masked_select(~mask[:, None, None]).abs().max() == 0
        assert layer.min() >= 0


def test_explicit_and_fused_attention_agree_and_cls_is_the_last_layers_first_row(model):
    frames, mask = videos()
    fused, explicit, short = (model(frames, mask, return_attention=wanted) for wanted in (False, True, "cls"))
    assert fused.attention is None
    for found in (explicit, short):
        torch.testing.assert_close(found.logits, fused.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(explicit.attention[-1][:, :, 0], short.attention[0][:, :, 0])
    assert torch.equal(cls_attention(explicit.attention)[:, -1], explicit.attention[-1][:, :, 0, 1:])  # [B,L,H,T]


def outweighs(attention: torch.Tensor) -> float:
    """By how much a token outweighs another at most."""
    return (attention.amax(-1) / attention.masked_fill(attention == 0, torch.inf).amin(-1)).max().item()


@pytest.mark.parametrize("bounded", ["all", "last"])
def test_no_frame_outweighs_another_by_more_than_the_bound_allows(bounded):
    model, (frames, mask) = build(bound=0.5, bounded=bounded), videos()
    for block in model.blocks:
        block.query.weight.data *= 12
    output = model(frames, mask, return_attention=True)
    torch.testing.assert_close(output.logits, model(frames, mask).logits)
    most = math.exp(2 * 0.5) * (1 + 1e-5)
    assert outweighs(output.attention[-1]) <= most and (outweighs(output.attention[0]) <= most) == (bounded == "all")
    free = unbounded(model)(frames, mask, return_attention=True).attention
    assert outweighs(free[-1]) > 10 and model.blocks[-1].bound == 0.5  # the model itself stays as it is
    with pytest.raises(ValueError, match="bound must be a positive number"):
        replace(model.config, bound=-1.0)


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
    assert all(torch.equal(a, b) for a, b in zip(held.attention, output.attention, strict=True))


def test_held_attention_ignores_queries_and_keys_and_stays_when_frames_change():
    model, (frames, mask) = build(), videos()
    maps = model(frames, mask, return_attention=True).attention
    held = SteadyAttention(model, maps)
    before, free = held(frames, mask).logits, model(frames, mask).logits
    for block in model.blocks:
        block.query.weight.data.normal_()
        block.key.weight.data.normal_()
    assert torch.equal(held(frames, mask).logits, before)
    assert (model(frames, mask).logits - free).abs().max() > 1e-3
    other = held(frames + 0.5 * mask[..., None], mask, return_attention=True)
    assert all(torch.equal(a, b) for a, b in zip(other.attention, maps, strict=True))
    assert (other.logits - before).abs().max() > 1e-3


def test_uniform_attention_weighs_all_real_tokens_alike():
    model, (frames, mask) = build(attention="uniform"), videos()
    for layer in model(frames, mask, return_attention=True).attention:
        for row, length in enumerate(LENGTHS):
            expected = torch.full((HEADS, 8, length + 1), 1 / (length + 1.0))
            torch.testing.assert_close(layer[row, :, :, : length + 1], expected)


def test_mean_pooling_reads_the_mean_of_the_real_frames():
    model, (frames, mask) = build(pooling="mean"), videos()
    seen = []
    model.blocks[-1].register_forward_hook(lambda module, given, result: seen.append(result[0]))
    logits = model(frames, mask).logits
    tokens = seen[0][:, 1:]
    means = torch.stack([tokens[row, :length].mean(0) for row, length in enumerate(LENGTHS)])
    torch.testing.assert_close(logits, model.head(model.norm(means)), atol=1e-5, rtol=1e-5)


def real(*shape) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


@pytest.mark.parametrize(
    "shape, mask, message",
    [
        ((2, 7, 9), real(2, 7), r"frames must be \[B,T,5\], got \(2, 7, 9\)"),
        ((7, D), real(7, D), r"frames must be \[B,T,5\], got \(7, 5\)"),
        ((2, 9, D), real(2, 9), "up to 8 frames, got 9"),
        ((2, 7, D), real(2, 6), r"mask must be \[B,T\]=\(2, 7\) of bool, got \(2, 6\)"),
        ((2, 7, D), torch.ones(2, 7), "mask must be .* got .* of torch.float32; use collate"),
        ((2, 7, D), torch.tensor([[True] * 7, [False] * 7]), "video 1 of the batch has no real frame; leave it out"),
    ],
)
def test_input_that_does_not_fit_is_named(model, shape, mask, message):
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape), mask)


@pytest.mark.parametrize("choice", ["activation", "attention", "pooling"])
def test_choices_that_do_not_exist_are_refused(choice):
    with pytest.raises(ValueError, match=f"unknown {choice} 'none'; known: "):
        build(**{choice: "none"})
    with pytest.raises(ValueError, match="width must be a multiple of heads, got width=15, heads=4"):
        build(width=15)
