"""Which token may look at which, drawn: `AttentionMaskVisualizer(model)(text)`."""

from refimpl.attention_visualizer.view import AttentionMaskView
from refimpl.attention_visualizer.visualizer import AttentionMaskVisualizer

__all__ = ["AttentionMaskView", "AttentionMaskVisualizer"]
