"""What a training step does, counted from the shapes: passes through the network, work by kind, memory; and its time.

A step does four kinds of work: multiplications, attention maps written and read, other numbers written and read, and
operations started. A `Machine` says what each costs. Of a card the costs are assumptions; of the machine at hand `fit`
finds them from measured steps.

Source: counted from model.py, losses.py, attacks.py and training.py; FLOPs as torch.utils.flop_counter counts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from aart_lib.attacks import OBJECTIVES
from aart_lib.data.batch import LEVEL
from aart_lib.experiment.suites import suite
from aart_lib.losses import Defense
from aart_lib.model import ModelConfig, VideoTransformer
from aart_lib.threats import ThreatModel

FLOAT = 4  # bytes
ROW = 64  # numbers: what starting a row of a map costs


class Passes(NamedTuple):
    """How often the network is walked through; a pass of a share of the videos counts as that share."""

    forward: float  # all of them
    watched: int = 0  # of these, those that learn and keep their maps
    looked: int = 0  # of these, those that look at all maps and learn nothing
    to_frames: float = 0  # backward, to the frames only: the attacker's
    to_weights: int = 0  # backward, to the weights
    to_both: int = 0  # of these, those that go on to the frames
    tries: float = 0  # perturbations made
    all_rows: bool = False  # the last layer's maps are kept whole
    kept: int = 1  # forward passes that wait at once for their backward pass


def passes(defense: Defense) -> Passes:
    """The passes of a training step, as `train` makes them.

    An upper bound where attention alone is trained: the attacked side then ends at the last map.
    """
    names = set(defense.weights)
    if not defense.pairs:
        return Passes(1, to_weights=1)
    watched, all_rows = 2 * ("attention" in names), "attention" in names and defense.rows == "all"
    if defense.shares_clean_pass:
        return Passes(2, watched, 0, int(defense.two_sided), 2, 1, 1, all_rows, 1 + defense.two_sided)
    moving = {"pairing", "consistency"} | (set() if defense.fixed_maps else {"attention"})
    learns = "task" in names or (defense.two_sided and bool(moving & names))  # the clean side gets a gradient
    steps = 0 if defense.objective in ("noise", "shuffled") else defense.steps
    crafted = steps + defense.few if steps else 0  # an attacker of one frame first looks for it
    looked = int(defense.objective in OBJECTIVES and OBJECTIVES[defense.objective].needs_clean)
    return Passes(2 + looked + crafted, watched, looked, crafted, 1 + learns, 0, 1 + crafted, all_rows, 2)


def suite_passes(name: str, frames: int) -> Passes:
    """The passes that attack one video with a suite, and with attention held steady.

    Some percent too many: held attention is counted like any other. Blind search is left out.
    """
    attacks = [a for part in suite(name, ThreatModel("linf", LEVEL)) for a in part.values() if a.search != "random"]
    trials = sum(attack.threat.max_frames is not None and attack.frames == "trial" for attack in attacks)
    gradients = sum(attack.steps * attack.restarts for attack in attacks) + trials + 2 * 10
    looks = len(attacks) + 1 + 2
    ends = sum(attack.restarts for attack in attacks if attack.keep_best and attack.steps) + 2
    return Passes(gradients + looks + ends + trials * frames, 0, looks, gradients, tries=gradients)


class Work(NamedTuple):
    """What one device does in a step."""

    linear: float  # FLOPs (a multiplication and an addition are two) in linear layers but the head
    head: float  # FLOPs from [CLS] to the labels
    attention: float  # FLOPs of the products of maps with tokens
    maps: float  # bytes of maps written and read, each row taken `ROW` numbers longer
    moved: float  # bytes of all other numbers written and read elementwise
    calls: float  # blocks walked through; each starts some dozens of operations

    @property
    def flops(self) -> float:
        return self.linear + self.head + self.attention

    @property
    def kinds(self) -> tuple[float, ...]:
        """In the order of `Machine.costs`."""
        return self.flops, self.maps, self.moved, self.calls


def parameters(model: ModelConfig) -> int:
    """Numbers that are learned."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VideoTransformer(model).parameters())


