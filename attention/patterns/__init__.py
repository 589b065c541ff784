"""Who attends to whom: the families of patterns, their composition, their text, their pictures."""
