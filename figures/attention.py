"""The first pictures of notebooks 01, 03 and 04: python figures/attention.py

A film of photographs as the model gets it, and a synthetic video before and under a one-frame attack: of the first 100
test videos the one that misleads the baseline most, a strong example, not a typical one.
"""

from pathlib import Path

import torch

from aart_lib import ThreatModel, checkpoint, collate, open_data, perturb, pgd, probabilities
from aart_lib.attention import temporal_attention
from aart_lib.data import synthetic
from aart_lib.data.batch import Batch
from aart_lib.data.vocabulary import read_vocabulary
from aart_lib.model import predict
from aart_lib.scoring import generator_for
from aart_lib.viz import plots
from aart_lib.viz.explorer import look

HERE = Path(__file__).parent
FOLDER = HERE.parent / "notebooks"
TITLES = {"standard": "Baseline", "a-art": "A-ART"}


@torch.no_grad()
def most_misled(model, batch: Batch, attacked: torch.Tensor) -> int:
    """The video with the largest product of attention moved and probability that a true label lost."""
    before, after = (predict(model, frames, batch.mask, return_attention=True) for frames in (batch.frames, attacked))
    lost = ((probabilities(before.logits) - probabilities(after.logits)) * batch.labels).amax(1)
    moved = (temporal_attention(before.attention or ()) - temporal_attention(after.attention or ())).abs().sum(1) / 2
    return int((lost * moved).argmax())


def draw_film() -> None:
    films = open_data("films")
    item, names = films.test[0], list(read_vocabulary(FOLDER / "films" / "vocabulary.csv").names.values())
    about = {
        "pictures": item.pictures,
        "both": True,
        "title": "What we see, what the model gets, and when a label shows",
    }
    plots.save(plots.plot_timeline(item.frames, item.evidence, names, **about), HERE / "film-as-features.png")


def draw_attack() -> None:
    folder = FOLDER / "checkpoints"
    models = {name: checkpoint.load(folder / f"{name}-seed0.safetensors") for name in TITLES}
    one_frame = pgd(ThreatModel(**models["a-art"][1]["threat"]).few())
    batch = collate(list(open_data("synthetic").test.select(range(100))))
    attacked = {n: perturb(m, batch, one_frame, generator=generator_for("picture")) for n, (m, _) in models.items()}
    chosen = most_misled(models["standard"][0], batch, attacked["standard"])
    one = batch[chosen : chosen + 1].trimmed()
    assert one.evidence is not None  # synthetic videos have it
    names = synthetic.names(synthetic.SETTINGS["default"])
    for name, (model, _) in models.items():
        view = look(model, one, attacked[name][chosen : chosen + 1, : one.mask.shape[1]])
        about = {"labels": one.labels[0], "title": f"{TITLES[name]}: one attacked frame, and where attention goes"}
        figure = plots.plot_timeline(one.frames[0], one.evidence[0], names, **about, **view._asdict())
        plots.save(figure, HERE / f"attention-under-attack-{name}.png")


if __name__ == "__main__":
    draw_film()
    draw_attack()
