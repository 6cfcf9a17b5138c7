"""Language models: loading, log-probabilities, anchors, adapters, shards, devices."""
