"""The processes that share one run, started by ``accelerate launch`` or ``torchrun``; without them there is one.

All run the same program. They differ in which videos they read, and only the main one writes files.
"""

import os
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist


class ProcessLost(RuntimeError):
    """Another process of the run is gone."""


def start() -> None:
    """Meet the other processes, if a launcher started some."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def device() -> torch.device:
    """Where this process computes: the GPU that ``accelerate`` takes, or the CPU."""
    from accelerate import PartialState

    return PartialState().device


def count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if count() > 1 else 0


def is_main() -> bool:
    return rank() == 0


@contextmanager
def talking():
    """Around every exchange: a neighbor that died is told in a sentence. Raises: ProcessLost."""
    try:
        yield
    except RuntimeError as error:  # torch has no finer class for it
        raise ProcessLost(
            "another process of this run ended or cannot be reached; look for its message, then give the same command "
            "with --resume: it goes on from the last saved state"
        ) from error


def gathered(value) -> list:
    """The value of every process, in order of rank; [value] if there is one process. Anything that pickles."""
    if count() == 1:
        return [value]
    found = [None] * count()
    with talking():
        dist.all_gather_object(found, value)
    return found


def added(vector: torch.Tensor) -> torch.Tensor:
    """The sum of a vector over all processes, in place."""
    if count() > 1:
        with talking():
            dist.all_reduce(vector)
    return vector


def write(call, *arguments) -> None:
    """Call on the main process only; the others wait, so that what it wrote is there for all."""
    if is_main():
        call(*arguments)
    gathered(None)


@dataclass
class Part:
    """A generator for some of the videos of a batch: they get the numbers that they get within the whole batch.

    So it changes nothing how a batch is cut: each draw is made once, for all its videos, and every part takes its rows.
    """

    generator: torch.Generator
    videos: int  # in the whole batch
    frames: int  # of its longest video
    first: int = 0  # place of this part's first video
    made: list[torch.Tensor] = field(default_factory=list)  # the draws so far, which all parts of the batch share
    taken: int = 0  # of them, by this part

    def at(self, first: int) -> "Part":
        """Another part of the same batch."""
        return replace(self, first=first, taken=0)

    def draw(self, shape: Sequence[int]) -> torch.Tensor:
        if self.taken == len(self.made):
            self.made.append(drawn((self.videos, self.frames, *shape[2:]), self.generator))
        self.taken += 1
        return self.made[self.taken - 1][self.first : self.first + shape[0], : shape[1]]


def drawn(shape: Sequence[int], generator: torch.Generator | Part | None) -> torch.Tensor:
    """Uniform numbers in [0,1) of a shape [B,T,...], on the generator's device."""
    if isinstance(generator, Part):
        return generator.draw(shape)
    return torch.rand(tuple(shape), generator=generator, device=generator.device if generator else "cpu")
