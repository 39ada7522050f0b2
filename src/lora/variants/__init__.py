"""Variants: one file each, and a line in `lora.registry`."""

from __future__ import annotations

from lora.core.variant import register
from lora.registry import VARIANTS, load

for place in [place for place in VARIANTS.values() if place is not None]:
    register(load(place)())
