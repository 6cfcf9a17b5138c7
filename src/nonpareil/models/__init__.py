"""Floor 2: loading, log-probabilities, anchors, devices."""
