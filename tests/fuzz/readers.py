"""All readers of files that are fed."""

from __future__ import annotations

from tests.fuzz import (
    read_index,
    read_japanese,
    read_json_object,
    read_neox,
    read_safetensors,
    read_settings,
    read_spiece_model,
    read_torch,
)

READERS = {
    reader.name: reader
    for module in (
        read_json_object,
        read_japanese,
        read_neox,
        read_settings,
        read_spiece_model,
        read_safetensors,
        read_index,
        read_torch,
    )
    for reader in module.READERS
}
