"""data.py: bytes to features and back, batches and padding, splits that stay, and bad records that are named."""

import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset

from aart_lib.data import dataset as data
from aart_lib.data import synthetic
from aart_lib.data.batch import BOX, LEVEL, Item, collate, dequantize, quantize
from aart_lib.data.catalog import find_shards, most_frequent, open_splits
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.formats import SPECS, DatasetSpec
from aart_lib.data.records import (
    RecordError,
    decode_example,
    encode_example,
    encode_sequence_example,
    read_records,
    write_records,
)

TINY = DatasetSpec("tiny", {"rgb": (3, 3), "audio": (2, 2)}, 5, ("train*.tfrecord",), ("test*.tfrecord",), max_frames=4)
MEANS = replace(TINY, features={"mean_rgb": (3, 3)}, video_level=True, max_frames=1)


def frame_lists(count=3, seed=0, rgb=3, audio=2):
    rng = np.random.default_rng(seed)
    return {
        "rgb": rng.integers(0, 256, (count, rgb), np.uint8),
        "audio": rng.integers(0, 256, (count, audio), np.uint8),
    }


def record(name="v0", labels=(1,), lists=None, key="id") -> bytes:
    return encode_sequence_example({key: name, "labels": list(labels)}, frame_lists() if lists is None else lists)


def shard(folder, *payloads, name="train0.tfrecord"):
    write_records(folder / name, payloads)
    return folder / name


def many(folder, names, name="train0.tfrecord", labels=lambda i: (i % 5,)):
    """A shard of one-frame videos of these names."""
    return shard(folder, *(record(n, labels(i), frame_lists(1, i)) for i, n in enumerate(names)), name=name)


# ---------------------------------------------------------------- features


def test_every_byte_survives_dequantization_and_back():
    every = np.arange(256, dtype=np.uint8)
    features = dequantize(every)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(quantize(features), every)
    np.testing.assert_allclose(features, np.arange(256) * 4 / 255 + 4 / 512 - 2, atol=1e-6)
    np.testing.assert_allclose(np.diff(features), LEVEL, rtol=1e-4)


def test_the_box_is_the_range_of_stored_features():
    assert BOX == pytest.approx((-1.9921875, 2.0078125))
    assert dequantize(np.array([0, 255], np.uint8)).tolist() == pytest.approx(BOX)


def test_quantization_rounds_to_the_nearest_byte_and_clips():
    middle = float(dequantize(np.uint8([100]))[0])
    assert quantize([middle + 0.4 * LEVEL, middle + 0.6 * LEVEL]).tolist() == [100, 101]
    assert quantize([middle] * 8 + [-5, 5]).tolist() == [100] * 8 + [0, 255]


@pytest.mark.parametrize("features", [[math.nan], [0, math.inf], np.uint8([3]), [True], ["a"], [None], [1j]])
def test_what_is_no_feature_is_not_quantized(features):
    with pytest.raises(ValueError, match="quantize takes finite features"):
        quantize(features)


def test_quantization_warns_where_much_is_cut_off(recwarn):
    draw = np.random.default_rng(0)
    quantize(draw.standard_normal((30, 1152)))
    assert not recwarn and quantize(np.float16([0.3])) == quantize([float(np.float16(0.3))])
    with pytest.warns(UserWarning, match="of the features lie outside .*from_tensors"):
        assert quantize(draw.uniform(0, 12, (30, 1152))).max() == 255


@pytest.mark.parametrize("stored", [[0.5], np.int64([3]), [True], np.float32([3])])
def test_only_bytes_are_dequantized(stored):
    with pytest.raises(ValueError, match="dequantize takes bytes"):
        dequantize(np.asarray(stored))


# ---------------------------------------------------------------- batches


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_collate_pads_with_exact_zeros_and_masks_them(lengths):
    items = [Item(torch.randn(n, 3) + 5, torch.eye(4)[n % 4], f"v{n}") for n in lengths]
    batch = collate(items)
    assert batch.frames.shape == (len(lengths), max(lengths), 3) and batch.mask.dtype == torch.bool
    assert batch.mask.sum(1).tolist() == lengths and len(batch) == len(lengths)
    for row, item in enumerate(items):
        assert torch.equal(batch.frames[row, : len(item.frames)], item.frames)
        assert (batch.frames[row, len(item.frames) :] == 0).all()
        assert torch.equal(batch.labels[row], item.labels) and batch.ids[row] == item.id