def work(model: ModelConfig, frames: int, batch: int, p: Passes) -> Work:
    """The work of these passes for a batch of videos of so many frames each.

    FLOPs are exact. Bytes are counted by hand: a block writes and reads its tokens [T+1,d] some 20 times forward and 33
    times backward, a perturbation the frames 45 times, a loss the labels 60 times, a map is touched 3 times forward
    (6 times where it is looked at) and 6 times backward. How often a map is touched, and what starting a row costs,
    were chosen on the steps in `timing.FITTED` alone, each predicted from the others.
    """
    n, d, blocks = frames + 1, model.width, model.layers - 1
    rows, learned = (1 if model.pooling == "cls" else n), model.attention == "learned"
    back = p.to_frames + p.to_weights
    reached = p.forward + p.to_frames + 2 * p.to_weights  # a linear layer's backward pass to its weights is two
    extra = learned * (p.looked + 3 * p.watched * p.all_rows) * (n - rows)  # queries of the last block
    tokens = blocks * (10 + 2 * learned) * n + (1 + learned) * n + (9 + learned) * rows
    embed = 2 * frames * model.features * d * (p.forward + back + p.to_both)
    products = (1 + learned) * (blocks * n + rows) * (p.forward + (1 + learned) * back) + extra
    entries = model.heads * (blocks * n + rows) * (n + ROW)
    touched = n * d * (blocks + rows / n + 0.2) * (20 * p.forward + 33 * back)
    touched += frames * model.features * (45 * p.tries + p.forward + back + p.to_both) + 60 * model.labels * p.forward
    return Work(
        batch * (embed + 2 * d * d * (tokens * reached + extra)),
        batch * 2 * d * model.labels * reached,
        batch * 2 * products * n * d,
        batch * FLOAT * entries * (3 * (p.forward + p.looked + p.watched) + 6 * back),
        batch * FLOAT * touched + 12 * FLOAT * parameters(model),
        (model.layers + 1) * (p.forward + back + 1),
    )


def memory(model: ModelConfig, frames: int, batch: int, p: Passes) -> dict[str, float]:
    """Bytes of a training step: what is learned (with gradient and Adam), and what waits for the backward pass."""
    n, blocks = frames + 1, model.layers - (model.pooling == "cls")
    one = frames * model.features + n * model.width * (16 * blocks + 5) + 4 * model.labels
    rows = blocks * n + (n if p.all_rows and model.pooling == "cls" else 1)
    return {
        "weights": 4 * FLOAT * parameters(model),
        "activations": batch * FLOAT * one * p.kept,
        "maps": batch * FLOAT * model.heads * n * rows * p.watched / 2 * p.kept,
    }


# ---------------------------------------------------------------- time


@dataclass(frozen=True)
class Machine:
    """What one device sustains, and what stands around it."""

    name: str
    flops: float  # a second
    map_bytes: float  # a second, attention maps
    bytes: float  # a second, other elementwise work
    call: float  # seconds to start the operations of a block
    reader_bytes: float  # of videos a second, one reader core: read, checked, decoded, batched
    index_bytes: float  # of videos a second, one core: when the files are opened
    reader_cores: int = 8  # a device; 0 = the training process reads by itself, and waits
    network: float = 10e9  # bytes a second and device for the sum of gradients
    storage: float = 2e9  # bytes a second for all devices together

    @property
    def costs(self) -> tuple[float, ...]:
        """Seconds of one FLOP, one byte of maps, one other byte, one call."""
        return 1 / self.flops, 1 / self.map_bytes, 1 / self.bytes, self.call

    def seconds(self, done: Work) -> float:
        return float(np.dot(self.costs, done.kinds))


PEAK_FLOPS, PEAK_BYTES = 19.5e12, 1.555e12  # a second, float32; data sheet of the NVIDIA A100 with 40 GB
# Assumed, not measured: 40 % and 60 % of the data sheet, and 30 operations a block of 8 microseconds each. The rates
# of its reader cores stand in for measured ones.
A100 = Machine("A100-class card", 0.4 * PEAK_FLOPS, 0.6 * PEAK_BYTES, 0.6 * PEAK_BYTES, 30 * 8e-6, 400e6, 2e9)


def fit(works: Sequence[Work], seconds: Sequence[float], machine: Machine) -> Machine:
    """The machine with the four costs that explain the measured steps best: least squares of the relative errors.

    A cost that comes out negative is set to zero, and the others are found again. Raises: ValueError if there are
    fewer steps than costs.
    """
    if len(works) < 4:
        raise ValueError(f"four costs need at least four measured steps, got {len(works)}")
    table = np.array([step.kinds for step in works]) / np.array(seconds)[:, None]
    scale, kept, costs = table.mean(0), [0, 1, 2, 3], np.zeros(4)
    while True:
        found = np.linalg.lstsq((table / scale)[:, kept], np.ones(len(table)), rcond=None)[0]
        if found.min() >= 0:
            break
        kept.pop(int(found.argmin()))
    costs[kept] = found / scale[kept]
    with np.errstate(divide="ignore"):
        flops, maps, moved = (float(rate) for rate in 1 / costs[:3])
    return replace(machine, flops=flops, map_bytes=maps, bytes=moved, call=float(costs[3]))
