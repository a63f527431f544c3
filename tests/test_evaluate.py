"""evaluate.py: the worst case is the worst, noise depends on its key alone, planted frauds raise their flags."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from aart_lib import evaluate as evaluation
from aart_lib.attacks import ThreatModel, noise, perturb, pgd
from aart_lib.data import Batch, Item, collate
from aart_lib.evaluate import (
    _WorstCase,
    calibrate,
    evaluate,
    evidence_share,
    few_frames_epsilon,
    flags,
    generator_for,
    probabilities,
    score,
    suite,
)
from aart_lib.losses import bce
from aart_lib.metrics import average_precision_per_video, gap
from aart_lib.model import MODELS, ModelConfig, VideoTransformer

D, C, T = 8, 6, 5
THREAT = ThreatModel("linf", 0.15)


class Videos(list):
    """Items in memory with the one method of a data set that an evaluation needs."""

    def batches(self, size: int) -> DataLoader:
        return DataLoader(self, size, collate_fn=collate)


def generated(count: int, seed: int) -> Videos:
    """A label is visible in one or two frames, where it raises its own direction."""
    rng = torch.Generator().manual_seed(seed)
    directions = 1.2 * torch.nn.functional.normalize(torch.randn(C, D, generator=torch.Generator().manual_seed(9)))
    items = []
    for index in range(count):
        length = int(torch.randint(2, T + 1, (1,), generator=rng))
        labels = (torch.rand(C, generator=rng) < 0.3).float()
        labels[int(torch.randint(C, (1,), generator=rng))] = 1
        evidence = torch.zeros(length, C, dtype=torch.bool)
        for label in labels.nonzero().flatten():
            evidence[int(torch.randint(length, (1,), generator=rng)), label] = True
        frames = 0.4 * torch.randn(length, D, generator=rng) + evidence.float() @ directions
        items.append(Item(frames.clamp(-1.99, 2), labels, f"v{index}", evidence))
    return Videos(items)


def fitted(**changes) -> VideoTransformer:
    torch.manual_seed(0)
    model = VideoTransformer(ModelConfig(D, C, max_frames=T, width=16, heads=2, layers=2, **changes))
    (batch,) = generated(300, 0).batches(300)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        bce(model(batch.frames, batch.mask).logits, batch.labels).mean().backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return fitted()


@pytest.fixture(scope="module")
def dataset():
    return generated(120, 1)


@pytest.fixture(scope="module")
def row(model, dataset):
    return evaluate(model, dataset, THREAT, name="quick", progress=False)


# ---------------------------------------------------------------- one row


def test_a_row_has_what_the_interface_promises(row):
    assert set(row["clean"]) >= {"gap", "map", "hit1", "perr"}
    assert set(row["attacked"]) == {"noise", "fgsm", "pgd"} and set(row["other"]) == {"pgd@2", "frames-1"}
    assert set(row["other"]["pgd@2"]["threat"]) == {"norm", "epsilon", "max_frames"}
    assert row["other"]["pgd@2"]["threat"]["epsilon"] == pytest.approx(0.3)
    assert set(row["evidence_share"]) == {"clean", "attacked", "chance"}
    for key in ("attention_drift", "attention_drift_all", "attention_entropy"):
        assert 0 < row[key] < 1, key
    assert set(row["steady_attention"]) >= {"gap"}


def test_the_standard_suite_adds_the_curve(model, dataset):
    found = evaluate(model, Videos(dataset[:20]), THREAT, name="standard", progress=False)
    assert set(found["attacked"]) == {"noise", "fgsm", "pgd"}
    assert {key for key in found["other"] if key.startswith("curve@")} == {f"curve@{x:g}" for x in evaluation.CURVE}


def test_the_worst_case_is_below_every_single_attack_and_those_below_clean(row):
    single = {name: result["gap"] for name, result in row["attacked"].items()}
    assert row["worst"]["gap"] <= min(single.values())
    assert single["pgd"] < single["fgsm"] < single["noise"] <= row["clean"]["gap"] + 0.01
    assert row["other"]["pgd@2"]["gap"] < single["pgd"] < row["clean"]["gap"] - 0.1


def test_attention_drifts_more_under_attack_than_under_noise(row):
    assert row["attention_drift"] > 1.5 * row["attention_drift_noise"] > 0


def test_held_attention_bounds_what_steadiness_could_win(model, dataset):
    uniform = fitted(**MODELS["uniform"])
    found = evaluate(uniform, dataset, THREAT, name="quick", progress=False)
    assert found["attention_drift"] == pytest.approx(0, abs=1e-6)
    assert found["attention_entropy"] == pytest.approx(1, abs=1e-5)
    # Nothing to hold: the steady score is that of the same attack on the same model.
    assert found["steady_attention"]["gap"] == pytest.approx(
        score(uniform, dataset, pgd(THREAT, restarts=1))["gap"], abs=0.03
    )
    assert {flag["name"] for flag in flags("x", found, HISTORY) if flag["raised"]} == {"flat-attention"}


def test_scores_are_those_of_the_metrics_on_all_videos_at_once(model, dataset):
    (batch,) = dataset.batches(len(dataset))
    logits = model(batch.frames, batch.mask).logits
    assert score(model, dataset)["gap"] == pytest.approx(gap(probabilities(logits), batch.labels))


def test_probabilities_of_confident_logits_stay_apart():
    assert probabilities(torch.tensor([20.0, 21.0, 30.0])).diff().min() > 0


def test_an_unknown_suite_lists_the_known():
    with pytest.raises(ValueError, match="unknown suite 'huge'; known: quick, standard"):
        suite("huge", THREAT)


def test_a_few_frame_attacker_has_more_a_frame_but_not_a_clip():
    assert few_frames_epsilon(ThreatModel("linf", 0.1)) == pytest.approx(0.8)
    assert few_frames_epsilon(ThreatModel("l2-clip", 0.9)) == 0.9


# ---------------------------------------------------------------- worst case


def test_the_worst_case_of_a_video_is_its_lowest_precision_and_ties_go_to_the_higher_loss():
    labels = torch.tensor([[1.0, 0.0, 0.0]] * 3)
    first = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.2, 0.1], [0.1, 0.8, 0.9]])
    second = torch.tensor([[0.1, 0.8, 0.9], [0.6, 0.2, 0.1], [0.9, 0.1, 0.2]])
    worst = _WorstCase()
    worst.offer(first, torch.tensor([0.1, 0.7, 2.0]), labels)
    worst.offer(second, torch.tensor([2.0, 0.4, 0.1]), labels)
    expected = torch.stack([second[0], first[1], first[2]])  # lower precision, higher loss of equals, lower precision
    assert torch.equal(worst.scores, expected)
    np.testing.assert_allclose(worst.precision, average_precision_per_video(expected, labels))


# ---------------------------------------------------------------- repeatable noise


def test_a_generator_depends_on_its_key_alone():
    draw = lambda *key: torch.rand(3, generator=generator_for(*key)).tolist()  # noqa: E731
    assert draw(0, 1, "pgd") == draw(0, 1, "pgd")
    assert len({tuple(draw(*key)) for key in [(0, 1, "pgd"), (1, 0, "pgd"), (0, 1, "noise"), (0, 2, "pgd")]}) == 4


def test_the_order_of_attacks_changes_no_number(model, dataset, row, monkeypatch):
    original = evaluation.suite

    def backward(name, threat):
        within, beyond = original(name, threat)
        return dict(reversed(within.items())), dict(reversed(beyond.items()))

    monkeypatch.setattr(evaluation, "suite", backward)
    found = evaluate(model, dataset, THREAT, name="quick", progress=False)
    assert found["attacked"] == row["attacked"] and found["other"] == row["other"]
    assert found["worst"]["gap"] == pytest.approx(row["worst"]["gap"])


def test_evaluating_twice_gives_the_same_row_and_leaves_the_model_alone(model, dataset, row):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert evaluate(model, dataset, THREAT, name="quick", progress=False) == row
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# ---------------------------------------------------------------- calibration


@pytest.mark.parametrize("start", [0.01, 0.1, 1.0])
def test_calibration_reaches_its_target_from_any_start(model, start):
    videos = generated(250, 2)
    epsilon, reached = calibrate(model, videos, ThreatModel("linf", start), target=0.8, tolerance=0.02)
    assert reached == pytest.approx(0.8, abs=0.02) and epsilon == float(f"{epsilon:.3g}")
    ratio = score(model, videos, pgd(ThreatModel("linf", epsilon)))["gap"] / score(model, videos)["gap"]
    assert ratio == pytest.approx(reached)


def test_a_target_between_two_possible_scores_gives_the_nearest_epsilon_that_was_measured(model):
    videos = Videos(generated(12, 2))
    epsilon, reached = calibrate(model, videos, ThreatModel("linf", 0.1), target=0.8, tolerance=0.0)
    ratio = score(model, videos, pgd(ThreatModel("linf", epsilon)))["gap"] / score(model, videos)["gap"]
    assert ratio == pytest.approx(reached) and abs(reached - 0.8) < 0.15


def test_a_model_that_no_epsilon_breaks_is_said_to_be_so(dataset):
    class Constant(nn.Module):
        def forward(self, frames, mask, **options):
            logits = 0 * frames.sum((1, 2))[:, None] + torch.arange(C)
            return evaluation_output(logits)

    def evaluation_output(logits):
        from aart_lib.model import Output

        return Output(logits, None)

    with pytest.raises(ValueError, match=r"no ε up to .* brings the baseline to 80% of its clean GAP"):
        calibrate(Constant(), Videos(dataset[:10]), ThreatModel("linf", 0.1))


# ---------------------------------------------------------------- evidence


def attention_on(frames: list[list[float]]) -> tuple[torch.Tensor]:
    """One layer, two heads; the [CLS] row puts these shares on the frames."""
    rows = torch.tensor(frames)
    layer = torch.zeros(len(rows), 2, rows.shape[1] + 1, rows.shape[1] + 1)
    layer[:, :, 0, 1:] = rows[:, None]
    layer[:, :, 0, 0] = 1 - rows.sum(1)[:, None]
    return (layer,)


def test_evidence_share_is_the_planted_one():
    evidence = torch.zeros(3, 4, 2, dtype=torch.bool)
    evidence[0, 1, 0] = True  # brief: a quarter of the video
    evidence[1, :3, 0] = True  # long: does not count
    evidence[2, 0, 1] = True
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    evidence[2, :, 0] = True  # beside the brief label, a long one
    batch = Batch(torch.zeros(3, 4, 1), torch.ones(3, 4, dtype=torch.bool), labels, ("a", "b", "c"), evidence)
    share, chance = evidence_share(attention_on([[0.1, 0.4, 0.1, 0.2], [0.2] * 4, [0.3, 0.1, 0.1, 0.1]]), batch)
    assert share.tolist() == pytest.approx([0.4 / 0.8, 0.3 / 0.6]) and chance.tolist() == pytest.approx([0.25, 0.25])


def test_padding_is_no_part_of_the_chance():
    evidence = torch.zeros(1, 5, 1, dtype=torch.bool)
    evidence[0, 0] = True
    mask = torch.tensor([[True, True, True, False, False]])
    batch = Batch(torch.zeros(1, 5, 1), mask, torch.ones(1, 1), ("a",), evidence)
    share, chance = evidence_share(attention_on([[0.2, 0.2, 0.2, 0.0, 0.0]]), batch)
    assert share.tolist() == pytest.approx([1 / 3]) and chance.tolist() == pytest.approx([1 / 3])


def test_a_data_set_without_evidence_or_without_brief_evidence_has_no_share(model, dataset):
    bare = Videos([replace(item, evidence=None) for item in dataset[:10]])
    always = Videos([replace(item, evidence=(item.labels > 0).expand(len(item.frames), C)) for item in dataset[:10]])
    for videos in (bare, always):
        found = evaluate(model, videos, THREAT, name="quick", progress=False)
        assert found["evidence_share"] is None


# ---------------------------------------------------------------- flags

HISTORY = [{"clean": 0.8, "attacked": 0.6}, {"clean": 0.801, "attacked": 0.602}]
HONEST = {
    "clean": {"gap": 0.9},
    "attacked": {"noise": {"gap": 0.89}, "fgsm": {"gap": 0.75}, "pgd": {"gap": 0.7}},
    "other": {
        "pgd@2": {"threat": {"epsilon": 0.2}, "gap": 0.5},
        "curve@0.5": {"threat": {"epsilon": 0.05}, "gap": 0.8},
        "frames-1": {"threat": {"epsilon": 0.8}, "gap": 0.85},
    },
    "attention_entropy": 0.7,
}


def raised(row, history=HISTORY) -> set[str]:
    found = flags("a-art", row, history)
    assert all(flag["raised"] == (flag["value"] > flag["threshold"]) and flag["meaning"] for flag in found)
    assert all(math.isfinite(flag["value"]) for flag in found), "JSON knows no infinity"
    return {flag["name"] for flag in found if flag["raised"]}


def test_an_honest_row_raises_no_flag_and_lists_all():
    assert raised(HONEST) == set()
    names = {flag["name"] for flag in flags("a-art", HONEST, HISTORY)}
    assert names >= {"still-rising", "noise-beats-gradient", "one-step-beats-many", "flat-attention", "label-leaking"}


@pytest.mark.parametrize(
    "name, changes",
    [
        ("noise-beats-gradient", {"attacked": {"noise": {"gap": 0.6}, "fgsm": {"gap": 0.75}, "pgd": {"gap": 0.7}}}),
        ("one-step-beats-many", {"attacked": {"noise": {"gap": 0.8}, "fgsm": {"gap": 0.65}, "pgd": {"gap": 0.7}}}),
        ("label-leaking", {"attacked": {"noise": {"gap": 0.89}, "fgsm": {"gap": 0.95}, "pgd": {"gap": 0.7}}}),
        ("epsilon-not-monotone", {"other": HONEST["other"] | {"pgd@2": {"threat": {"epsilon": 0.2}, "gap": 0.85}}}),
        ("flat-attention", {"attention_entropy": 0.99}),
    ],
)
def test_each_fraud_raises_its_own_flag(name, changes):
    assert raised(HONEST | changes) == {name}


@pytest.mark.parametrize("key", ["clean", "attacked"])
def test_a_validation_curve_that_still_rises_is_flagged(key):
    assert raised(HONEST, [*HISTORY, HISTORY[-1] | {key: 0.85}]) == {"still-rising"}


def test_a_curve_of_one_point_or_none_counts_as_rising():
    assert raised(HONEST, HISTORY[:1]) == raised(HONEST, []) == {"still-rising"}


class GradientKiller(nn.Module):
    """A model behind a staircase: every gradient is exactly zero, and a large step of noise still changes the input."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, frames, mask, **options):
        return self.model((frames * 4).round() / 4, mask, **options)


def test_a_model_that_hides_its_gradient_is_caught(model, dataset):
    threat = ThreatModel("linf", 0.5)
    found = evaluate(GradientKiller(model), dataset, threat, name="quick", progress=False)
    assert "noise-beats-gradient" in raised(found)
    honest = evaluate(model, dataset, threat, name="quick", progress=False)
    assert "noise-beats-gradient" not in raised(honest)
    (batch,) = dataset.batches(len(dataset))
    still = perturb(GradientKiller(model), batch, pgd(threat, 5, 1, start="zero"))
    assert torch.equal(still, batch.frames)
    assert not torch.equal(perturb(model, batch, noise(threat), generator=generator_for(0)), batch.frames)
