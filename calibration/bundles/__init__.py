"""Deployment bundles: one calibrated chip as a folder, written, verified, inspected, loaded and exported."""
