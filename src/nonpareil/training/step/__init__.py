"""One optimizer step, in the order of its life.

`sampler` draws from policy and anchor and scores; `batch` holds what came of it as tensors, from which the method
makes its targets; `descent` asks `accumulate` for the gradient, and leaves out prompts whose numbers are none
(`not_finite`); `signal` decides whether the step moves the policy; `metrics` are what is logged.
"""
