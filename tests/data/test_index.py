"""index.py: a packed list of videos is that list, large shards give the index of small ones, segments."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shards import TINY, frame_lists, many, numbered, rated, record, shard, shown

from aart_lib.data import dataset as data
from aart_lib.data import index
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.index import Entries, Entry
from aart_lib.data.records import RecordError, encode_sequence_example, scan_heads, scan_records


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AART_CACHE", str(tmp_path / "cache"))


entry = st.builds(
    Entry,
    st.sampled_from(["a", "b", "c"]),
    st.integers(0, 2**40),
    st.text("xyz", max_size=4),
    st.lists(st.integers(0, 4), unique=True, max_size=3).map(sorted).map(tuple),
    st.integers(0, 9),
    st.integers(0, 9),
)
listed = st.lists(entry, max_size=12)

# ---------------------------------------------------------------- packed


@settings(max_examples=40)
@given(listed, st.lists(st.integers(0, 11)), st.sets(st.integers(0, 4)))
def test_packed_videos_are_the_list_they_were_made_of(videos, rows, labels):
    packed, rows = Entries.of(videos), [row for row in rows if row < len(videos)]
    assert list(packed) == videos and len(packed) == len(videos)
    assert list(packed.take(rows)) == [videos[row] for row in rows]
    wanted = [bool(labels & set(video.labels)) for video in videos]
    assert packed.showing(list(labels)).tolist() == wanted
    assert list(packed.take(np.array(wanted, bool))) == [v for v, w in zip(videos, wanted, strict=True) if w]
    taken = [videos[row] for row in rows]
    counts = {k: n for k in range(5) if (n := sum(k in video.labels for video in taken))}
    assert packed.take(rows).label_counts() == counts
    half = len(videos) // 2
    assert list(Entries.join([Entries.of(videos[:half]), Entries.of([]), Entries.of(videos[half:])])) == videos


def test_a_video_takes_less_than_60_bytes():
    one = Entries.of([Entry("a", i, f"v{i:04}", (1, 2, 3)) for i in range(1000)])
    packed = Entries.join([one] * 10)
    assert len(packed) == 10_000 and packed[9_999] == packed[999]
    assert packed.rows.nbytes + packed.labels.nbytes < 60 * len(packed)


# ---------------------------------------------------------------- large shards


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
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


def test_a_streamed_data_set_has_the_videos_of_a_small_one(tmp_path, monkeypatch):
    paths = [many(tmp_path, [f"{n}{i}" for i in range(7)], name=f"train{n}.tfrecord") for n in "abc"]
    small = VideoDataset(paths, TINY)
    heads, whole = (sum(len(part) for _, part in scan(paths[0])) for scan in (scan_heads, scan_records))
    assert heads < whole  # frames are not read
    monkeypatch.setattr(data, "STREAM_BYTES", 10)
    for _ in range(2):  # the second time from the cache folder
        large = VideoDataset(paths, TINY)
        assert large.streamed and list(large.entries) == list(small.entries)
    monkeypatch.setattr(index, "scan_heads", lambda path: pytest.fail("scanned again"))
    assert len(VideoDataset(paths, TINY)) == 21
    for item, other in zip(large, small, strict=True):
        assert item.id == other.id and (item.frames == other.frames).all()
    assert large._cache == {}


def test_the_index_of_a_shard_that_changed_or_a_damaged_one_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "STREAM_BYTES", 10)
    assert len(VideoDataset([many(tmp_path, "ab")], TINY)) == 2
    (of_two,) = (tmp_path / "cache/index").iterdir()
    path = many(tmp_path, "abc")
    entries = list(VideoDataset([path], TINY).entries)
    assert [entry.id for entry in entries] == ["a", "b", "c"]
    (kept,) = set((tmp_path / "cache/index").iterdir()) - {of_two}
    whole = kept.read_bytes()
    for body in (b"", b"PK", whole[:-40], whole[:300] + bytes(9) + whole[309:]):
        kept.write_bytes(body)
        assert list(VideoDataset([path], TINY).entries) == entries
    assert kept.read_bytes() == whole


def test_in_a_streamed_data_set_what_is_wrong_behind_the_context_is_named_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "STREAM_BYTES", 10)
    dataset = VideoDataset(shard(tmp_path, record("good"), record("bad", lists=frame_lists(rgb=2))), TINY)
    assert dataset[0].id == "good"
    with pytest.raises(RecordError, match="video 'bad': feature list `rgb` must have 3"):
        dataset[1]
    dataset = VideoDataset(shard(tmp_path, rated([15], [1], [1])), TINY, segments=True)
    with pytest.raises(RecordError, match="video 'v:15': its segment begins at frame 15, the video has 12"):
        dataset[0]
    with pytest.raises(RecordError, match="neither `id`"):
        VideoDataset(shard(tmp_path, encode_sequence_example({"labels": [1]}, frame_lists())), TINY)


# ---------------------------------------------------------------- order


def ids(dataset, **options) -> list[str]:
    return [name for batch in dataset.batches(4, **options) if batch for name in batch.ids]


@pytest.fixture
def streamed(tmp_path, monkeypatch):
    paths = [many(tmp_path, [f"{n}{i}" for i in range(9)], name=f"train{n}.tfrecord") for n in "abcdef"]
    monkeypatch.setattr(data, "STREAM_BYTES", 2 * paths[0].stat().st_size + 1)  # two shards a window
    return VideoDataset(paths, TINY)


def test_streamed_shards_come_in_random_order_two_at_a_time_and_no_video_twice(streamed):
    order = ids(streamed, seed=3)
    assert sorted(order) == sorted(entry.id for entry in streamed.entries)
    windows = [order[i : i + 18] for i in range(0, 54, 18)]
    assert all(len({name[0] for name in window}) == 2 for window in windows)
    assert all([name[0] for name in window] != sorted(name[0] for name in window) for window in windows)
    assert ids(streamed, seed=3) == order != ids(streamed, seed=4)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("processes", "workers"), [(2, 0), (3, 0), (1, 2), (2, 2)])
def test_processes_and_readers_share_every_batch_exactly(streamed, processes, workers):
    how = {"seed": 1, "workers": workers, "pieces": processes}
    own = [
        [batch.ids if batch else () for batch in streamed.batches(5, own=(rank, rank + 1), **how)]
        for rank in range(processes)
    ]
    assert [sum(parts, ()) for parts in zip(*own, strict=True)] == [b.ids for b in streamed.batches(5, seed=1)]


def test_an_epoch_goes_on_where_it_stopped_also_with_another_number_of_processes(streamed):
    whole = ids(streamed, seed=1)
    assert ids(streamed, seed=1, first=5) == whole[20:]
    half = [ids(streamed, seed=1, first=5, pieces=2, own=(r, r + 1)) for r in range(2)]
    assert sorted(half[0] + half[1]) == sorted(whole[20:])


def test_frames_of_long_videos_are_spread_or_drawn(tmp_path):
    dataset = VideoDataset([shard(tmp_path, record(lists=numbered(40)))], TINY)

    def chosen(**options) -> list[int]:
        (batch,) = dataset.batches(1, **options)
        return shown(batch.frames[0])

    assert chosen(seed=1) == [0, 13, 26, 39]
    for sampling in ("random", "contiguous"):
        found = [chosen(seed=seed, sampling=sampling) for seed in range(20)]
        assert all(frames == sorted(set(frames)) and len(frames) == 4 for frames in found)
        assert chosen(seed=3, sampling=sampling) == found[3] and len({tuple(frames) for frames in found}) > 10
        close = [frames[3] - frames[0] == 3 for frames in found]
        assert all(close) if sampling == "contiguous" else not all(close)
    with pytest.raises(ValueError, match="unknown sampling 'last'; known: uniform, random, contiguous"):
        dataset.batches(1, sampling="last")


# ---------------------------------------------------------------- segments


def test_every_rated_segment_is_a_video_with_the_labels_found_there(tmp_path):
    payload = rated([5, 0, 5, 10], [2, 3, 4, 1], [1, 0, 1, 1])
    dataset = VideoDataset([shard(tmp_path, payload)], TINY, max_frames=9, segments=True)
    assert [(item.id, np.flatnonzero(item.labels).tolist()) for item in dataset] == [
        ("v:0", []), ("v:5", [2, 4]), ("v:10", [1]),
    ]  # fmt: skip
    assert [shown(item.frames) for item in dataset] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]  # cut by its end
    whole = VideoDataset([tmp_path / "train0.tfrecord"], TINY)
    assert whole[0].id == "v" and whole[0].labels.tolist() == [1, 0, 0, 0, 0]
