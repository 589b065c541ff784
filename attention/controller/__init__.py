"""The spike-gated controller: events, their routing and timing, what they let through and what they cost."""
