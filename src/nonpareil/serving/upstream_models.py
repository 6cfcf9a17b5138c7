"""An upstream's list of models, and what it says there of the one that is asked for."""

from dataclasses import dataclass
from typing import Any

from nonpareil.answers import is_text
from nonpareil.errors import ConfigError
from nonpareil.serving.records import UpstreamError
from nonpareil.serving.upstream_client import UpstreamClient
from nonpareil.setting_types import nearest
from nonpareil.terminal import printable


@dataclass(frozen=True)
class ServedModel:
    """What an upstream's list says of a model."""

    name: str
    owner: str | None
    """What the server calls itself."""
    window: int | None
    """Most tokens of prompt and answer together."""


async def listed(client: UpstreamClient, deadline: float) -> list[dict[str, Any]]:
    """The entries of an upstream's list of models; none where it keeps no list.

    Raises:
        UpstreamError: see `UpstreamClient.post`.
    """
    try:
        content = (await client.get("models", deadline)).content
    except UpstreamError as error:
        if error.status == 400:  # no such path
            return []
        raise
    entries = content.get("data") if isinstance(content, dict) else None
    entries = entries if isinstance(entries, list) else []
    return [one for one in entries if isinstance(one, dict) and is_text(one.get("id"))]


async def served_model(client: UpstreamClient, asked: str | None, deadline: float) -> ServedModel:
    """The model of that name, or the only one where none is named.

    Raises:
        ConfigError: it is not in the list; or none is named, and there is not exactly one.
        UpstreamError: see `UpstreamClient.post`.
    """
    entries = await listed(client, deadline)
    names = [printable(entry["id"]) for entry in entries]
    where = f"base_url={client.base_url!r}"
    if asked is None and len(names) != 1:
        words = ", ".join(names[:20]) or "none"
        raise ConfigError(f"model is missing: {where} lists {len(names)} ({words}); name one of them")
    name = entries[0]["id"] if asked is None else asked
    if entries and name not in [entry["id"] for entry in entries]:
        raise ConfigError(
            f"model={name!r}: {where} does not serve it{nearest(name, names, quoted=True)}; its list has: "
            f"{', '.join(names[:20])}"
        )
    entry = next((one for one in entries if one["id"] == name), {})
    owner, window = entry.get("owned_by"), entry.get("max_model_len")
    known = isinstance(window, int) and not isinstance(window, bool) and window > 0
    return ServedModel(name, owner if is_text(owner) else None, window if known else None)
