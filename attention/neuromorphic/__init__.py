"""Bridges to neuromorphic hardware: TrueNorth, Loihi, integrate-and-fire neurons, NIR."""
