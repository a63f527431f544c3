"""Video files as square pictures, so many a second; one picture as JPEG and back. Needs the extra ``films`` (PyAV).

Pictures are read one after the other, so that a long video takes no more memory than a short one.
"""

import io
from collections.abc import Iterator
from importlib import import_module

import numpy as np
from PIL import Image

# Real containers only: playlists would open other files, and text counts as a film of letters elsewhere.
CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,nut,mxf,dv,rm,ivf,obu,h264,hevc,m4v,vob,swf"
LONGEST_GAP = 3600  # seconds between two frames; more is a damaged clock
NARROWEST = 20  # longer side over the shorter
THUMBNAIL = 96  # pixels, the width of the JPEG kept beside the features


def needed(package: str):
    """A package of the extra ``films``. Raises: ValueError that says what to install."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(f'films need {error.name}, which is not installed; pip install -e ".[films]"') from error


def pictures(path, *, fps: float = 1.0, size: int = 224) -> Iterator[np.ndarray]:
    """What a video shows at 0, 1/fps, 2/fps, … seconds: uint8 [size,size,3], upright, the center of the frame.

    The shorter side is scaled to ``size`` pixels, the longer one is cropped. What is on display counts, so frames may
    come at any rate, also a changing one.
    Raises: ValueError with the file's name for what is no video, has no picture in it, or ends before its end.
    """
    due, time, shown = 0.0, 0.0, None
    for time, frame in _frames(path, needed("av")):
        if time - due > LONGEST_GAP:
            raise ValueError(f"{path}: its clock jumps from {due:.0f} to {time:.0f} seconds; encode it again")
        while shown is not None and due < time - 1e-6:
            yield (picture := shown if isinstance(shown, np.ndarray) else _square(shown, size, path))
            shown, due = picture, due + 1 / fps
        shown = frame
    if shown is None:
        raise ValueError(f"{path} holds no frame that can be decoded; leave it out")
    if due < time + 1e-6:
        yield _square(shown, size, path)


def _frames(path, av) -> Iterator[tuple]:
    """(seconds since the first, frame) of every frame in the order of display. Raises: ValueError."""
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    first, time = None, 0.0
    try:
        with av.open(str(path), options=options, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream; leave it out")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            step = float(1 / (stream.average_rate or 25))
            for count, frame in enumerate(container.decode(stream)):
                first = frame.time if first is None else first
                known = frame.time is not None and first is not None
                time = max(time, frame.time - first if known else count * step)
                yield time, frame
            if first is not None and (missing := _promised(container, stream) - time) > max(1.0, 0.1 * time):
                raise ValueError(f"{path} breaks off {missing:.1f} s before its end; fetch it again, or leave it out")
    except av.FFmpegError as error:
        said = str(error.strerror or error).lower()
        what = "is no video that can be read" if first is None else f"breaks off after {time:.1f} seconds"
        raise ValueError(f"{path} {what} ({said}); fetch it again, or leave it out") from error


def _promised(container, stream) -> float:
    """Seconds that the file says it has; 0 where it does not say, or sound may be meant."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration and len(container.streams) == 1 else 0.0


def _square(frame, size: int, path) -> np.ndarray:
    """The upright center of a decoded frame, uint8 [size,size,3]."""
    short, long = sorted((frame.width, frame.height))
    if long > NARROWEST * short:
        raise ValueError(f"{path} is {frame.width} x {frame.height} pixels, too narrow for a picture; leave it out")
    width, height = (max(size, round(side * size / short)) for side in (frame.width, frame.height))
    whole = frame.reformat(width=width, height=height, format="rgb24", interpolation="BILINEAR").to_ndarray()
    left, top = (width - size) // 2, (height - size) // 2
    center = whole[top : top + size, left : left + size]
    return np.ascontiguousarray(np.rot90(center, round(frame.rotation / 90) % 4))


def to_jpeg(picture: np.ndarray) -> bytes:
    """A picture, uint8 [H,W,3], as JPEG of at most `THUMBNAIL` pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file := io.BytesIO(), "JPEG", quality=70)
    return file.getvalue()


def from_jpeg(data: bytes) -> np.ndarray:
    """uint8 [H,W,3]. Raises: ValueError for bytes that are no picture."""
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"a frame's picture is no image that can be read: {error}") from error