def test_evidence_is_in_a_batch_only_if_every_video_has_it():
    with_it = Item(torch.ones(2, 3), torch.zeros(4), "a", torch.ones(2, 4, dtype=torch.bool))
    longer = Item(torch.ones(3, 3), torch.zeros(4), "b", torch.ones(3, 4, dtype=torch.bool))
    evidence = collate([with_it, longer]).evidence
    assert evidence.dtype == torch.bool and evidence[0].sum(1).tolist() == [4, 4, 0]
    assert collate([with_it, replace(longer, evidence=None)]).evidence is None


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one video"):
        collate([])
    with pytest.raises(ValueError, match="video 'b' has no frame"):
        collate([Item(torch.ones(2, 3), torch.zeros(4), "a"), Item(torch.ones(0, 3), torch.zeros(4), "b")])


def test_a_batch_moves_as_a_whole():
    batch = collate([Item(torch.ones(2, 3), torch.zeros(4), "a")]).to("meta")
    assert {batch.frames.device.type, batch.mask.device.type, batch.labels.device.type} == {"meta"}
    assert batch.ids == ("a",)


# ---------------------------------------------------------------- reading


def test_a_video_is_read_as_it_was_written(tmp_path):
    lists = frame_lists(3)
    item = VideoDataset([shard(tmp_path, record("abc", (4, 1), lists))], TINY)[0]
    stored = np.concatenate([lists["rgb"], lists["audio"]], 1)
    np.testing.assert_array_equal(quantize(item.frames.numpy()), stored)
    assert item.labels.tolist() == [0, 1, 0, 0, 1] and item.id == "abc" and item.evidence is None


@pytest.mark.parametrize("key", ["id", "video_id"])
def test_both_names_of_the_id_are_read(tmp_path, key):
    assert VideoDataset([shard(tmp_path, record("xyz", key=key))], TINY)[0].id == "xyz"


def test_leading_dimensions_of_each_list_are_used(tmp_path):
    lists = frame_lists(2)
    item = VideoDataset([shard(tmp_path, record(lists=lists))], TINY.leading(rgb=2, audio=1))[0]
    expected = np.concatenate([lists["rgb"][:, :2], lists["audio"][:, :1]], 1)
    np.testing.assert_array_equal(quantize(item.frames.numpy()), expected)
    assert TINY.leading(rgb=2).dims == 4 and TINY.dims == 5


def test_long_videos_are_thinned_evenly_and_keep_first_and_last_frame(tmp_path):
    lists = {"rgb": np.repeat(np.arange(10, dtype=np.uint8)[:, None], 3, 1), "audio": np.zeros((10, 2), np.uint8)}
    path = shard(tmp_path, record(lists=lists))
    kept = lambda **o: quantize(VideoDataset([path], TINY, **o)[0].frames.numpy())[:, 0].tolist()  # noqa: E731
    assert kept() == [0, 3, 6, 9]
    assert kept(max_frames=10) == kept(max_frames=99) == list(range(10))
    assert kept(max_frames=2) == [0, 9]


def test_evidence_follows_the_frames_and_the_labels(tmp_path):
    spec = replace(TINY, evidence=True)
    evidence = np.zeros((6, 5), np.uint8)
    evidence[5, 3] = evidence[0, 1] = 1
    path = shard(tmp_path, record(labels=(1, 3), lists=frame_lists(6) | {"evidence": evidence}))
    item = VideoDataset([path], spec, labels=[3, 1], max_frames=2)[0]
    assert item.evidence.tolist() == [[False, True], [True, False]]


def test_items_can_be_changed_without_changing_the_data_set(tmp_path):
    for spec, payload in (
        (TINY, record()),
        (MEANS, encode_example({"id": "v", "labels": [1], "mean_rgb": np.float32([1, 2, 3])})),
    ):
        dataset = VideoDataset([shard(tmp_path, payload)], spec)
        before = dataset[0].frames.clone()
        dataset[0].frames.zero_()
        assert torch.equal(dataset[0].frames, before)


# ---------------------------------------------------------------- labels


