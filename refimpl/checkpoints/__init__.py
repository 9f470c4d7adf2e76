"""Weight files of every kind, opened without believing them."""

from refimpl.checkpoints.safetensors_file import WEIGHTS_NAME, SafetensorsFile

__all__ = ["WEIGHTS_NAME", "SafetensorsFile"]
