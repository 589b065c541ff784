"""The parts of the third job, `calibration.study`: what varies, where results are kept, who computes, what is shown."""
