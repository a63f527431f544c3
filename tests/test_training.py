"""training.py: the shared pass is the naive one, a resumed run is the uninterrupted one, and a broken run stops."""

import copy
import math
import signal
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from shared_run import SHAPE, SPEC, stepped

from aart_lib import steps, training
from aart_lib.attacks import Attack, fgsm, noise, perturb
from aart_lib.attention import attention_entropy
from aart_lib.data.batch import Batch, Part
from aart_lib.data.catalog import open_splits
from aart_lib.data.records import encode_sequence_example, write_records
from aart_lib.losses import DEFENSES, TERMS, Defense, Term, terms
from aart_lib.model import Output
from aart_lib.steps import Hardware
from aart_lib.threats import ThreatModel
from aart_lib.training import TrainConfig, TrainingStopped, fingerprint, train

THREAT = ThreatModel("linf", 0.1)
CONFIG = TrainConfig(epochs=4, batch_size=8, seed=1)


def write_videos(folder, name: str, count: int, seed: int) -> None:
    """Videos whose label raises two of the six numbers in every frame."""
    rng = np.random.default_rng(seed)
    payloads = []
    for index in range(count):
        label, frames = index % 3, int(rng.integers(2, 6))
        stored = rng.normal(110, 25, (frames, 6))
        stored[:, 2 * label : 2 * label + 2] += 50
        lists = {"rgb": stored.clip(0, 255).astype(np.uint8)}
        payloads.append(encode_sequence_example({"id": f"{name}{index}", "labels": [label]}, lists))
    write_records(folder / f"{name}.tfrecord", payloads)


@pytest.fixture(autouse=True)
def few_checks(monkeypatch):
    """Validated twice: it takes longer than the epochs of so few videos."""
    monkeypatch.setattr(training, "CHECKS", 2)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder, "train", 60, 0)
    write_videos(folder, "test", 12, 1)
    return open_splits(SPEC, folder)


def run(name, splits, config=CONFIG, **options):
    return train(DEFENSES[name], splits, SHAPE, THREAT, config, progress=None, **options)


def begun(name, splits, config=CONFIG, **changes) -> training.Run:
    return training.Run(replace(DEFENSES[name], **changes), splits, SHAPE, THREAT, config, Accelerator())


def same_weights(a, b) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def timeless(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in history]


def last_loss(defense, splits) -> dict:
    return train(defense, splits, SHAPE, THREAT, CONFIG, progress=None)[1][-1]["loss"]


@pytest.mark.parametrize("how", [{}, {"steps": 2, "start": "random", "rows": "all", "two_sided": True}])
def test_a_term_of_ones_own_is_given_maps_of_both_sides(splits, monkeypatch, how):
    def apart(defense, clean, attacked, labels, mask):
        return (clean.attention[-1] - attacked.attention[-1]).abs().sum((1, 2, 3))

    monkeypatch.setitem(TERMS, "attention-l1", apart)  # a plain function, given everything
    weights = {"task": 0.5, "robust": 0.5, "attention-l1": 0.0}
    free = Defense(weights, epsilon_scale=4.0, **how)
    held = replace(free, weights=weights | {"attention-l1": 3.0})
    assert 0 < last_loss(held, splits)["attention-l1"] < last_loss(free, splits)["attention-l1"]


def test_a_term_of_clean_frames_alone_is_learned_without_an_attack(splits, monkeypatch):
    def flat(defense, clean, attacked, labels, mask):
        assert attacked is None
        return -attention_entropy(clean.attention, mask)

    monkeypatch.setitem(TERMS, "flat", Term(flat, needs_attacked=False))
    free, held = (Defense({"task": 1.0, "flat": weight}) for weight in (0.0, 5.0))
    assert not free.needs_attacked and not Defense({"task": 0.5, "robust": 0.5, "flat": 1.0}).shares_clean_pass
    assert last_loss(held, splits)["flat"] < last_loss(free, splits)["flat"]


def double_run(name, splits, **changes) -> tuple[training.Run, Batch, Part]:
    """A run and a whole batch in float64, so that no gradient is on the edge of its sign."""
    made = begun(name, splits, **changes)
    made.model.double()
    (batch,) = splits.train.batches(1000)
    whole = Part(torch.Generator().manual_seed(3), *batch.mask.shape)
    return made, replace(batch, frames=batch.frames.double(), labels=batch.labels.double()), whole


