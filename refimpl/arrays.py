"""Bringing arrays home."""

from __future__ import annotations

from typing import Any

import numpy as np


def to_numpy(array: Any) -> np.ndarray:
    """Any backend's array as a NumPy array on the host."""
    return array.get() if hasattr(array, "__cuda_array_interface__") else np.asarray(array)
