"""Rewards that are models: in this process, in vLLM, or served by one."""
