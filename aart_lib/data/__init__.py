"""From files to batches, and the public names of it."""

from aart_lib.data.batch import BOX, LEVEL, Batch, Item, collate, dequantize, quantize
from aart_lib.data.catalog import Splits, open_data, open_splits
from aart_lib.data.dataset import VideoDataset
from aart_lib.data.formats import SPECS, DatasetSpec
from aart_lib.data.records import RecordError

__all__ = [
    "BOX",
    "LEVEL",
    "SPECS",
    "Batch",
    "DatasetSpec",
    "Item",
    "RecordError",
    "Splits",
    "VideoDataset",
    "collate",
    "dequantize",
    "open_data",
    "open_splits",
    "quantize",
]
