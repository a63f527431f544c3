"""What all tests share: genuine data where it is there, all cores for torch, and repeatable property tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")


def pytest_configure():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(cores or 1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with genuine shards; tests that need it are skipped where it is not there."""
    folder = os.environ.get("AART_REAL_DATA", "")
    if not folder:
        pytest.skip("set AART_REAL_DATA to a folder with genuine AudioSet and YouTube-8M shards to run this test")
    if not Path(folder).is_dir():
        pytest.skip(f"AART_REAL_DATA names {folder!r}, which is not a folder; set it to one with genuine shards")
    return Path(folder)
