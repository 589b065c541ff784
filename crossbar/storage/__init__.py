"""Files: written whole, read within bounds, never unpickled."""
