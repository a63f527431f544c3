"""What all tests share: genuine data where it is there, one thread for torch, and repeatable property tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")


def pytest_configure():
    """The models are tiny, and tests run side by side (pytest-xdist): more threads would only wait for each other."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the notebooks' kernels and of commands that tests start
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what they compare with lies on the CPU, and so shall the trainings
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with genuine shards; tests that need it are skipped where it is not there."""
    folder = os.environ.get("AART_REAL_DATA", "")
    if not folder:
        pytest.skip("set AART_REAL_DATA to a folder with genuine AudioSet and YouTube-8M shards to run this test")
    if not Path(folder).is_dir():
        pytest.skip(f"AART_REAL_DATA names {folder!r}, which is not a folder; set it to one with genuine shards")
    return Path(folder)
