"""What attacks on pixels leave of models that resist attacks on features, on the bundled films of photographs.

    python figures/pixels.py --films 4       # one minute per film on two cores; goes on from what is there

Writes figures/pixels.json: GAP of each model on the first test films, each attack (PGD-10) made for its model.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from photographs import photograph_film, photograph_halves

from aart_lib import Attack, ThreatModel, checkpoint, gap, perturb, probabilities
from aart_lib.data import extractor as extracting
from aart_lib.data.pixels import PIXEL, FilmModel, pixel_batch, stored_pictures
from aart_lib.data.vocabulary import read_vocabulary
from aart_lib.runtime.files import read_json, write_json

HERE = Path(__file__).parent
FILMS = HERE.parent / "notebooks" / "films"
MODELS = ("standard", "adversarial-simple", "trades", "a-art")


def test_films(count: int, names: list[str]) -> list:
    """The first test films, one batch each: an attack moves each film by itself."""
    halves, found = photograph_halves(), []
    for i in range(count):
        frames, times = photograph_film("test", i, halves)
        labels = torch.zeros(1, len(names))
        labels[0, [names.index(label) for label, *_ in times]] = 1
        found.append(pixel_batch([frames], labels))
    return found


def attacks() -> Iterator[tuple[str, Attack]]:
    for steps in (1, 2):
        threat = ThreatModel("linf", steps * PIXEL, box=(0, 1))
        yield f"noise {steps}/255", Attack(threat, steps=0)
        yield f"attack {steps}/255", Attack(threat, steps=10)
    yield "one frame 8/255", Attack(ThreatModel("linf", PIXEL, box=(0, 1)).few(), steps=10)
    yield "one frame, anything", Attack(ThreatModel("linf", PIXEL, box=(0, 1)).spliced(), steps=10)


@torch.no_grad()
def features_moved_by_noise(model: FilmModel, film, frames) -> torch.Tensor:
    """Scores [1,C] where each feature moves as far as the attack moved it, up or down by a coin."""
    shape = (3, model.extractor.size, model.extractor.size)
    clean, attacked = (model.extractor(x[film.mask].unflatten(1, shape)) for x in (film.frames, frames))
    coins = torch.randint(0, 2, clean.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return probabilities(model.model((clean + coins * (attacked - clean).abs())[None], film.mask).logits)


def scores(model: FilmModel, films: list) -> dict[str, list]:
    """{what was done: [scores [1,C] of each film]}; pictures as a file holds them, before rounding where it says so."""
    found: dict[str, list] = {}

    @torch.no_grad()
    def note(key: str, film, frames) -> None:
        found.setdefault(key, []).append(probabilities(model(frames, film.mask).logits))

    for film in films:
        note("clean", film, film.frames)
        for key, attack in attacks():
            frames = perturb(model, film, attack, generator=torch.Generator().manual_seed(0))
            stored = stored_pictures(frames, film.frames)
            note(key, film, stored)
            if key.startswith("attack"):
                note(f"{key}, before rounding", film, frames)
            if key == "attack 1/255":
                moved = features_moved_by_noise(model, film, stored)
                found.setdefault("features moved as far by noise", []).append(moved)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", type=int, default=4)
    parser.add_argument("--out", type=Path, default=HERE / "pixels.json")
    options = parser.parse_args()
    films = test_films(options.films, list(read_vocabulary(FILMS / "vocabulary.csv").names.values()))
    labels, extractor = torch.cat([film.labels for film in films]), extracting.load(FILMS)
    results = read_json(options.out)
    if results.get("films") != options.films:
        results = {"films": options.films, "seed": 0, "steps": 10, "gap": {}}
    for name in MODELS:
        if name not in results["gap"]:
            model = FilmModel(extractor, checkpoint.load(FILMS / "checkpoints" / f"{name}-seed0.safetensors")[0].eval())
            row = {key: gap(torch.cat(values), labels) for key, values in scores(model, films).items()}
            results["gap"][name] = row
            write_json(options.out, results)
        print(name, json.dumps(results["gap"][name]), flush=True)


if __name__ == "__main__":
    main()
