"""The explorer as one HTML file that needs no kernel and no network: `python -m aart_lib page`.

Everything on the page is computed here beforehand, each attack for exactly the model it is shown on. The file is
page.html with page.js, the data and a static picture put in.
"""

import base64
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from aart_lib import checkpoint
from aart_lib.attacks import perturb, pgd
from aart_lib.attention import SteadyAttention, cls_attention, rollout
from aart_lib.data.batch import Batch, collate
from aart_lib.data.catalog import BUNDLED, open_data
from aart_lib.data.pictures import to_jpeg
from aart_lib.data.vocabulary import vocabulary
from aart_lib.losses import bce
from aart_lib.model import Output, predict
from aart_lib.runtime.files import replacing
from aart_lib.scoring import probabilities
from aart_lib.threats import ThreatModel
from aart_lib.viz.film import FEATURE_MAP, plot_film

FACTORS = tuple(step / 4 for step in range(9))  # of the calibrated ε
STEPS, SPLICE_STEPS = 10, (0.3, 0.1, 0.03)  # of a search; sizes of the steps to a frame that may be anything
LABELS = 9  # at most so many labels of a video are shown, the true ones first


@dataclass(frozen=True)
class Source:
    """Test videos of one data set, and models of it."""

    data: str
    about: str
    checkpoints: Path
    defenses: tuple[str, ...]
    videos: tuple[int, ...]  # chosen by eye: strong examples, not typical ones


SIMPLEST = "standard", "adversarial-simple", "trades", "a-art", "adversarial-simple-uniform"
TUNED = "standard", "adversarial", "trades", "a-art", "adversarial-uniform"
SOURCES = (
    Source("films", "film", BUNDLED / "checkpoints", SIMPLEST, (23, 21, 2)),
    Source("synthetic", "synthetic video", BUNDLED.parent / "checkpoints", TUNED, (1, 0)),
)

# ---------------------------------------------------------------- what is computed


class OneFrame(nn.Module):
    """A model that sees the clean frames [1,T,D], but for frame t of the t-th of T copies of the video.

    So an attacker of one frame has no other to choose.
    """

    def __init__(self, model: nn.Module, clean: Tensor):
        super().__init__()
        self.model, self.clean = model, clean

    def seen(self, frames: Tensor) -> Tensor:
        return torch.where(torch.eye(len(frames), dtype=torch.bool)[..., None], frames, self.clean)

    def forward(self, frames: Tensor, mask: Tensor) -> Output:
        return predict(self.model, self.seen(frames), mask)


