"""How an endpoint is named: by one string, wherever a reward is named. Light, for options are checked with it.

    json+http://host:port/path#name      our own protocol, see docs/endpoints-rewards.md
    vllm+http://host:port#model          vLLM's classify route; `model` is a directory or hub id, for its tokenizer

The name behind the # says what is scored with, the address only where. Stored scores are reused while the
name (and what the server says of itself) is equal, whatever host and port; so no manifest holds an address.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from nonpareil.errors import ConfigError
from nonpareil.remote import checked_base_url, host_of


@dataclass(frozen=True)
class Endpoint:
    """Where a reward is served, and what it is called."""

    kind: Literal["json", "vllm"]
    base_url: str
    path: str
    label: str
    """What stands behind the #: a name, or the reward model."""


def is_endpoint(spec: Any) -> bool:
    """Whether a string names an endpoint rather than a model or function."""
    return isinstance(spec, str) and re.match(r"(\w+\+)?https?://", spec) is not None


def public_name(spec: str) -> str:
    """A reward's name for a report: an endpoint's without its address, any other as it is."""
    return parse_endpoint(spec).label if is_endpoint(spec) else spec


def parse_endpoint(spec: str) -> Endpoint:
    """The parts of an endpoint's name.

    Raises:
        ConfigError: no such form, or a password in it (which the message does not repeat).
    """
    kind, plus, url = spec.partition("+")
    address, _, label = url.partition("#")
    if not plus or kind not in ("json", "vllm") or not label.strip():
        raise ConfigError(
            f"reward endpoint {host_of(spec)!r} must be json+http://host:port/path#name, the name that its scores "
            "are stored under, or vllm+http://host:port#model, the directory or hub id of the served reward model"
        )
    address = checked_base_url(address, "reward endpoint")
    parts = urlsplit(address)
    if kind == "vllm":
        return Endpoint("vllm", address, "classify", label)
    if not re.fullmatch(r"[\w.+-]+", label):
        raise ConfigError(
            f"reward endpoint name {label!r} becomes a column's; use letters, digits, '_', '-', '+' and '.'"
        )
    return Endpoint("json", f"{parts.scheme}://{parts.netloc}", parts.path or "/", label)
