"""jobs.py: work side by side gives what it gives one after the other, and nothing outlives its parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from kill import outcome

from aart_lib import losses
from aart_lib.cli.parser import main
from aart_lib.runtime import files, jobs
from aart_lib.runtime.jobs import side_by_side
from aart_lib.runtime.processes import ProcessLost
from aart_lib.runtime.signals import on_signals

ROOT = Path(__file__).resolve().parents[2]


def squared(number: int, *, folder=None) -> tuple[int, int, int]:
    return number**2, os.getpid(), torch.get_num_threads()


def fails_beside_a_training(number: int, *, folder: Path) -> None:
    (folder / f"begun{number}").touch()
    if number == 0:
        until((folder / "begun1").exists)
        raise ValueError("the first one is bad")
    with on_signals(signal.default_int_handler):
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # while it saves its state
            time.sleep(1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            raise


def killed(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def alive(pid: int) -> bool:
    """Is there such a process, and is it more than an entry that nobody has read?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that a process started; none where the system does not tell."""
    known = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in known.read_text().split()] if known.exists() else []


def until(condition, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def test_one_job_or_a_machine_without_processes_works_in_this_one_in_order(monkeypatch):
    def refused(*arguments, **options):
        raise OSError("no shared memory")

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", refused)
    for count in (1, 2):
        found = list(side_by_side(squared, [(3,), (1,), (2,)], count))
        assert [task for task, _ in found] == [(3,), (1,), (2,)] and {pid for _, (_, pid, _) in found} == {os.getpid()}


def test_several_jobs_work_in_processes_of_their_own_on_a_share_of_the_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    found = dict(side_by_side(squared, [(n,) for n in range(6)], 2))
    assert {task: value for task, (value, _, _) in found.items()} == {(n,): n**2 for n in range(6)}
    assert os.getpid() not in {pid for _, pid, _ in found.values()}
    assert {threads for _, _, threads in found.values()} == {3}


def test_as_many_jobs_as_threads_but_one_on_gpus_and_none_beside_other_processes(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert [jobs.most(tasks) for tasks in (1, 3, 9)] == [1, 3, 4]
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        assert jobs.most(9) == 1
    monkeypatch.setattr(jobs, "count", lambda: 2)
    assert jobs.most(9) == 1
    with pytest.raises(ValueError, match=r"2 processes share this run.*leave out --jobs 2"):
        list(side_by_side(squared, [(0,), (1,)], 2))


def test_an_error_of_one_ends_all(tmp_path):
    with pytest.raises(ValueError, match="the first one is bad"):
        list(side_by_side(partial(fails_beside_a_training, folder=tmp_path), [(0,), (1,), (2,)], 2))
    assert not (tmp_path / "begun2").exists()
    assert multiprocessing.active_children() == []


def test_a_job_that_is_killed_is_told_in_a_sentence():
    with pytest.raises(ProcessLost, match=r"ended from outside.*--resume goes on, and --jobs 1 takes the least memory"):
        list(side_by_side(killed, [(0,), (1,)], 2))


PROGRAM = """
from aart_lib import losses
from aart_lib.runtime.jobs import side_by_side
losses.TERMS["mine"] = lambda defense, clean, attacked, labels, mask: twice(clean.logits.sum(1))
losses.DEFENSES["mine"] = losses.Defense({"task": 1.0, "mine": 0.5})
twice = lambda x: 2 * x
def work(number):
    return number, losses.defense("mine").weights["mine"], twice(losses.TERMS["mine"].__code__.co_argcount)
print(sorted(found for _, found in side_by_side(work, [(0,), (1,)], 2)))
"""


@pytest.mark.parametrize(("line", "given"), [(["mine.py"], None), (["-"], PROGRAM)], ids=["no guard", "standard input"])
def test_what_a_script_defines_and_registers_is_known_to_its_jobs(tmp_path, line, given):
    (tmp_path / "mine.py").write_text(PROGRAM)
    how = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, *line], input=given, check=False, **how)
    assert done.stdout == "[(0, 0.5, 10), (1, 0.5, 10)]\n", done.stderr


def test_what_cannot_be_sent_is_told_in_a_sentence(tmp_path):
    with open(tmp_path / "x", "w") as file, pytest.raises(ValueError, match=r"cannot be sent .* take jobs=1"):
        list(side_by_side(partial(squared, folder=file), [(0,), (1,)], 2))


# ---------------------------------------------------------------- the main job


@pytest.fixture(scope="module")
def data(written):
    return written(train_videos=60, test_videos=24, shard_size=60, frames=(3, 6))


def command(data, out, *more) -> list[str]:
    given = ["reproduce", "--data-dir", str(data), "--out", str(out), "--preset", "quick", "--epsilon", "0.05"]
    return [*given, *more]


def test_the_table_is_the_same_side_by_side(data, tmp_path, capsys, monkeypatch, no_figures):
    """With a term and a defense that are known in this process alone."""
    monkeypatch.setitem(losses.TERMS, "mine", lambda d, clean, attacked, labels, mask: attacked.logits.square().sum(1))
    monkeypatch.setitem(losses.DEFENSES, "mine", losses.Defense({"task": 0.5, "robust": 0.5, "mine": 0.01}))
    for count in ("1", "2"):
        assert main(command(data, tmp_path / count, "--jobs", count, "--epochs", "1", "--defenses", "mine")) == 0
    assert outcome(tmp_path / "1") == outcome(tmp_path / "2")
    assert main(command(data, tmp_path / "3", "--jobs", "0")) == 2
    assert "--jobs must be at least 1" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that can be caught")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_job_outlives_its_parent_and_a_stop_saves_every_training(data, tmp_path, number):
    """A signal while two defenses are trained: both leave their state, from which the same command could go on."""
    out = tmp_path / "out"
    line = command(data, out, "--jobs", "2", "--epochs", "4000", "--defenses", "adversarial,trades")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        [sys.executable, "-m", "aart_lib", *line], env=environment, stderr=subprocess.PIPE, text=True
    )
    states = [out / "checkpoints" / f"{name}-seed0.state" for name in ("adversarial", "trades")]  # begun first
    until(lambda: all(state.exists() for state in states))
    jobs = children(run.pid)
    run.send_signal(number)
    said = run.communicate(timeout=60)[1]
    until(lambda: not any(map(alive, jobs)))
    if number == signal.SIGTERM:
        assert run.returncode == 130 and "the same command with --resume goes on from there" in said
        assert not [path for path in out.rglob(".*")], "temporary files were left"
    assert all(files.load_state(state)["epoch"] + files.load_state(state)["step"] > 0 for state in states)
