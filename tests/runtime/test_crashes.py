"""Runs that are killed, told to stop, or meet a full disk, a folder they may not write to, or another run."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kill import COMMANDS, Killer, outcome
from test_training import CONFIG, SHAPE, THREAT, splits  # noqa: F401 (a fixture)

from aart_lib import checkpoint, training
from aart_lib.cli.parser import main
from aart_lib.data import dataset as data
from aart_lib.data import synthetic
from aart_lib.experiment import reproduce
from aart_lib.losses import DEFENSES
from aart_lib.runtime import files
from aart_lib.training import TrainConfig, TrainingStopped, train

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import os, sys, time
from pathlib import Path
from aart_lib.runtime.files import reserved
with reserved(Path(sys.argv[1]), 0):
    print({said}, flush=True)
    time.sleep(100)
"""
STOPPED = "\naart: stopped; the same command with --resume goes on from there\n"


@pytest.fixture(scope="module")
def tiny(written) -> Path:
    return written(train_videos=160, test_videos=40, shard_size=160, frames=(3, 5))


def training_of(tiny, out, *more) -> list[str]:
    return ["train", "--data-dir", str(tiny), "--defense", "standard", "--epochs", "2", "--out", str(out), *more]


def started(*command, path=(ROOT,), **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *map(str, command)], env=environment, text=True, **options)


@contextmanager
def holding(folder: Path, said="os.getpid()"):
    """The number that a process says which is at work in a folder until it is killed."""
    process = started("-c", HOLD.format(said=said), folder, stdout=subprocess.PIPE)
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def answer(capsys, arguments) -> str:
    """The one sentence of a command that fails."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("aart: ")]
    assert len(lines) == 1
    return lines[0]


def names(folder: Path) -> list[str]:
    """All files of a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- killed


def test_a_run_killed_at_any_moment_comes_to_what_it_would_have(tmp_path, monkeypatch):
    """One kill; `python tests/tools/kill.py --count 50` for many."""
    monkeypatch.setitem(COMMANDS, "train", [*COMMANDS["train"][:-1], "3"])
    killer = Killer("train", tmp_path, seed=3, lives=1)
    killer.one_run(1)
    assert killer.wrong == []


def killed(*arguments):
    raise KeyboardInterrupt


def told_to_stop(run, finish=training.Run._finish_epoch):
    signal.raise_signal(signal.SIGTERM)
    finish(run)


