"""Genuine YouTube-8M records through all commands: train, evaluate, reproduce; results are well-formed."""

import json

import numpy as np
import pytest

from aart_lib.cli.parser import main
from aart_lib.data import synthetic
from aart_lib.data.records import encode_sequence_example, read_records, write_records


def command(*arguments) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def results(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_genuine_video_level_shards_show_no_effect_of_attention(real_data, tmp_path):
    """One frame a video: there is nothing to attend to, so the attention term must not matter."""
    for path in (real_data / "yt8m_video").glob("*.tfrecord"):  # six genuine validation shards, four to train on
        number = int(path.stem[-1])
        (tmp_path / (f"train{number}.tfrecord" if number < 4 else path.name)).symlink_to(path)
    options = ["--data", "yt8m-video", "--data-dir", tmp_path, "--labels", "10"]
    run = ["--preset", "quick", "--epochs", "4", "--test-videos", "300", "--defenses", "standard,trades,a-art"]
    command("reproduce", *options, *run, "--out", tmp_path / "r")
    found = results(tmp_path / "r")
    assert found["data"]["videos"]["test"] > 100
    for key in ("clean_gap", "worst_gap"):
        ours, theirs = (found["summary"][name][key] for name in ("a-art", "trades"))
        assert ours == pytest.approx(theirs, abs=0.03), key
    assert all(row["attention_hijacked"] < 0.1 for row in found["rows"])
    (entry,) = (e for e in found["comparisons"] if (e["with"], e["measure"]) == ("trades", "worst"))
    assert entry["ci95"][0] <= 0.005 and entry["ci95"][1] >= -0.005


@pytest.fixture(scope="module")
def frame_level(real_data, tmp_path_factory):
    """Generated shards in the genuine format, the genuine video among them."""
    folder = tmp_path_factory.mktemp("frame")
    small = {"train_videos": 40, "test_videos": 16, "shard_size": 20, "frames": (10, 20)}
    synthetic.write(synthetic.Settings(rgb_dims=1024, audio_dims=128, **small), folder / "made")
    for split, name in (("train", "train"), ("test", "validate")):
        for i, path in enumerate(sorted((folder / "made").glob(f"{split}*"))):
            write_records(folder / f"{name}{i}.tfrecord", read_records(path))
    (folder / "train_SjJ3.tfrecord").symlink_to(real_data / "yt8m_frame/train_SjJ3.tfrecord")
    verticals = {0: "Video game,Games", 11: "Food,Food & Drink"}
    lines = [f"{i},{verticals.get(i, f'class {i},Other')}\n" for i in range(3862)]
    (folder / "vocabulary.csv").write_text("Index,Name,Vertical1\n" + "".join(lines))
    return folder


def test_frame_level_shards_with_the_genuine_video_go_through(frame_level, tmp_path):
    named = "Food," + ",".join(f"class {i}" for i in range(1, 9))
    options = ["--data", "yt8m-frame", "--preset", "quick", "--epochs", "1", "--labels", named]
    run = ["--epsilon", "0.1", "--defenses", "a-art", "--sampling", "random", "--batch-size", "16", "--accumulate", "2"]
    command("reproduce", *options, *run, "--data-dir", frame_level, "--out", tmp_path / "r")
    found = results(tmp_path / "r")
    assert found["data"]["labels"] == [11, *range(1, 9)] and sum(found["data"]["videos"].values()) > 30
    assert {row["defense"] for row in found["rows"]} == {"standard", "a-art"}
    model = tmp_path / "r/checkpoints/a-art-seed0.safetensors"

    command("evaluate", model, *options[:4], "--data-dir", frame_level, "--suite", "quick", "--out", tmp_path / "e")
    (row,) = results(tmp_path / "e")["rows"]
    assert 0 < row["worst"]["gap"] <= row["clean"]["gap"]


def rated(name: str, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    context = {"id": name, "labels": [0], "segment_start_times": [5, 10, 15], "segment_labels": [0, 1, 2]}
    lists = {"rgb": rng.integers(0, 256, (30, 1024), np.uint8), "audio": rng.integers(0, 256, (30, 128), np.uint8)}
    return encode_sequence_example(context | {"segment_scores": np.float32([1, 1, 0])}, lists)


def test_rated_segments_are_judged(frame_level, tmp_path):
    for name in ("train0.tfrecord", "train1.tfrecord"):
        (tmp_path / name).symlink_to(frame_level / name)
    write_records(tmp_path / "validate0.tfrecord", (rated(f"v{i}", i) for i in range(4)))
    options = ["--data", "yt8m-frame", "--data-dir", tmp_path, "--preset", "quick"]
    command("train", *options, "--defense", "standard", "--epochs", "1", "--labels", "4", "--out", tmp_path / "m")
    model = tmp_path / "m/model.safetensors"
    command("evaluate", model, *options, "--suite", "quick", "--segments", "--out", tmp_path / "e")
    data = results(tmp_path / "e")["data"]
    assert data["videos"]["test"] == 4 * len({0, 1} & set(data["labels"])) > 0
