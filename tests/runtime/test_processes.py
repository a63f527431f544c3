"""processes.py, training.py, judge.py: several processes give what one gives, and tell when one of them dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shared_run import SPEC, judge_untrained, stepped, train_and_judge
from test_training import write_videos

from aart_lib import scoring
from aart_lib.data.batch import Part, drawn
from aart_lib.data.catalog import open_splits
from aart_lib.losses import DEFENSES

PROGRAM = Path(__file__).parents[1] / "tools" / "shared_run.py"
ROOT = str(Path(__file__).resolve().parents[2])
SPREAD = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
STOP = 9  # in the middle of the third epoch
pytestmark = pytest.mark.timeout(480)  # two processes do in one go what many tests look at


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder, "train", 62, 0)  # 31 to train: the last batch of eight has seven, one part is smaller
    write_videos(folder, "test", 24, 1)
    return folder


def start(launcher: list[str], *work) -> subprocess.CompletedProcess:
    """The finished program: work is the name of a function, its data, its folder and options."""
    for _, _, out, _ in work:
        out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", *launcher, str(PROGRAM), json.dumps(work, default=str)]
    environment = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)


def told(folder: Path) -> list[dict]:
    """What each process wrote."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


@pytest.fixture(scope="module")
def one(videos, tmp_path_factory) -> dict:
    """What one process finds."""
    return train_and_judge(videos, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(videos, written, tmp_path_factory) -> Path:
    """The folders in which two processes did one piece of work after another."""
    out, data = tmp_path_factory.mktemp("two"), written(train_videos=40, test_videos=12, shard_size=40, frames=(3, 5))
    (out / "gone on").mkdir()
    train_and_judge(videos, out / "gone on", stop=STOP)  # in this process alone
    done = start(
        SPREAD,
        ("command_line", data, out / "command", {}),
        ("train_and_judge", videos, out / "trained", {"workers": 1}),
        ("train_and_judge", videos, out / "stopped", {"stop": STOP}),
        ("train_and_judge", videos, out / "gone on", {}),
        ("judge_untrained", videos, out / "judged", {}),
        ("step_every_defense", videos, out / "steps", {}),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_two_processes_give_the_losses_and_scores_of_one(one, two):
    first, second = told(two / "trained")
    assert first["weights"] == second["weights"] and first["row"] == second["row"]
    for a, b in zip(one["losses"], first["losses"], strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-7)
    for a, b in zip(one["history"], first["history"], strict=True):
        assert (a["clean"], a["attacked"]) == pytest.approx((b["clean"], b["attacked"]), abs=1e-9)
    for key in ("clean", "worst"):
        assert abs(one["row"][key]["gap"] - first["row"][key]["gap"]) <= 1e-9
    for key, scores in one["scores"].items():
        np.testing.assert_allclose(scores, first["scores"][key], atol=1e-4)


def test_processes_of_one_run_share_its_folder_and_one_of_them_writes(two):
    assert [path.name for path in (two / "command").iterdir()] == ["model.safetensors"]
    names = sorted(path.name for path in (two / "trained").iterdir())
    assert names == ["rank0.json", "rank1.json", "run.state"]  # whoever keeps the model deletes the state


def test_every_defense_takes_the_same_steps_in_two_processes_with_parts(videos, two):
    first, second = (torch.load(two / "steps" / f"rank{rank}.pt") for rank in (0, 1))
    for name in DEFENSES:
        for key, weight in stepped(name, open_splits(SPEC, videos), size=14).items():
            assert torch.equal(first[name][key], second[name][key])
            torch.testing.assert_close(first[name][key], weight, rtol=0, atol=1e-9, msg=f"{name}: {key}")


def test_judging_is_shared_exactly(videos, two, tmp_path):
    alone = judge_untrained(videos, tmp_path)
    attention = {key: value for key, value in alone["row"].items() if key.startswith("attention")}
    for shared in told(two / "judged"):
        assert shared["scores"] == alone["scores"]
        assert {key: shared["row"][key] for key in attention} == pytest.approx(attention, rel=1e-12)
        for key in ("clean", "attacked", "worst", "other", "checks", "steady_attention"):
            assert shared["row"][key] == alone["row"][key], key


def test_when_a_process_is_killed_the_other_says_so_and_the_run_can_go_on(videos, one, tmp_path):
    done = start(SPREAD, ("train_and_judge", videos, tmp_path, {"kill": STOP}))
    assert done.returncode != 0 and "another process of this run ended" in done.stderr, done.stderr[-3000:]
    assert "--resume" in done.stderr
    found = train_and_judge(videos, tmp_path)  # with one process from the last finished epoch
    same = zip(one["losses"][8:], found["losses"], strict=True)
    assert all(a == pytest.approx(b, rel=1e-4) for a, b in same)


def test_a_stop_in_the_middle_of_an_epoch_is_agreed_on_and_gone_on_from(videos, one, two):
    assert [len(found["losses"]) for found in told(two / "stopped")] == [STOP + 1] * 2
    for found in (train_and_judge(videos, two / "stopped"), *told(two / "gone on")):
        for a, b in zip(one["losses"][STOP + 1 :], found["losses"], strict=True):
            assert a == pytest.approx(b, rel=1e-4)


def test_accelerate_launches_the_same_program_in_half_precision_and_weights_stay_whole(videos, tmp_path):
    launcher = ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
    work = "train_and_judge", videos, tmp_path, {"epochs": 2}
    done = start([*launcher, "--mixed_precision", "bf16"], work)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = told(tmp_path)
    assert 0 < found["row"]["worst"]["gap"] <= 1 and found["types"] == ["torch.float32"]


# ---------------------------------------------------------------- one process


def test_parts_draw_their_rows_of_what_the_whole_draws_in_any_order():
    def fresh():
        return torch.Generator().manual_seed(5)

    assert torch.equal(drawn((2, 3, 3), Part(fresh(), 6, 4, 3)), drawn((6, 4, 3), fresh())[3:5, :3])
    first, generator = Part(fresh(), 6, 4), fresh()
    other, whole = first.at(3), [drawn((6, 4, 3), generator) for _ in "ab"]
    found = [drawn((3, 4, 3), part) for part in (other, first, first, other)]
    for rows, expected in zip(found, (whole[0][3:], whole[0][:3], whole[1][:3], whole[1][3:]), strict=True):
        assert torch.equal(rows, expected)


def test_merged_totals_are_the_total():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((40, 5)), rng.random((40, 5)) < 0.3
    parts = [scoring.Accumulator().update(scores[i::3], labels[i::3]) for i in range(3)]
    assert scoring.merged(parts).result() == scoring.Accumulator().update(scores, labels).result()
