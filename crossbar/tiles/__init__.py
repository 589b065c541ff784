"""Cells: from weights to targets, programming, ageing, faults, and what columns see of them."""
