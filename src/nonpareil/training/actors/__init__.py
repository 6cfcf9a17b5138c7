"""What draws in a training step: the policy and its anchor as copies, as adapters, in shards or in vLLM."""
