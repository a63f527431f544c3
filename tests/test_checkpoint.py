"""checkpoint.py: what is saved comes back exactly, and no file, however broken, gets further than one sentence."""

import json
import pickle
import struct
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

from aart_lib import checkpoint
from aart_lib.model import ModelConfig, VideoTransformer
from aart_lib.runtime import files

CONFIG = ModelConfig(features=4, labels=3, max_frames=5, width=8, heads=2, layers=2)
NOTES = {"data": "synthetic", "labels": [2, 0, 7], "defense": "a-art", "seed": 3, "history": [{"clean": 0.5}]}
NOTES |= {"threat": {"norm": "linf", "epsilon": 0.04}}


def network(config=CONFIG) -> VideoTransformer:
    torch.manual_seed(0)
    return VideoTransformer(config)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, network(), NOTES)
    return path


def description(config=CONFIG, notes=None) -> str:
    return json.dumps({"config": asdict(config), "notes": {"version": 1} | (NOTES if notes is None else notes)})


def forge(path, *, tensors=None, text=None) -> None:
    """A safetensors file with other tensors or another description."""
    tensors = tensors if tensors is not None else {k: v.contiguous() for k, v in network().state_dict().items()}
    save_file(tensors, path, metadata={"aart": description() if text is None else text})


@pytest.mark.parametrize("changes", [{}, {"attention": "uniform", "pooling": "mean"}])
def test_weights_settings_and_notes_come_back_exactly(tmp_path, changes):
    model, path = network(replace(CONFIG, **changes)).train(), tmp_path / "deep" / "model.safetensors"
    checkpoint.save(path, model, NOTES)
    before = torch.get_rng_state()
    loaded, notes = checkpoint.load(path)
    assert torch.equal(torch.get_rng_state(), before)  # of the run around it
    assert loaded.config == model.config and not loaded.training
    assert notes == NOTES | {"version": checkpoint.VERSION}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    frames, mask = torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    assert torch.equal(loaded(frames, mask).logits, model.eval()(frames, mask).logits)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("around", [torch.float64, torch.bfloat16, "meta", "inference"])
def test_torchs_defaults_do_not_change_what_is_loaded(tmp_path, kind, around):
    model, path = network().to(kind), tmp_path / "model.safetensors"
    checkpoint.save(path, model, NOTES)
    try:
        if isinstance(around, torch.dtype):
            torch.set_default_dtype(around)
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


def changed(**tensors) -> dict:
    return {k: v.contiguous() for k, v in network().state_dict().items()} | tensors


def without(*names) -> dict:
    return {k: v for k, v in changed().items() if k not in names}


def described(**notes):
    """Break a file's notes: with these in place of the sound ones."""
    return lambda path: forge(path, text=description(notes=NOTES | notes))


def rewritten(old: str, new: str):
    return lambda path: forge(path, text=description().replace(old, new))


def resized(**changes):
    return lambda path: forge(path, text=description(replace(CONFIG, **changes)))


def holding(cls: torch.Tensor):
    return lambda path: forge(path, tensors=changed(cls=cls))


BROKEN = {
    "missing tensor": (lambda p: forge(p, tensors=without("cls")), "tensor 'cls'"),
    "unknown tensor": (lambda p: forge(p, tensors=changed(extra=torch.zeros(1))), "tensor 'extra'"),
    "wrong shape": (holding(torch.zeros(9)), "tensor 'cls'"),
    "wrong type": (holding(torch.zeros(8, dtype=torch.int64)), "tensor 'cls'"),
    "two types": (holding(torch.zeros(8, dtype=torch.float64)), "is not what the model"),
    "NaN weight": (holding(torch.full((8,), torch.nan)), "'cls' holds NaN or inf"),
    "huge header": (lambda p: p.write_bytes(struct.pack("<Q", 2**50) + bytes(100)), "header claims 1125899906842624"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-10]), "not a readable checkpoint"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:200]), "header claims"),
    "empty": (lambda p: p.write_bytes(b""), "not a"),
    "text": (lambda p: p.write_text("These are not the weights you are looking for."), "not a checkpoint"),
    "pickle": (lambda p: torch.save({"cls": torch.zeros(2)}, p), "not a checkpoint"),
    "no description": (lambda p: save_file(changed(), p), "no description"),
    "description too deep": (lambda p: forge(p, text="[" * 200_000), "not a readable checkpoint"),
    "description a list": (lambda p: forge(p, text="[1]"), "no description"),
    "unknown setting": (rewritten('"width"', '"girth"'), "girth"),
    "unknown choice": (rewritten('"learned"', '"taught"'), "unknown attention 'taught'"),
    "a size that is none": (rewritten('"width": 8', '"width": "8"'), "description"),
    "negative size": (rewritten('"layers": 2', '"layers": -2'), "sizes"),
    "no head": (rewritten('"heads": 2', '"heads": 0'), "description"),
    "enormous sizes": (resized(width=2**18, features=2**19), "is not what the model"),
    "enormous depth": (resized(layers=2**19, width=2), "description"),
    "other version": (described(version=99), "version 99"),
    "missing notes": (lambda p: forge(p, text=description(notes={"data": "synthetic"})), "labels"),
    "another number of labels": (described(labels=[1]), "labels"),
    "labels that are no numbers": (described(labels=[[0]] * len(NOTES["labels"])), "labels"),
    "a seed that is text": (described(seed="0"), "seed"),
    "no threat": (described(threat=5), "description"),
    "negative epsilon": (described(threat={"norm": "linf", "epsilon": -1}), "epsilon must be"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_a_sentence_that_names_it(saved, name):
    breaking, message = BROKEN[name]
    breaking(saved)
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