@pytest.mark.parametrize(
    "moment", [(checkpoint, "save", killed), (training.Run, "_finish_epoch", told_to_stop)], ids=["saving", "last step"]
)
def test_a_run_that_ends_before_its_model_is_there_does_not_train_again(tiny, tmp_path, monkeypatch, moment):
    command = [*training_of(tiny, tmp_path), "--epochs", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(*moment)
        assert main(command) == 130
    assert names(tmp_path) == ["model.state"]
    monkeypatch.setattr(training.Run, "learn", lambda *rest: pytest.fail("trained again"))
    assert main([*command, "--resume"]) == 0
    assert names(tmp_path) == ["model.safetensors"]


def test_a_state_that_its_model_outlived_goes_and_one_of_another_run_stays(tmp_path):
    model, state = tmp_path / "m.safetensors", tmp_path / "m.state"
    for age, left in ((-10, ["m.safetensors"]), (10, ["m.safetensors", "m.state"])):
        model.touch(), state.touch()
        os.utime(state, (time.time() + age,) * 2)
        reproduce.drop_state(model)
        assert names(tmp_path) == left


def test_files_that_killed_runs_left_are_removed_and_no_others(tmp_path):
    kinds = [".model.state.ab12.aart-part", "rows/.a.json.cd34.aart-part"]
    others = [".notes.part", "model.aart-part", "rows/deep/.a.x.aart-part"]
    for name in kinds + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    with files.replacing(tmp_path / "report.md"), files.reserved(tmp_path, 0):
        (living,) = [name for name in names(tmp_path) if "report.md" in name]
        assert names(tmp_path) == sorted([*others, living, ".run.lock"])
    assert names(tmp_path) == sorted([*others, "report.md"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process inherits open files here")
def test_readers_that_outlive_a_killed_run_leave_its_folder_free(tmp_path):
    with holding(tmp_path, said="os.fork() or time.sleep(100)") as reader:
        pass
    try:
        with files.reserved(tmp_path, 0):
            os.kill(reader, 0)  # it lives
    finally:
        os.kill(reader, signal.SIGKILL)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask for others")
def test_who_may_read_what_is_written_is_for_the_umask_to_say(tmp_path):
    before = os.umask(0o027)
    try:
        synthetic.write(replace(synthetic.SETTINGS["default"], train_videos=2, test_videos=2), tmp_path / "data")
    finally:
        os.umask(before)
    found = {path.stat().st_mode & 0o777 for path in (tmp_path / "data").iterdir()}
    assert found == {0o640} and (tmp_path / "data").stat().st_mode & 0o777 == 0o750


def test_a_reader_that_is_killed_ends_the_run_with_a_sentence(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data.VideoDataset, "batch", lambda *rest: os.kill(os.getpid(), signal.SIGKILL))
    assert main(training_of(tiny, tmp_path, "--workers", "1")) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("aart: a process that reads was ended") and "--workers 0" in said and "--shm-size" in said


# ---------------------------------------------------------------- told to stop


def test_a_signal_ends_a_training_with_its_state_and_a_sentence(tiny, tmp_path):
    """The real command, with processes that read and get the signal too."""
    command, state = [*training_of(tiny, tmp_path, "--workers", "2"), "--epochs", "300"], tmp_path / "model.state"
    process = started("-m", "aart_lib", *command, stderr=subprocess.PIPE, start_new_session=True)
    limit = time.monotonic() + 100
    while not state.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in said and said.count(STOPPED) == 1, said
    assert names(tmp_path) == ["model.state"]
    found = files.load_state(state)
    assert found["epoch"] > 0 or found["step"] > 0


def test_a_signal_while_models_are_judged_ends_with_a_sentence_and_keeps_them(tiny, tmp_path, capsys, monkeypatch):
    def judge(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("judged on")

    monkeypatch.setattr(reproduce, "judge", judge)
    command = ["reproduce", "--data-dir", str(tiny), "--defenses", "standard", "--epochs", "1", "--out", str(tmp_path)]
    assert main([*command, "--suite", "strong", "--epsilon", "0.1"]) == 130
    assert capsys.readouterr().err.endswith(STOPPED)
    assert names(tmp_path) == [f"checkpoints/standard-seed{seed}.safetensors" for seed in (0, 1)]


SLOW_TORCH = """
import os, sys, time
print("loading", flush=True), time.sleep(0.5)
sys.path.remove(os.path.dirname(__file__)), sys.modules.pop("torch")
import torch  # the real one, which takes this one's place
"""


def test_a_signal_while_modules_load_ends_with_a_sentence(tmp_path):
    (tmp_path / "torch.py").write_text(SLOW_TORCH)
    command = ["-m", "aart_lib", "train", "--out", tmp_path / "out"]
    process = started(*command, path=(tmp_path, ROOT), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "loading\n"
    process.terminate()
    assert process.communicate(timeout=60)[1] == STOPPED and process.returncode == 130
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- full disks


class Full(io.BytesIO):
    """A file on a full disk."""

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_becomes_full_ends_the_run_with_a_sentence_and_the_run_goes_on(tiny, tmp_path, capsys, monkeypatch):
    assert main(training_of(tiny, tmp_path / "whole")) == 0
    out, own, steps = tmp_path / "out", training.Run.learn, []
    with monkeypatch.context() as patch:

        def learn(self, *rest):
            steps.append(1)
            if len(steps) == 3:  # in the second epoch, so that a state of the first is there
                patch.setattr(files, "open", lambda *a, **o: Full(), raising=False)
            return own(self, *rest)

        patch.setattr(training.Run, "learn", learn)
        said = answer(capsys, training_of(tiny, out))
    assert f"{out / 'model.state'}: no space left on device; make room, then the same command with --resume" in said
    assert names(out) == ["model.state"] and files.load_state(out / "model.state")["epoch"] == 1
    assert main(training_of(tiny, out, "--resume")) == 0
    assert outcome(out) == outcome(tmp_path / "whole")


def test_a_disk_without_room_is_refused_before_anything_is_trained(tiny, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage._replace(free=900_000))
    for command in (training_of(tiny, tmp_path / "out"), ["reproduce", "--data-dir", tiny, "--out", tmp_path / "out"]):
        assert f"{tmp_path / 'out'} has room for 0.9 MB, and about " in answer(capsys, command)
    assert names(tmp_path) == []
    (tmp_path / "written").write_bytes(bytes(1_500_000))  # by the run that is gone on with
    with files.reserved(tmp_path, 2_000_000):
        pass


def test_a_folder_that_may_not_be_written_to_is_refused(tiny, tmp_path, capsys, monkeypatch):
    def refused(*arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(arguments[0]))

    monkeypatch.setattr(files, "open", refused, raising=False)
    for command in ("train", "reproduce"):
        said = answer(capsys, [command, "--data-dir", tiny, "--out", tmp_path])
        assert f"{tmp_path} cannot be written to (Permission denied); choose another --out" in said


@pytest.mark.parametrize("home", ["file", "none"])
def test_without_a_writable_home_the_cache_is_a_temporary_folder(tmp_path, monkeypatch, home):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("AART_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    if home == "none":  # as in a container whose user has no entry
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    assert files.cache_folder() == tmp_path / "aart"


# ---------------------------------------------------------------- two runs


def test_a_second_run_in_a_folder_is_refused_until_the_first_ends_and_a_report_is_not(
    tiny, tmp_path, capsys, no_figures
):
    with holding(tmp_path) as number:
        for command in (training_of(tiny, tmp_path, "--resume"), ["reproduce", "--data-dir", tiny, "--out", tmp_path]):
            said = answer(capsys, command)
            assert f"{tmp_path} is in use by process {number} on " in said and "choose another --out" in said
        assert names(tmp_path) == [".run.lock"]
        with files.reserved(tmp_path, 0, name="ledger"):  # what may lie beside it is free
            pass
        assert main(["report", str(ROOT / "figures" / "results-short.json"), "--out", str(tmp_path / "report")]) == 0
    # its lock file stays, its lock does not
    assert main(training_of(tiny, tmp_path, "--resume")) == 0
    assert "model.safetensors" in names(tmp_path) and ".run.lock" not in names(tmp_path)


# ---------------------------------------------------------------- numbers


def test_a_loss_that_is_not_finite_names_the_last_good_state(splits, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    wild, state = TrainConfig(epochs=3, batch_size=8, rate=1e30), tmp_path / "run.state"
    with pytest.raises(TrainingStopped, match=f"the loss is not finite .*; the last good state is {state}"):
        train(DEFENSES["standard"], splits, SHAPE, THREAT, wild, state=state, progress=None)
    assert files.load_state(state)["step"] >= 1


def test_gradients_are_clipped(splits, monkeypatch):  # noqa: F811
    norms, own = [], torch.optim.AdamW.step

    def step(self, *rest, **options):
        gradients = [p.grad.flatten() for p in self.param_groups[0]["params"] if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        return own(self, *rest, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    for clip in (1e9, 0.01):
        config = replace(CONFIG, epochs=1, clip=clip)
        train(DEFENSES["a-art"], splits, SHAPE, THREAT, config, progress=None)
    assert min(norms[:4]) > 0.01 * 1.0001 >= max(norms[4:])
