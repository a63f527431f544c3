"""The same on other machines: nothing that only POSIX has, another code page, few files, little shared memory."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aart_lib import checkpoint
from aart_lib.cli.parser import main
from aart_lib.data import synthetic
from aart_lib.data.records import encode_sequence_example, write_records

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="on Linux the other systems are acted")
ROOT = Path(__file__).parent.parent
TINY = replace(synthetic.SETTINGS["default"], train_videos=40, test_videos=10, shard_size=10, frames=(3, 5))
LOOKS = "text.usetex: True\nbackend: TkAgg\nsavefig.dpi: 30\nsavefig.format: pdf\naxes.grid: True\nfont.size: 30\n"


def python(*command, **environment) -> str:
    """Standard output of a program in a process of its own, which must end with 0."""
    known = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([str(part) for part in command], env=known, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    return done.stdout.decode(environment.get("PYTHONIOENCODING", "utf-8"))


def commands(data: Path, out: Path, *, readers: str, jobs: str) -> list[list[str]]:
    small = ["--data-dir", str(data), "--epochs", "1"]
    quick = ["--preset", "quick", "--test-videos", "8", "--defenses", "trades", "--jobs", jobs, "--epsilon", "0.1"]
    return [
        ["describe", "--data-dir", str(data)],
        ["train", *small, "--defense", "trades", "--workers", readers, "--out", str(out / "trained")],
        ["reproduce", *small, *quick, "--out", str(out / "run")],
        ["report", str(out / "run" / "results.json"), "--out", str(out / "run" / "again")],
    ]


def numbers(out: Path) -> list:
    """What the commands came to, times left out: the table, the weights, the pictures."""
    found = json.loads((out / "run" / "results.json").read_text(encoding="utf-8"))
    for part in [*found["rows"], *found["summary"].values(), *(e for row in found["rows"] for e in row["history"])]:
        part.pop("train_seconds", 0), part.pop("seconds", 0)
    models = [out / "trained" / "model.safetensors", *sorted((out / "run" / "checkpoints").glob("*.safetensors"))]
    weights = [value.tolist() for path in models for value in checkpoint.load(path)[0].state_dict().values()]
    return [found, len(models), weights, {path.name: path.read_bytes() for path in (out / "run").rglob("*.png")}]


def test_without_posix_in_another_code_page_with_few_files_all_commands_give_the_same(tmp_path, capsys):
    synthetic.write(TINY, tmp_path / "data")
    for command in commands(tmp_path / "data", tmp_path / "plain", readers="0", jobs="1"):
        assert main(command) == 0
    plain, out = capsys.readouterr().out, tmp_path / "größer"
    (tmp_path / "matplotlibrc").write_text(LOOKS, encoding="utf-8")
    page = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    work = json.dumps(commands(tmp_path / "data", out, readers="1", jobs="2"), ensure_ascii=False)
    program = sys.executable, "-X", "warn_default_encoding", ROOT / "tests" / "tools" / "bare_machine.py", work
    bare = python(*program, MATPLOTLIBRC=str(tmp_path / "matplotlibrc"), **page)
    text = lambda said: sorted(line for line in said.splitlines() if str(tmp_path) not in line)  # noqa: E731
    assert text(bare) == text(plain.encode("cp1252", "replace").decode("cp1252"))
    assert numbers(out) == numbers(tmp_path / "plain")
    assert not [path for path in tmp_path.rglob(".*")]


READ = """
import sys
from pathlib import Path
from aart_lib.data import DatasetSpec, VideoDataset
SPEC = DatasetSpec("tiny", {"rgb": (300, 300)}, 5, ("train*.tfrecord",), ("test*.tfrecord",), max_frames=40)
dataset = VideoDataset(sorted(Path(sys.argv[2]).glob("*.tfrecord")), SPEC)
for workers in (0, 2):
    kept = list(dataset.batches(int(sys.argv[1]), workers=workers))
    print(len(dataset), sum(float(batch.frames.double().sum() + batch.labels.sum()) for batch in kept))
"""
FEW_FILES = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh"]
LITTLE_SHARED = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=4m tmpfs /dev/shm && exec "$@"', "sh"]


@pytest.mark.parametrize(("machine", "size"), [(FEW_FILES, 5), (LITTLE_SHARED, 30)], ids=["64 files", "4 MB shared"])
def test_120_shards_are_read_alike_with_readers_or_without(tmp_path, machine, size):
    if subprocess.run([*machine, "true"], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    random = np.random.default_rng(0)
    for number in range(120):
        frames = random.integers(0, 256, (40, 300), np.uint8)
        payload = encode_sequence_example({"id": f"v{number}", "labels": [number % 5]}, {"rgb": frames})
        write_records(tmp_path / f"train{number:03d}.tfrecord", [payload])
    found = python(*machine, sys.executable, "-c", READ, size, tmp_path).splitlines()
    assert len(found) == 2 and len(set(found)) == 1 and found[0].startswith("120 ")
