"""Serve best-of-N: answers drawn of a model or of another server, and the one with the highest reward returned."""

import asyncio
import socket
from contextlib import closing
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nonpareil.commands.inputs import load_reward
from nonpareil.commands.serve.probes import unanswerable
from nonpareil.commands.serve.upstreams import LocalSource, ServedSource, source_of
from nonpareil.errors import ConfigError
from nonpareil.options.rewards import check_remote, reward_labels, specs_of
from nonpareil.options.serve import ServeOptions
from nonpareil.options.unread import absent_rewards
from nonpareil.settings import refuse_unread
from nonpareil.terminal import tell

if TYPE_CHECKING:
    from nonpareil.rewards.combine import CombinedReward
    from nonpareil.serving.body import Defaults

_EXTRA = ("fastapi", "uvicorn", "prometheus_client")
_LOOPBACK = ("127.", "::1", "localhost")


def run(options: ServeOptions) -> dict[str, Any]:
    """Serve until SIGINT or SIGTERM; returns how many requests were answered.

    Raises:
        NonpareilError: options, models or rewards that cannot work, a port in use, before any model is loaded where
            that can be known.
    """
    key = _check(options)
    from nonpareil.serving.running import address_of, bound

    with closing(bound(options.host, options.port)) as here:
        source = source_of(options)
        reward = load_reward(options, source.tokenizer)
        without = unanswerable(source, reward, options.best_of)
        address = address_of(here)
        if key is None and not options.host.startswith(_LOOPBACK):
            tell(f"whoever reaches {address} may ask: no key is asked for (client_key_env)")
        return asyncio.run(_serve(options, source, reward, without, key, here, address))


def _check(options: ServeOptions) -> str | None:
    """What can be refused before anything is read; returns the key that clients must give."""
    from nonpareil.remote import key_of

    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        raise ConfigError(f'nonpareil serve needs {", ".join(missing)}: pip install "nonpareil[serve]"')
    if options.best_of > options.max_best_of:
        raise ConfigError(
            f"best_of={options.best_of} is more than max_best_of={options.max_best_of}; raise that"
        )
    check_remote(options)
    if not specs_of(options) and options.judge_model is None:
        raise ConfigError(
            "no reward: give reward_model_name_or_path, reward_funcs, reward_endpoints, judge_model, or several"
        )
    refuse_unread(options, absent_rewards(options, None))
    return key_of(options.client_key_env, "client_key_env")


async def _serve(
    options: ServeOptions,
    source: LocalSource | ServedSource,
    reward: "CombinedReward",
    without: dict[bool, str],
    key: str | None,
    here: socket.socket,
    address: str,
) -> dict[str, Any]:
    from nonpareil.serving.app import Pages, app_of
    from nonpareil.serving.running import Server
    from nonpareil.serving.scoring import Scorer
    from nonpareil.serving.service import Bounds, Service

    upstream = source.open()
    name = source.name or (await upstream.models())[0]
    bounds = Bounds(
        options.max_running,
        options.max_waiting,
        options.max_tokens_per_request,
        options.max_tokens_per_minute,
    )
    service = Service(
        upstream, Scorer(reward), _defaults(options, name, without), bounds, fallback=options.fallback
    )
    pages = Pages(service, key=key, most_bytes=options.max_body_bytes)
    server = Server(app_of(pages), pages, options.drain_seconds)
    try:
        tell(
            f"{name} at {address}/v1: each answer is the best of {options.best_of} by "
            f"{', '.join(reward_labels(options))}; Ctrl-C stops"
        )
        await server.serve(sockets=[here])
    finally:
        await service.close()
    return {"address": address, "answered": service.answered, "failed": service.failed}


def _defaults(options: ServeOptions, name: str, without: dict[bool, str]) -> "Defaults":
    from nonpareil.serving.body import Defaults
    from nonpareil.serving.choosing import RULES

    return Defaults(
        model=name,
        best_of=options.best_of,
        max_best_of=options.max_best_of,
        rule=options.rule,
        rules=RULES,
        max_tokens=options.max_completion_length,
        seconds=options.request_deadline,
        without=without,
    )
