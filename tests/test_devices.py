"""Another device than the CPU: no code may lean on the processor's memory, and the choices made for a GPU are right.

There is no GPU where these tests run. `Elsewhere` is a tensor that claims another device and computes on the CPU: it
refuses to meet a CPU tensor, as CUDA and MPS refuse it, and what it computes is real, so that results can be compared.
"""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from small import generator, network
from small import videos as batch_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from aart_lib import checkpoint
from aart_lib.attacks import CHOICES, OBJECTIVES, VIEWS, Attack, perturb
from aart_lib.attention import SteadyAttention
from aart_lib.data.catalog import Splits, open_data
from aart_lib.experiment.judge import evaluate
from aart_lib.experiment.presets import PRESETS, calibrate, model_config
from aart_lib.experiment.reproduce import Experiment
from aart_lib.losses import DEFENSES
from aart_lib.model import VideoTransformer
from aart_lib.runtime import processes
from aart_lib.steps import Learner, TrainConfig
from aart_lib.threats import NORMS, ThreatModel
from aart_lib.training import Run

AWAY = torch.device("meta")
INDEXING = ("aten.index.Tensor", "aten.index_put", "aten._unsafe_index")  # may be given positions on the CPU


class Elsewhere(torch.Tensor):
    """A tensor whose numbers lie on "another device"."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=AWAY, requires_grad=inner.requires_grad
        )
        made.inner = inner
        return made

    def tolist(self):
        return self.inner.tolist()

    def __deepcopy__(self, memo):
        return type(self)(self.inner.clone())

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function, args, kwargs):
    name, target = str(function), kwargs.get("device")
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    away = any(isinstance(x, Elsewhere) for x in tensors)
    moves = "_to_copy" in name or "copy_" in name or name.startswith(INDEXING)
    here = [x for x in tensors if not isinstance(x, Elsewhere) and x.ndim]
    if any(x.device == AWAY and not isinstance(x, Elsewhere) for x in tensors):
        raise RuntimeError(f"{name}: a tensor without numbers, made behind the stand-in's back")
    if away and here and not moves:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found meta and cpu")
    if target is not None:
        away = torch.device(target) == AWAY
        kwargs = kwargs | {"device": torch.device("cpu")}
    inside = tree_map(lambda x: x.inner if isinstance(x, Elsewhere) else x, (args, kwargs))
    result = function(*inside[0], **inside[1])
    if name.split(".")[1].endswith("_") and isinstance(args[0], torch.Tensor):  # in place: the same tensor
        return args[0]
    return tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, result) if away else result


class Device(TorchDispatchMode):
    """Makes "to the other device" mean `Elsewhere`, also where a new tensor is made or a CPU tensor is moved there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


@pytest.fixture
def elsewhere():
    with Device():
        yield


def home(x: torch.Tensor) -> torch.Tensor:
    return (x.detach().inner if isinstance(x, Elsewhere) else x.detach()).clone()


WIDE = {"features": 320, "labels": 40, "layers": 1}  # a network for synthetic videos
THREAT = ThreatModel("linf", 0.1)
LENGTHS = [5, 3, 2, 4]


def test_the_other_device_refuses_tensors_of_the_cpu(elsewhere):
    there = torch.ones(3).to(AWAY)
    assert isinstance(there, Elsewhere) and there.device == AWAY
    assert home(there + 1).tolist() == [2, 2, 2] and there.cpu().numpy().tolist() == [1, 1, 1]
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(3)


@pytest.mark.parametrize("changes", [{}, {"attention": "uniform"}, {"pooling": "mean"}], ids=str)
def test_model_computes_the_same_elsewhere(elsewhere, changes):
    plain, away, batch = network(**changes), network(**changes).to(AWAY), batch_of(lengths=LENGTHS)
    there = batch.to(AWAY)
    for maps in (False, "cls", True):
        expected = plain(batch.frames, batch.mask, return_attention=maps)
        found = away(there.frames, there.mask, return_attention=maps)
        assert isinstance(found.logits, Elsewhere)
        assert torch.allclose(home(found.logits), expected.logits, atol=1e-5)
    held = SteadyAttention(away, found.attention)(there.frames, there.mask)
    assert torch.allclose(home(held.logits), home(found.logits), atol=1e-5)


ATTACKS = [
    *(Attack(ThreatModel(norm, 0.2), steps=3, search="auto", restarts=2) for norm in NORMS),
    Attack(ThreatModel("l2-clip", 0.2), steps=4, search="random"),
    *(Attack(THREAT, objective=objective, steps=2) for objective in OBJECTIVES),
    *(Attack(ThreatModel("l2-frame", 0.5, 2), frames=frames, steps=2, restarts=2) for frames in CHOICES),
    *(Attack(THREAT, view=view, labels="predicted", steps=2) for view in VIEWS),
]


def test_attacks_find_the_same_elsewhere(elsewhere):
    here, away, batch = network(layers=1), network(layers=1).to(AWAY), batch_of(lengths=LENGTHS)
    for attack in ATTACKS:
        expected = perturb(here, batch, attack, generator=generator())
        found = perturb(away, batch.to(AWAY), attack, generator=generator())
        assert isinstance(found, Elsewhere), attack
        assert torch.allclose(home(found), expected, atol=1e-5), attack


