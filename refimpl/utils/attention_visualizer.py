"""`AttentionMaskVisualizer` under the module name that it has in transformers."""

from __future__ import annotations

from refimpl.attention_visualizer import AttentionMaskVisualizer
from refimpl.attention_visualizer.view import AttentionMaskView

__all__ = ["AttentionMaskView", "AttentionMaskVisualizer"]
