"""Input made to break the reader: refused in a sentence, in time, in little memory; or skipped, counted and told."""

import copy
import os
import random
import re
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from unittest import mock

import fuzz_records
import numpy as np
import pytest
from accelerate import Accelerator
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data import TINY, frame_lists, many, record, shard
from test_index import rated
from test_records import SequenceExample
from test_training import CONFIG, SHAPE, SPEC, THREAT, write_videos

from aart_lib import training
from aart_lib.cli.parser import main
from aart_lib.data import dataset as data
from aart_lib.data import index, records
from aart_lib.data.catalog import open_splits
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.index import Entry
from aart_lib.data.records import (
    RecordError,
    Skipped,
    encode_sequence_example,
    scan_heads,
    scan_records,
)
from aart_lib.experiment.presets import PRESETS
from aart_lib.experiment.reproduce import Experiment
from aart_lib.losses import DEFENSES
from aart_lib.runtime import files


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AART_CACHE", str(tmp_path / "cache"))


def test_mutated_records_are_read_or_refused():
    """A small run of the program; tests/RELIABILITY.md has the figures of a large one."""
    program = Path(__file__).parents[1] / "tools" / "fuzz_records.py"
    small = {name: value for name, value in os.environ.items() if name != "AART_REAL_DATA"}  # its records are long
    command = [sys.executable, program, "--count", "1500", "--seed", "7", "--slowest", "20"]
    done = subprocess.run(command, env=small, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1,500 mutated records" in done.stdout and "FOUND" not in done.stdout


# ---------------------------------------------------------------- what the fuzzer and a second look found


def context(**features) -> bytes:
    with mock.patch.object(records, "INTEGERS", set()):  # others write floats there
        return encode_sequence_example({"id": "v", "labels": [1]} | features, frame_lists(12))


FOUND = {
    "numbers for an id": (context(id=[7, 8]), "neither `id` nor `video_id` names the video"),
    "no number for an id": (context(id=[]), "neither `id` nor `video_id`"),
    "an id as long as a book": (context(id=b"v" * 100_000), "in at most 256 bytes"),
    "a text for labels": (context(labels=b"\xff" * 5000), "labels must be integers"),
    "broken numbers for labels": (context(labels=np.float32([np.inf, np.nan])), "labels must be integers"),
    "thousands of wrong labels": (context(labels=range(5000)), "labels from 0 to 4999 outside the vocabulary of 5"),
    "the largest label": (context(labels=[2**63 - 1]), "labels from 9223372036854775807 to"),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_refused_in_a_short_sentence(tmp_path, name):
    payload, words = FOUND[name]
    with pytest.raises(RecordError, match=words) as caught:
        VideoDataset([shard(tmp_path, payload)], TINY)
    assert len(caught.value.reason) < 200


def test_very_many_segments_take_no_square_of_their_time(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "STREAM_BYTES", 10)  # the frames are not read on opening, so any start is believed
    payload, begun = rated(range(10_000), [1] * 10_000, [1] * 10_000), time.perf_counter()
    assert len(VideoDataset([shard(tmp_path, payload)], TINY, segments=True)) == 10_000
    assert time.perf_counter() - begun < 10


def test_a_mixture_of_text_sizes_for_labels_allocates_no_table(tmp_path):
    """One long text among many empty ones would make an array of their product."""
    message = SequenceExample()
    message.context.feature["id"].bytes_list.value.append(b"v")
    message.context.feature["labels"].bytes_list.value.extend([b"x" * 200_000] + [b""] * 20_000)
    path = shard(tmp_path, message.SerializeToString())
    tracemalloc.start()
    with pytest.raises(RecordError, match="labels must be integers"):
        VideoDataset([path], TINY)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def as_protobuf_reads(feature) -> list:
    kind = feature.WhichOneof("kind")
    return list(getattr(feature, kind).value) if kind else []


def test_mutated_records_that_protobuf_reads_too_have_its_values():
    draw, compared = random.Random(5), 0
    seeds = [fuzz_records.rated_record(), context()]
    for _ in range(3000):
        payload = fuzz_records.mutated(draw, draw.choice(seeds), seeds[0])
        try:
            theirs = SequenceExample.FromString(payload)
            ours, lists = records.decode_sequence_example(payload, ["rgb", "audio"])
        except (ValueError, DecodeError):
            continue
        for name in ours.keys() & theirs.context.feature.keys():
            assert str(list(ours[name])) == str(type_of(ours[name])(as_protobuf_reads(theirs.context.feature[name])))
            compared += 1
        for name in lists.keys() & theirs.feature_lists.feature_list.keys():
            expected = [as_protobuf_reads(feature) for feature in theirs.feature_lists.feature_list[name].feature]
            assert [[row.tobytes()] for row in lists[name]] == expected
            compared += 1
    assert compared > 1000


def type_of(values):
    """Lists as they are, arrays by their own kind of number."""
    return list if isinstance(values, list) else lambda found: list(np.array(found, values.dtype))


def test_a_feature_in_parts_is_read_as_protobuf_reads_it():
    pack = records._message
    parts = [pack(1, pack(1, b"ab")) + pack(1, pack(1, b"cd")), pack(3, b"\x08\x05") + pack(1, pack(1, b"x"))]
    payload = pack(1, *records._encode_map({"a": parts[0], "b": parts[1]}))
    message = SequenceExample.FromString(payload)
    ours = records.decode_sequence_example(payload)[0]
    for name in "ab":
        assert ours[name] == list(message.context.feature[name].bytes_list.value)
    assert ours == {"a": [b"ab", b"cd"], "b": [b"x"]}


def test_frames_with_something_behind_them_are_not_read_with_it():
    """An unknown field that repeats the frame's bytes must not be taken for the frame."""
    frames = (records._encode_bytes(pixels) + records._message(9, behind) for pixels, behind in [(b"ab", b"ab")] * 2)
    payload = records._message(2, *records._encode_map({"rgb": b"".join(records._message(1, f) for f in frames)}))
    (table,) = records.decode_sequence_example(payload, ["rgb"])[1].values()
    assert table.tolist() == [list(b"ab")] * 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text("ab", min_size=1, max_size=3), st.sets(st.integers(0, 4))), max_size=4), st.data())
