"""Films of photographs: moving crops of pictures that scikit-image ships, in known frames, over textured backgrounds.

    python figures/photographs.py --out runs/films      # the bundled films, notebooks/films; goes on if stopped

A demonstration that needs no download: written as video files with a list of times, then made into films by the same
path as anybody's own. Training crops come from one half of each photograph, test crops from the other; both may be
mirrored. NOTICE names every photograph with its license.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from aart_lib.data.films import films
from aart_lib.data.pictures import needed
from aart_lib.data.sources import SPLITS

SIZE = 112  # pixels of a picture's side
# Name of the class: the photograph's in skimage.data, its columns used (from, cut, to) and its rows, in shares. The cut
# goes through the middle of what is shown, so that both halves show it.
CLASSES = {
    "astronaut": ("astronaut", (0.08, 0.43, 0.75), (0.0, 0.72)),
    "camera": ("camera", (0.05, 0.38, 0.75), (0.05, 0.75)),
    "cat": ("chelsea", (0.0, 0.55, 1.0), (0.0, 1.0)),
    "coffee": ("coffee", (0.1, 0.53, 0.88), (0.0, 0.95)),
    "coins": ("coins", (0.0, 0.5, 1.0), (0.0, 1.0)),
    "eye": ("retina", (0.05, 0.5, 0.95), (0.1, 0.9)),
    "galaxies": ("hubble_deep_field", (0.0, 0.5, 1.0), (0.0, 1.0)),
    "launch pad": ("rocket", (0.1, 0.51, 0.9), (0.2, 1.0)),
    "tissue": ("immunohistochemistry", (0.0, 0.5, 1.0), (0.0, 1.0)),
}
BACKGROUNDS = ("brick", "grass", "gravel")
FILMS = {"train": 1000, "test": 24}
FRAMES, LABELS, SHOWN = (10, 16), (1, 3), (1, 3)  # of a film; of a label: frames in a row


def _halves(name: str, columns=(0.0, 0.5, 1.0), rows=(0.0, 1.0)) -> dict[str, np.ndarray]:
    """The two parts of a photograph, uint8 [H,W,3] each."""
    whole = getattr(needed("skimage.data"), name)()
    whole = np.stack([whole] * 3, 2) if whole.ndim == 2 else whole
    top, bottom = (round(share * len(whole)) for share in rows)
    left, middle, right = (round(share * whole.shape[1]) for share in columns)
    return {"train": whole[top:bottom, left:middle], "test": whole[top:bottom, middle:right]}


def photograph_halves() -> dict[str, dict[str, np.ndarray]]:
    """{class or background: {"train", "test": a part of its photograph, uint8 [H,W,3]}}."""
    known = {name: _halves(*about) for name, about in CLASSES.items()}
    return known | {name: _halves(name) for name in BACKGROUNDS}


def _scene(rng: np.random.Generator, photograph: np.ndarray, count: int) -> list[np.ndarray]:
    """Frames [SIZE,SIZE,3] of a camera that moves over a photograph: pan, zoom, mirror, brightness."""
    height, width = photograph.shape[:2]
    sides = min(height, width) * np.sort(rng.uniform(0.55, 1.0, 2))[:: rng.choice([1, -1])]
    corners = rng.random((2, 2))  # share of the way that a crop may move; from the first to the last frame
    flip, light = rng.random() < 0.5, rng.uniform(0.75, 1.2)
    frames = []
    for way in np.linspace(0, 1, count) if count > 1 else [0.0]:
        side = sides[0] + way * (sides[1] - sides[0])
        left, top = (corners[0] + way * (corners[1] - corners[0]) * 0.5) * (width - side, height - side)
        crop = (left, top, left + side, top + side)
        image = Image.fromarray(photograph).resize((SIZE, SIZE), Image.Resampling.BILINEAR, crop)
        picture = np.clip(np.asarray(image) * light, 0, 255).astype(np.uint8)
        frames.append(picture[:, ::-1] if flip else picture)
    return frames


def photograph_film(split: str, index: int, halves: dict) -> tuple[list[np.ndarray], list[tuple[str, int, int]]]:
    """Frames of film number ``index``, uint8 [SIZE,SIZE,3] each, and (label, first frame, the one behind the last).

    halves: `photograph_halves`.
    """
    rng = np.random.default_rng([SPLITS.index(split), index])
    total = int(rng.integers(FRAMES[0], FRAMES[1] + 1))
    frames = _scene(rng, halves[str(rng.choice(BACKGROUNDS))][split], total)
    labels, shown, free = rng.choice(list(CLASSES), int(rng.integers(LABELS[0], LABELS[1] + 1)), replace=False), [], 0
    for i, label in enumerate(labels):  # one after the other, each somewhere in its share of the film
        length, room = int(rng.integers(SHOWN[0], SHOWN[1] + 1)), total * (i + 1) // len(labels)
        first = int(rng.integers(free, max(free, room - length) + 1))
        last = min(first + length, room)
        frames[first:last] = _scene(rng, halves[str(label)][split], last - first)
        shown.append((str(label), first, last))
        free = room
    return frames, shown


def photographs(out, *, dims: int = 48, videos: dict[str, int] | None = None, **options) -> str:
    """Write the video files, OUT/videos, and the films made of them, OUT. Returns a line that tells what is there.

    videos: {"train", "test"}: how many, by default `FILMS`; options: as in `films`.
    Only test films keep their pictures.
    """
    halves = photograph_halves()
    folder, rows = Path(out) / "videos", []
    folder.mkdir(parents=True, exist_ok=True)
    counts = videos or FILMS
    with tqdm(total=sum(counts.values()), desc="filming", unit="video") as bar:
        for split, index in [(side, index) for side in SPLITS for index in range(counts[side])]:
            frames, shown = photograph_film(split, index, halves)
            name = f"{split}-{index:04d}.mp4"
            if not (folder / name).exists():
                write_video(folder / name, frames)
            rows += [(name, label, first, last, split) for label, first, last in shown]
            bar.update()
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "labels", "start", "end", "split"), *rows])
    return films(folder, out, dims=dims, size=SIZE, pictured=("test",), **options)


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    """One frame a second as MPEG-4; the file appears under its name when it is complete."""
    part, av = path.with_name(f".{path.name}"), needed("av")
    with av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.qmin = stream.codec_context.qmax = 2  # nearly without loss
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    part.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/films"), metavar="DIR")
    print(photographs(parser.parse_args().out))


if __name__ == "__main__":
    main()
