"""The kinds of digital layers that can become analog: their matrices, and how they compute with them."""

from crossbar.adapters.convolution import Convolution
from crossbar.adapters.own_forward import OwnForward
from crossbar.adapters.protocol import LayerAdapter, Part, Product, Shaped
from crossbar.adapters.registry import (
    adapter_of,
    digital_parts,
    digital_products,
    find_adapter,
    is_convertible,
    is_rows,
    register_adapter,
    why_digital,
)

__all__ = [
    "Convolution",
    "LayerAdapter",
    "OwnForward",
    "Part",
    "Product",
    "Shaped",
    "adapter_of",
    "digital_parts",
    "digital_products",
    "find_adapter",
    "is_convertible",
    "is_rows",
    "register_adapter",
    "why_digital",
]
