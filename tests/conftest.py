"""What holds for every test."""

import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    """A test's numbers are the same in every run, alone or among others."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (faulty.py draws from it)
    torch.manual_seed(0)