def test_labels_are_columns_in_the_order_given_and_the_rest_is_left_out(tmp_path):
    path = shard(tmp_path, record("a", (0, 2)), record("b", (1,)), record("c", (2, 4)), record("d", ()))
    dataset = VideoDataset([path], TINY, labels=[2, 0])
    assert [item.id for item in dataset] == ["a", "c"] and dataset.left_out == 2
    assert [item.labels.tolist() for item in dataset] == [[1, 1], [1, 0]]
    assert VideoDataset([path], TINY, labels=torch.tensor([2, 0])).labels == [2, 0]
    assert dataset.labels == [2, 0] and len(VideoDataset([path], TINY)) == 4


@pytest.mark.parametrize("labels", [[5], [-1], [1, 1], [1.5], [True, False], torch.tensor([1.0]), ["1"], 3])
def test_classes_that_do_not_exist_are_refused(tmp_path, labels):
    with pytest.raises(ValueError, match=r"labels must be (different class indices below 5|integers)"):
        VideoDataset([shard(tmp_path, record())], TINY, labels=labels)


def test_most_frequent_classes_come_first_and_ties_by_index(tmp_path):
    path = shard(tmp_path, record("a", (4, 3)), record("b", (4, 1)), record("c", (1,)), record("d", (4, 2)))
    assert most_frequent(VideoDataset([path], TINY), 4) == [4, 1, 2, 3]
    for count in (0, -1, 5):
        with pytest.raises(ValueError, match=f"--labels must be between 1 and the 4 .* got {count}"):
            most_frequent(VideoDataset([path], TINY), count)


# ---------------------------------------------------------------- memory and workers


def test_the_cache_keeps_its_bound_also_over_parts_of_a_data_set(tmp_path, monkeypatch):
    path = many(tmp_path, [f"v{i}" for i in range(20)])
    monkeypatch.setattr(data, "CACHE_BYTES", 35)  # seven videos of five bytes
    whole = VideoDataset([path], TINY)
    for part in (whole.select(range(10)), whole.select(range(10, 20)), whole):
        for _ in range(2):
            assert [item.id for item in part] == [entry.id for entry in part.entries]
    assert len(whole._cache) == 7


def test_what_is_cached_is_not_read_again(tmp_path, monkeypatch):
    dataset = VideoDataset([many(tmp_path, ["a", "b"])], TINY)
    first = [item.frames for item in dataset]
    monkeypatch.setattr(data, "_read", lambda entry: pytest.fail("read again"))
    assert all(torch.equal(a, item.frames) for a, item in zip(first, dataset, strict=True))


def test_opening_reads_no_frames_into_memory(tmp_path):
    assert len(VideoDataset([many(tmp_path, ["a", "b"])], TINY)._cache) == 0


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_reader_processes_give_the_same_batches(tmp_path):
    dataset = VideoDataset([many(tmp_path, [f"v{i}" for i in range(11)])], TINY)
    here, there = (list(dataset.batches(4, seed=3, workers=count)) for count in (0, 2))
    assert [batch.ids for batch in here] == [batch.ids for batch in there]
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(here, there, strict=True))
    assert [len(batch) for batch in here] == [4, 4, 3]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("evidence", [False, True])
def test_torchs_own_loader_gives_the_same_batches(tmp_path, workers, evidence):
    lists = [
        frame_lists(1 + i % 4, i) | {"evidence": np.eye(5, dtype=np.uint8)[[i % 5] * (1 + i % 4)]} for i in range(11)
    ]
    path = shard(tmp_path, *(record(f"v{i}", (i % 5,), lists[i]) for i in range(11)))
    dataset = VideoDataset([path], replace(TINY, evidence=evidence))
    theirs = DataLoader(dataset, batch_size=4, collate_fn=collate, num_workers=workers)
    for a, b in zip(dataset.batches(4), theirs, strict=True):
        assert a.ids == b.ids and (a.evidence is None) == (b.evidence is None) == (not evidence)
        assert all(torch.equal(getattr(a, key), getattr(b, key)) for key in ("frames", "mask", "labels"))
    one = next(iter(DataLoader(Subset(dataset, [5, 2]), batch_size=2, collate_fn=collate)))
    assert one.ids == ("v5", "v2") and torch.equal(one.frames, dataset.batch([5, 2]).frames)


