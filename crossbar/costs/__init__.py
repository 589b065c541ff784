"""Events counted while a model runs, and what they cost."""
