"""attacks.py: no attack leaves its budget, the box or the real frames; stronger search is stronger."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small import C, D, generator, linear, network, size, videos

from aart_lib import attacks
from aart_lib.attacks import OBJECTIVES, VIEWS, Attack, fgsm, loss_and_gradient, noise, one_step, perturb, pgd
from aart_lib.data.batch import BOX, LEVEL, Batch
from aart_lib.losses import bce, bernoulli_kl
from aart_lib.model import Output
from aart_lib.threats import NORMS, ThreatModel


def learned(model, batch: Batch) -> Batch:
    """The batch with the labels that the model sees in it, as if it were well trained."""
    with torch.no_grad():
        return replace(batch, labels=(model(batch.frames, batch.mask).logits > 0).float())


def loss_of(model, batch: Batch, frames) -> torch.Tensor:
    with torch.no_grad():
        return bce(model(frames, batch.mask).logits, batch.labels)


def loss_under(model, batch: Batch, attack: Attack) -> torch.Tensor:
    return loss_of(model, batch, perturb(model, batch, attack, generator=generator()))


MODEL = network()
EPSILONS = st.sampled_from([0.0, 1e-3, LEVEL, 0.3, 5.0])
AIMS = [*OBJECTIVES, *(OBJECTIVES[name].at(-2) for name in ("gap", "bce-attention", "targeted"))]
attack_values = st.builds(
    Attack,
    st.builds(ThreatModel, st.sampled_from([*NORMS]), EPSILONS, st.sampled_from([None, 1, 2, 7])),
    objective=st.sampled_from(AIMS),
    steps=st.integers(0, 4),
    restarts=st.integers(1, 2),
    start=st.sampled_from(list(attacks.STARTS)),
    step_size=st.sampled_from([None, 0.3, 1.0]),
    keep_best=st.booleans(),
    frames=st.sampled_from(attacks.CHOICES),
    search=st.sampled_from(["gradient", "auto", "random"]),
    labels=st.sampled_from(["true", "predicted"]),
    view=st.sampled_from(list(VIEWS)),
).filter(lambda attack: attack.view != "detached" or not str(attack.objective).startswith("attention"))


@settings(max_examples=150)
@given(attack_values, st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 99), st.floats(0.1, 3))
def test_every_attack_keeps_norm_box_padding_frames_and_model(attack, lengths, seed, spread):
    batch, threat = videos(frames=6, lengths=lengths, seed=seed, spread=spread), attack.threat
    MODEL.train()
    MODEL.blocks[0].eval()  # modes of parts differ: each must get its own back
    modes = [module.training for module in MODEL.modules()]
    for parameter in MODEL.parameters():
        parameter.grad = None
    MODEL.cls.grad = torch.full_like(MODEL.cls, 7)
    before = batch.frames.clone()
    frames = perturb(MODEL, batch, attack, generator=generator(seed))
    delta = frames - batch.frames
    assert frames.isfinite().all() and not frames.requires_grad
    assert torch.equal(batch.frames, before)
    assert size(threat.norm, delta) <= threat.epsilon * (1 + 1e-5) + 1e-6
    assert frames.min() >= BOX[0] - 1e-6 and frames.max() <= BOX[1] + 1e-6
    assert (frames[~batch.mask] == 0).all()
    if threat.max_frames is not None:
        assert ((delta != 0).any(2).sum(1) <= threat.max_frames).all()
    assert [module.training for module in MODEL.modules()] == modes
    assert (MODEL.cls.grad == 7).all()
    assert all(p.grad is None for p in MODEL.parameters() if p is not MODEL.cls)


def test_linf_noise_lies_in_the_corners_and_l2_noise_on_the_sphere():
    batch, epsilon = videos(lengths=[5, 3], spread=0.3), 0.2
    for norm in NORMS:
        delta = perturb(network(), batch, noise(ThreatModel(norm, epsilon)), generator=generator()) - batch.frames
        real, clips = delta[batch.mask], delta.flatten(1)
        sizes = {"linf": real.abs(), "l2-frame": real.norm(dim=1), "l2-clip": clips.norm(dim=1)}[norm]
        torch.testing.assert_close(sizes, torch.full_like(sizes, epsilon))
        assert 0.3 < (real > 0).float().mean() < 0.7


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.15), ("l2-frame", 0.4), ("l2-clip", 0.7)])
def test_a_stronger_search_is_stronger(norm, epsilon):
    model, threat = network(), ThreatModel(norm, epsilon)
    batch = learned(model, videos(40))
    clean = loss_of(model, batch, batch.frames)
    drawn, one, many = (loss_under(model, batch, attack(threat)) for attack in (noise, fgsm, pgd))
    assert many.mean() > one.mean() > drawn.mean() and one.mean() > clean.mean()
    assert (many >= clean).all() and (many >= drawn - 1e-5).float().mean() > 0.95
    once, thrice = (loss_under(model, batch, Attack(threat, steps=5, restarts=count)) for count in (1, 3))
    assert (thrice >= once - 1e-6).all()
    wide = Attack(threat.times(2), steps=6, step_size=1.0, start="zero")
    best, last = (loss_under(model, batch, replace(wide, keep_best=keep)) for keep in (True, False))
    assert (best >= last - 1e-6).all() and (best > last + 1e-4).any() and (best >= clean - 1e-6).all()


def test_more_steps_are_not_weaker():
    model, threat = network(), ThreatModel("linf", 0.2)
    batch = learned(model, videos(60))
    losses = [float(loss_under(model, batch, Attack(threat, steps=steps)).mean()) for steps in (1, 3, 10, 40)]
    assert losses == sorted(losses) and losses[-1] > 1.05 * losses[0]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_reaches_what_it_is_after(objective):
    model, threat = network(), ThreatModel("linf", 0.2)
    batch = learned(model, videos(40))
    attack = Attack(threat, objective, steps=10)
    clean = model(batch.frames, batch.mask, return_attention=True)

    def reached(frames):
        with torch.no_grad():
            output = model(frames, batch.mask, return_attention=True)
        return attack.aim(output, clean, batch).mean()

    frames = perturb(model, batch, attack, generator=generator())
    random = perturb(model, batch, noise(threat), generator=generator())
    assert reached(frames) > reached(random) > reached(batch.frames) - 1e-3


def test_the_mixture_is_the_loss_and_so_many_times_the_attention():
    model, batch, other = network(), videos(), videos(seed=1)
    clean, attacked = (model(x.frames, batch.mask, return_attention=True) for x in (batch, other))
    found = {name: OBJECTIVES[name](attacked, clean, batch) for name in ("bce", "attention", "kl")}
    mixed = OBJECTIVES["bce-attention"].at(-3.0)(attacked, clean, batch)
    torch.testing.assert_close(mixed, found["bce"] - 3 * found["attention"])
    torch.testing.assert_close(found["kl"], bernoulli_kl(clean.logits, attacked.logits))


def test_the_checkpoints_are_those_of_croce_and_hein():
    assert sorted(attacks._checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    for steps in (1, 2, 10, 50, 1000):
        assert all(1 <= place <= steps for place in attacks._checkpoints(steps))


def croce_and_hein(model, video: Batch, attack: Attack):
    """Their algorithm 1 for one video, line by line: every point, and whether each check halved the step."""
    threat, size, last, rises, halvings = attack.threat, 2 * attack.threat.epsilon, 0, 0, []
    before = point = torch.zeros_like(video.frames)
    value, gradient = loss_and_gradient(model, video, attack, point)
    best, best_then, points = (value, point, gradient), value, [point]
    for step in range(1, attack.steps + 1):
        reached = threat.project(point + size * NORMS[threat.norm].ascend(gradient), video.frames)
        if step > 1:
            reached = threat.project(point + 0.75 * (reached - point) + 0.25 * (point - before), video.frames)
        before, point, old = point, reached, value
        points.append(point)
        value, gradient = loss_and_gradient(model, video, attack, point)
        rises += bool(value > old)
        if value > best[0]:
            best = value, point, gradient
        if step in attacks._checkpoints(attack.steps):
            just_halved = bool(halvings) and halvings[-1]
            halvings.append(rises < 0.75 * (step - last) or (not just_halved and best[0] == best_then))
            if halvings[-1]:
                size = size / 2
                value, point, gradient = best
                before = point  # a jump back has no momentum
            rises, last, best_then = 0, step, best[0]
    return points, halvings


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.15), ("l2-clip", 0.7)])
def test_automatic_steps_are_those_of_croce_and_hein_for_each_video_alone(norm, epsilon):
    model, batch = network().double(), videos(8, lengths=[5, 3] * 4, seed=3)
    # In double precision, where two ways to the same numbers do not drift apart.
    batch = replace(batch, frames=batch.frames.double(), labels=batch.labels.double())
    attack, checks = Attack(ThreatModel(norm, epsilon), steps=40), []
    open_, zero = batch.mask[..., None], torch.zeros_like(batch.frames)
    together = [delta for delta, _ in attacks._ascend_auto(model, batch, attack, open_, None, zero, None)]
    for i in range(len(batch)):
        points, halvings = croce_and_hein(model, batch[i : i + 1], attack)
        checks += halvings
        for step, (one, whole) in enumerate(zip(points, together, strict=True)):
            torch.testing.assert_close(whole[[i]], one, msg=f"video {i} after step {step}")
    assert 0.1 < sum(checks) / len(checks) < 0.95, "both outcomes of a check must occur"


def test_the_targeted_objective_sets_one_wrong_label_against_the_weakest_right_one():
    batch = replace(videos(3), labels=torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0] * 4, [1.0] * 4]))
    clean = Output(torch.tensor([[5.0, 4.0, 1.0, 2.0], [5.0, 4.0, 1.0, 2.0], [5.0, 4.0, 1.0, 2.0]]), None)
    attacked = Output(torch.tensor([[3.0, 7.0, 0.0, 8.0]] * 3), None)
    first, second, last = (OBJECTIVES["targeted"].at(rank)(attacked, clean, batch).tolist() for rank in (0, 1, 9))
    assert first[:2] == [8.0 - 3.0, 3.0]  # label 3 over label 0; label 0, with no right label to beat
    assert second[:2] == [0.0 - 3.0, 7.0]
    assert torch.tensor(last).isfinite().all()


def test_each_restart_of_a_targeted_attack_takes_the_next_label():
    model, batch = network(), videos(20)
    likeliest = model(batch.frames, batch.mask).logits.argmax(1)
    batch = replace(batch, labels=F.one_hot(likeliest, C).float())  # the likeliest label is the only right one
    attack = Attack(ThreatModel("linf", 0.2), "targeted", steps=3, start="zero", keep_best=False)
    ends = [perturb(model, batch, replace(attack, objective=OBJECTIVES["targeted"].at(rank))) for rank in range(3)]
    assert not torch.equal(ends[0], ends[2])
    for restarts in (1, 2, 3):
        assert torch.equal(perturb(model, batch, replace(attack, restarts=restarts)), ends[restarts - 1])


@pytest.mark.parametrize("objective", ["bce", "targeted", "gap"])
def test_an_attacker_without_labels_reads_none(objective):
    model, batch = network(), videos(20)
    attack = Attack(ThreatModel("linf", 0.2), objective, steps=3, labels="predicted")
    strangers = replace(batch, labels=1 - batch.labels)
    made = perturb(model, batch, attack, generator=generator())
    assert torch.equal(made, perturb(model, strangers, attack, generator=generator()))
    knowing = replace(attack, labels="true")
    assert not torch.equal(made, perturb(model, batch, knowing, generator=generator()))
    logits = model(batch.frames, batch.mask).logits
    given = (logits > 0) | (logits == logits.amax(1, keepdim=True))  # above a half, and at least the likeliest
    assert torch.equal(made, perturb(model, replace(batch, labels=given.float()), knowing, generator=generator()))


def test_past_the_attention_the_loss_is_the_same_and_the_gradient_another():
    batch, attack = videos(), fgsm(ThreatModel("linf", 0.1))
    for model, same in ((network(), False), (network(attention="uniform"), True)):
        zero = torch.zeros_like(batch.frames)
        loss, gradient = loss_and_gradient(model, batch, attack, zero)
        past, other = loss_and_gradient(VIEWS["detached"](model), batch, attack, zero)
        torch.testing.assert_close(past, loss)
        assert ((other - gradient).norm() < 1e-4 * gradient.norm()) == same
        assert same or (other - gradient).norm() > 0.05 * gradient.norm()


@pytest.mark.parametrize("view, temperature", [("softer", 2), ("sharper", 0.5)])
def test_a_view_divides_the_scores_of_attention(view, temperature):
    model, batch = network(), videos(4, lengths=[5] * 4)
    before = copy.deepcopy(model.state_dict())

    def scores(seen):  # of the first layer: the same tokens enter it
        logs = seen(batch.frames, batch.mask, return_attention=True).attention[0].log()
        return logs - logs.mean(-1, keepdim=True)

    torch.testing.assert_close(scores(VIEWS[view](model)) * temperature, scores(model), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_attack_begins_where_the_first_one_ended():
    model, batch, threat = network(), videos(), ThreatModel("linf", 0.2)
    first = Attack(threat, "attention", steps=5)
    still = Attack(threat, steps=1, step_size=0.0, keep_best=False, first=first)
    ended = perturb(model, batch, first, generator=generator())
    torch.testing.assert_close(perturb(model, batch, still, generator=generator()), ended)
    further = perturb(model, batch, replace(still, steps=10, step_size=None, keep_best=True), generator=generator())
    assert (loss_of(model, batch, further) >= loss_of(model, batch, ended) - 1e-5).all()


def test_where_a_map_is_saturated_only_its_scores_still_have_a_gradient():
    def seen(scores):  # output of one layer whose [CLS] row has these scores [1,1,2]; the frame's row does not move
        row = scores.softmax(-1)
        return Output(torch.zeros(1, C), (torch.stack([row, torch.full_like(row, 0.5)], 2),))

    batch = videos(lengths=[1], frames=1)
    clean, found = seen(torch.tensor([[[60.0, 0.0]]])), {}
    for objective in ("attention", "attention-scores"):
        scores = torch.tensor([[[55.0, 0.0]]], requires_grad=True)
        OBJECTIVES[objective](seen(scores), clean, batch).sum().backward()
        found[objective] = float(scores.grad.abs().max())
    assert found["attention"] < 1e-12 and found["attention-scores"] > 1


@pytest.mark.parametrize("norm, frame", [("linf", 1), ("l2-frame", 0), ("l2-clip", 0)])
@pytest.mark.parametrize("search", ["gradient", "random"])
def test_a_one_frame_attack_takes_the_frame_with_the_largest_dual_norm(norm, frame, search):
    weights = torch.zeros(4, D, 1)
    weights[0, 0] = 3.0  # the largest Euclidean norm
    weights[1, :3] = 1.2  # the largest sum of absolute weights
    weights[2] = 0.1
    weights[3] = 9.0  # padding
    batch = Batch(torch.zeros(1, 4, D), torch.tensor([[True, True, True, False]]), torch.ones(1, 1), ("v",))
    attack = Attack(ThreatModel(norm, 0.2, max_frames=1), steps=3, search=search)
    touched = (perturb(linear(weights), batch, attack, generator=generator()) != batch.frames).any(2)
    assert touched[0].nonzero().flatten().tolist() == [frame]
    third = (perturb(linear(weights), batch, replace(fgsm(attack.threat), restarts=3)) != batch.frames).any(2)
    assert third[0].nonzero().flatten().tolist() == [2]  # the last of three restarts takes the third best


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.4), ("l2-frame", 0.9)])
def test_a_trial_takes_the_frame_in_which_one_full_step_hurts_most(norm, epsilon):
    model, threat = network(), ThreatModel(norm, epsilon)
    batch = learned(model, videos(30, lengths=[5, 3] * 15))
    _, gradient = loss_and_gradient(model, batch, Attack(threat), torch.zeros_like(batch.frames))
    alone = [torch.zeros_like(gradient).index_copy(1, torch.tensor([t]), gradient[:, [t]]) for t in range(5)]
    hurt = torch.stack([loss_of(model, batch, one_step(batch, g, threat)) for g in alone], 1)  # [B,T]
    hurt = hurt.masked_fill(~batch.mask, -torch.inf)
    attack = Attack(replace(threat, max_frames=1), steps=1, frames="trial")
    touched = (perturb(model, batch, attack, generator=generator()) != batch.frames).any(2)
    assert torch.equal(touched.float().argmax(1), hurt.argmax(1)) and (touched.sum(1) == 1).all()


@pytest.mark.parametrize("frames", attacks.CHOICES)
def test_as_many_frames_as_there_are_is_no_limit(frames):
    model, batch, free = network(), videos(lengths=[5, 3]), ThreatModel("linf", 0.2)
    bound = [Attack(replace(free, max_frames=most), steps=2, frames=frames) for most in (5, 9)]
    expected = perturb(model, batch, Attack(free, steps=2), generator=generator())
    assert all(torch.equal(perturb(model, batch, attack, generator=generator()), expected) for attack in bound)


@pytest.mark.parametrize("norm", NORMS)
def test_random_search_beats_noise_and_needs_no_gradient(norm):
    model, threat = network(), ThreatModel(norm, 0.3)
    batch, blind = learned(model, videos(20)), torch.no_grad()(model.forward)
    found = loss_under(blind, batch, Attack(threat, steps=60, search="random"))
    drawn = loss_under(model, batch, noise(threat))  # where the search begins
    assert (found >= drawn - 1e-5).all() and found.mean() > drawn.mean() + 0.01


def test_margin_still_moves_a_model_so_sure_that_the_bce_gradient_is_exactly_zero():
    torch.manual_seed(0)
    weights = torch.randn(5, D, 2) * 1e3
    model, batch = linear(weights), videos(4, lengths=[5] * 4)
    batch = replace(batch, frames=0.3 * torch.stack([weights[..., 0] - weights[..., 1]] * 4) / 1e3)
    batch = replace(batch, frames=batch.frames.clamp(*BOX), labels=torch.tensor([[1.0, 0.0]] * 4))
    threat = ThreatModel("linf", 0.05)
    assert loss_and_gradient(model, batch, fgsm(threat), torch.zeros_like(batch.frames))[1].abs().max() == 0
    assert torch.equal(perturb(model, batch, fgsm(threat)), batch.frames)
    moved = perturb(model, batch, Attack(threat, "margin", steps=3, start="zero"))
    after, before = (model(frames, batch.mask).diff(dim=1)[:, 0] for frames in (moved, batch.frames))
    expected = 0.05 * (weights[..., 1] - weights[..., 0]).abs().sum()
    torch.testing.assert_close(after - before, expected.expand(4), rtol=1e-3, atol=0)


def test_gap_objective_counts_wrong_labels_above_and_right_labels_below_the_threshold():
    batch = replace(videos(1), labels=torch.tensor([[1.0, 0.0, 0.0]]))
    for scores, counted in (([-40.0, 40.0, -40.0], 2.0), ([-2.0, -2.0, -2.0], 1.5)):
        found = OBJECTIVES["gap"].at(-2.0)(Output(torch.tensor([scores]), None), None, batch)
        assert float(found) == pytest.approx(counted)


@pytest.mark.parametrize("start, reach", [("random", 1.0), ("near", 1.0), ("tiny", 0.01)])
def test_a_random_start_is_uniform_in_the_ball_and_a_tiny_one_a_hundredth_of_it(start, reach):
    batch = videos(40, lengths=[5] * 40, spread=0.1)
    attack = Attack(ThreatModel("linf", 0.5), steps=1, step_size=0.0, start=start, keep_best=False)
    numbers = (perturb(network(), batch, attack, generator=generator()) - batch.frames).flatten() / (0.5 * reach)
    assert 0.99 < -numbers.min() < 1.001 and 0.99 < numbers.max() < 1.001
    assert numbers.mean().abs() < 0.06 and float(numbers.std()) == pytest.approx(3**-0.5, rel=0.05)


@pytest.mark.parametrize("choice", ["objective", "start", "frames", "search", "labels", "view"])
def test_choices_that_do_not_exist_are_refused(choice):
    with pytest.raises(ValueError, match=f"unknown {choice} 'none'; known: "):
        Attack(ThreatModel("linf", 0.1), **{choice: "none"})
    with pytest.raises(ValueError, match="steps must be at least 0 and restarts 1, got -1 and 0"):
        Attack(ThreatModel("linf", 0.1), steps=-1, restarts=0)
