"""Another device than the CPU: no code may lean on the processor's memory, and the choices made for a GPU are right.

There is no GPU where these tests run. `Elsewhere` is a tensor that claims another device and computes on the CPU: it
refuses to meet a CPU tensor, as CUDA and MPS refuse it, and what it computes is real, so that results can be compared.
"""

import dataclasses
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from aart_lib import checkpoint
from aart_lib import training as loop
from aart_lib.attacks import CHOICES, OBJECTIVES, VIEWS, Attack, perturb
from aart_lib.attention import (
    SteadyAttention,
)
from aart_lib.data.batch import Batch, drawn
from aart_lib.data.catalog import open_data
from aart_lib.data.dataset import VideoDataset
from aart_lib.experiment.judge import evaluate
from aart_lib.experiment.presets import PRESETS, calibrate, model_config
from aart_lib.experiment.reproduce import Experiment
from aart_lib.losses import DEFENSES
from aart_lib.model import ModelConfig, VideoTransformer
from aart_lib.runtime import processes
from aart_lib.steps import Hardware, Learner, TrainConfig
from aart_lib.threats import NORMS, ThreatModel
from aart_lib.training import Run, train

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

    def __repr__(self):
        return f"Elsewhere({self.inner})"

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


def moved(model: torch.nn.Module) -> torch.nn.Module:
    return model.to(AWAY)


def home(x: torch.Tensor) -> torch.Tensor:
    return (x.detach().inner if isinstance(x, Elsewhere) else x.detach()).clone()


CONFIG = ModelConfig(features=6, labels=5, max_frames=8, width=8, heads=2, layers=2)
WIDE = ModelConfig(features=320, labels=40, width=8, heads=2, layers=1)  # of synthetic videos
THREAT = ThreatModel("linf", 0.1)


def make(config=CONFIG):
    torch.manual_seed(0)
    return VideoTransformer(config).eval()


def batch_of(count=4) -> Batch:
    draw = torch.Generator().manual_seed(1)
    mask = torch.arange(8) < torch.tensor([[8], [5], [3], [6]])[:count]
    frames = torch.randn(count, 8, 6, generator=draw) * mask[..., None] * 0.3
    labels = (torch.rand(count, 5, generator=draw) < 0.4).float()
    labels[:, 0] = 1
    return Batch(frames, mask, labels, tuple("abcd"[:count]))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


# ---------------------------------------------------------------- the tool itself


def test_the_other_device_refuses_tensors_of_the_cpu(elsewhere):
    there = torch.ones(3).to(AWAY)
    assert isinstance(there, Elsewhere) and there.device == AWAY
    assert home(there + 1).tolist() == [2, 2, 2] and there.cpu().numpy().tolist() == [1, 1, 1]
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(3)


# ---------------------------------------------------------------- model, attacks, losses, metrics


@pytest.mark.parametrize("changes", [{}, {"attention": "uniform"}, {"pooling": "mean"}], ids=str)
def test_model_computes_the_same_elsewhere(elsewhere, changes):
    config, batch = dataclasses.replace(CONFIG, **changes), batch_of()
    plain, away, there = make(config), moved(make(config)), batch.to(AWAY)
    for maps in (False, True, "cls"):
        expected = plain(batch.frames, batch.mask, return_attention=maps)
        found = away(there.frames, there.mask, return_attention=maps)
        assert isinstance(found.logits, Elsewhere)
        assert torch.allclose(home(found.logits), expected.logits, atol=1e-6)
    full = away(there.frames, there.mask, return_attention=True)
    held = SteadyAttention(away, full.attention)(there.frames, there.mask)
    assert torch.allclose(home(held.logits), home(full.logits), atol=1e-5)


ATTACKS = [
    *(Attack(ThreatModel(norm, 0.2), steps=3, search="auto", restarts=2) for norm in NORMS),
    Attack(ThreatModel("l2-clip", 0.2), steps=4, search="random"),
    *(Attack(THREAT, objective=objective, steps=2) for objective in OBJECTIVES),
    *(Attack(ThreatModel("l2-frame", 0.5, 2), frames=frames, steps=2, restarts=2) for frames in CHOICES),
    *(Attack(THREAT, view=view, labels="predicted", steps=2) for view in VIEWS),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: "-".join([a.threat.norm, a.search, a.frames, str(a.view)]))
def test_attacks_find_the_same_elsewhere(elsewhere, attack):
    batch = batch_of()
    expected = perturb(make(), batch, attack, generator=seeded())
    found = perturb(moved(make()), batch.to(AWAY), attack, generator=seeded())
    assert isinstance(found, Elsewhere)
    assert torch.allclose(home(found), expected, atol=1e-5)


# ---------------------------------------------------------------- training and judging


