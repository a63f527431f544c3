"""checkpoint.py: what is saved comes back exactly, and no file, however broken, gets further than one sentence."""

import json
import pickle
import struct
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file
from small import network

from aart_lib import checkpoint
from aart_lib.runtime import files

NOTES = {"data": "synthetic", "labels": [2, 0, 7, 5], "defense": "a-art", "seed": 3, "history": [{"clean": 0.5}]}
NOTES |= {"threat": {"norm": "linf", "epsilon": 0.04}}


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(tmp_path / "model.safetensors", network(), NOTES)
    return tmp_path / "model.safetensors"


def forge(path, *, text=None, tensors=None, without="", config=None, notes=None) -> None:
    """A safetensors file with other tensors, settings or notes, or with another text for its description."""
    held = {name: tensor.contiguous() for name, tensor in network().state_dict().items() if name != without}
    described = {"config": asdict(network().config) | (config or {}), "notes": {"version": 1} | NOTES | (notes or {})}
    save_file(held | (tensors or {}), path, metadata={"aart": text or json.dumps(described)})


def cut(path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize("changes", [{}, {"attention": "uniform", "pooling": "mean"}])
def test_weights_settings_and_notes_come_back_exactly(tmp_path, changes):
    model, path = network(**changes).train(), tmp_path / "deep" / "model.safetensors"
    checkpoint.save(path, model, NOTES)
    before = torch.get_rng_state()
    loaded, notes = checkpoint.load(path)
    assert torch.equal(torch.get_rng_state(), before)  # of the run around it
    assert loaded.config == model.config and notes == NOTES | {"version": checkpoint.VERSION}
    assert not loaded.training and all(parameter.requires_grad for parameter in loaded.parameters())
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("around", [torch.float64, torch.bfloat16, "meta", "inference"])
def test_torchs_defaults_do_not_change_what_is_loaded(tmp_path, kind, around):
    model, path = network().to(kind), tmp_path / "model.safetensors"
    checkpoint.save(path, model, NOTES)
    try:
        torch.set_default_dtype(around if isinstance(around, torch.dtype) else torch.float32)
        with torch.device("meta" if around == "meta" else "cpu"), torch.inference_mode(around == "inference"):
            loaded, _ = checkpoint.load(path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert not any(parameter.is_inference() for parameter in loaded.parameters())
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_an_interrupted_save_leaves_the_old_file_and_no_other(saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr(checkpoint, "to_bytes", lambda *_, **__: 1 / 0)
    for path in (saved, saved.with_name("other.safetensors")):
        with pytest.raises(ZeroDivisionError):
            checkpoint.save(path, network(), NOTES | {"seed": 4})
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_notes_that_lack_something_are_not_saved(tmp_path):
    for key in ("data", "labels", "defense", "seed", "threat"):
        with pytest.raises(ValueError, match=f"missing: {key}"):
            checkpoint.save(tmp_path / "x", network(), {k: v for k, v in NOTES.items() if k != key})
    assert list(tmp_path.iterdir()) == []


# What is forged of a sound file, or done to it, and what the sentence names.
BROKEN = {
    "missing tensor": ({"without": "cls"}, "tensor 'cls'"),
    "unknown tensor": ({"tensors": {"extra": torch.zeros(1)}}, "tensor 'extra'"),
    "wrong shape": ({"tensors": {"cls": torch.zeros(9)}}, "tensor 'cls'"),
    "wrong type": ({"tensors": {"cls": torch.zeros(8, dtype=torch.int64)}}, "tensor 'cls'"),
    "two types": ({"tensors": {"cls": torch.zeros(8, dtype=torch.float64)}}, "is not what the model"),
    "NaN weight": ({"tensors": {"cls": torch.full((8,), torch.nan)}}, "'cls' holds NaN or inf"),
    "huge header": (lambda p: p.write_bytes(struct.pack("<Q", 2**50) + bytes(100)), "header claims 1125899906842624"),
    "truncated": (lambda p: cut(p, -10), "not a readable checkpoint"),
    "cut in the header": (lambda p: cut(p, 200), "header claims"),
    "empty": (lambda p: cut(p, 0), "not a"),
    "text": (lambda p: p.write_text("These are not the weights you are looking for."), "not a checkpoint"),
    "pickle": (lambda p: torch.save({"cls": torch.zeros(2)}, p), "not a checkpoint"),
    "no description": (lambda p: save_file({"cls": torch.zeros(8)}, p), "no description"),
    "description too deep": ({"text": "[" * 200_000}, "not a readable checkpoint"),
    "description a list": ({"text": "[1]"}, "no description"),
    "unknown setting": ({"config": {"girth": 8}}, "girth"),
    "unknown choice": ({"config": {"attention": "taught"}}, "unknown attention 'taught'"),
    "a size that is none": ({"config": {"width": "8"}}, "description"),
    "negative size": ({"config": {"layers": -2}}, "sizes"),
    "no head": ({"config": {"heads": 0}}, "description"),
    "enormous sizes": ({"config": {"width": 2**18, "features": 2**19}}, "is not what the model"),
    "enormous depth": ({"config": {"layers": 2**19, "width": 2}}, "description"),
    "other version": ({"notes": {"version": 99}}, "version 99"),
    "missing notes": ({"text": json.dumps({"config": asdict(network().config), "notes": {"version": 1}})}, "labels"),
    "another number of labels": ({"notes": {"labels": [1]}}, "labels"),
    "labels that are no numbers": ({"notes": {"labels": [[0], [0], [0], [0]]}}, "labels"),
    "a seed that is text": ({"notes": {"seed": "0"}}, "seed"),
    "no threat": ({"notes": {"threat": 5}}, "description"),
    "negative epsilon": ({"notes": {"threat": {"norm": "linf", "epsilon": -1}}}, "epsilon must be"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_a_sentence_that_names_it(saved, name):
    broken, message = BROKEN[name]
    if isinstance(broken, dict):
        forge(saved, **broken)
    else:
        broken(saved)
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.load(saved)
    assert str(saved) in str(caught.value)


def test_a_path_without_a_file_is_named(tmp_path):
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(ValueError, match=r"is not a file; give the path of a model\.safetensors"):
            checkpoint.load(path)


def test_a_training_state_comes_back_exactly(tmp_path):
    state = {"epoch": 3, "history": [{"clean": 0.1}], "model": {"a": torch.randn(3)}, "name": "x"}
    files.save_state(tmp_path / "s", state)
    found = files.load_state(tmp_path / "s")
    assert torch.equal(found["model"].pop("a"), state["model"].pop("a")) and found == state


def test_a_training_state_that_would_run_code_is_refused(tmp_path):
    class Runs:
        def __reduce__(self):
            return print, ("this must never be printed",)

    (tmp_path / "evil").write_bytes(pickle.dumps(Runs()))
    torch.save({"x": Runs()}, tmp_path / "evil2")
    (tmp_path / "text").write_text("no state")
    torch.save([1, 2], tmp_path / "list")
    for name in ("evil", "evil2", "text", "list"):
        with pytest.raises(ValueError, match=f"{name} is not a readable training state; delete it"):
            files.load_state(tmp_path / name)
