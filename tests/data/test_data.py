"""batch.py, dataset.py, catalog.py: bytes to features and back, batches, stable splits."""

import copy
import math
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import MEANS, TINY, frame_lists, many, means, numbered, record, shard, shown
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from aart_lib.data import batch as batching
from aart_lib.data import dataset as data
from aart_lib.data.batch import BOX, LEVEL, Batch, Item, collate, dequantize, features, quantize
from aart_lib.data.catalog import Splits, find_shards, most_frequent, open_splits
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.formats import SPECS
from aart_lib.data.records import RecordError


def names_of(dataset) -> list[str]:
    return [entry.id for entry in dataset.entries]


# ---------------------------------------------------------------- features


def test_every_byte_survives_dequantization_and_back_and_what_is_between_is_rounded():
    every = np.arange(256, dtype=np.uint8)
    features = dequantize(every)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(quantize(features), every)
    np.testing.assert_allclose(features, np.arange(256) * 4 / 255 + 4 / 512 - 2, atol=1e-6)
    assert BOX == pytest.approx((-1.9921875, 2.0078125)) == (features[0], features[-1])
    middle = float(features[100])
    assert quantize([middle + 0.4 * LEVEL, middle + 0.6 * LEVEL] + [middle] * 6).tolist() == [100, 101] + [100] * 6


@pytest.mark.parametrize("features", [[math.nan], [0, math.inf], np.uint8([3]), [True], ["a"], [None], [1j]])
def test_what_is_no_feature_is_not_quantized_and_only_bytes_are_dequantized(features):
    with pytest.raises(ValueError, match="quantize takes finite features"):
        quantize(features)
    if np.asarray(features).dtype != np.uint8:
        with pytest.raises(ValueError, match="dequantize takes bytes"):
            dequantize(np.asarray(features))


def test_quantization_warns_where_much_is_cut_off():
    with pytest.warns(UserWarning, match="of the features lie outside .*from_tensors"):
        assert quantize(np.random.default_rng(0).uniform(0, 12, (30, 1152))).max() == 255


# ---------------------------------------------------------------- batches


@settings(max_examples=30)
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
    one, empty = (Item(torch.ones(length, 3), torch.zeros(4), name) for length, name in ((2, "a"), (0, "b")))
    for items, words in (([], "at least one video"), ([one, empty], "video 'b' has no frame")):
        with pytest.raises(ValueError, match=words):
            collate(items)


# ---------------------------------------------------------------- bytes until somebody asks


def stored_batch() -> Batch:
    rng = np.random.default_rng(0)
    mask = torch.arange(7) < torch.tensor([[7], [3], [5]])
    return Batch(torch.from_numpy(rng.integers(0, 256, (3, 7, 5), np.uint8)), mask, torch.eye(3), ("a", "b", "c"))


@pytest.mark.parametrize("piece", [1, 2, 9, 2**16])
@pytest.mark.parametrize("threads", [1, 2])
def test_stored_bytes_become_the_features_of_every_video_and_zeros(monkeypatch, piece, threads):
    monkeypatch.setattr(batching, "PIECE", piece)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    batch = stored_batch()
    assert batch.frames is batch.frames and batch.frames.dtype == torch.float32
    for frames, stored, real in zip(batch.frames, batch.stored, batch.mask, strict=True):
        assert frames[real].numpy().tobytes() == dequantize(stored[real].numpy()).tobytes()
        assert frames[~real].numpy().tobytes() == bytes(4 * 5 * int((~real).sum()))  # no -0.0 either


def test_the_way_of_other_devices_gives_the_same_bits():
    batch = stored_batch()

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    there = features(batch.stored.as_subclass(Elsewhere), batch.mask).as_subclass(torch.Tensor)
    assert there.numpy().tobytes() == batch.frames.numpy().tobytes()


def test_bytes_and_not_floats_are_moved_pinned_cut_and_sent(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *device: tensor)
    batch = stored_batch()
    assert batch.frames.dtype == torch.float32  # asked for before
    moved, short = batch.to("meta"), batch[1:].trimmed()
    assert moved.stored.dtype == torch.uint8
    assert {tensor.device.type for tensor in (moved.stored, moved.mask, moved.labels)} == {"meta"}
    for other in (pin_memory(batch), batch[torch.tensor([2, 0])], short, copy.copy(batch)):
        assert other.stored.dtype == torch.uint8 and other.frames.dtype == torch.float32
    assert short.stored.shape == (2, 5, 5) and torch.equal(short.frames, batch.frames[1:, :5])
    assert len(pickle.dumps(batch)) - len(pickle.dumps(replace(batch, frames=batch.frames))) < -2 * 3 * 7 * 5


