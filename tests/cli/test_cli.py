"""cli.py: every command helps, works, and answers a mistake with one sentence, exit code 2 and nothing left behind."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aart_lib import checkpoint
from aart_lib.cli import commands
from aart_lib.cli.parser import main, parser
from aart_lib.data import synthetic
from aart_lib.experiment import reproduce
from aart_lib.model import ModelConfig, VideoTransformer
from aart_lib.training import TrainingStopped

SMALL = {"train_videos": 40, "test_videos": 12, "shard_size": 40, "frames": (3, 5)}
COMMANDS = sorted(next(a.choices for a in parser()._actions if a.dest == "command"))


@pytest.fixture(scope="module")
def tiny(written) -> Path:
    return written(**SMALL)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """A model trained by the command line."""
    out = tmp_path_factory.mktemp("trained") / "model"
    assert main(["train", "--data-dir", str(tiny), "--defense", "a-art", "--epochs", "1", "--out", str(out)]) == 0
    return out / "model.safetensors"


def answer(capsys, *arguments) -> str:
    """The one line of standard error that a mistake is answered with."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    said = capsys.readouterr()
    assert code == 2, said
    lines = [line for line in said.err.splitlines() if line.strip()]
    assert len(lines) == 1 and "Traceback" not in said.err, said.err
    assert said.out == ""
    return lines[0]


def no_file(folder: Path) -> bool:
    return not folder.exists() or not any(path.is_file() for path in folder.rglob("*"))


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and f"usage: python -m aart_lib {command}" in capsys.readouterr().out


def test_help_comes_at_once_because_it_loads_no_torch():
    program = "import sys, runpy; sys.argv = ['aart_lib', '--help']\ntry: runpy.run_module('aart_lib')\n"
    program += "except SystemExit: print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "False" and all(command in said for command in COMMANDS)


# ---------------------------------------------------------------- train, evaluate, describe


def test_a_trained_model_is_one_file_that_knows_what_it_is(trained):
    model, notes = checkpoint.load(trained)
    assert [path.name for path in trained.parent.iterdir()] == ["model.safetensors"]
    assert notes["defense"] == "a-art" and notes["labels"] == list(range(40)) and notes["seed"] == 0
    assert notes["threat"]["norm"] == "linf" and model.config.features == 320


@pytest.fixture
def models(trained, tmp_path) -> Path:
    """A folder with the trained model, as `one` and `two`, and a model of five labels."""
    (tmp_path / "models").mkdir()
    model, notes = checkpoint.load(trained)
    small = VideoTransformer(replace(model.config, labels=5))
    checkpoint.save(tmp_path / "models" / "five.safetensors", small, notes | {"labels": notes["labels"][:5]})
    for name in ("one", "two"):
        (tmp_path / "models" / f"{name}.safetensors").write_bytes(trained.read_bytes())
    return tmp_path / "models"


def test_a_trained_model_is_evaluated_on_the_same_data_beside_the_models_that_fit(
    models, tiny, tmp_path, capsys, short_suite, no_figures
):
    out = tmp_path / "eval"
    given = ["--data-dir", str(tiny), "--suite", "strong", "--out", str(out)]
    assert main(["evaluate", str(models / "one.safetensors"), *given]) == 0
    results = json.loads((out / "results.json").read_text())
    (row,) = results["rows"]
    assert row["defense"] == "a-art"
    assert {"noise", "fgsm", "pgd", "apgd", "pgd-targeted", "gradient-free", "label-free"} <= set(row["attacked"])
    assert {name for name in row["attacked"] if name.startswith("transfer-")} == {"transfer-two"}
    assert "transfer-ahead" in {flag["name"] for flag in results["flags"]}
    assert results["data"]["videos"]["test"] == 12 and results["threat"]["norm"] == "linf"
    assert f"worst {row['worst']['gap']:.3f}" in capsys.readouterr().out
    assert main(["report", str(out / "results.json")]) == 0
    assert "| a-art |" in (out / "report.md").read_text()


