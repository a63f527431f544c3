"""The explorer of attention under attack, everything that needs ipywidgets.

What is shown is computed by functions that know nothing of widgets (`attack`, `craft`, `look`), so that a picture can
be checked without a browser.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import ipywidgets
import numpy as np
import torch

from aart_lib.attacks import NORMS, OBJECTIVES, Attack, ThreatModel, perturb
from aart_lib.attention import temporal_attention
from aart_lib.data.batch import Batch, collate
from aart_lib.data.dataset import VideoDataset
from aart_lib.model import predict
from aart_lib.scoring import probabilities
from aart_lib.viz import plots

FACTORS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)  # of the calibrated ε
SEARCHES: dict[str, dict] = {  # options of `Attack` under the names of the menu
    "PGD, 10 steps": {"steps": 10},
    "FGSM, one step": {"steps": 1, "start": "zero", "step_size": 1.0, "keep_best": False},
    "random noise": {"steps": 0},
    "PGD on the attention alone": {"steps": 10, "objective": "attention"},
    "PGD that keeps attention still": {"steps": 10, "objective": OBJECTIVES["bce-attention"].at(-30.0)},
}


class View(NamedTuple):
    """What one picture shows of one video."""

    attention: dict[str, np.ndarray]  # {"clean", "attacked"}: [T], how [CLS] weighs the frames
    scores: dict[str, np.ndarray]  # {"clean", "attacked"}: [C], probabilities
    attacked_frames: np.ndarray | None  # [T] bool, frames that were changed

    @property
    def moved(self) -> float:
        """Total variation between the two lines of attention: 0 = unmoved, 1 = all of it elsewhere."""
        return float(abs(self.attention["attacked"] - self.attention["clean"]).sum() / 2)


@torch.no_grad()
def look(model, batch: Batch, attacked: torch.Tensor, *, layer: int | str = -1, head: int | None = None) -> View:
    """The `View` of a batch of one video and its attacked frames [1,T,D]."""
    shown = {"clean": batch.frames, "attacked": attacked}
    outputs = {key: predict(model, frames, batch.mask, return_attention=True) for key, frames in shown.items()}
    return View(
        {key: temporal_attention(o.attention or (), layer, head)[0].cpu().numpy() for key, o in outputs.items()},
        {key: probabilities(o.logits)[0].cpu().numpy() for key, o in outputs.items()},
        (attacked != batch.frames)[0].any(1).cpu().numpy(),
    )


def attack(batch: Batch, threat: ThreatModel, factor=1.0, *, search="PGD, 10 steps", norm=None, few=None) -> Attack:
    """An attack of the menu, ``factor`` times as large as ``threat``.

    In another norm ε is as long as a change by the L∞ ε in every number; an attacker of ``few`` frames only may change
    these by more (`ThreatModel.few`), and finds them by trial.
    """
    norm = norm or threat.norm
    count, dims = batch.frames.shape[1:]
    lengths = {"linf": 1.0, "l2-frame": dims**0.5, "l2-clip": (dims * count) ** 0.5}
    found = replace(threat, norm=norm, epsilon=threat.epsilon * factor * lengths[norm] / lengths[threat.norm])
    return Attack(found.few(few) if few else found, frames="trial", **SEARCHES[search])


def craft(model, batch: Batch, found: Attack) -> torch.Tensor:
    """Attacked frames, the same each time."""
    if found.objective == "attention" and getattr(model, "fixed_attention", False):
        return batch.frames.clone()  # nothing can be moved
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if len(batch) > 1 else 1)  # for one video, threads would but wait for each other
    try:
        return perturb(model, batch, found, generator=torch.Generator().manual_seed(0))
    finally:
        torch.set_num_threads(threads)


class Explorer(ipywidgets.VBox):
    """One video under attack, with a control for everything; the last line of a cell shows it.

    Attacked frames and pictures are kept, so that a setting seen before comes back at once. ``controls`` holds the
    widgets by name, ``view`` the arrays on display, ``picture`` the PNG, ``status`` the same in words.
    """

    def __init__(self, models: Mapping, dataset: VideoDataset, names: Sequence[str], threat: ThreatModel, videos=None):
        self.models, self.names, self.threat = models, names, threat
        self.batches = {index: collate([dataset[index]]) for index in videos or range(min(12, len(dataset)))}
        self._attacked, self._pictures = dict[tuple, torch.Tensor](), dict[tuple, bytes]()
        self.controls = self._make_controls(next(iter(models.values())).config)
        self.picture, self.status = ipywidgets.Image(layout={"max_width": "100%"}), ipywidgets.HTML()
        for control in self.controls.values():
            control.observe(self._update, "value")
        columns = {"grid_template_columns": "repeat(auto-fit, minmax(300px, 1fr))"}
        super().__init__([ipywidgets.GridBox([*self.controls.values()], layout=columns), self.status, self.picture])
        self._update()

    def _repr_mimebundle_(self, **options) -> dict:
        """The widget, and for where no kernel runs its first picture."""
        shown = super()._repr_mimebundle_(**options)
        return shown | {"image/png": base64.b64encode(self.picture.value).decode()}

    def _make_controls(self, config) -> dict[str, ipywidgets.Widget]:
        true = {i: batch.labels[0].nonzero()[:, 0] for i, batch in self.batches.items()}
        layers = [(f"layer {i + 1}", i) for i in range(config.layers)]
        menus = {  # options, and which of them is chosen at first
            "model": (list(self.models), 0),
            "video": ([(f"{i}: " + ", ".join(self.names[c] for c in columns), i) for i, columns in true.items()], 0),
            "attack": (list(SEARCHES), 0),
            "norm": (list(NORMS), list(NORMS).index(self.threat.norm)),
            "frames": ([("all", None), ("1 frame", 1), ("2 frames", 2), ("4 frames", 4)], 0),
            "layer": ([*layers, ("rollout", "rollout")], len(layers) - 1),
            "head": ([("mean of heads", None)] + [(f"head {i + 1}", i) for i in range(config.heads)], 0),
        }
        look = {"style": {"description_width": "70px"}, "layout": {"width": "98%"}}
        made = {
            name: ipywidgets.Dropdown(options=o, index=i, description=name, **look) for name, (o, i) in menus.items()
        }
        sizes = {"options": [(f"{f:g} × calibrated", f) for f in FACTORS], "value": 1.0, "description": "epsilon"}
        return {"epsilon": ipywidgets.SelectionSlider(continuous_update=False, **sizes, **look)} | made

    def _update(self, change=None) -> None:
        now = {name: control.value for name, control in self.controls.items()}
        model, batch = self.models[now["model"]], self.batches[now["video"]]
        options = {"search": now["attack"], "norm": now["norm"], "few": now["frames"]}
        found = attack(batch, self.threat, now["epsilon"], **options)
        self.controls["head"].disabled = now["layer"] == "rollout"  # a rollout is over the mean of the heads
        key = now["model"], now["video"], found
        if key not in self._attacked:
            self._attacked[key] = craft(model, batch, found)
        self.view = look(model, batch, self._attacked[key], layer=now["layer"], head=now["head"])
        size = f"epsilon = {found.threat.epsilon:.4f}, norm = {found.threat.norm}"
        shown = tuple(now.values())
        if shown not in self._pictures:
            view = self.view if now["frames"] else self.view._replace(attacked_frames=None)  # all: mark none
            self._pictures[shown] = self._draw(batch, view, f"{now['model']}, {now['attack']}, {size}")
        before, after = (self.view.scores[key][batch.labels[0] > 0].min() for key in ("clean", "attacked"))
        self.picture.value = self._pictures[shown]
        self.status.value = (  # the picture in words
            f'<p role="status" aria-live="polite">{size}, model = {now["model"]}, video = {now["video"]}, layer = '
            f"{self.controls['layer'].label}: {self.view.moved:.0%} of the attention moved; the weakest true label "
            f"went from {before:.2f} to {after:.2f}.</p>"
        )

    def _draw(self, batch: Batch, view: View, title: str) -> bytes:
        evidence = None if batch.evidence is None else batch.evidence[0]
        shown = batch.pictures[0] if batch.pictures else None
        about = {"labels": batch.labels[0], "pictures": shown, "title": title} | view._asdict()
        fig = plots.plot_timeline(batch.frames[0], evidence, self.names, **about)
        fig.savefig(file := io.BytesIO(), dpi=80, metadata={"Software": None}, pil_kwargs={"compress_level": 1})
        return file.getvalue()
