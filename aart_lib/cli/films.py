"""The commands that need the extra ``films``: a data set made of video files, and one video looked at."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from aart_lib import checkpoint
from aart_lib.attacks import Attack, perturb
from aart_lib.data import extractor as extracting
from aart_lib.data.batch import Batch, Item, collate, dequantize, quantize
from aart_lib.data.films import Joins, films
from aart_lib.data.formats import chosen_frames
from aart_lib.data.pictures import pictures
from aart_lib.data.pixels import PIXEL, FilmModel, as_pictures, pixel_batch, stored_pictures
from aart_lib.data.vocabulary import read_vocabulary
from aart_lib.threats import ThreatModel
from aart_lib.viz import explorer, plots
from aart_lib.viz.film import plot_film


def make(options) -> str:
    """Write the films; returns what is there. Videos that are left out are told on standard error."""
    left_out: list[ValueError] = []
    how: dict = {"dims": options.dims}
    how |= {"bad": left_out.append} if options.on_bad_video == "skip" else {}
    names = tuple(name.strip() for name in (options.background or "").split(",") if name.strip())
    if names and not options.join:
        raise ValueError("--background is for joined clips; add --join N")
    join = None if options.join is None else Joins(options.join, names)
    told = films(options.source, options.out, join=join, fps=options.fps, size=options.size, **how)
    if left_out:
        print(f"aart: left out {len(left_out)} videos that cannot be used; first: {left_out[0]}", file=sys.stderr)
    return told


def look(options) -> str:
    """Draw one video under attack; returns what the model says of it."""
    model, notes = checkpoint.load(options.checkpoint)
    folder = _films_of(options.checkpoint, options.data_dir)
    extractor = extracting.load(folder)
    if (got := extractor.about["dims"]) != model.config.features:
        raise ValueError(f"{options.checkpoint} takes {model.config.features} numbers a frame, {folder} makes {got}")
    known = read_vocabulary(folder / "vocabulary.csv").names
    names = [known.get(label, f"label {label}") for label in notes["labels"]]
    film = list(pictures(options.video, fps=extractor.about["fps"], size=extractor.size))
    film = [film[t] for t in chosen_frames(len(film), model.config.max_frames)]
    seen, batch, attack = _searched(options, extractor, model.float(), film, ThreatModel(**notes["threat"]))
    attacked = perturb(seen, batch, attack, generator=torch.Generator().manual_seed(0))
    shown: dict = {"attacked_frames": None, "attacked_pictures": None}
    if options.attack == "pixels":
        attacked = stored_pictures(attacked, batch.frames)
        shown["attacked_pictures"] = as_pictures(attacked[0], extractor.size)
    view = explorer.look(seen, batch, attacked)
    if options.attack == "frame":
        shown["attacked_frames"] = view.attacked_frames
    said = {key: _likeliest(scores, names) for key, scores in view.scores.items()}
    title = f"{options.video.name}: {view.moved:.0%} of the attention moved"
    plots.save(plot_film(film, view.attention, said=said, title=title, **shown), options.out)
    return f"clean: {said['clean']}; attacked: {said['attacked']}; {options.out}"


def _likeliest(scores: np.ndarray, names: list[str]) -> str:
    return ", ".join(f"{names[c]} {scores[c]:.2f}" for c in np.argsort(-scores)[:3])


def _searched(options, extractor, model, film: list, threat: ThreatModel) -> tuple[torch.nn.Module, Batch, Attack]:
    """The model that is attacked, the film as it takes it, and the attack; the labels to lose are those predicted."""
    aim: dict = {"steps": 10, "labels": "predicted"}
    none = torch.zeros(1, model.config.labels)
    if options.attack == "pixels":
        threat = ThreatModel("linf", options.epsilon or PIXEL, box=(0, 1))
        return FilmModel(extractor, model), pixel_batch([film], none), Attack(threat, **aim)
    features = torch.from_numpy(extracting.network_features(extractor.network, film))
    frames = torch.from_numpy(dequantize(quantize(extractor.project(features).numpy())))
    threat = replace(threat, epsilon=options.epsilon or threat.epsilon)
    threat = threat.few() if options.attack == "frame" else threat
    return model, collate([Item(frames, none[0], "film")]), Attack(threat, **aim)


def _films_of(path: Path, data_dir: Path | None) -> Path:
    """The folder with the extractor of a model: the one given, or one near the checkpoint. Raises: ValueError."""
    near = [folder / name for folder in path.resolve().parents[:2] for name in ("", "films")]
    for folder in [data_dir] if data_dir else near:
        if (folder / extracting.FILES[0]).is_file():
            return folder
    where = f"in {data_dir}" if data_dir else f"near {path}"
    told = "which tells how features are made; give --data-dir, the films that the model was trained on"
    raise ValueError(f"there is no {extracting.FILES[0]} {where}, {told}")
