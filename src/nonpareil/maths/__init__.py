"""Best-of-N as a known distribution: pure functions of tensors, no model.

Modules, to be imported by name: `best_of_n`, `order_statistics`, `quantiles`, `kl`, `losses`, `win_rate`,
`bootstrap`.
Conventions: KL and log-probabilities are nats; a failed reward is NaN and is excluded, never counted as zero;
axes are `b` prompts, `n`, `m`, `k` samples, `y` outcomes, `v` vocabulary.
"""
