"""Analog memory for keys and values."""