def test_heads_say_what_whole_records_say_or_less(tmp_path, videos, draw):
    """In a damaged file the heads may find more records than a full reading, but never other ones."""
    path = shard(tmp_path, *(record(name, sorted(labels)) for name, labels in videos))
    body = bytearray(path.read_bytes())
    if body and draw.draw(st.booleans()):
        body[draw.draw(st.integers(0, len(body) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
        path.write_bytes(body)

    def found(scan, check) -> list[Entry]:
        entries = []
        try:
            entries.extend(index._scan(path, TINY, scan(path), False, check))
        except RecordError as error:
            assert error.path == str(path) and error.reason
        return entries

    for full, head in zip(found(scan_records, True), found(scan_heads, False), strict=False):
        assert full == head


# ---------------------------------------------------------------- the index that is kept of a large shard


def test_a_kept_index_that_is_damaged_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "STREAM_BYTES", 10)
    path = many(tmp_path, ["a", "b", "c"])
    before = list(VideoDataset([path], TINY).entries)
    (kept,) = (tmp_path / "cache/index").iterdir()
    whole = kept.read_bytes()
    for body in (b"", b"PK", whole[:-40], whole[:300] + bytes(9) + whole[309:]):
        kept.write_bytes(body)
        assert list(VideoDataset([path], TINY).entries) == before
    assert kept.read_bytes() == whole


# ---------------------------------------------------------------- bad records that are skipped


def damaged(tmp_path) -> tuple[Path, Path]:
    """A shard of five videos, in the second a flipped byte, in the fourth frames of another size; and a sound shard."""
    payloads = [record(f"v{i}", (i,), frame_lists(2, i)) for i in range(5)]
    payloads[3] = record("v3", (3,), frame_lists(2, 3, rgb=2))
    path, size = shard(tmp_path, *payloads), 16 + len(payloads[0])
    body = bytearray(path.read_bytes())
    body[size + 30] ^= 1
    path.write_bytes(body)
    return path, many(tmp_path, ["w0", "w1"], name="train1.tfrecord")


@pytest.mark.parametrize("stream", [10, 2**31])
def test_bad_records_are_left_out_and_counted(tmp_path, monkeypatch, stream):
    monkeypatch.setattr(data, "STREAM_BYTES", stream)
    paths, skipped = damaged(tmp_path), Skipped()
    for _ in range(2):  # a second opening does not count twice
        dataset = VideoDataset(paths, TINY, skipped=skipped)
        assert [item.id for item in dataset] == ["v0", "v2", "v4", "w0", "w1"]
    assert [name for batch in dataset.batches(2, seed=1) for name in sorted(batch.ids)]
    first = f"{paths[0]}, record at byte {16 + len(record('v0', (0,), frame_lists(2)))}: wrong checksum of the data"
    assert list(skipped.files) == [str(paths[0])]
    found = skipped.files[str(paths[0])]
    assert (found["records"], found["bytes"]) == (2, 0) and found["first"].startswith(first)
    said = str(skipped)
    assert said.startswith("skipped 2 bad records in 1 files") and f"2 in {paths[0]}; first: {first}" in said
    with pytest.raises(RecordError):
        VideoDataset(paths, TINY)[1]


def test_behind_a_damaged_length_the_rest_of_the_file_is_skipped_and_counted_as_such(tmp_path):
    path = many(tmp_path, ["a", "b", "c", "d"])
    size, body = path.stat().st_size // 4, bytearray(path.read_bytes())
    body[size + 9] ^= 1  # checksum of the second length
    path.write_bytes(body)
    skipped = Skipped()
    assert [e.id for e in VideoDataset([path], TINY, skipped=skipped).entries] == ["a"]
    found = skipped.files[str(path)]
    assert (found["records"], found["bytes"]) == (1, 3 * size)
    assert f"1 in {path} (with the rest of the file, {3 * size} bytes); first: " in str(skipped)
    path.write_bytes(path.read_bytes()[: size + 5])  # cut inside a header
    assert len(VideoDataset([path], TINY, skipped=skipped)) == 1 and skipped.files[str(path)]["bytes"] == 5


def test_commands_skip_when_told_and_tell_it(written, tmp_path, capsys):
    folder = written(train_videos=40, test_videos=12, shard_size=40, frames=(3, 5))
    (path,) = folder.glob("train*.tfrecord")
    body = bytearray(path.read_bytes())
    body[100] ^= 1
    path.write_bytes(body)
    told = rf"aart: skipped 1 bad records in 1 files\n  1 in {re.escape(str(path))}; first: .*record at byte 0"
    skip, out = ["--data-dir", str(folder), "--on-bad-record", "skip"], str(tmp_path / "out")
    for command in (["train", *skip, "--epochs", "1", "--defense", "standard", "--out", out], ["describe", *skip]):
        assert main(command) == 0 and re.search(told, capsys.readouterr().err)


# ---------------------------------------------------------------- what a run left behind


STATES = {
    "a missing part": lambda state: state.pop("optimizer"),
    "weights of another shape": lambda state: state["model"].update(cls=state["model"]["cls"].repeat(2)),
    "a text for weights": lambda state: state.update(model="weights"),
    "a foreign optimizer": lambda state: state.update(optimizer={"state": {}, "param_groups": []}),
    "a list for the schedule": lambda state: state.update(schedule=[1]),
    "numbers for sums": lambda state: state.update(sums=7),
}


def test_a_damaged_resume_state_is_refused(tmp_path):
    write_videos(tmp_path, "train", 20, 0)
    write_videos(tmp_path, "test", 4, 1)
    run = training.Run(DEFENSES["standard"], open_splits(SPEC, tmp_path), SHAPE, THREAT, CONFIG, Accelerator())
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


def test_damaged_scores_of_a_run_are_named(tmp_path):
    many(tmp_path, [f"v{i}" for i in range(8)])
    many(tmp_path, ["t0", "t1"], name="test0.tfrecord")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/a-art-seed0.safetensors").write_bytes(b"\xff" * 50)
    experiment = Experiment(open_splits(TINY, tmp_path), PRESETS["quick"], tmp_path)
    with pytest.raises(ValueError, match=r"a-art-seed0\.safetensors is damaged .*; delete it and its \.json"):
        experiment.judged("a-art", 0, "worst")
