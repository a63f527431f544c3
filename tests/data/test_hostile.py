"""Input made to break the reader: refused in a sentence, in time, in little memory; or skipped, counted and told."""

import copy
import random
import re
import time
import tracemalloc
from pathlib import Path

import fuzz_records
import numpy as np
import pytest
from accelerate import Accelerator
from google.protobuf.message import DecodeError
from shards import TINY, SequenceExample, frame_lists, many, protobuf, rated, record, shard, values_of

from aart_lib import training
from aart_lib.cli.parser import main
from aart_lib.data import dataset as data
from aart_lib.data import records
from aart_lib.data.catalog import Splits, open_splits
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.records import RecordError, Skipped
from aart_lib.experiment.presets import PRESETS
from aart_lib.experiment.reproduce import Experiment
from aart_lib.losses import DEFENSES
from aart_lib.model import ModelConfig
from aart_lib.runtime import files
from aart_lib.steps import TrainConfig
from aart_lib.threats import ThreatModel

# ---------------------------------------------------------------- mutated records


def test_mutated_records_are_read_or_refused(tmp_path, monkeypatch):
    """A small run of the program; tests/RELIABILITY.md has the figures of a large one."""
    monkeypatch.delenv("AART_REAL_DATA", raising=False)  # its records are long
    fuzzer = fuzz_records.Fuzzer(seed=7, slowest=20, folder=tmp_path)
    for _ in range(1000):
        fuzzer.one()
    assert not fuzzer.found and len(fuzzer.outcomes) == 6  # records, composed ones and files: each read, each refused


def test_mutated_records_that_protobuf_reads_too_have_its_values():
    draw, compared = random.Random(5), 0
    seeds = [fuzz_records.rated_record(), record(lists=frame_lists(12))]
    for _ in range(2000):
        payload = fuzz_records.mutated(draw, draw.choice(seeds), seeds[0])
        try:
            theirs = SequenceExample.FromString(payload)
            ours, lists = records.decode_sequence_example(payload, ["rgb", "audio"])
        except (ValueError, DecodeError):
            continue
        for name in ours.keys() & theirs.context.feature.keys():
            np.testing.assert_equal(ours[name], values_of(theirs.context.feature[name]))
            compared += 1
        for name in lists.keys() & theirs.feature_lists.feature_list.keys():
            expected = [values_of(feature) for feature in theirs.feature_lists.feature_list[name].feature]
            assert [[row.tobytes()] for row in lists[name]] == expected
            compared += 1
    assert compared > 500


# ---------------------------------------------------------------- what the fuzzer and a second look found


def test_very_many_segments_take_no_square_of_their_time(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "STREAM_BYTES", 10)  # the frames are not read on opening, so any start is believed
    payload, begun = rated(range(10_000), [1] * 10_000, [1] * 10_000), time.process_time()
    assert len(VideoDataset(shard(tmp_path, payload), TINY, segments=True)) == 10_000
    assert time.process_time() - begun < 10


def test_a_mixture_of_text_sizes_for_labels_allocates_no_table(tmp_path):
    """One long text among many empty ones would make an array of their product."""
    message = protobuf({"id": b"v", "labels": [b"x" * 20_000] + [b""] * 5_000}, {})
    path = shard(tmp_path, message.SerializeToString())
    tracemalloc.start()
    with pytest.raises(RecordError, match="labels must be integers"):
        VideoDataset(path, TINY)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


# ---------------------------------------------------------------- bad records that are skipped


def flip(path: Path, place: int) -> None:
    body = bytearray(path.read_bytes())
    body[place] ^= 1
    path.write_bytes(body)


