"""Analog layers and models: convert, program, age, train, save."""
