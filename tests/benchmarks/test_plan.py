"""work.py, timing.py, plan.py: counted work is PyTorch's, memory is what autograd keeps, the fit finds known costs."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aart_lib.losses import DEFENSES
from aart_lib.model import ModelConfig, VideoTransformer

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(Path(__file__).parent))

from plan import FULL, checked, moves, page, plan, total, worst  # noqa: E402
from timing import FITTED, HELD_OUT, Shape, kept_bytes, measure, measure_reading  # noqa: E402
from work import A100, Passes, fit, parameters, passes, work  # noqa: E402

SMALL = (40, 30, 32, 4, 3, 24, 4)  # features, labels, width, heads, layers, frames, batch
KNOWN = replace(A100, flops=5e10, map_bytes=8e9, bytes=2e10, call=4e-4)


def counted(step) -> int:
    """FLOPs as PyTorch counts them, fused attention taken apart so that it is counted too."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return counter.get_total_flops()


@pytest.mark.parametrize("changes", [{}, {"layers": 1}, {"pooling": "mean"}, {"attention": "uniform"}])
def test_flops_of_a_forward_pass_are_those_that_pytorch_counts(changes):
    model = ModelConfig(**{"features": 40, "labels": 30, "max_frames": 24, "width": 32, "layers": 3} | changes)
    video = torch.zeros(2, 20, 40), torch.ones(2, 20, dtype=torch.bool)
    with torch.no_grad():
        fused = counted(lambda: VideoTransformer(model)(*video))
        looked = counted(lambda: VideoTransformer(model)(*video, return_attention=True))
    assert work(model, 20, 2, Passes(1)).flops == fused
    assert work(model, 20, 2, Passes(1, looked=1)).flops == looked


@pytest.mark.parametrize("name", "standard adversarial trades vat a-art a-art-few adversarial-mean".split())
def test_work_and_memory_of_a_training_step_are_those_of_a_real_one(name):
    shape = Shape(name, *SMALL)
    assert shape.work.flops == pytest.approx(counted(shape.step()[1]), rel=1e-9)
    assert sum(shape.memory.values()) - shape.memory["weights"] == pytest.approx(kept_bytes(shape), rel=0.2)


def test_fit_recovers_known_costs_from_noisy_steps():
    rng, works = np.random.default_rng(0), [shape.work for shape in FITTED]
    exact = fit(works, [KNOWN.seconds(one) for one in works], A100)
    assert exact.costs == pytest.approx(KNOWN.costs, rel=1e-6)
    found = fit(works, [KNOWN.seconds(one) * rng.normal(1, 0.03) for one in works], A100)
    held = [shape.work for shape in HELD_OUT]
    assert [found.seconds(one) for one in held] == pytest.approx([KNOWN.seconds(one) for one in held], rel=0.1)


def test_measuring_gives_a_time_for_each_shape_and_round():
    (found,) = measure([Shape("a-art", *SMALL)], rounds=2)
    assert len(found["seconds"]) == 2 and min(found["seconds"]) > 0 and found["kept"] > 0
    assert all(1e6 < rate < 1e11 for rate in measure_reading(videos=2, rounds=1).values())


def test_the_committed_page_is_of_the_committed_steps_and_predicts_those_held_out_within_a_fifth():
    results = json.loads((ROOT / "figures" / "scale-plan.json").read_text(encoding="utf-8"))
    one, rows = checked(results)
    assert {row["shape"] for row in rows if row["held"]} == set(HELD_OUT) and not set(HELD_OUT) & set(FITTED)
    assert worst(rows, "error", held=True) <= 0.2 and worst(rows, "kept error", held=True) <= 0.2
    changed = [row | {"seconds": [9.9]} if row["held"] else row for row in results["steps"]]
    assert checked(results | {"steps": changed})[0] == one  # the fit does not look at them
    assert (ROOT / "figures" / "scale-plan.md").read_text(encoding="utf-8") == page(results)


def hours(devices=1, **changes):
    return plan(FULL, 300, 32, DEFENSES["a-art"], replace(A100, **changes), devices=devices, videos=3.2e6)


def test_hours_are_the_division_one_would_do_by_hand():
    found, many, size = hours(), hours(64), 3.2e6 * 300 * 1152
    step = A100.seconds(work(FULL, 300, 32, passes(DEFENSES["a-art"])))
    assert found["computing"] == pytest.approx(10 * 1e5 * step / 3600) and found["all-reduce"] == 0
    assert found["reading"] == pytest.approx(10 * size / (8 * A100.reader_bytes) / 3600)
    assert found["storage"] == many["storage"] == pytest.approx(10 * size / A100.storage / 3600)
    ring = 2 * 63 / 64 * 4 * parameters(FULL) / A100.network * 10 * 1563 / 3600
    assert many["all-reduce"] == pytest.approx(ring)
    assert many["computing"] == pytest.approx(found["computing"] / 64, 1e-3)


def test_what_overlaps_counts_once_and_the_longest_part_moves_to_what_devices_do_not_divide():
    found = {"computing": 5.0, "all-reduce": 1.0, "reading": 4.0, "storage": 2.0, "opening": 3.0, "evaluation": 0.5}
    assert total(found, A100) == 6 + 3.5
    assert total(found, replace(A100, reader_cores=0)) == 10 + 3.5
    assert total(found | {"storage": 20.0}, A100) == 20 + 3.5
    (first, one), (second, other) = moves(range(1, 257), hours)
    assert (first, one, other) == (1, "computing", "storage") and hours(second)["storage"] > hours(second)["computing"]
