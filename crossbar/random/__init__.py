"""Random numbers addressed by key and element, the same on any thread, device or shard."""
