"""Genuine YouTube-8M records through all commands: train, evaluate, reproduce; results are well-formed."""

import json

import numpy as np
import pytest

from aart_lib.cli.parser import main
from aart_lib.data import synthetic
from aart_lib.data.records import encode_sequence_example, read_records, write_records


@pytest.fixture(scope="module")
def video_level(real_data, tmp_path_factory):
    """Six genuine validation shards, four of them named as training shards."""
    folder = tmp_path_factory.mktemp("video")
    for path in sorted((real_data / "yt8m_video").glob("*.tfrecord")):
        number = int(path.stem[-1])
        (folder / (f"train{number}.tfrecord" if number < 4 else path.name)).symlink_to(path)
    return folder


def test_genuine_video_level_shards_show_no_effect_of_attention(video_level, tmp_path):
    """One frame a video: there is nothing to attend to, so the attention term must not matter."""
    options = ["--data", "yt8m-video", "--data-dir", video_level, "--labels", "10"]
    run = ["--preset", "quick", "--epochs", "4", "--test-videos", "300", "--defenses", "standard,trades,a-art"]
    command("reproduce", *options, *run, "--out", tmp_path / "r")
    results = json.loads((tmp_path / "r/results.json").read_text())
    assert results["data"]["videos"]["test"] > 100
    for key in ("clean_gap", "worst_gap"):
        ours, theirs = (results["summary"][name][key] for name in ("a-art", "trades"))
        assert ours == pytest.approx(theirs, abs=0.03), key
    assert all(row["attention_hijacked"] < 0.1 for row in results["rows"])
    (entry,) = (e for e in results["comparisons"] if (e["with"], e["measure"]) == ("trades", "worst"))
    assert entry["ci95"][0] <= 0.005 and entry["ci95"][1] >= -0.005


def test_genuine_video_level_shards_are_trained_and_evaluated(video_level, tmp_path):
    options = ["--data", "yt8m-video", "--data-dir", video_level, "--labels", "Games,Food"]
    (video_level / "vocabulary.csv").write_text("".join(VOCABULARY))
    command("train", *options, "--defense", "adversarial", "--epochs", "2", "--out", tmp_path / "m")
    command("evaluate", tmp_path / "m/model.safetensors", *options, "--test-videos", "100", "--out", tmp_path / "e")
    found = json.loads((tmp_path / "e/results.json").read_text())
    assert found["data"]["labels"] == [0, 11]
    assert 0 < found["rows"][0]["worst"]["gap"] <= found["rows"][0]["clean"]["gap"]


VERTICALS = {0: "Video game,Games", 11: "Food,Food & Drink"}
VOCABULARY = ["Index,Name,Vertical1\n", *(f"{i},{VERTICALS.get(i, f'class {i},Other')}\n" for i in range(3862))]


def command(*arguments) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def frame_level(real_data, tmp_path_factory):
    """Generated shards in the genuine format and size, the genuine video among them."""
    folder = tmp_path_factory.mktemp("frame")
    small = {"train_videos": 40, "test_videos": 16, "shard_size": 20, "frames": (60, 120)}
    synthetic.write(synthetic.Settings(rgb_dims=1024, audio_dims=128, **small), folder / "made")
    for split, name in (("train", "train"), ("test", "validate")):
        for i, path in enumerate(sorted((folder / "made").glob(f"{split}*"))):
            write_records(folder / f"{name}{i}.tfrecord", read_records(path))
    (folder / "train_SjJ3.tfrecord").symlink_to(real_data / "yt8m_frame/train_SjJ3.tfrecord")
    return folder


def test_frame_level_shards_with_the_genuine_video_go_through(frame_level, tmp_path):
    (frame_level / "vocabulary.csv").write_text("".join(VOCABULARY))
    named = "Food," + ",".join(f"class {i}" for i in range(1, 9))
    options = ["--data", "yt8m-frame", "--preset", "quick", "--epochs", "1", "--labels", named]
    run = ["--defenses", "a-art", "--sampling", "random", "--batch-size", "16", "--accumulate", "2"]
    command("reproduce", *options, *run, "--data-dir", frame_level, "--out", tmp_path / "r")
    results = json.loads((tmp_path / "r/results.json").read_text())
    assert results["data"]["labels"] == [11, *range(1, 9)] and sum(results["data"]["videos"].values()) > 30
    assert {row["defense"] for row in results["rows"]} == {"standard", "a-art"}
    model = tmp_path / "r/checkpoints/a-art-seed0.safetensors"

    command("evaluate", model, *options[:4], "--data-dir", frame_level, "--suite", "quick", "--out", tmp_path / "e")
    assert json.loads((tmp_path / "e/results.json").read_text())["rows"][0]["clean"]["gap"] > 0


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
    found = json.loads((tmp_path / "e/results.json").read_text())
    assert found["data"]["videos"]["test"] == 4 * len({0, 1} & set(found["data"]["labels"])) > 0
