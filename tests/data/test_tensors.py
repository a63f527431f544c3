"""tensors.py: somebody's own features, of any kind and range, do what files do; what cannot be meant is refused."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, random_split

from aart_lib import checkpoint
from aart_lib.data.batch import collate
from aart_lib.data.catalog import Splits
from aart_lib.data.dataset import VideoDataset
from aart_lib.experiment.presets import PRESETS, default_threat
from aart_lib.experiment.reproduce import reproduce
from aart_lib.losses import DEFENSES
from aart_lib.model import ModelConfig
from aart_lib.steps import TrainConfig
from aart_lib.training import fingerprint

LENGTHS = [4, 1, 3, 2, 4, 2]
RNG = np.random.default_rng(0)
TABLES = [RNG.uniform(0, 12, (n, 5)).astype(np.float32) for n in LENGTHS]
HOT = np.eye(3)[[0, 1, 2, 0, 1, 2]]
PADDED = np.full((6, 4, 5), np.nan, np.float32)
for _row, _table in zip(PADDED, TABLES, strict=True):
    _row[: len(_table)] = _table
REAL = np.arange(4) < np.array(LENGTHS)[:, None]
WIDE = torch.randn(6, 4, 5).mul(100)
FORMS = {  # what is given: frames, labels, mask
    "a list of arrays": (TABLES, HOT, None),
    "a list of tensors": ([torch.tensor(t, requires_grad=True) for t in TABLES], list(torch.tensor(HOT)), None),
    "an array of objects": (np.array([*TABLES, None], object)[:-1], HOT.astype(bool), None),
    "lists of lists": ([table.tolist() for table in TABLES], HOT, None),
    "padded with a mask": (torch.tensor(PADDED), torch.tensor(HOT).bfloat16(), torch.tensor(REAL)),
    "real frames last": (PADDED[:, ::-1], HOT, REAL[:, ::-1]),
    "big-endian": ([table.astype(">f4") for table in TABLES], HOT, None),
    **{str(dtype): (WIDE.to(dtype), HOT, None) for dtype in (torch.float16, torch.bfloat16, torch.float64)},
}


def videos(count=40, seed=0, top=12.0, **options) -> VideoDataset:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    tables = [rng.uniform(0, top, (rng.integers(2, 5), 4)) + label for label in labels]
    return VideoDataset.from_tensors(tables, np.eye(3)[labels], **options)


@pytest.mark.parametrize("form", FORMS)
def test_frames_and_labels_come_back_as_they_were_given(form):
    frames, labels, mask = FORMS[form]
    expected = frames.float() if "float" in form else TABLES
    dataset = VideoDataset.from_tensors(frames, labels, mask=mask)
    for i, item in enumerate(dataset):
        np.testing.assert_array_equal(item.frames.numpy(), expected[i][::-1] if "last" in form else expected[i])
        assert item.frames.dtype == torch.float32 and item.id == str(i) and item.labels.tolist() == HOT[i].tolist()
    assert dataset.max_frames == 4 and len(dataset) == 6 and dataset.left_out == 0 and dataset.labels == [0, 1, 2]


def test_evidence_and_classes_that_are_kept_follow():
    evidence = [np.tile(row, (n, 1)) for row, n in zip(HOT, LENGTHS, strict=True)]
    dataset = VideoDataset.from_tensors(TABLES, HOT, evidence=evidence, keep=[2, 0], ids=list("abcdef"))
    assert [item.id for item in dataset] == ["a", "c", "d", "f"] and dataset.left_out == 2
    assert dataset[1].evidence.tolist() == [[True, False]] * 3 and dataset.batch([0, 1]).evidence.shape == (2, 4, 2)
    padded = VideoDataset.from_tensors(PADDED, HOT, mask=REAL, evidence=np.repeat(HOT[:, None], 4, 1))
    assert torch.equal(padded[2].evidence, torch.tensor(evidence[2] > 0))


def test_a_data_set_of_tensors_is_cut_copied_and_sent_like_any_other():
    dataset = videos(ids=[f"v{i}" for i in range(40)])
    for other in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert torch.equal(other[7].frames, dataset[7].frames)
    assert [item.id for item in dataset.select([3, 1])] == ["v3", "v1"]
    short = VideoDataset.from_tensors(TABLES, HOT, max_frames=2)
    assert torch.equal(short[0].frames, torch.tensor(TABLES[0][[0, 3]]))
    short[0].frames.zero_()
    assert short[0].frames.any()
    whole = torch.cat([b.labels for b in dataset.batches(7, seed=1)])
    assert torch.equal(whole, torch.cat([b.labels for b in dataset.batches(7, seed=1, workers=1)]))


TABLE = np.ones((2, 5))
MISUSES = {
    "other count": (TABLES[:5], HOT, {}, "a row for each of the 5 videos, got 6"),
    "other width": ([*TABLES[:5], np.ones((2, 4), np.float32)], HOT, {}, r"frames\[5\] .* same width"),
    "other dtype": ([*TABLES[:5], TABLE.astype(float)], HOT, {}, r"frames\[5\] must .*float64"),
    "an empty video": ([*TABLES[:5], TABLES[5][:0]], HOT, {}, "video '5' has no frame"),
    "NaN": ([TABLE] * 5 + [TABLE * np.nan], HOT, {}, "video '5' holds NaN"),
    "beyond float32": ([TABLE, TABLE * 1e300] * 3, HOT, {}, "video '1' .* beyond float32"),
    "bytes": (np.ones((6, 4, 5), np.uint8), HOT, {}, "must be floats, got torch.uint8; dequantize"),
    "a path": ("train.npy", HOT, {}, r"frames must be \[N,T,.\] or a list of tables \[T,.\], got str"),
    "one video": (TABLES[0], HOT, {}, r"got shape \[4, 5\]"),
    "no video": ([], [], {}, "at least one video"),
    "soft labels": (TABLES, HOT * 0.3, {}, "labels must be 0 or 1, got 0.3"),
    "labels of text": (TABLES, [["a"]] * 6, {}, r"labels must be \[N,C\] of 0 and 1"),
    "a column of indices": (TABLES, np.arange(6), {}, "one_hot makes them"),
    "too few ids": (TABLES, HOT, {"ids": ["a"]}, "each of the 6 videos, got 1"),
    "a mask of numbers": (PADDED, HOT, {"mask": REAL * 1.0}, "mask must be bool"),
    "a mask for tables": (TABLES, HOT, {"mask": REAL}, "tables have their own lengths"),
    "evidence of other classes": (TABLES, HOT, {"evidence": [t[:, :2] for t in TABLES]}, r"must be \[T,C\]=\(4, 3\)"),
    "no frame wanted": (TABLES, HOT, {"max_frames": 0}, "max_frames must be at least 1"),
}


@pytest.mark.parametrize("case", MISUSES)
def test_what_cannot_be_meant_is_refused(case):
    frames, labels, options, message = MISUSES[case]
    with pytest.raises(ValueError, match=message):
        VideoDataset.from_tensors(frames, labels, **options)


def test_torchs_loader_takes_parts_of_it():
    dataset, how = videos(), {"batch_size": 8, "collate_fn": collate, "shuffle": True}
    parts = [Subset(dataset, range(20)), *random_split(dataset, [30, 10]), ConcatDataset([dataset, dataset])]
    assert [sum(len(batch) for batch in DataLoader(part, **how)) for part in parts] == [20, 30, 10, 80]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Splits.of(videos(60), videos(20, seed=1, top=14.0))


def test_splits_of_tensors_agree_on_range_and_length(splits):
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (30, 30, 20)
    assert splits.spec.box[1] > 15 and splits.train.max_frames == splits.test.max_frames == 4
    assert default_threat(splits).box == splits.spec.box
    assert Splits.of(videos(60), videos(20), labels=np.array([2, 0])).test.labels == [2, 0]
    with pytest.raises(ValueError, match="same features and labels"):
        Splits.of(videos(60), VideoDataset.from_tensors(TABLES, HOT))


def test_other_tensors_make_another_run(splits):
    shape, rest = ModelConfig(4, 3), (default_threat(splits), TrainConfig(1, 8))
    marks = {
        fingerprint(DEFENSES["a-art"], Splits.of(videos(60, top=top), videos(20)), shape, *rest)
        for top in (12.0, 12.0, 12.1)
    }
    assert len(marks) == 2


def test_reproduce_trains_and_judges_on_tensors_in_their_own_box(splits, tmp_path):
    small = {"width": 8, "heads": 2, "layers": 1}
    preset = replace(PRESETS["quick"], epochs=1, model=small, defenses=("standard",), suite="quick")
    threat = replace(default_threat(splits), epsilon=0.5)
    results = reproduce(splits, tmp_path, preset=preset, threat=threat, progress=False)
    assert results["data"]["name"] == "tensors" and results["rows"][0]["defense"] == "standard"
    _, notes = checkpoint.load(tmp_path / "checkpoints" / "standard-seed0.safetensors")
    assert notes["threat"]["box"] == list(splits.spec.box) == results["threat"]["box"]
