"""Records and shards of small videos that the tests of data share, and protobuf as an independent reader of them."""

from dataclasses import replace

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from aart_lib.data.batch import quantize
from aart_lib.data.formats import DatasetSpec
from aart_lib.data.records import encode_example, encode_sequence_example, write_records

TINY = DatasetSpec("tiny", {"rgb": (3, 3), "audio": (2, 2)}, 5, ("train*.tfrecord",), ("test*.tfrecord",), max_frames=4)
MEANS = replace(TINY, features={"mean_rgb": (3, 3)}, video_level=True, max_frames=1)


def frame_lists(count=3, seed=0, rgb=3, audio=2) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "rgb": rng.integers(0, 256, (count, rgb), np.uint8),
        "audio": rng.integers(0, 256, (count, audio), np.uint8),
    }


def numbered(count) -> dict:
    """Frames that show their own number."""
    rgb = np.repeat(np.arange(count, dtype=np.uint8)[:, None], 3, 1)
    return {"rgb": rgb, "audio": np.zeros((count, 2), np.uint8)}


def shown(frames) -> list[int]:
    """The numbers that numbered frames [T,D] show."""
    return quantize(frames.numpy())[:, 0].tolist()


def record(name="v0", labels=(1,), lists=None, key="id") -> bytes:
    return encode_sequence_example({key: name, "labels": list(labels)}, frame_lists() if lists is None else lists)


def means(*values) -> bytes:
    return encode_example({"id": "v", "labels": [1], "mean_rgb": np.float32(values)})


def rated(starts, labels, scores, **changes) -> bytes:
    """A video of 12 numbered frames with rated segments."""
    segments = {"segment_start_times": starts, "segment_labels": labels, "segment_scores": np.float32(scores)}
    return encode_sequence_example({"id": "v", "labels": [0]} | segments | changes, numbered(12))


def shard(folder, *payloads, name="train0.tfrecord"):
    write_records(folder / name, payloads)
    return folder / name


def many(folder, names, name="train0.tfrecord", labels=lambda i: (i % 5,)):
    """A shard of one-frame videos of these names."""
    return shard(folder, *(record(n, labels(i), frame_lists(1, i)) for i, n in enumerate(names)), name=name)


def _schema():
    """The messages of tensorflow/core/example/{feature,example}.proto, declared in a few lines."""
    kinds = descriptor_pb2.FieldDescriptorProto
    one, several = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf.train", syntax="proto3")

    def message(name, label, within=file.message_type, **fields):
        """A message with its fields, numbered in order: of a plain kind, or of the message of that name."""
        made = within.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), start=1):
            plain = isinstance(kind, int)
            about = {"type": kind} if plain else {"type": kinds.TYPE_MESSAGE, "type_name": f".tf.train.{kind}"}
            made.field.add(name=field, number=number, label=label, **about)
        return made

    def map_message(name, field, entry, value):
        made = message(name, several, **{field: f"{name}.{entry}"})
        message(entry, one, made.nested_type, key=kinds.TYPE_STRING, value=value).options.map_entry = True

    message("BytesList", several, value=kinds.TYPE_BYTES)
    message("FloatList", several, value=kinds.TYPE_FLOAT)
    message("Int64List", several, value=kinds.TYPE_INT64)
    feature = message("Feature", one, bytes_list="BytesList", float_list="FloatList", int64_list="Int64List")
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    map_message("Features", "feature", "FeatureEntry", "Feature")
    message("FeatureList", several, feature="Feature")
    map_message("FeatureLists", "feature_list", "FeatureListEntry", "FeatureList")
    message("Example", one, features="Features")
    message("SequenceExample", one, context="Features", feature_lists="FeatureLists")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    names = "Example", "SequenceExample"
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tf.train.{name}")) for name in names]


Example, SequenceExample = _schema()


def protobuf(context: dict, frames: dict):
    """The `SequenceExample` that others would write: numbers are arrays, lists are of byte strings, uint8 are bytes."""
    message = SequenceExample()
    for name, value in context.items():
        _fill(message.context.feature[name], value)
    for name, rows in frames.items():
        for row in rows:
            _fill(message.feature_lists.feature_list[name].feature.add(), row)
    return message


def _fill(feature, value) -> None:
    value = value.tobytes() if getattr(value, "dtype", None) == np.uint8 else value
    if isinstance(value, (bytes, list)):
        feature.bytes_list.value.extend(value if isinstance(value, list) else [value])
    else:
        (feature.float_list if value.dtype.kind == "f" else feature.int64_list).value.extend(value.tolist())


def values_of(feature) -> list:
    """What protobuf reads of a feature."""
    kind = feature.WhichOneof("kind")
    return list(getattr(feature, kind).value) if kind else []