def attacks(model: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
    """Attacked frames [S,T,D] of a batch of one video, a state of the page each.

    The clean frames; all frames attacked, for every ε of `FACTORS` but 0; every frame alone, for every such ε; every
    frame alone, replaced by anything in the box.
    """
    copies = batch[torch.zeros(batch.mask.shape[1], dtype=torch.long)]
    alone, sizes = OneFrame(model, batch.frames), [threat.times(factor) for factor in FACTORS[1:]]
    everywhere = [perturb(model, batch, pgd(size, STEPS, 1, start="zero")) for size in sizes]
    few = [alone.seen(perturb(alone, copies, pgd(size.few(), STEPS, 1, start="zero"))) for size in sizes]
    # To go anywhere in the box no single size of the steps is best, and what a smaller attack found lies in it too.
    far = [pgd(threat.spliced(), 2 * STEPS, 1, start="zero", step_size=size) for size in SPLICE_STEPS]
    spliced = _worst(alone, copies, few + [alone.seen(perturb(alone, copies, attack)) for attack in far])
    return torch.cat([batch.frames, *everywhere, torch.stack(few, 1).flatten(0, 1), spliced])


@torch.no_grad()
def _worst(model: nn.Module, batch: Batch, found: list[Tensor]) -> Tensor:
    """Of several attacked frames [B,T,D] those that raise the loss most, for each video."""
    losses = torch.stack([bce(predict(model, frames, batch.mask).logits, batch.labels) for frames in found])
    return torch.stack(found)[losses.argmax(0), torch.arange(len(batch))]


class States(NamedTuple):
    """What a model makes of each of `attacks`."""

    attention: np.ndarray  # [S,L,H,T], how [CLS] weighs the frames
    rollout: np.ndarray  # [S,T]
    scores: np.ndarray  # [S,C], probabilities
    steady: np.ndarray  # [S,C], with attention held at the clean maps, attacked by someone who knows it

    def packed(self, columns: list[int]) -> str:
        """A row of bytes a state, as base64: all shares of attention, then the probabilities of some labels.

        A byte is 255 times the root of a number, so that small shares are told finely.
        """
        rows = self.attention.reshape(len(self.scores), -1), self.rollout, self.scores[:, columns]
        numbers = np.concatenate([*rows, self.steady[:, columns]], axis=1)
        return _base64(np.rint(255 * np.sqrt(numbers)).astype(np.uint8).tobytes())


@torch.no_grad()
def states(model: nn.Module, batch: Batch, threat: ThreatModel) -> States:
    """Every state of the page for a batch of one video."""
    steady = SteadyAttention(model, predict(model, batch.frames, batch.mask, return_attention=True).attention or ())
    frames, against_steady = attacks(model, batch, threat), attacks(steady, batch, threat)
    mask = batch.mask.expand(len(frames), -1)
    found = predict(model, frames, mask, return_attention=True)
    held = probabilities(predict(steady, against_steady, mask).logits)
    maps = found.attention or ()
    return States(*(t.numpy() for t in (cls_attention(maps), rollout(maps), probabilities(found.logits), held)))


# ---------------------------------------------------------------- what is written


class Shown(NamedTuple):
    """One video of the page."""

    source: Source
    batch: Batch  # of one
    names: list[str]  # of the C labels
    models: dict[str, tuple]  # by defense, with their notes
    states: dict[str, States]  # by defense

    @property
    def columns(self) -> list[int]:
        """The labels that are shown: the true ones, then those that any attack makes likely."""
        highest = np.max([found.scores.max(0) for found in self.states.values()], axis=0)
        return np.lexsort((-highest, self.batch.labels[0].numpy() <= 0))[:LABELS].tolist()

    @property
    def pictures(self) -> list[bytes]:
        """A JPEG a frame; without pictures, the leading features as stripes of color."""
        if self.batch.pictures and self.batch.pictures[0]:
            return self.batch.pictures[0]
        colors = matplotlib.colormaps[FEATURE_MAP](self.batch.frames[0, :, :8].numpy() / 4 + 0.5)[..., :3]
        return [to_jpeg(np.repeat(np.uint8(255 * rows[:, None]), 8, axis=0).repeat(64, axis=1)) for rows in colors]


def _videos(source: Source, done: Callable) -> Iterator[Shown]:
    splits = open_data(source.data)
    known = vocabulary(splits.spec, BUNDLED).names
    paths = {name: source.checkpoints / f"{name}-seed0.safetensors" for name in source.defenses}
    models = {name: checkpoint.load(path) for name, path in paths.items()}
    for index in source.videos:
        shown = Shown(source, collate([splits.test[index]]), [known[label] for label in splits.labels], models, {})
        for name, (model, notes) in models.items():
            shown.states[name] = states(model, shown.batch, ThreatModel(**notes["threat"]))
            done()
        yield shown


def _described(shown: Shown) -> dict:
    """A video as the page's script reads it."""
    columns, evidence = shown.columns, shown.batch.evidence
    assert evidence is not None  # both data sets have it
    return {
        "id": shown.batch.ids[0].partition(".")[0],
        "about": shown.source.about,
        "names": [shown.names[column] for column in columns],
        "evidence": [evidence[0, :, c].nonzero()[:, 0].tolist() for c in columns if shown.batch.labels[0, c] > 0],
        "pictures": [_base64(picture) for picture in shown.pictures],
        "models": [_model(name, found.packed(columns), *shown.models[name]) for name, found in shown.states.items()],
    }


def _model(name: str, packed: str, model, notes: dict) -> dict:
    size = {"layers": model.config.layers, "heads": model.config.heads, "levels": ThreatModel(**notes["threat"]).levels}
    return {"name": name, **size, "states": packed}


def _striking(shown: Shown) -> tuple[int, int]:
    """The frame whose attack at ε alone moves the baseline's attention and costs a true label most; its state."""
    found, frames = shown.states["standard"], np.arange(len(shown.pictures))
    rows = len(FACTORS) + frames * (len(FACTORS) - 1) + FACTORS.index(1.0) - 1
    weights, scores = found.attention[:, -1].mean(1), found.scores[:, shown.batch.labels[0].numpy() > 0]
    frame = int(((weights[rows, frames] - weights[0]) * (scores[0] - scores[rows]).max(1)).argmax())
    return frame, int(rows[frame])


def _picture(shown: Shown, frame: int, row: int) -> str:
    """What the page shows at first as PNG, for where its script does not run."""
    weights = shown.states["standard"].attention[:, -1].mean(1)
    title = f"Frame {frame} is attacked, and the baseline's attention goes there"
    attention = {"clean": weights[0], "attacked": weights[row]}
    figure = plot_film(shown.pictures, attention, attacked_frames=[frame], title=title)
    figure.savefig(file := io.BytesIO(), dpi=80, metadata={"Software": None})
    return _base64(file.getvalue())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def page(out, sources: Sequence[Source] = SOURCES) -> str:
    """Write the page; returns a line that tells what is there."""
    total = sum(len(source.videos) * len(source.defenses) for source in sources)
    with tqdm(total=total, desc="attacking", unit="model") as bar:
        shown = [video for source in sources for video in _videos(source, bar.update)]
    frame, row = _striking(shown[0])
    data = json.dumps({"factors": FACTORS, "frame": frame, "videos": [_described(video) for video in shown]})
    text, script = (Path(__file__).with_suffix(ending).read_text("utf-8") for ending in (".html", ".js"))
    parts = {"script": script, "data": data.replace("<", "\\u003c"), "picture": _picture(shown[0], frame, row)}
    for name, part in parts.items():
        text = text.replace(f"{{{{{name}}}}}", part)
    with replacing(out) as file:
        file.write(text.encode())
    return f"{len(shown)} videos, {total} times a model attacked, {len(text) / 1e6:.1f} MB; {out}"
