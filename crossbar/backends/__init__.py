"""What computes with cells: drive, sense, convert, on each kind of processor."""