def test_torch_can_pin_a_batch(tmp_path, monkeypatch):
    from torch.utils.data._utils.pin_memory import pin_memory

    batch = collate([Item(torch.ones(2, 3), torch.zeros(4), "a")])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *device: tensor + 1)
    pinned = pin_memory(batch)
    assert pinned.frames.min() == 2 and pinned.labels.min() == 1 and pinned.ids == ("a",)


@pytest.mark.parametrize("indices", [[1.0], ["1"], [None]])
def test_videos_are_chosen_by_integers_or_a_mask(tmp_path, indices):
    dataset = VideoDataset(many(tmp_path, ["a", "b", "c"]), TINY)
    for chosen in ([2, 0], range(2, -1, -2), torch.tensor([2, 0])):
        assert [item.id for item in dataset.select(chosen)] == ["c", "a"]
    assert [item.id for item in dataset.select(np.array([True, False, True]))] == ["a", "c"]
    assert len(dataset.select([])) == 0
    with pytest.raises(ValueError, match="indices must be integers"):
        dataset.select(indices)


def test_batches_are_in_file_order_or_shuffled_by_the_seed(tmp_path):
    dataset = VideoDataset([many(tmp_path, [f"v{i}" for i in range(12)])], TINY)
    ids = lambda **options: [name for batch in dataset.batches(5, **options) for name in batch.ids]  # noqa: E731
    assert ids() == [f"v{i}" for i in range(12)]
    assert ids(seed=1) == ids(seed=1) != ids(seed=2)
    assert sorted(ids(seed=1)) == sorted(ids())


# ---------------------------------------------------------------- bad records


def bad(lists=None, **changes) -> bytes:
    return record(lists={**frame_lists(), **(lists or {})}, **changes)


BAD = {
    "labels above the vocabulary": (TINY, bad(labels=(1, 5)), "labels from 1 to 5 outside the vocabulary of 5"),
    "labels below the vocabulary": (TINY, bad(labels=(-1,)), r"outside the vocabulary of 5"),
    "no id": (TINY, encode_sequence_example({"labels": [1]}, frame_lists()), "neither `id` nor `video_id`"),
    "a number for an id": (TINY, encode_sequence_example({"id": [7], "labels": [1]}, frame_lists()), "neither `id`"),
    "too few numbers a frame": (TINY, bad(frame_lists(rgb=2)), "`rgb` must have 3 bytes a frame, got 2"),
    "too many numbers a frame": (TINY, bad(frame_lists(audio=3)), "`audio` must have 2 bytes a frame, got 3"),
    "a missing list": (TINY, record(lists={"rgb": frame_lists()["rgb"]}), "`audio` must .* no such list"),
    "no frames": (TINY, record(lists=frame_lists(0)), "`rgb`|at least one"),
    "lists of different lengths": (TINY, bad({"rgb": np.zeros((4, 3), np.uint8)}), "same number of frames"),
    "not a message": (TINY, b"\x0a\xff\xff", "message"),
    "evidence of another vocabulary": (
        replace(TINY, evidence=True),
        bad({"evidence": np.zeros((3, 4), np.uint8)}),
        "evidence must have 5 bytes a frame, got 4",
    ),
    "NaN features": (
        MEANS,
        encode_example({"id": "v", "labels": [1], "mean_rgb": np.float32([1, math.nan, 2])}),
        "`mean_rgb` holds NaN or infinity",
    ),
    "infinite features": (
        MEANS,
        encode_example({"id": "v", "labels": [1], "mean_rgb": np.float32([1, math.inf, 2])}),
        "`mean_rgb` holds NaN or infinity",
    ),
    "too few means": (
        MEANS,
        encode_example({"id": "v", "labels": [1], "mean_rgb": np.float32([1, 2])}),
        "`mean_rgb` must have 3 numbers, got 2",
    ),
    "no means": (MEANS, encode_example({"id": "v", "labels": [1]}), "`mean_rgb` must have 3 numbers, got 0"),
}


