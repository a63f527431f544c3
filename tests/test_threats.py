"""threats.py: projections are the nearest points, steepest ascent is steepest, and impossible threats are refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import size

from aart_lib.data.batch import BOX, LEVEL
from aart_lib.threats import NORMS, ThreatModel

DUAL = {
    "linf": lambda x: x.abs().sum((1, 2)),
    "l2-frame": lambda x: x.square().sum(2).sqrt().sum(1),
    "l2-clip": lambda x: x.square().sum((1, 2)).sqrt(),
}


def drawn(seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed))


@given(st.sampled_from(list(NORMS)), st.floats(0.01, 3), st.floats(0.01, 5), st.integers(0, 999))
def test_a_projection_is_inside_the_ball_and_no_inside_point_is_nearer(norm, epsilon, scale, seed):
    x, project = drawn(seed, scale), NORMS[norm].project
    inside, other = project(x, epsilon), project(drawn(seed + 1, scale), epsilon)
    assert size(norm, inside) <= epsilon * (1 + 1e-5)
    for still in (inside, inside / 2):
        torch.testing.assert_close(project(still, epsilon), still)
    assert ((x - inside).flatten(1).norm(dim=1) <= (x - other).flatten(1).norm(dim=1) + 1e-5).all()


@given(st.sampled_from(list(NORMS)), st.integers(0, 999))
def test_no_direction_of_norm_one_rises_more_than_steepest_ascent(norm, seed):
    gradient = drawn(seed)
    steepest = NORMS[norm].ascend(gradient)
    assert size(norm, steepest) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close((gradient * steepest).sum((1, 2)), DUAL[norm](gradient))


@given(st.sampled_from(list(NORMS)), st.floats(0.01, 3), st.integers(0, 999))
def test_a_threat_keeps_ball_and_box_and_clean_values_outside_may_stay(norm, epsilon, seed):
    frames, threat = drawn(seed, 1.5), ThreatModel(norm, epsilon)
    delta = threat.project(drawn(seed + 1, 2.0), frames)
    assert size(norm, delta) <= epsilon * (1 + 1e-4) + 1e-6
    assert (frames + delta <= frames.clamp_min(BOX[1]) + 1e-6).all()
    assert (frames + delta >= frames.clamp_max(BOX[0]) - 1e-6).all()
    assert not threat.project(torch.zeros_like(frames), frames).any()


def test_a_threat_is_spoken_of_in_byte_steps_and_a_few_frame_attacker_has_more_a_frame_but_not_a_clip():
    threat = ThreatModel("linf", 3 * LEVEL)
    assert threat.levels == pytest.approx(3) and threat.times(2).levels == pytest.approx(6)
    for norm, factor in {"linf": 8, "l2-frame": 8, "l2-clip": 1}.items():
        assert ThreatModel(norm, 0.1).few().epsilon == pytest.approx(0.1 * factor)


def test_a_spliced_frame_may_be_anything_in_the_box_and_nothing_else_changes():
    threat = ThreatModel("l2-clip", 0.1, box=(0.0, 1.0)).spliced()
    assert (threat.norm, threat.epsilon, threat.max_frames) == ("linf", 1.0, 1)
    frames = torch.rand(2, 3, 4)
    assert (frames + threat.project(torch.full_like(frames, 9.0), frames) == 1).all()
    with pytest.raises(ValueError, match="needs a box"):
        ThreatModel("linf", 0.1, box=None).spliced()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("l1", 0.1), "unknown norm 'l1'; known: linf, l2-frame, l2-clip"),
        *((("linf", size), "epsilon must be a number of at least 0, got") for size in (-0.1, math.nan, math.inf)),
        (("linf", 0.1, 0), "max_frames must be at least 1, got 0"),
    ],
)
def test_threats_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ThreatModel(*arguments)
