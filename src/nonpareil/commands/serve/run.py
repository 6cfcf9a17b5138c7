"""Serve best-of-N: answers drawn of a model or of another server, and the one with the highest reward returned."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nonpareil.commands.inputs import load_reward
from nonpareil.commands.places import check_output, inputs_of
from nonpareil.commands.serve.probes import unanswerable
from nonpareil.commands.serve.stopping import check_rounds, stopping_of
from nonpareil.commands.serve.upstreams import LocalSource, ServedSource, source_of
from nonpareil.errors import ConfigError
from nonpareil.options.rewards import asked_rewards, check_remote
from nonpareil.options.serve import CHOOSES, ServeOptions
from nonpareil.options.unread import absent_rewards
from nonpareil.serving.choosing import checked_rule
from nonpareil.settings import refuse_unread
from nonpareil.terminal import tell

if TYPE_CHECKING:
    from nonpareil.rewards.combine import CombinedReward
    from nonpareil.serving.body import Defaults
    from nonpareil.serving.group_folder import GroupFolder
    from nonpareil.serving.service import Service
    from nonpareil.serving.stopping import Stopping

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

    with closing(bound(options.host, options.port)) as here, _groups(options) as groups:
        if key is None and not options.host.startswith(_LOOPBACK):
            tell(f"whoever reaches {address_of(here)} may ask: no key is asked for (client_key_env)")
        source = source_of(options)
        reward = load_reward(options, source.tokenizer) if options.chooses else None
        stopping = stopping_of(options, source, reward)
        without = unanswerable(source, reward, options.best_of)
        defaults = _defaults(options, source.name, without, stopping)
        return asyncio.run(_serve(options, source, reward, defaults, groups, key, here))


def _check(options: ServeOptions) -> str | None:
    """What can be refused before anything is read; returns the key that clients must give."""
    from nonpareil.remote import key_of

    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        raise ConfigError(f'nonpareil serve needs {", ".join(missing)}: pip install "nonpareil[serve]"')
    if not options.chooses and options.best_of > 1:
        raise ConfigError(
            f"best_of={options.best_of} answers, and no reward to choose among them by: give "
            "reward_model_name_or_path, reward_funcs, reward_endpoints, judge_model, or several; or best_of=1"
        )
    if options.best_of > options.max_best_of:
        raise ConfigError(
            f"best_of={options.best_of} is more than max_best_of={options.max_best_of}; raise that"
        )
    if not options.chooses:
        refuse_unread(options, {CHOOSES: "none is named"})
    check_rounds(options)
    check_remote(options)
    refuse_unread(options, absent_rewards(options, None))
    checked_rule(options.rule, options.best_of)
    if options.groups is not None:
        check_output("groups", options.groups, inputs_of(options))
    return key_of(options.client_key_env, "client_key_env")


@contextmanager
def _groups(options: ServeOptions) -> "Iterator[GroupFolder | None]":
    """The folder that groups are kept in, held; None where none is."""
    if options.groups is None:
        yield None
        return
    from nonpareil.serving.group_folder import GroupFolder
    from nonpareil.serving.redaction import load_redaction

    redact = None if options.groups_redact is None else load_redaction(options.groups_redact)
    with GroupFolder(
        options.groups, flush=options.groups_flush, keep_days=options.groups_keep_days, redact=redact
    ) as folder:
        yield folder


async def _serve(
    options: ServeOptions,
    source: LocalSource | ServedSource,
    reward: "CombinedReward | None",
    defaults: "Defaults",
    groups: "GroupFolder | None",
    key: str | None,
    here: socket.socket,
) -> dict[str, Any]:
    from nonpareil.serving.app import Pages, app_of
    from nonpareil.serving.running import Server, address_of
    from nonpareil.serving.scoring import Scorer
    from nonpareil.serving.service import Bounds, Service

    upstream = source.started()
    bounds = Bounds(
        options.max_running,
        options.max_waiting,
        options.max_tokens_per_request,
        options.max_tokens_per_minute,
    )
    if groups is not None and reward is not None:
        groups.begin(reward, source.info(), upstream.describe(), asked_rewards(options))
    service = Service(upstream, Scorer(reward), defaults, bounds, fallback=options.fallback, writer=groups)
    pages = Pages(service, key=key, most_bytes=options.max_body_bytes)
    address = address_of(here)
    try:
        tell(f"{_announced(options, reward, source)}: {address}/v1 (Ctrl-C stops)")
        await Server(app_of(pages), pages, options.drain_seconds).serve(sockets=[here])
    finally:
        await service.close()
    return _result(address, service, groups)


def _announced(
    options: ServeOptions, reward: "CombinedReward | None", source: LocalSource | ServedSource
) -> str:
    if reward is None:
        return f"{source.name}, one answer a request, as it is drawn (no reward is named to choose by)"
    kept = (
        ""
        if options.groups is None
        else f", kept in {options.groups} (a kill loses {options.groups_flush} at most)"
    )
    goal = (
        f"quantile {options.stop_at_quantile}" if options.stop_at_reward is None else options.stop_at_reward
    )
    most = "" if options.max_draws is None else f" (up to {options.max_draws}, until {goal})"
    names = ", ".join(reward.names)
    return f"{source.name}, {options.rule} of {options.best_of}{most} answers by {names}{kept}"


def _result(address: str, service: "Service", groups: "GroupFolder | None") -> dict[str, Any]:
    result = {"address": address, "answered": service.answered, "failed": service.failed}
    if groups is None:
        return result
    kept = {"groups": [str(folder) for folder in groups.folders()], "stored": groups.stored}
    return {**result, **kept, "not_stored": dict(groups.not_stored)}


def _defaults(options: ServeOptions, name: str, without: dict[bool, str], stopping: "Stopping") -> "Defaults":
    from nonpareil.serving.body import Defaults

    return Defaults(
        model=name,
        best_of=options.best_of,
        max_best_of=options.max_best_of if options.chooses else 1,
        rule=options.rule,
        max_tokens=options.max_completion_length,
        seconds=options.request_deadline,
        without=without,
        stopping=stopping,
        chooses=options.chooses,
    )
