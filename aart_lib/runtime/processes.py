"""The processes that share one run, started by ``accelerate launch`` or ``torchrun``; without them there is one.

All run the same program. They differ in which videos they read, and only the main one writes files.
"""

import multiprocessing
import os
from contextlib import contextmanager

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


def added_up(weights: list[torch.nn.Parameter], numbers: list[float]) -> list[float]:
    """Sums over all processes: of the weights' gradients, in place, and of some numbers.

    By hand, since torch's own way (DistributedDataParallel) takes the mean over processes as if their parts of a batch
    were equal, does so in every backward pass, of which a step has two, and gives a gradient to unused weights.
    """
    if count() == 1:
        return numbers
    gradients = [w.grad if w.grad is not None else torch.zeros_like(w) for w in weights]
    used = [float(w.grad is not None) for w in weights]  # what no process used must stay without, or it would decay
    told = torch.tensor([*used, *numbers])
    whole = added(torch.cat([*(g.flatten() for g in gradients), told.to(gradients[0])]))
    found = whole[-len(told) :].tolist()
    for i, gradient in enumerate(whole[: -len(told)].split([w.numel() for w in weights])):
        weights[i].grad = gradient.view_as(weights[i]) if found[i] else None
    return found[len(weights) :]


def write(call, *arguments) -> None:
    """Call on the main process only; the others wait, so that what it wrote is there for all."""
    if is_main():
        call(*arguments)
    gathered(None)


def can_start_processes() -> bool:
    """Whether processes can wait for each other here: some containers have no shared memory, some systems no locks."""
    try:
        return bool(multiprocessing.get_context("spawn").Lock())
    except (OSError, ImportError):
        return False