def plain_steps(parameters, rate=0.1, **_):
    return torch.optim.SGD(parameters, rate, foreach=False)


class Accelerator:
    """As much of accelerate's as a step needs, on the other device."""

    device, scaler, gradient_accumulation_steps = AWAY, None, 1

    def prepare_model(self, model, **_):
        self.model = model.to(AWAY)
        return self.model

    def prepare(self, optimizer):  # a real device keeps the parameters; this one has made new ones
        return plain_steps(self.model.parameters())

    def backward(self, loss, **options):
        loss.backward(**options)

    def clip_grad_norm_(self, parameters, norm):
        return torch.nn.utils.clip_grad_norm_(list(parameters), norm, foreach=False)


class Anywhere(torch.Generator):
    """A generator of any device; the other one's has numbers of its own, and a state of another length."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.place, made.away = torch.device(device), int(torch.device(device) == AWAY)
        return made

    device = property(lambda self: self.place)

    def manual_seed(self, seed):
        return super().manual_seed(seed + self.away)

    def get_state(self):
        return torch.cat([super().get_state(), torch.zeros(self.away, dtype=torch.uint8)])

    def set_state(self, state):
        return super().set_state(state[: len(state) - self.away])


@pytest.fixture
def training(elsewhere):
    """What a run makes for its device is made for the other one."""
    with mock.patch("torch.Generator", Anywhere), mock.patch("torch.optim.AdamW", plain_steps):
        yield


@pytest.mark.parametrize("name", ["standard", "trades", "vat", "a-art", "a-art-few", "attention-shuffled"])
def test_a_training_step_keeps_everything_elsewhere(training, name):
    made = Learner(DEFENSES[name], network().config, TrainConfig(rate=0.1), 10, Accelerator())
    before = [home(p) for p in made.model.parameters()]
    made.learn([batch_of(4)], 4, THREAT)
    assert any(not torch.equal(a, home(b)) for a, b in zip(before, made.model.parameters(), strict=True))


@pytest.fixture(scope="module")
def splits(written) -> Splits:
    return open_data("synthetic", written(train_videos=8, test_videos=6, shard_size=20, frames=(3, 6)))


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_a_run_elsewhere_goes_on_with_the_noise_it_would_have_drawn(training, splits):
    few = replace(splits, train=splits.test, validation=splits.test.select(range(2)))
    made = DEFENSES["a-art"], few, network(**WIDE).config, THREAT, TrainConfig(epochs=2, batch_size=3)
    whole, stopped, resumed = (Run(*made, Accelerator()) for _ in range(3))
    bar = mock.Mock()
    for run in (whole, whole, stopped):
        run.one_epoch(bar)
    stopped.stopped = True  # as a signal does
    with pytest.raises(KeyboardInterrupt):
        stopped.one_epoch(bar)
    resumed.restore(stopped.state(), "run.state")
    assert (resumed.epoch, resumed.step) == (1, 1)
    resumed.one_epoch(bar)
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(home(one), home(other)) for one, other in pairs)


def test_judging_brings_batches_and_surrogates_to_the_model(splits, short_suite):
    expected, other = evaluate(network(**WIDE), splits.test, THREAT, progress=False), network(**WIDE)
    with Device():
        model = network(**WIDE).to(AWAY)
        found = evaluate(model, splits.test, THREAT, surrogates={"other": other}, progress=False)
        assert all(isinstance(parameter, Elsewhere) for parameter in other.parameters())
        assert calibrate(model, splits.test, THREAT, target=0.5, tolerance=0.5)[0] > 0
    assert found["clean"] == pytest.approx(expected["clean"], abs=1e-6)
    assert found["attacked"]["pgd"]["gap"] == pytest.approx(expected["attacked"]["pgd"]["gap"], abs=1e-3)


def test_a_gpu_is_used_for_readers_and_processes_where_there_is_one(monkeypatch, splits):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for gpu in (False, True):
        with mock.patch("torch.cuda.is_available", return_value=gpu), mock.patch("accelerate.PartialState") as meeting:
            assert splits.test.batches(4).pin_memory == gpu
            processes.start()
        meeting.assert_called_once_with(cpu=not gpu)


def test_a_model_from_a_checkpoint_goes_where_the_run_computes(splits, tmp_path):
    path = tmp_path / "model.safetensors"
    experiment = Experiment(splits, PRESETS["quick"], tmp_path, progress=False)
    notes = {"data": "synthetic", "labels": splits.labels, "defense": "standard", "seed": 0, "fingerprint": "same"}
    checkpoint.save(path, VideoTransformer(model_config(splits, experiment.preset)), notes | {"threat": vars(THREAT)})
    with (
        Device(),
        mock.patch("aart_lib.experiment.reproduce.fingerprint", return_value="same"),
        mock.patch("aart_lib.runtime.processes.device", return_value=AWAY),
    ):
        model, _ = experiment.train("standard", 0, THREAT, path=path)
    assert all(isinstance(parameter, Elsewhere) for parameter in model.parameters())