def test_frames_first_seen_under_inference_can_be_trained_on():
    batch = stored_batch()
    with torch.inference_mode():
        assert not batch.frames.is_inference()
    torch.nn.Linear(5, 1)(batch.frames).sum().backward()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("shared", [0, 2**20])
def test_bytes_come_through_a_reader_process(tmp_path, monkeypatch, shared):
    monkeypatch.setattr(data, "SHARED_BYTES", shared)
    dataset = VideoDataset([many(tmp_path, [f"v{i}" for i in range(11)])], TINY)
    for here, there in zip(dataset.batches(4), dataset.batches(4, workers=1), strict=True):
        assert there.stored.dtype == torch.uint8 and torch.equal(here.stored, there.stored)
        assert torch.equal(here.frames, there.frames)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("key", ["id", "video_id"])
def test_a_video_is_read_as_it_was_written(tmp_path, key):
    lists = frame_lists(3)
    item = VideoDataset([shard(tmp_path, record("abc", (4, 1), lists, key))], TINY)[0]
    stored = np.concatenate([lists["rgb"], lists["audio"]], 1)
    np.testing.assert_array_equal(quantize(item.frames.numpy()), stored)
    assert item.labels.tolist() == [0, 1, 0, 0, 1] and item.id == "abc" and item.evidence is None


def test_long_videos_are_thinned_evenly_and_keep_first_and_last_frame(tmp_path):
    path = shard(tmp_path, record(lists=numbered(10)))
    for most, kept in ((None, [0, 3, 6, 9]), (10, list(range(10))), (99, list(range(10))), (2, [0, 9])):
        assert shown(VideoDataset([path], TINY, max_frames=most)[0].frames) == kept


def test_evidence_follows_the_frames_and_the_labels(tmp_path):
    spec = replace(TINY, evidence=True)
    evidence = np.zeros((6, 5), np.uint8)
    evidence[5, 3] = evidence[0, 1] = 1
    path = shard(tmp_path, record(labels=(1, 3), lists=frame_lists(6) | {"evidence": evidence}))
    item = VideoDataset([path], spec, labels=[3, 1], max_frames=2)[0]
    assert item.evidence.tolist() == [[False, True], [True, False]]


def test_items_can_be_changed_without_changing_the_data_set(tmp_path):
    for spec, payload in ((TINY, record()), (MEANS, means(1, 2, 3))):
        dataset = VideoDataset([shard(tmp_path, payload)], spec)
        before = dataset[0].frames.clone()
        dataset[0].frames.zero_()
        assert torch.equal(dataset[0].frames, before)


# ---------------------------------------------------------------- labels


def test_labels_are_columns_in_the_order_given_and_the_rest_is_left_out(tmp_path):
    path = shard(tmp_path, record("a", (0, 2)), record("b", (1,)), record("c", (2, 4)), record("d", ()))
    dataset = VideoDataset([path], TINY, labels=[2, 0])
    assert [item.id for item in dataset] == ["a", "c"] and dataset.left_out == 2 and dataset.labels == [2, 0]
    assert [item.labels.tolist() for item in dataset] == [[1, 1], [1, 0]]
    assert VideoDataset([path], TINY, labels=torch.tensor([2, 0])).labels == [2, 0]
    assert len(VideoDataset([path], TINY)) == 4


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


# ---------------------------------------------------------------- memory and loaders


def test_the_cache_keeps_its_bound_and_what_is_in_it_is_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE_BYTES", 35)  # seven videos of five bytes
    whole = VideoDataset([many(tmp_path, [f"v{i}" for i in range(20)])], TINY)
    for part in (whole.select(range(10)), whole.select(range(10, 20)), whole):
        assert [item.id for item in part] == names_of(part)
    assert len(whole._cache) == 7
    monkeypatch.setattr(data, "_read", lambda entry: pytest.fail("read again"))
    assert whole[0].id == "v0"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_own_loader_gives_the_same_batches(tmp_path, workers):
    shown = [{"evidence": np.eye(5, dtype=np.uint8)[[i % 5] * (1 + i % 4)]} for i in range(11)]
    path = shard(tmp_path, *(record(f"v{i}", (i % 5,), frame_lists(1 + i % 4, i) | shown[i]) for i in range(11)))
    dataset = VideoDataset([path], replace(TINY, evidence=True))
    theirs = DataLoader(dataset, batch_size=4, collate_fn=collate, num_workers=workers)
    for a, b in zip(dataset.batches(4), theirs, strict=True):
        assert a.ids == b.ids
        assert all(torch.equal(getattr(a, key), getattr(b, key)) for key in ("frames", "mask", "labels", "evidence"))