class Accelerator:
    """As much of accelerate's as a step needs, on the other device."""

    device, scaler, gradient_accumulation_steps = AWAY, None, 1

    def prepare_model(self, model, **_):
        self.model = moved(model)
        return self.model

    def prepare(self, optimizer):  # a real device keeps the parameters; this one has made new ones
        return torch.optim.SGD(self.model.parameters(), 0.1, foreach=False)

    def backward(self, loss, **options):
        loss.backward(**options)

    def clip_grad_norm_(self, parameters, norm):
        return torch.nn.utils.clip_grad_norm_(list(parameters), norm, foreach=False)

    def unwrap_model(self, model, **_):
        return model


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
    plain = lambda parameters, rate, **_: torch.optim.SGD(parameters, rate, foreach=False)  # noqa: E731
    with mock.patch("torch.Generator", Anywhere), mock.patch("torch.optim.AdamW", plain):
        yield


def learner(name: str) -> Learner:
    return Learner(DEFENSES[name], CONFIG, TrainConfig(rate=0.1), 10, Accelerator(), Hardware())


@pytest.mark.parametrize("name", ["standard", "trades", "vat", "a-art", "a-art-few", "attention-shuffled"])
def test_a_training_step_keeps_everything_elsewhere(training, name):
    made = learner(name)
    before = [home(p) for p in made.model.parameters()]
    made.learn([batch_of()], 4, THREAT)
    assert any(not torch.equal(a, home(b)) for a, b in zip(before, made.model.parameters(), strict=True))


def noise_of(rank: int, count: int) -> torch.Tensor:
    """What one of some processes draws for its share of four videos."""
    made, share = learner("a-art"), batch_of(4 // count)
    told = {"rank": lambda: rank, "count": lambda: count, "gathered": lambda frames: [frames]}
    with mock.patch.multiple(processes, **told):
        ((_, part),) = made.placed([share], 4)
    return home(drawn(share.frames.shape, part))


def test_processes_elsewhere_draw_the_noise_of_one(training):
    assert torch.equal(torch.cat([noise_of(0, 2), noise_of(1, 2)]), noise_of(0, 1))


@pytest.fixture(scope="module")
def videos(written) -> VideoDataset:
    return open_data("synthetic", written(train_videos=8, test_videos=12, shard_size=20, frames=(3, 6))).test


def trained(videos, kept: dict, stop=None) -> dict[str, torch.Tensor]:
    """Weights after two epochs of three steps; ``kept`` is the file of the state, the stop-th step gets a signal."""
    own, steps = Run.learn, []

    def step(self, *rest):
        steps.append(1)
        self.stopped = len(steps) == stop
        return own(self, *rest)

    splits = SimpleNamespace(train=videos, validation=videos.select(range(2)))
    config, state = TrainConfig(epochs=2, batch_size=4), SimpleNamespace(exists=lambda: bool(kept))
    copied = lambda state: tree_map(lambda x: home(x) if torch.is_tensor(x) else x, state)  # noqa: E731
    file = {"save_state": lambda _, state: kept.update(copied(state)), "load_state": lambda _: kept}
    with (
        mock.patch.multiple(loop, Accelerator=Accelerator, Path=lambda state: state, **file),
        mock.patch.object(Run, "learn", step),
        mock.patch("aart_lib.training.fingerprint", return_value="same"),
    ):
        model, _ = train(DEFENSES["a-art"], splits, WIDE, THREAT, config, state=state, progress=None)
    return copied(model.state_dict())


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_a_run_elsewhere_goes_on_with_the_noise_it_would_have_drawn(training, videos):
    whole, kept = trained(videos, {}), {}
    with pytest.raises(KeyboardInterrupt):
        trained(videos, kept, stop=5)
    resumed = trained(videos, kept)
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_judging_brings_batches_and_surrogates_to_the_model(videos):
    expected = evaluate(make(WIDE), videos, THREAT, progress=False)
    other = make(WIDE)
    with Device():
        model = moved(make(WIDE))
        found = evaluate(model, videos, THREAT, surrogates={"other": other}, progress=False)
        assert all(isinstance(parameter, Elsewhere) for parameter in other.parameters())
        assert calibrate(model, videos, THREAT, target=0.5, tolerance=0.5)[0] > 0
    assert found["clean"] == pytest.approx(expected["clean"], abs=1e-6)
    assert found["attacked"]["pgd"]["gap"] == pytest.approx(expected["attacked"]["pgd"]["gap"], abs=1e-3)


# ---------------------------------------------------------------- what is chosen for which device


def test_a_gpu_is_used_for_readers_and_processes_where_there_is_one(monkeypatch, videos):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for gpu in (False, True):
        with mock.patch("torch.cuda.is_available", return_value=gpu), mock.patch("accelerate.PartialState") as meeting:
            assert videos.batches(4).pin_memory == gpu
            processes.start()
        meeting.assert_called_once_with(cpu=not gpu)


def test_a_model_from_a_checkpoint_goes_where_the_run_computes(written, tmp_path):
    splits, path = open_data("synthetic", written(train_videos=8, test_videos=8)), tmp_path / "model.safetensors"
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
