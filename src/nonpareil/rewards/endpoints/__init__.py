"""Rewards that a server computes: how an endpoint is named, our JSON protocol, many requests to one server."""
