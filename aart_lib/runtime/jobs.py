"""Independent pieces of work side by side, each in a process of its own on its share of the cores.

A small model keeps no more than one core busy; several of them, each on a core, do.
"""

import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partialmethod
from importlib import import_module
from multiprocessing.connection import wait

import cloudpickle
import torch
from tqdm import tqdm

from aart_lib.runtime.processes import ProcessLost, can_start_processes, count
from aart_lib.runtime.signals import on_signals, show_any_text

# Modules with tables that users add to.
EXTENDED = "model attention losses threats objectives attacks experiment.suites experiment.recipes".split()


def most(tasks: int) -> int:
    """How many jobs pay: as many as torch would use threads. One on GPUs and in a run of several processes."""
    return 1 if torch.cuda.is_available() or count() > 1 else min(tasks, torch.get_num_threads())


def side_by_side(work: Callable, tasks: Sequence[tuple], jobs: int = 1) -> Iterator[tuple]:
    """Yields (task, work(*task)) as each is done; with one job, or where none can start, in order and in this process.

    ``work`` is sent to them with all that was registered here (defenses, loss terms, ...), wherever it was written: in
    a notebook, in a script, in its standard input. When one fails or the user stops, all stop as after SIGTERM:
    trainings save their state.
    Raises: what ``work`` raises; ProcessLost if a job's process was killed; KeyboardInterrupt on SIGINT and SIGTERM;
        ValueError for what cannot be sent, and in a run of several processes.
    """
    if min(jobs, len(tasks)) < 2 or not can_start_processes():
        yield from ((task, work(*task)) for task in tasks)
        return
    if count() > 1:
        raise ValueError(f"{count()} processes share this run, each of its trainings; leave out --jobs {jobs}")
    packed = _packed(work)
    context = multiprocessing.get_context("spawn")  # a fork of a process whose OpenMP has begun would hang
    threads = max(1, torch.get_num_threads() // jobs)
    started = threads, context.RLock(), context.Value("i", 0)
    pool = concurrent.futures.ProcessPoolExecutor(min(jobs, len(tasks)), context, _begin, started)
    try:
        with on_signals(signal.default_int_handler):  # SIGTERM too
            waiting, running = list(tasks), dict[concurrent.futures.Future, tuple]()
            while waiting or running:
                while waiting and len(running) < jobs:  # no more, or they would begin when the others are stopped
                    task = waiting.pop(0)
                    with _without_main():
                        running[pool.submit(_unpack, packed, task)] = task
                for done in concurrent.futures.wait(running, return_when="FIRST_COMPLETED").done:
                    yield running.pop(done), done.result()
    except BaseException as error:
        for child in multiprocessing.active_children():
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise ProcessLost(
                "a process of this run was ended from outside, perhaps for want of memory; the same command with "
                "--resume goes on, and --jobs 1 takes the least memory"
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _packed(work: Callable) -> bytes:
    tables = {}
    for module in EXTENDED:
        found = vars(import_module(f"aart_lib.{module}"))
        tables[module] = {name: table for name, table in found.items() if name.isupper() and isinstance(table, dict)}
    try:
        return cloudpickle.dumps((tables, work))
    except Exception as error:  # every kind of object refuses in a way of its own
        raise ValueError(f"something of this run cannot be sent to another process ({error}); take jobs=1") from error


def _unpack(packed: bytes, task: tuple):
    tables, work = cloudpickle.loads(packed)  # from this process's own parent
    for module, found in tables.items():
        for name, table in found.items():
            getattr(import_module(f"aart_lib.{module}"), name).update(table)
    try:
        return work(*task)
    except KeyboardInterrupt:  # told to stop: it would wait for a queue that a stopped neighbor has locked
        os._exit(1)


@contextmanager
def _without_main():
    """New processes do not run the caller's script again, which may lack a guard or come from standard input."""
    main = vars(sys.modules["__main__"])
    kept: dict = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    try:
        main.update(__file__=None, __spec__=None)
        yield
    finally:
        del main["__file__"], main["__spec__"]
        main.update(kept)


def _begin(threads: int, lock, started) -> None:
    """In a new process: its share of the threads, its own line for bars, and an end with its parent."""
    torch.set_num_threads(threads)
    show_any_text()
    with started.get_lock():
        line, started.value = started.value, started.value + 1
    tqdm.set_lock(lock)
    tqdm.__init__ = partialmethod(tqdm.__init__, position=line)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # ctrl-C in the terminal is the parent's, which tells us once
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
    os._exit(1)
