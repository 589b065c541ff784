"""Files that outlive a process: written whole, with checksums."""