TWO_STEPS = Attack(THREAT, "kl", 2, start="random", keep_best=False)
CRAFTED = {
    **dict.fromkeys(("adversarial", "logit-pairing", "a-art-fast", "adversarial-attention"), fgsm(THREAT)),
    **dict.fromkeys(("a-art", "a-art-fixed-maps", "attention-only"), TWO_STEPS),
    **{"adversarial-uniform": fgsm(THREAT), "attention-noise": noise(THREAT), "attention-shuffled": None},
}


@pytest.mark.parametrize(
    "name, norm",
    [
        *((name, "linf") for name in CRAFTED),
        ("a-art", "l2-clip"),
        *(("a-art-fast", n) for n in ("l2-frame", "l2-clip")),
    ],
)
def test_a_step_has_the_gradients_of_three_passes_as_one_would_write_them_down(splits, name, norm):
    made, batch, whole = double_run(name, splits)
    defense, model, threat = made.defense, copy.deepcopy(made.model), ThreatModel(norm, 0.2)
    draw = torch.Generator().manual_seed(3)
    if name == "attention-shuffled":
        frames = steps._shuffled(batch, draw)
    else:
        frames = perturb(model, batch, replace(CRAFTED[name], threat=threat), generator=draw)
    clean, attacked = (model(x, batch.mask, return_attention=True) for x in (batch.frames, frames))
    still = clean
    if not defense.two_sided:
        still = Output(clean.logits.detach(), tuple(layer.detach() for layer in clean.attention))
    for key, weight in defense.weights.items():
        side = clean if key == "task" else still
        loss = terms(defense, side, attacked, batch.labels, batch.mask, [key])[key]
        (weight * loss).backward(retain_graph=True)
    made.optimizer.zero_grad()
    made.gradients(batch, threat, whole)
    for (key, found), expected in zip(made.model.named_parameters(), model.parameters(), strict=True):
        if expected.grad is None:  # queries and keys of uniform attention
            assert found.grad is None, key
        else:
            torch.testing.assert_close(found.grad, expected.grad, atol=1e-12, rtol=1e-8, msg=key)


def test_a_fast_a_art_step_is_two_forward_passes(splits):
    made, batch, whole = double_run("a-art-fast", splits)
    passes = []
    made.model.register_forward_hook(lambda *arguments: passes.append(1))
    made.gradients(batch, THREAT, whole)
    assert len(passes) == 2


def test_shuffling_reorders_real_frames_and_leaves_padding_last():
    mask = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
    frames = torch.arange(1.0, 31).reshape(3, 5, 2) * mask[..., None]
    batch = Batch(frames, mask, torch.zeros(3, 1), ("a", "b", "c"))
    orders = [steps._shuffled(batch, torch.Generator().manual_seed(seed)) for seed in range(10)]
    for found in orders:
        assert (found[~mask] == 0).all()
        for video, real, other in zip(frames, mask, found, strict=True):
            assert sorted(other[real].tolist()) == video[real].tolist()
    assert len({tuple(found[0, :, 0].tolist()) for found in orders}) > 5


@pytest.mark.parametrize("splice", [False, True])
def test_a_share_of_the_videos_can_meet_a_one_frame_attacker(splits, splice):
    made, batch, whole = double_run("a-art-few", splits, objective="noise", splice=splice)
    full = THREAT.times(made.defense.epsilon_scale)
    frames = made.attacked(batch, full, whole)
    delta, half = frames - batch.frames, len(batch) // 2
    touched = (delta != 0).any(2).sum(1)
    assert (touched[:half] == batch.mask[:half].sum(1)).all() and (touched[half:] == 1).all()
    assert delta[:half].abs().max() == pytest.approx(full.epsilon)
    if splice:  # it may become anything in the box
        low, high = THREAT.box
        assert delta[half:].abs().max() > 2 * THREAT.few().epsilon
        assert low <= frames[half:].min() and frames[half:].max() <= high
    else:  # the attacker of the test: its ε is not scaled
        assert delta[half:].abs().max() == pytest.approx(THREAT.few().epsilon)


