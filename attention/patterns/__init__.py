"""Who attends to whom: the families of patterns, their composition, their text, their pictures."""

from attention.patterns import mask_mods as mask_mods  # enters how `Pattern.from_mask_mod` makes a pattern
