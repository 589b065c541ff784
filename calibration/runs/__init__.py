"""How a job is run: what it was asked for, the model on its tiles, what it has found so far."""
