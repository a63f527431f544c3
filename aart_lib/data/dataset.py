"""From record files to batches: reading, padding, masks, order.

Frames are read from the file when they are asked for; in memory stay some bytes a video and a bounded cache. Data sets
beyond `STREAM_BYTES` are not cached, and are shuffled window by window: the shards in random order, a few at a time,
the videos of these in random order. The order depends on the seed alone, however many processes share the work.
"""

import copy
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, get_worker_info

from aart_lib.data.batch import Batch, Item, dequantize
from aart_lib.data.exact import integers, one_of
from aart_lib.data.formats import SAMPLINGS, DatasetSpec, chosen_frames, tables_of
from aart_lib.data.index import Entries, Entry, index
from aart_lib.data.records import RecordError, Skipped, decode_strings, read_record
from aart_lib.data.tensors import Given, given
from aart_lib.runtime.processes import can_start_processes

CACHE_BYTES = 2**28
SHARED_BYTES = 2**20  # larger batches are handed over in shared memory, an open file each
STREAM_BYTES = 2**31  # of files: what is larger is streamed; also the size of a shuffled window


class _Cache(dict):
    """Videos read before, up to so many bytes, shared by the parts of a data set; another process gets an empty one."""

    def __init__(self, room: int):
        super().__init__()
        self.room = self.left = room

    def __reduce__(self):
        return _Cache, (self.room,)