@pytest.mark.parametrize("name", DEFENSES)
def test_every_defense_trains(splits, name):
    model, history = run(name, splits, replace(CONFIG, epochs=1))
    assert not model.training and [entry["epoch"] for entry in history] == [1]
    assert set(history[-1]["loss"]) == set(DEFENSES[name].weights)
    assert all(math.isfinite(value) for value in history[-1]["loss"].values())
    assert all(0 <= history[-1][key] <= 1 for key in ("clean", "attacked", "fgsm"))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_training_learns(splits, monkeypatch):
    monkeypatch.setattr(training, "CHECKS", 12)
    _, history = run("standard", splits, TrainConfig(epochs=12, batch_size=8, rate=1e-2))
    assert history[-1]["clean"] > 0.95 and history[-1]["loss"]["task"] < 0.5 * history[0]["loss"]["task"]


def test_the_training_epsilon_is_reached_after_half_of_the_training(splits):
    made, epsilons = begun("a-art", splits, replace(CONFIG, epochs=8)), []
    for made.epoch in range(8):
        epsilons += [made._rising(step).epsilon for step in range(made.steps_per_epoch)]
    full, half = THREAT.epsilon * made.defense.epsilon_scale, len(epsilons) // 2
    assert epsilons[:half] == pytest.approx([full * step / half for step in range(half)])
    assert epsilons[half:] == pytest.approx([full] * half)


def test_the_same_seed_gives_the_same_model_and_another_another(splits):
    one, other = (run("a-art", splits, replace(CONFIG, epochs=1, seed=seed))[0] for seed in (1, 2))
    assert not same_weights(one, other)
    for outside in (nullcontext, torch.inference_mode, torch.no_grad):  # whatever the caller switched off
        with outside():
            assert same_weights(run("a-art", splits, replace(CONFIG, epochs=1))[0], one)


@pytest.mark.parametrize("values", [{"epochs": 0}, {"batch_size": 0}, {"rate": 0}, {"rate": math.nan}])
def test_settings_that_cannot_train_are_refused(values):
    with pytest.raises(ValueError, match="epochs, batch_size and rate must be positive"):
        TrainConfig(**values)


def steps_taken(monkeypatch, start, stop=None) -> int:
    """How many steps a run takes; it gets a signal during its stop-th one, of all epochs counted together."""
    own, taken = training.Run.learn, []

    def counted(self, *rest):
        taken.append(1)
        if len(taken) == stop:
            signal.raise_signal(signal.SIGTERM)
        return own(self, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) if stop else nullcontext():
        patch.setattr(training.Run, "learn", counted)
        start()
    torch.rand(7)  # what happens to the global random numbers in between does not matter
    return len(taken)


# Four steps an epoch: 8 and 16 are the last ones of theirs.
@pytest.mark.parametrize("name, stop", [("trades", 6), ("a-art", 8), ("attention-noise", 16)])
def test_a_run_that_is_stopped_goes_on_as_if_nothing_had_happened(splits, tmp_path, monkeypatch, name, stop):
    whole, history = run(name, splits)
    handler, resumed = signal.getsignal(signal.SIGTERM), []

    def go():
        resumed.append(run(name, splits, state=tmp_path / "run.state"))

    assert steps_taken(monkeypatch, go, stop) == stop  # the step is finished, the next one not begun
    assert signal.getsignal(signal.SIGTERM) is handler
    assert steps_taken(monkeypatch, go) == 16 - stop
    assert same_weights(whole, resumed[0][0]) and timeless(history) == timeless(resumed[0][1])
    assert [path.name for path in tmp_path.iterdir()] == ["run.state"]  # until the model is saved