def test_surrogates_are_those_given_or_the_fitting_ones_beside_the_model(models, tiny, tmp_path, capsys, monkeypatch):
    def evaluate(*arguments, surrogates, **options):
        raise ValueError(f"tried by {[*surrogates]}")

    monkeypatch.setattr(commands, "evaluate", evaluate)
    one, two, five, gone = (models / f"{name}.safetensors" for name in ("one", "two", "five", "gone"))
    line = ["evaluate", one, "--data-dir", tiny, "--suite", "strong", "--out", tmp_path / "out"]
    for given, words in (
        ([], "tried by ['two']"),
        (["--surrogates"], "tried by []"),
        (["--surrogates", one, two], "tried by ['two']"),
        (["--surrogates", five], f"{five} takes other frames or labels"),
        (["--surrogates", gone], f"{gone} is not a file"),
    ):
        assert words in answer(capsys, *line, *given) and no_file(tmp_path / "out")


def test_a_model_of_an_unseen_variant_and_of_few_labels_is_evaluated_on_these_and_no_others(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("AART_CACHE", str(tmp_path / "cache"))
    for name, seed in (("default", 0), ("short", 1)):
        monkeypatch.setitem(synthetic.SETTINGS, name, replace(synthetic.SETTINGS[name], **SMALL, seed=seed))
    out, data = tmp_path / "out", ["--data", "synthetic:short"]
    given = ["--defense", "standard", "--labels", "5", "--epochs", "1", "--epsilon", "0.1", "--out", str(out)]
    assert main(["train", *data, *given]) == 0
    model = str(out / "model.safetensors")
    assert main(["evaluate", model, *data, "--suite", "quick", "--out", str(tmp_path / "eval")]) == 0
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["data"]["settings_hash"] == synthetic.settings_hash(synthetic.SETTINGS["short"])
    assert len(results["data"]["labels"]) == 5 and results["threat"]["epsilon"] == 0.1
    folder = synthetic.ensure(synthetic.SETTINGS["default"])
    for other in (["synthetic:long"], ["synthetic"], ["synthetic", "--data-dir", folder]):
        said = answer(capsys, "evaluate", model, "--data", *other, "--out", tmp_path / "x")
        assert "was trained on synthetic:short; evaluate it with --data synthetic:short" in said


def test_describe_says_what_the_data_is(tiny, capsys, monkeypatch):
    monkeypatch.setitem(synthetic.SETTINGS, "short", replace(synthetic.SETTINGS["default"], **SMALL))
    for data in ("synthetic", "synthetic:short"):
        assert main(["describe", "--data", data, "--data-dir", str(tiny)]) == 0
        said = capsys.readouterr().out
        assert "stands in for YouTube-8M" in said and "20 training, 20 validation, 12 test videos" in said


# ---------------------------------------------------------------- bad data


@pytest.mark.parametrize("command", ["train", "reproduce"])
def test_a_bad_record_to_judge_on_is_named_before_anything_is_trained(tiny, tmp_path, capsys, command):
    folder = shutil.copytree(tiny, tmp_path / "data")
    path = next(folder.glob("test*.tfrecord"))
    path.write_bytes(path.read_bytes()[:-100])
    said = answer(capsys, command, "--data-dir", folder, "--out", tmp_path / "out")
    assert "the file ends" in said and str(path) in said and "byte" in said and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- bad arguments


MISTAKES = [
    ([], "COMMAND"),
    (["fly"], "fly"),
    (["train", "--frobnicate"], "--frobnicate"),
    (["train", "--epsilon", "-0.1"], "epsilon must be a number of at least 0, got -0.1"),
    (["train", "--epsilon", "much"], "--epsilon"),
    (["train", "--epsilon", "0.1", "--norm", "l7"], "unknown norm 'l7'; known: linf, l2-frame, l2-clip"),
    (["reproduce", "--norm", "l2-clip"], "--norm needs --epsilon"),
    (["reproduce", "--epsilon", "1e30"], "--epsilon must be above 0 and at most 10000"),
    (["train", "--defense", "magic"], "unknown defense 'magic'; known: standard"),
    (["reproduce", "--defenses", "a-art,magic"], "unknown defense 'magic'; known: standard"),
    (["reproduce", "--data", "imagenet"], "unknown data set 'imagenet'; known: synthetic"),
    (["train", "--data", "audioset"], "audioset needs --data-dir"),
    (["train", "--data", "synthetic:tall"], "unknown variant of the synthetic data 'tall'; known: default, short"),
    (["train", "--data", "synthetic:short", "--data-dir", "{tiny}"], "was not generated as synthetic:short"),
    (["reproduce", "--data", "audioset:short"], "audioset has no variants, got 'short'"),
    (["reproduce", "--preset", "huge"], "unknown preset 'huge'; known: quick, small, full"),
    (["reproduce", "--suite", "huge"], "unknown suite 'huge'; known: quick, standard, splice, strong"),
    (["reproduce", "--seeds", "0"], "--seeds must be at least 1, got 0"),
    (["train", "--seed", "-1"], "seed must be from 0"),
    (["train", "--workers", "-1"], "--workers must be at least 0, got -1"),
    (["train", "--labels", "41"], "--labels must be between 1 and the"),
    (["train", "--labels", "²"], "no label or vertical is called '²'"),
    (["train", "--sampling", "last"], "unknown sampling 'last'; known: uniform, random, contiguous"),
    (["train", "--data", "synthetic", "--sampling", "random"], "--sampling changes nothing"),
    (["evaluate", "{trained}", "--labels", "5"], "40 labels of its own, others than --labels 5"),
    (["evaluate", "{trained}", "--segments"], "--segments judges the rated segments of yt8m-frame"),
    (["evaluate", "{trained}", "--surrogates", "{trained}"], "tries no --surrogates; take --suite strong"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_bad_arguments_are_named(tiny, trained, tmp_path, capsys, arguments, words):
    arguments = [argument.format(tiny=tiny, trained=trained) for argument in arguments]
    data = [] if "--data" in arguments else ["--data-dir", tiny]
    assert words in answer(capsys, *arguments, *data, "--out", tmp_path / "out")
    assert no_file(tmp_path / "out")


def test_a_folder_in_use_or_an_out_that_is_a_file_is_not_overwritten(tiny, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for command in ("train", "reproduce"):
        said = answer(capsys, command, "--data-dir", tiny, "--out", tmp_path)
        assert f"{tmp_path} is not empty; add --resume" in said
    assert str(tmp_path / "notes.txt") in answer(capsys, "train", "--data-dir", tiny, "--out", tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


# ---------------------------------------------------------------- bad checkpoints and results


def test_a_missing_or_broken_checkpoint_and_one_of_other_data_are_named(trained, tmp_path, capsys):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(trained.read_bytes()[:-50])
    cases = (tmp_path / "gone", "is not a file"), (broken, "not a readable"), (trained, "was trained on synthetic")
    for path, words in cases:
        line = ["evaluate", path, "--data", "audioset", "--data-dir", tmp_path, "--out", tmp_path / "out"]
        said = answer(capsys, *line)
        assert str(path) in said and words in said and not (tmp_path / "out").exists()


def test_a_model_of_another_preset_names_the_one_to_take(tmp_path, capsys):
    notes = {"data": "yt8m-frame", "labels": [0], "defense": "x", "seed": 0, "threat": {"norm": "linf", "epsilon": 0.1}}
    checkpoint.save(tmp_path / "m.safetensors", VideoTransformer(ModelConfig(1152, 1, width=8, heads=2)), notes)
    said = answer(capsys, "evaluate", tmp_path / "m.safetensors", "--data", "yt8m-frame", "--out", tmp_path / "out")
    assert "takes 1152 numbers a frame, --preset small gives 320; take --preset full" in said


def test_a_finished_model_is_not_replaced_by_one_of_other_settings(trained, tiny, capsys):
    before = trained.read_bytes()
    line = ["train", "--data-dir", tiny, "--defense", "trades", "--epochs", "1", "--out", trained.parent, "--resume"]
    assert f"{trained} was trained with other settings" in answer(capsys, *line)
    assert trained.read_bytes() == before


@pytest.mark.parametrize("text", [None, "{", "[]", "[" * 10**6, '{"rows": []}', '{"rows": [{}]}'])
def test_missing_and_broken_results_are_named(tmp_path, capsys, text):
    path = tmp_path / "results.json"
    if text:
        path.write_text(text)
    assert "results.json" in answer(capsys, "report", path)
    assert len(list(tmp_path.iterdir())) == bool(text)


# ---------------------------------------------------------------- other ends


def test_a_training_that_must_stop_has_an_exit_code_of_its_own(tiny, tmp_path, capsys, monkeypatch):
    def stopped(*arguments, **options):
        raise TrainingStopped("the loss is not finite")

    monkeypatch.setattr(reproduce, "train", stopped)
    assert main(["train", "--data-dir", str(tiny), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "aart: training stopped: the loss is not finite\n"


def test_a_developer_can_have_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("AART_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown defense"):
        main(["train", "--defense", "magic", "--out", str(tmp_path / "out")])