class VideoDataset(Dataset):
    """The videos of some record files, indexed when opened, read when asked for.

    Args:
        paths: TFRecord files; spec: what they hold.
        labels: class indices to keep, in column order; videos without any of them are left out (`left_out` counts
            them). None = all classes, all videos.
        max_frames: frames used of a video; None = the spec's.
        segments: the rated segments of YouTube-8M's third version, each as a video of its own.
        skipped: bad records are left out and counted here; for that everything is read once, now.
    Raises: RecordError (a ValueError) for any record that is not what the spec says.
    """

    def __init__(
        self,
        paths,
        spec: DatasetSpec,
        *,
        labels: Sequence[int] | None = None,
        max_frames: int | None = None,
        segments: bool = False,
        skipped: Skipped | None = None,
    ):
        if max_frames is not None and max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {max_frames}")
        self.spec, self.max_frames, self._given = spec, max_frames or spec.max_frames, None
        self.entries: Entries
        if isinstance(paths, Given):
            self._given, self.entries, self.streamed = paths, paths.entries, False
        else:
            paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
            self.streamed = sum(os.path.getsize(path) for path in paths) > STREAM_BYTES
            self.entries = index(paths, spec, segments=segments, check=not self.streamed, skipped=skipped)
        self.left_out, self._cache = 0, _Cache(0 if self.streamed else CACHE_BYTES)
        self._sampling, self._seed = "uniform", 0
        self.labels = list(range(spec.classes))
        self._column = {label: label for label in self.labels}
        if labels is not None:
            self.keep(labels)

    @classmethod
    def from_tensors(cls, frames, labels, *, keep=None, max_frames: int | None = None, **more) -> "VideoDataset":
        """Somebody's own features, in memory and of any range; nothing is quantized, a model sees float32.

        Args:
            frames: [N,T,D], or N tables [T,D] of any lengths; floats of any width, tensors or arrays.
            labels: [N,C] of 0 and 1, of any dtype.
            keep, max_frames: ``labels`` and ``max_frames`` as above; None = all classes, the longest video.
            more: ids: N texts, by default "0", "1", …; evidence: frames that show a label, 0 and 1, [N,T,C] or N
                tables [T,C]; mask: bool [N,T], True = real frame, for frames [N,T,D]; name: of the data, in results.
        Raises: ValueError that names the argument or the video.
        """
        found = given(frames, labels, **more)
        return cls(found, found.spec, labels=keep, max_frames=max_frames)

    def keep(self, labels: Sequence[int]) -> None:
        """Narrow to these classes, in column order; videos without any of them leave. Raises: ValueError."""
        found = integers(labels, "labels")
        kept = found.ravel().tolist()
        if found.ndim != 1 or not all(0 <= label < self.spec.classes for label in kept) or len(set(kept)) != len(kept):
            raise ValueError(f"labels must be different class indices below {self.spec.classes}, got {found.tolist()}")
        self.labels, everything = kept, len(self.entries)
        self._column = {label: column for column, label in enumerate(kept)}
        self.entries = self.entries.take(self.entries.showing(kept))
        self.left_out = everything - len(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Item:
        entry = self.entries[index]
        parts, evidence = self._stored(entry)
        stored = np.concatenate(parts, 1)
        frames = dequantize(stored) if stored.dtype == np.uint8 else stored
        shown = torch.from_numpy(evidence[:, self.labels] > 0) if evidence is not None else None
        pictures = self._pictures(entry) if self.spec.pictured else None
        return Item(torch.from_numpy(frames), self._labels([entry])[0], entry.id, shown, pictures)

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch | None:
        """`collate` of these videos, but bytes stay bytes, and without pictures, which training does not look at.

        None without an index.
        """
        if not len(indices):
            return None
        entries = [self.entries[i] for i in indices]
        videos, evidence = zip(*map(self._stored, entries), strict=True)
        lengths = torch.tensor([len(parts[0]) for parts in videos])
        stored = _room_for((len(videos), int(lengths.max()), self.spec.dims), videos[0][0].dtype)
        for row, parts, length in zip(stored.numpy(), videos, lengths.tolist(), strict=True):
            np.concatenate(parts, 1, out=row[:length])
            row[length:] = 0
        mask = torch.arange(stored.shape[1]) < lengths[:, None]
        shown = None
        if all(part is not None for part in evidence):
            shown = pad_sequence([torch.from_numpy(part[:, self.labels] > 0) for part in evidence], batch_first=True)
        return Batch(stored, mask, self._labels(entries), tuple(entry.id for entry in entries), shown)

    def _labels(self, entries: Sequence[Entry]) -> Tensor:
        """[B,C]"""
        labels = torch.zeros(len(entries), len(self.labels))
        for row, entry in zip(labels, entries, strict=True):
            row[[self._column[label] for label in entry.labels if label in self._column]] = 1
        return labels

    def read(self, entry: Entry) -> tuple[list[np.ndarray], np.ndarray | None]:
        """A video's frames as they are stored, in parts [T,·] side by side, and its evidence [T,classes] or None."""
        if self._given:
            frames, evidence = self._given.rows(entry.offset + self._frames(entry, entry.frames))
            return [frames], evidence
        payload = _read(entry)
        try:
            tables = tables_of(payload, self.spec)
            total = len(next(iter(tables.values())))
            chosen = self._frames(entry, total)
        except ValueError as error:
            raise RecordError(entry.path, entry.offset, f"video {entry.id!r}: {error}") from error
        rows = chosen if len(chosen) < total else np.s_[:]  # no copy
        parts = [tables[name][rows, :used] for name, (_, used) in self.spec.features.items()]
        return parts, tables["evidence"][rows] if "evidence" in tables else None

    def _stored(self, entry: Entry) -> tuple[list[np.ndarray], np.ndarray | None]:
        """The same, from the cache if it is there."""
        key = entry.path, entry.offset, entry.start
        if self._given or self._sampling != "uniform":
            return self.read(entry)
        if key in self._cache:
            return self._cache[key]
        parts, evidence = self.read(entry)
        size = sum(part.nbytes for part in (*parts, evidence) if part is not None)
        if size <= self._cache.left and get_worker_info() is None:
            parts = [np.concatenate(parts, 1)]  # a copy of its own, without the rest of the record
            self._cache[key] = parts, None if evidence is None else evidence.copy()
            self._cache.left -= size
        return parts, evidence

    def _pictures(self, entry: Entry) -> list[bytes] | None:
        """What the frames look like that are used of a video, if its record says."""
        found = decode_strings(_read(entry), "picture")
        return [found[t] for t in self._frames(entry, len(found))] if found else None

    def _frames(self, entry: Entry, total: int) -> np.ndarray:
        """Which of a video's frames are used."""
        if entry.frames and not self._given:
            if entry.start >= total:
                raise ValueError(f"its segment begins at frame {entry.start}, the video has {total}")
            return np.arange(entry.start, min(entry.start + entry.frames, total))[: self.max_frames]
        return chosen_frames(total, self.max_frames, self._sampling, (self._seed, zlib.crc32(entry.id.encode())))

    def select(self, indices) -> "VideoDataset":
        """The same data set with the videos at these positions (or where a boolean [N] is true); nothing is read."""
        chosen = copy.copy(self)
        rows = np.asarray(indices if hasattr(indices, "__array__") else list(indices))
        chosen.entries = self.entries.take(rows if rows.dtype == bool else integers(rows, "indices"))
        return chosen

    def batches(
        self,
        size: int,
        *,
        seed: int | None = None,
        workers: int = 0,
        sampling: str = "uniform",
        first: int = 0,
        pieces: int = 1,
        own: tuple[int, int] | None = None,
    ) -> DataLoader:
        """Batches of ``size`` videos, in file order, or shuffled by ``seed``.

        Args:
            workers: processes that read; they change neither order nor content.
            sampling: which frames of a video longer than ``max_frames``: one of `SAMPLINGS`, drawn anew by each seed.
            first: batches to leave out at the beginning, already seen by a run that goes on.
            pieces, own: each batch is cut into so many pieces, and only the pieces from own[0] to own[1] are read; a
                piece without a video is None. So the work is dealt out over processes and smaller steps.
        """
        one_of("sampling", sampling, SAMPLINGS)
        drawn = copy.copy(self)
        drawn._sampling, drawn._seed = sampling, seed or 0
        order = np.arange(len(self)) if seed is None else self._order(seed)
        begin, end = own or (0, pieces)
        whole = (order[start : start + size] for start in range(first * size, len(order), size))
        plan = [piece for videos in whole for piece in np.array_split(videos, pieces)[begin:end]]
        workers = workers if workers and can_start_processes() else 0
        own_seed = torch.Generator()  # so that reading draws nothing from the numbers that dropout draws
        how: dict = {"num_workers": workers, "pin_memory": torch.cuda.is_available(), "generator": own_seed}
        return _Loader(plan, batch_size=None, collate_fn=drawn.batch, **how)  # type: ignore[arg-type]  # a list will do

    def _order(self, seed: int) -> np.ndarray:
        """A permutation of the videos [N]: window by window where the data set is streamed."""
        generator = torch.Generator().manual_seed(seed)
        torch.empty((), dtype=torch.int64).random_(generator=generator)  # as torch's loader does before it shuffles
        if not self.streamed:
            return torch.randperm(len(self), generator=generator).numpy()
        shards, windows, room = list(self.entries.by_shard().items()), list[list](), 0
        for i in torch.randperm(len(shards), generator=generator):
            path, rows = shards[i]
            if os.path.getsize(path) > room:
                windows.append([])
                room = STREAM_BYTES
            room -= os.path.getsize(path)
            windows[-1].append(rows)
        mixed = (np.concatenate(window) for window in windows)
        return np.concatenate([rows[torch.randperm(len(rows), generator=generator).numpy()] for rows in mixed])


class _Loader(DataLoader):
    """Torch's loader, which without reader processes takes a thread to read the next batch while one is in use."""

    def __iter__(self) -> Iterator:  # type: ignore[override]  # torch names a class of its own
        batches, end = super().__iter__(), object()
        if self.num_workers:
            yield from batches
            return
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(next, batches, end)
            while (batch := coming.result()) is not end:
                coming = reader.submit(next, batches, end)
                yield batch


def _room_for(shape: tuple[int, ...], dtype) -> Tensor:
    """In a reader process in memory shared with the main one, so that it is not copied again, while there is some."""
    bare = np.dtype(dtype)
    size = bare.itemsize * math.prod(shape)
    if get_worker_info() is not None and size > SHARED_BYTES:
        with suppress(RuntimeError):  # a container has 64 MB, which is five batches of the largest kind
            shared = torch.UntypedStorage._new_shared(size)
            return torch.empty(0, dtype=torch.from_numpy(np.empty(0, bare)).dtype).set_(shared).view(shape)
    return torch.from_numpy(np.empty(shape, bare))


def _read(entry: Entry) -> bytes:
    with open(entry.path, "rb") as file:
        return read_record(file, entry.path, entry.offset, os.fstat(file.fileno()).st_size)
