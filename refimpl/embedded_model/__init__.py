"""The small Japanese model that ships inside the package; see README.md beside this file."""

from __future__ import annotations

from pathlib import Path


def embedded_model_path() -> Path:
    """The folder of the model: config, weights, vocabulary and emoji table."""
    return Path(__file__).parent