def good(spec: DatasetSpec) -> bytes:
    if spec.video_level:
        return encode_example({"id": "good", "labels": [1], "mean_rgb": np.float32([0, 1, 2])})
    return record(lists=frame_lists() | ({"evidence": np.zeros((3, 5), np.uint8)} if spec.evidence else {}))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_found_on_opening_and_named_with_file_and_place(tmp_path, name):
    spec, payload, message = BAD[name]
    path = shard(tmp_path, good(spec), payload)
    with pytest.raises(RecordError, match=message) as caught:
        VideoDataset([path], spec)
    offset = 16 + len(good(spec))  # behind the first record: two lengths and checksums, and the payload
    assert (caught.value.path, caught.value.offset) == (str(path), offset)
    assert str(path) in str(caught.value) and f"byte {offset}" in str(caught.value)


def test_a_truncated_shard_and_a_flipped_byte_are_named(tmp_path):
    path = many(tmp_path, ["a", "b", "c"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(RecordError, match=r"train0\.tfrecord, record at byte \d+: .*ends"):
        VideoDataset([path], TINY)
    path.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    with pytest.raises(RecordError, match="record at byte 0: wrong checksum"):
        VideoDataset([path], TINY)


def test_a_file_that_changes_after_opening_is_noticed(tmp_path):
    path = many(tmp_path, ["a", "b"])
    dataset = VideoDataset([path], TINY)
    body = path.read_bytes()
    path.write_bytes(body[:-6] + bytes([body[-6] ^ 255]) + body[-5:])
    assert dataset[0].id == "a"
    with pytest.raises(RecordError, match="wrong checksum of the data"):
        dataset[1]


# ---------------------------------------------------------------- splits


def names_of(dataset) -> list[str]:
    return [entry.id for entry in dataset.entries]


def test_validation_is_cut_from_train_and_shares_no_video_with_it(tmp_path):
    many(tmp_path, [f"v{i}" for i in range(40)])
    many(tmp_path, [f"t{i}" for i in range(4)], name="test0.tfrecord")
    splits = open_splits(TINY, tmp_path)
    train, validation = names_of(splits.train), names_of(splits.validation)
    assert len(validation) == 20 and not set(train) & set(validation)
    assert sorted(train + validation) == sorted(f"v{i}" for i in range(40))
    assert names_of(splits.test) == [f"t{i}" for i in range(4)]


def test_validation_does_not_depend_on_the_order_or_the_names_of_the_files(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    names = [f"v{i}" for i in range(40)]
    many(one, names)
    many(other, names[25:][::-1], name="train_a.tfrecord")
    many(other, names[:25], name="train_b.tfrecord")
    for folder in (one, other):
        many(folder, ["t0", "t1"], name="test0.tfrecord")
    first, second = (set(names_of(open_splits(TINY, folder).validation)) for folder in (one, other))
    assert first == second and first != set(names[:20])


def test_no_training_video_becomes_a_validation_video_when_a_file_is_added(tmp_path):
    many(tmp_path, [f"v{i}" for i in range(1000)])
    many(tmp_path, ["t0", "t1"], name="test0.tfrecord")
    before = open_splits(TINY, tmp_path)
    many(tmp_path, [f"w{i}" for i in range(200)], name="train1.tfrecord")
    after = open_splits(TINY, tmp_path)
    assert len(before.validation) == len(after.validation) == 500
    assert not set(names_of(before.train)) & set(names_of(after.validation))
    assert len(set(names_of(before.validation)) & set(names_of(after.validation))) > 350


def test_label_subset_is_that_of_train_in_every_split(tmp_path):
    many(tmp_path, [f"v{i}" for i in range(12)], labels=lambda i: (3,) if i % 3 else (0, 1))
    many(tmp_path, [f"t{i}" for i in range(6)], name="test0.tfrecord", labels=lambda i: (i % 5,))
    splits = open_splits(TINY, tmp_path, labels=2)
    assert splits.labels == splits.validation.labels == splits.test.labels == [3, 0]
    assert names_of(splits.test) == ["t0", "t3", "t5"]
    assert splits.train.left_out == 0 and splits.test.left_out == 3


def test_folders_without_what_is_needed_are_named(tmp_path):
    with pytest.raises(ValueError, match="missing is not a folder; --data-dir must be the folder with the tiny shards"):
        open_splits(TINY, tmp_path / "missing")
    with pytest.raises(ValueError, match=r"no train shards of tiny; looked for train\*\.tfrecord"):
        open_splits(TINY, tmp_path)
    many(tmp_path, ["v0", "v1", "v2"])
    with pytest.raises(ValueError, match=r"no test shards of tiny; looked for test\*\.tfrecord"):
        open_splits(TINY, tmp_path)
    many(tmp_path, ["t0"], name="test0.tfrecord")
    with pytest.raises(ValueError, match="3 train and 1 test videos; it takes at least 2 of each"):
        open_splits(TINY, tmp_path)
    with pytest.raises(ValueError, match="--labels must be between 1 and the 3 classes that occur, got 4"):
        open_splits(TINY, tmp_path, labels=4)


def test_shards_are_found_in_the_data_sets_own_subfolder_and_nowhere_else(tmp_path):
    spec = SPECS["audioset"]
    for name in ("bal_train/a.tfrecord", "audioset_bal_train_00.tfrecord", "other/bal_train.tfrecord", "x.tfrecord"):
        shard((tmp_path / name).parent, name=(tmp_path / name).name)
    found = [path.relative_to(tmp_path).as_posix() for path in find_shards(spec, tmp_path, "train")]
    assert found == ["audioset_bal_train_00.tfrecord", "bal_train/a.tfrecord"]


def test_generated_data_has_evidence_for_exactly_the_labels(tmp_path):
    settings = replace(synthetic.SETTINGS["default"], train_videos=6, test_videos=3, shard_size=6, frames=(4, 8))
    synthetic.write(settings, tmp_path / "data")
    splits = open_splits(SPECS["synthetic"], tmp_path / "data")
    for item in splits.test:
        assert item.frames.shape[1] == 320 and item.evidence.shape == (len(item.frames), 40)
        assert torch.equal(item.evidence.any(0), item.labels > 0)


# ---------------------------------------------------------------- genuine


def test_the_genuine_frame_level_video_has_the_published_byte_sums(real_data):
    facts = json.loads((real_data / "yt8m_frame/train_SjJ3.json").read_text())
    spec = SPECS["yt8m-frame"].leading(rgb=1024, audio=128)
    (item,) = VideoDataset([real_data / "yt8m_frame/train_SjJ3.tfrecord"], spec)
    stored = quantize(item.frames.numpy()).astype(int)
    assert item.id == facts["id"] and np.flatnonzero(item.labels).tolist() == facts["labels"]
    assert stored.shape == (facts["num_frames"], facts["rgb_dim"] + facts["audio_dim"])
    assert stored[:, :1024].sum() == facts["rgb_byte_sum_total"]
    assert stored[:, 1024:].sum() == facts["audio_byte_sum_total"]
    assert stored[:5, :1024].sum(1).tolist() == facts["rgb_byte_sum_first5"]
    assert stored[0, 1024:1032].tolist() == facts["audio_frame0_first8"]


def test_genuine_video_level_shards_carry_labels_and_finite_features(real_data):
    paths = find_shards(SPECS["yt8m-video"], real_data, "test")
    dataset = VideoDataset(paths, SPECS["yt8m-video"])
    assert len(dataset) == 1787
    assert all(entry.labels for entry in dataset.entries)
    item = dataset[0]
    assert item.frames.shape == (1, 1152) and item.frames.isfinite().all()
    raw = decode_example(next(read_records(paths[0])))
    assert np.flatnonzero(item.labels).tolist() == sorted(raw["labels"].tolist())
    np.testing.assert_array_equal(item.frames[0, 1024:], raw["mean_audio"])


def test_genuine_audioset_has_its_clips_and_the_most_frequent_labels_narrow_it(real_data):
    spec = SPECS["audioset"]
    train, test = (VideoDataset(find_shards(spec, real_data, split), spec) for split in ("train", "test"))
    assert (len(train), len(test)) == (22160, 10093)
    classes = most_frequent(train, 50)
    train.keep(classes)
    test.keep(classes)
    assert len(train) + train.left_out == 22160 and len(test) + test.left_out == 10093
    counts = torch.stack([train[i].labels for i in range(0, len(train), 40)]).sum(0)
    assert counts[0] > counts[49] and (train[0].labels.shape, train[0].frames.shape[1]) == ((50,), 128)


def test_a_length_that_lies_allocates_nothing(tmp_path):
    path = tmp_path / "train0.tfrecord"
    path.write_bytes(struct.pack("<Q", 2**60) + bytes(20))
    with pytest.raises(RecordError, match="record at byte 0"):
        VideoDataset([path], TINY)
