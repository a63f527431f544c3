"""processes.py, training.py, judge.py: several processes give what one gives, and tell when one of them dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shared_run import SPEC, stepped
from test_training import write_videos

from aart_lib import scoring
from aart_lib.data.batch import Part, drawn
from aart_lib.data.catalog import open_splits
from aart_lib.losses import DEFENSES

PROGRAM = Path(__file__).parents[1] / "tools" / "shared_run.py"
ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder, "train", 62, 0)  # 31 to train: the last batch of eight has seven, one part is smaller
    write_videos(folder, "test", 24, 1)
    return folder


def start(videos, out, count, name="a-art", launcher=(), **options) -> subprocess.CompletedProcess:
    """The finished program, run by ``count`` processes."""
    out.mkdir(exist_ok=True)
    spread = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)] if count > 1 else []
    command = [sys.executable, *(launcher or spread), str(PROGRAM), str(videos), str(out), name, json.dumps(options)]
    environment = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def run(videos, out, count, name="a-art", **options) -> list[dict]:
    """What each process wrote."""
    done = start(videos, out, count, name, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(path.read_text()) for path in sorted(out.glob("rank*.json"))]


@pytest.fixture(scope="module")
def one(videos, tmp_path_factory):
    (found,) = run(videos, tmp_path_factory.mktemp("one"), 1)
    return found


def test_two_processes_give_the_losses_and_scores_of_one(videos, one, tmp_path):
    first, second = run(videos, tmp_path / "two", 2, workers=1)
    assert first["weights"] == second["weights"] and first["row"] == second["row"]
    for a, b in zip(one["losses"], first["losses"], strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-7)
    for a, b in zip(one["history"], first["history"], strict=True):
        assert (a["clean"], a["attacked"]) == pytest.approx((b["clean"], b["attacked"]), abs=1e-9)
    for key in ("clean", "worst"):
        assert abs(one["row"][key]["gap"] - first["row"][key]["gap"]) <= 1e-9
    for key, scores in one["scores"].items():
        np.testing.assert_allclose(scores, first["scores"][key], atol=1e-4)
    names = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert names == ["rank0.json", "rank1.json", "run.state"]  # whoever keeps the model deletes the state


def test_every_defense_takes_the_same_steps_in_two_processes_with_parts(videos, tmp_path):
    done = start(videos, tmp_path, 2, "every defense", accumulate=2)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    for name in DEFENSES:
        for key, weight in stepped(name, open_splits(SPEC, videos)).items():
            assert torch.equal(first[name][key], second[name][key])
            torch.testing.assert_close(first[name][key], weight, rtol=0, atol=1e-9, msg=f"{name}: {key}")


def test_judging_is_shared_exactly(videos, tmp_path):
    alike = {"name": "untrained", "suite": "strong", "batch": 5}  # five batches of 24 videos
    (one,) = run(videos, tmp_path / "one", 1, **alike)
    found = run(videos, tmp_path / "two", 2, **alike)
    for other in found:
        assert other["scores"] == one["scores"]
        mean = lambda row: {k: v for k, v in row.items() if k.startswith("attention")}  # noqa: E731
        assert mean(other["row"]) == pytest.approx(mean(one["row"]), rel=1e-12)
        for key in ("clean", "attacked", "worst", "other", "checks", "steady_attention"):
            assert other["row"][key] == one["row"][key], key


def test_when_a_process_is_killed_the_other_says_so_and_the_run_can_go_on(videos, one, tmp_path):
    done = start(videos, tmp_path / "two", 2, kill=21)
    assert done.returncode != 0 and "another process of this run ended" in done.stderr, done.stderr[-3000:]
    assert "--resume" in done.stderr
    (found,) = run(videos, tmp_path / "two", 1)  # with one process from the last finished epoch
    assert len(found["losses"]) < len(one["losses"])
    same = zip(one["losses"][-len(found["losses"]) :], found["losses"], strict=True)
    assert all(a == pytest.approx(b, rel=1e-4) for a, b in same)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_stop_in_the_middle_of_an_epoch_is_agreed_on_and_gone_on_from(videos, one, tmp_path, before, after):
    done = start(videos, tmp_path / "run", before, stop=22)
    assert done.returncode != 0 and "stopped after 23 steps" in done.stderr, done.stderr[-3000:]
    first, *_ = run(videos, tmp_path / "run", after)
    assert len(first["losses"]) == len(one["losses"]) - 23
    for a, b in zip(one["losses"][23:], first["losses"], strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_accelerate_launches_the_same_program_in_half_precision_and_weights_stay_whole(videos, tmp_path):
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--mixed_precision", "bf16"]
    (found,) = run(videos, tmp_path, 1, launcher=[*launcher, "--num_machines", "1"], epochs=2)
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
