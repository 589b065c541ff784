"""What jobs found, as numbers, tables and pictures."""
