"""Rewards that are models, run by transformers, by vLLM in this process, or by a vLLM server."""