@pytest.mark.parametrize("stream", [10, 2**31])
def test_bad_records_are_left_out_and_counted(tmp_path, monkeypatch, stream):
    monkeypatch.setattr(data, "STREAM_BYTES", stream)
    payloads = [record(f"v{i}", lists=frame_lists(2, rgb=2 if i == 3 else 3)) for i in range(5)]
    paths = shard(tmp_path, *payloads), many(tmp_path, ["w0", "w1"], name="train1.tfrecord")
    flip(paths[0], 16 + len(payloads[0]) + 30)
    skipped = Skipped()
    for _ in range(2):  # a second opening does not count twice
        dataset = VideoDataset(paths, TINY, skipped=skipped)
        assert [item.id for item in dataset] == ["v0", "v2", "v4", "w0", "w1"]
    first = f"{paths[0]}, record at byte {16 + len(payloads[0])}: wrong checksum of the data"
    assert str(skipped).startswith(f"skipped 2 bad records in 1 files\n  2 in {paths[0]}; first: {first}")


def test_behind_a_damaged_length_the_rest_of_the_file_is_skipped_and_counted_as_such(tmp_path):
    path = many(tmp_path, ["a", "b", "c", "d"])
    size = path.stat().st_size // 4
    flip(path, size + 9)  # checksum of the second length
    skipped = Skipped()
    assert [e.id for e in VideoDataset([path], TINY, skipped=skipped).entries] == ["a"]
    assert f"1 in {path} (with the rest of the file, {3 * size} bytes); first: " in str(skipped)
    path.write_bytes(path.read_bytes()[: size + 5])  # cut inside a header
    assert len(VideoDataset([path], TINY, skipped=skipped)) == 1 and skipped.files[str(path)]["bytes"] == 5


def test_commands_skip_when_told_and_tell_it(written, tmp_path, capsys):
    folder = written(train_videos=40, test_videos=12, shard_size=40, frames=(3, 5))
    (path,) = folder.glob("train*.tfrecord")
    flip(path, 100)
    told = rf"aart: skipped 1 bad records in 1 files\n  1 in {re.escape(str(path))}; first: .*record at byte 0"
    skip, out = ["--data-dir", str(folder), "--on-bad-record", "skip"], str(tmp_path / "out")
    for command in (["train", *skip, "--epochs", "1", "--defense", "standard", "--out", out], ["describe", *skip]):
        assert main(command) == 0 and re.search(told, capsys.readouterr().err)


# ---------------------------------------------------------------- what a run left behind


STATES = {
    "a missing part": lambda state: state.pop("optimizer"),
    "weights of another shape": lambda state: state["model"].update(cls=state["model"]["cls"].repeat(2)),
    "a foreign optimizer": lambda state: state.update(optimizer={"state": {}, "param_groups": []}),
    "a list for the schedule": lambda state: state.update(schedule=[1]),
    "a number for sums": lambda state: state.update(sums=7),
}


@pytest.fixture
def splits(tmp_path) -> Splits:
    many(tmp_path, [f"v{i}" for i in range(8)])
    many(tmp_path, ["t0", "t1"], name="test0.tfrecord")
    return open_splits(TINY, tmp_path)


def test_a_damaged_resume_state_is_refused(splits):
    shape = ModelConfig(5, 5, max_frames=4, width=8, heads=2, layers=1)
    how = ThreatModel("linf", 0.1), TrainConfig(epochs=1, batch_size=4)
    run = training.Run(DEFENSES["standard"], splits, shape, *how, Accelerator())
    run.started = time.perf_counter()
    state = run.state()
    for damage in STATES.values():
        damage(damaged := copy.deepcopy(state))
        with pytest.raises(ValueError, match=r"run\.state is damaged; delete it to start the training anew"):
            run.restore(damaged, "run.state")
    run.restore(state, "run.state")


def test_damaged_notes_of_a_run_count_as_not_there(tmp_path):
    path = tmp_path / "threat.json"
    for body in (b"", b"{", b"[1, 2]", b"\xff\xfe", b"[" * 100_000, b"null"):
        path.write_bytes(body)
        assert files.read_json(path) == {}


def test_damaged_scores_of_a_run_are_named(splits, tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/a-art-seed0.safetensors").write_bytes(b"\xff" * 50)
    experiment = Experiment(splits, PRESETS["quick"], tmp_path)
    with pytest.raises(ValueError, match=r"a-art-seed0\.safetensors is damaged .*; delete it and its \.json"):
        experiment.judged("a-art", 0, "worst")