def test_videos_are_chosen_by_integers_or_a_mask(tmp_path):
    dataset = VideoDataset(many(tmp_path, "abc"), TINY)
    for chosen, found in (([2, 0], "ca"), (torch.tensor([2, 0]), "ca"), (np.array([True, False, True]), "ac")):
        assert names_of(dataset.select(chosen)) == list(found)
    with pytest.raises(ValueError, match="indices must be integers"):
        dataset.select([1.0])


def test_batches_are_in_file_order_or_shuffled_by_the_seed(tmp_path):
    dataset = VideoDataset([many(tmp_path, [f"v{i}" for i in range(12)])], TINY)

    def ids(**options):
        return [name for batch in dataset.batches(5, **options) for name in batch.ids]

    assert ids() == [f"v{i}" for i in range(12)]
    assert ids(seed=1) == ids(seed=1) != ids(seed=2)
    assert sorted(ids(seed=1)) == sorted(ids())


def test_the_next_batch_is_read_while_one_is_in_use_and_its_error_waits_its_turn(tmp_path, monkeypatch):
    read, waited, error = VideoDataset.batch, threading.Event(), RecordError("a", 0, "damaged")

    def watched(dataset, indices):
        if 4 in indices:
            waited.set()
            raise error
        return read(dataset, indices)

    monkeypatch.setattr(VideoDataset, "batch", watched)
    batches = iter(VideoDataset([many(tmp_path, [f"v{i}" for i in range(11)])], TINY).batches(4))
    assert next(batches).ids == ("v0", "v1", "v2", "v3") and waited.wait(10)
    with pytest.raises(RecordError) as caught:
        next(batches)
    assert caught.value is error


def test_a_file_that_changes_after_opening_is_noticed(tmp_path):
    path = many(tmp_path, ["a", "b"])
    dataset = VideoDataset([path], TINY)
    body = path.read_bytes()
    path.write_bytes(body[:-6] + bytes([body[-6] ^ 255]) + body[-5:])
    assert dataset[0].id == "a"
    with pytest.raises(RecordError, match="wrong checksum of the data"):
        dataset[1]


# ---------------------------------------------------------------- splits


def test_validation_is_cut_from_train_whatever_the_order_and_names_of_the_files(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    names = [f"v{i}" for i in range(40)]
    many(one, names)
    many(other, names[25:][::-1], name="train_a.tfrecord")
    many(other, names[:25], name="train_b.tfrecord")
    for folder in (one, other):
        many(folder, ["t0", "t1"], name="test0.tfrecord")
    first, second = open_splits(TINY, one), open_splits(TINY, other)
    assert set(names_of(first.validation)) == set(names_of(second.validation)) != set(names[:20])
    assert len(first.validation) == 20 and names_of(first.test) == ["t0", "t1"]
    assert sorted(names_of(first.train) + names_of(first.validation)) == sorted(names)


def test_no_training_video_becomes_a_validation_video_when_some_are_added():
    def split(ids) -> Splits:
        videos = VideoDataset.from_tensors(torch.ones(len(ids), 1, 2), torch.ones(len(ids), 1), ids=ids)
        return Splits.of(videos, videos)

    ids = [f"v{i}" for i in range(1200)]
    before, after = split(ids[:1000]), split(ids)
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
    many(tmp_path, ["v"])
    with pytest.raises(ValueError, match=r"no test shards of tiny"):
        open_splits(TINY, tmp_path)
    many(tmp_path, ["v"], name="test0.tfrecord")
    with pytest.raises(ValueError, match="1 train and 1 test videos; it takes at least 2 of each"):
        open_splits(TINY, tmp_path)


def test_shards_are_found_in_the_data_sets_own_subfolder_and_nowhere_else(tmp_path):
    spec = SPECS["audioset"]
    for name in ("bal_train/a.tfrecord", "audioset_bal_train_00.tfrecord", "other/bal_train.tfrecord", "x.tfrecord"):
        shard((tmp_path / name).parent, name=(tmp_path / name).name)
    found = [path.relative_to(tmp_path).as_posix() for path in find_shards(spec, tmp_path, "train")]
    assert found == ["audioset_bal_train_00.tfrecord", "bal_train/a.tfrecord"]


# ---------------------------------------------------------------- genuine


def test_genuine_audioset_has_its_clips_and_the_most_frequent_labels_narrow_it(real_data):
    spec = SPECS["audioset"]
    test = VideoDataset(find_shards(spec, real_data, "test"), spec)
    assert len(test) == 10093
    test.keep(most_frequent(test, 50))
    assert 0 < test.left_out == 10093 - len(test)
    assert (test[0].frames.shape[1], len(test[0].labels)) == (128, 50)
