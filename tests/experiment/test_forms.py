"""figures/forms.py: as many trials for one method as for the other, and a form is chosen over all worlds."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aart_lib.data import Splits, VideoDataset
from aart_lib.losses import DEFENSES
from aart_lib.model import ModelConfig
from aart_lib.steps import TrainConfig
from aart_lib.threats import ThreatModel
from aart_lib.training import Run, train

WHERE = Path(__file__).parents[2] / "figures"
CODE = runpy.run_path(str(WHERE / "forms.py"))


def weights_of(kind: type, beta: float, epochs: int) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    frames, labels = torch.randn(8, 4, 6, generator=made), torch.rand(8, 3, generator=made) > 0.5
    data = VideoDataset.from_tensors(frames, labels)
    defense = DEFENSES["a-art"]
    defense = replace(defense, weights=dict(defense.weights) | {"attention": beta})
    shape = ModelConfig(6, 3, max_frames=4, width=16, heads=2)
    how: dict = {"progress": None, "kind": kind}
    model, _ = train(
        defense, Splits(data.spec, data, data, data), shape, ThreatModel("linf", 0.1), TrainConfig(epochs, 2), **how
    )
    return [weight.detach() for weight in model.parameters()]


def test_a_late_term_counts_from_the_middle_of_the_training_on():
    late, without = (weights_of(kind, beta, epochs=1) for kind, beta in ((CODE["Late"], 9.0), (Run, 0.0)))
    assert all(map(torch.equal, late, without))
    late, without = (weights_of(kind, beta, epochs=2) for kind, beta in ((CODE["Late"], 9.0), (Run, 0.0)))
    assert not all(map(torch.equal, late, without))


def test_both_methods_get_as_many_trials_and_each_differs_from_the_others():
    ours, theirs = CODE["PLAN"].values()
    assert len(ours) == len(theirs)
    for method, forms in CODE["PLAN"].items():
        recipes = [(repr(CODE["recipe"]("audioset", method, changes)), kind) for changes, kind in forms.values()]
        assert len(set(recipes)) == len(forms)


def test_the_form_with_the_highest_mean_over_all_worlds_comes_first():
    forms = [*CODE["PLAN"]["trades"]][:3]
    merits = {"a": (0.9, 0.8, 0.99), "b": (0.5, 0.7, None)}  # the third was not tried everywhere
    rows = [
        {"world": world, "method": "trades", "form": form, "merit": merit}
        for world, found in merits.items()
        for form, merit in zip(forms, found, strict=True)
        if merit is not None
    ]
    order = CODE["chosen"](rows, "trades")
    assert [form for form, *_ in order] == [forms[1], forms[0]]
    assert order[0][1] == pytest.approx(0.75)


def test_the_committed_page_is_what_the_ledger_says():
    ledger = json.loads((WHERE / "forms.json").read_text(encoding="utf-8"))
    assert CODE["written"](**ledger) == (WHERE / "forms.md").read_text(encoding="utf-8")
