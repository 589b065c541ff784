"""transformers models: attached patterns, analog caches, their masks."""
