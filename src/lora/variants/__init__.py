"""The variants, one file each. Registering one is its line here."""

from lora.core.variant import register
from lora.variants.dora import Dora
from lora.variants.plain import Plain

for variant in (Plain(), Dora()):
    register(variant)
