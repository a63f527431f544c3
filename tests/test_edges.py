"""The smallest and strangest data, through train and evaluate: they work, or are refused in a sentence."""

import json

import numpy as np
import pytest

from aart_lib.data.catalog import open_splits
from aart_lib.data.formats import DatasetSpec
from aart_lib.data.records import RecordError, encode_sequence_example, write_records
from aart_lib.experiment.judge import judge
from aart_lib.losses import DEFENSES
from aart_lib.model import ModelConfig
from aart_lib.steps import TrainConfig
from aart_lib.threats import ThreatModel
from aart_lib.training import train

THREAT = ThreatModel("linf", 0.1)


def opened(folder, *, classes=3, longest=5, videos=(24, 6), frames=lambda i: 1 + i % 5, labels=lambda i: [i % 3]):
    """Splits of so many train and test videos with six numbers a frame."""
    spec = DatasetSpec("tiny", {"rgb": (6, 6)}, classes, ("train*.tfrecord",), ("test*.tfrecord",), max_frames=longest)
    rng = np.random.default_rng(0)
    for name, count in zip(("train", "test"), videos, strict=True):
        about = ({"id": f"{name}{i}", "labels": labels(i)} for i in range(count))
        lists = ({"rgb": rng.integers(0, 256, (frames(i), 6))} for i in range(count))
        write_records(folder / f"{name}.tfrecord", map(encode_sequence_example, about, lists))
    return open_splits(spec, folder)


def trained_and_judged(splits, batch: int = 8, suite: str = "quick") -> dict:
    """A row of results; all its numbers are finite."""
    shape = ModelConfig(6, splits.spec.classes, max_frames=splits.spec.max_frames, width=8, heads=2, layers=2)
    config = TrainConfig(epochs=1, batch_size=batch, seed=1)
    model, history = train(DEFENSES["a-art"], splits, shape, THREAT, config, progress=None)
    row = judge(model, splits.test, THREAT, name=suite, progress=False).row
    json.dumps([row, history], allow_nan=False)
    assert 0 <= row["worst"]["gap"] <= row["clean"]["gap"] <= 1
    return row


EDGES = {
    "one class": ({"classes": 1, "labels": lambda i: [0]}, 8),
    "one class that half of the videos lack": ({"classes": 1, "labels": lambda i: [0][: i % 2]}, 8),
    "two classes, fewer than GAP@20 counts": ({"classes": 2, "labels": lambda i: [i % 2]}, 8),
    "videos without labels among others": ({"labels": lambda i: [i % 3][: i % 2]}, 8),
    "videos of one frame": ({"frames": lambda i: 1}, 8),
    "a model that takes one frame": ({"longest": 1}, 8),
    "batches of one video": ({}, 1),
    "a last batch of one video": ({}, 11),
    "a batch larger than the data": ({}, 1000),
    "two videos a split": ({"videos": (4, 2)}, 8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("edge", EDGES)
def test_small_and_strange_data_are_trained_on_and_judged(tmp_path, edge):
    changes, batch = EDGES[edge]
    row = trained_and_judged(opened(tmp_path, **changes), batch)
    if edge == "one class":
        assert row["clean"]["gap"] == row["worst"]["gap"] == 1


def test_the_strong_suite_takes_the_smallest_too(tmp_path, short_suite):
    splits = opened(tmp_path, classes=1, labels=lambda i: [0], longest=1, videos=(4, 2))
    assert "apgd" in trained_and_judged(splits, suite="strong")["attacked"]


def test_an_empty_video_is_refused_with_its_place(tmp_path):
    with pytest.raises(RecordError, match=r"train\.tfrecord, record at byte \d+: .*(at least one|bytes a frame)"):
        opened(tmp_path, frames=lambda i: i % 3)


def test_splits_without_any_label_are_refused(tmp_path):
    """As the third part of YouTube-8M, whose labels are not public."""
    with pytest.raises(ValueError, match=r"no train video of these has a label; there is nothing to learn or judge"):
        opened(tmp_path, labels=lambda i: [])
    with pytest.raises(ValueError, match=r"no test video of these has a label"):
        opened(tmp_path, labels=lambda i: [0][: i // 6])
