"""The spike-gated controller: events, their routing and timing, what they gate and cost."""
