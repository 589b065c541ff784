"""What a recipe is made of: the protocol of a step, the steps, and what they measure and fit with."""
