"""The films of photographs that lie in the repository: they need no extra."""

import torch

from aart_lib import checkpoint, collate, open_data, score
from aart_lib.cli.parser import main
from aart_lib.data.catalog import BUNDLED
from aart_lib.data.pictures import from_jpeg
from aart_lib.data.vocabulary import vocabulary


def test_bundled_films_are_small_and_have_pictures_times_and_models_that_know_them():
    splits = open_data("films")
    item = splits.test[0]
    assert len(item.pictures) == len(item.frames) == len(item.evidence)
    assert from_jpeg(item.pictures[0]).shape == (96, 96, 3)
    batch = collate([splits.test[i] for i in range(3)])
    assert batch[torch.tensor([2, 0])].pictures == (batch.pictures[2], batch.pictures[0])
    assert next(iter(splits.test.batches(3))).pictures is None  # training looks at none
    assert vocabulary(splits.spec, BUNDLED).names[2] == "cat"
    for path in sorted((BUNDLED / "checkpoints").glob("*.safetensors")):
        model, notes = checkpoint.load(path)
        assert notes["labels"] == splits.labels and score(model, splits.test)["gap"] > 0.85
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) < 4.3e6


def test_a_model_of_films_is_evaluated_though_no_preset_says_how_many_numbers_a_frame_has(tmp_path):
    model = str(BUNDLED / "checkpoints" / "standard-seed0.safetensors")
    few = ["--suite", "quick", "--test-videos", "2", "--out", str(tmp_path)]
    assert main(["evaluate", model, "--data", "films", *few]) == 0
