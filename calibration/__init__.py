"""The three jobs: emulate, calibrate, study."""