def test_a_stopped_run_goes_on_with_another_number_of_parts_but_not_with_other_settings(splits, tmp_path, monkeypatch):
    def go(parts):
        return run("a-art-few", splits, state=tmp_path / "run.state", hardware=Hardware(accumulate=parts))

    _, whole = run("a-art-few", splits)
    steps_taken(monkeypatch, lambda: go(3), 6)
    for name, config in (("a-art", CONFIG), ("a-art-few", replace(CONFIG, seed=2))):
        with pytest.raises(ValueError, match=r"run\.state belongs to a run with other settings; use another --out"):
            run(name, splits, config, state=tmp_path / "run.state")
    resumed = []
    assert steps_taken(monkeypatch, lambda: resumed.extend(go(2)[1])) == 16 - 6
    for one, other in zip(whole, resumed, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.parametrize("name", ["a-art", "a-art-few", "attention-shuffled"])
def test_parts_of_a_batch_one_after_another_give_the_step_of_the_whole(splits, name):
    whole = stepped(name, splits)
    for accumulate in (3, 9):  # more parts than videos, too: some are empty
        for key, weight in stepped(name, splits, accumulate).items():
            torch.testing.assert_close(weight, whole[key], rtol=0, atol=1e-9, msg=f"{key}, {accumulate} parts")


def test_readers_and_recomputing_change_no_result(splits):
    config = replace(CONFIG, epochs=1)
    whole, _ = run("a-art", splits, config)
    other, _ = run("a-art", splits, config, hardware=Hardware(workers=2, recompute=True))
    for key, weight in whole.state_dict().items():
        torch.testing.assert_close(weight, other.state_dict()[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampling", ["random", "contiguous"])
def test_frames_can_be_drawn_anew_in_each_epoch(splits, sampling):
    short = replace(splits, train=splits.train.select(range(30)))
    short.train.max_frames = 2
    config = replace(CONFIG, epochs=1, sampling=sampling)
    one, again, evenly = (run("standard", short, c)[0] for c in (config, config, replace(CONFIG, epochs=1)))
    assert same_weights(one, again) and not same_weights(one, evenly)


def test_the_scale_of_half_precision_is_kept(splits):
    stopped, resumed = (begun("a-art", splits) for _ in "ab")
    for made, scale in ((stopped, 8.0), (resumed, 2.0)):
        made.started, made.accelerator.scaler = 0.0, torch.amp.GradScaler("cpu", init_scale=scale)
    resumed.restore(stopped.state(), "run.state")
    assert resumed.accelerator.scaler.get_scale() == 8


def test_the_fingerprint_tells_settings_and_videos_apart(splits, tmp_path):
    base = {"defense": DEFENSES["a-art"], "splits": splits, "model": SHAPE, "threat": THREAT, "config": CONFIG}
    write_videos(tmp_path, "train", 60, 0)
    write_videos(tmp_path, "test", 12, 1)
    assert fingerprint(**base) == fingerprint(**base | {"splits": open_splits(SPEC, tmp_path)})
    relabeled = splits.train.select(range(len(splits.train)))
    relabeled.entries = [replace(entry, labels=(0, 1, 2)) for entry in splits.train.entries]
    others = [
        {"defense": DEFENSES["adversarial"]},
        {"splits": replace(splits, train=splits.train.select(range(20)))},
        {"splits": replace(splits, train=relabeled)},
        {"model": replace(SHAPE, width=16)},
        {"threat": ThreatModel("linf", 0.2)},
        {"config": replace(CONFIG, seed=7)},
    ]
    assert len({fingerprint(**base | changes) for changes in ({}, *others)}) == 7


def test_a_loss_that_is_not_finite_stops_the_run_and_says_so(splits):
    words = r"in epoch \d, step \d: the loss is not finite .*task=.*; lower the rate"
    with pytest.raises(TrainingStopped, match=words):
        run("standard", splits, TrainConfig(epochs=3, batch_size=8, rate=1e30))


@pytest.mark.parametrize(
    "name, fgsm_gap, best, stops",
    [
        ("a-art", 0.85, 0.7, True),
        ("a-art", 0.6, 0.7, False),  # FGSM has fallen with it: no parting
        ("a-art", 0.85, 0.42, False),  # has never been better
        ("standard", 0.85, 0.7, False),  # trains with no attack at all
    ],
)
def test_only_an_overfitted_single_step_attack_stops_the_run(splits, monkeypatch, name, fgsm_gap, best, stops):
    made = begun(name, splits)
    made.epoch, made.history = 3, [{"epoch": 2, "attacked": best}]
    gaps = {None: 0.9, 1: fgsm_gap, 7: 0.4}  # by the steps of the attack
    monkeypatch.setattr(training, "score", lambda m, data, attack: {"gap": gaps[attack and attack.steps]})
    words = r"catastrophic overfitting in epoch 3: .*FGSM 0\.850, under PGD 0\.400"
    with pytest.raises(TrainingStopped, match=words) if stops else nullcontext():
        made._check({"epoch": 3})
        assert made.history[-1] == {"epoch": 3, "clean": 0.9, "attacked": 0.4, "fgsm": fgsm_gap}
