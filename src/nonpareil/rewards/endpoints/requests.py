"""Many requests to one server: a failed one costs its own completions, a server that is down ends the run."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from nonpareil.errors import RemoteError, RewardError
from nonpareil.remote import JsonClient
from nonpareil.user_code.contained import shortened

TIMEOUT = 120.0
"""Seconds that a request may take, where the user gives no other limit."""
REQUESTS_AT_ONCE = 8
MAX_RETRIES = 5
FAILED_IN_A_ROW = 16
"""After so many failed requests without an answer between them, each tried again and again, a server is down."""


async def ask_all(
    client: JsonClient,
    path: str,
    payloads: Sequence[dict[str, Any]],
    *,
    name: str,
    at_once: int,
    on_answer: Callable[[int, Any], None],
    is_fatal: Callable[[RemoteError], bool],
) -> dict[int, str]:
    """Post every payload; `on_answer(place, answer)` is called as answers come. Returns the failures' reasons.

    Nulls are stored for good, and a run of nulls would look like a run. So a server that answers nothing at
    all, fails 16 times in a row, or is gone at the end is an error: what was stored stays, and the same
    command goes on where it stopped. Whether it is gone, where its last words were a failure, is seen by
    asking again something that it has answered before: a failure costs itself alone where that is answered.

    Raises:
        RewardError: a failure that `is_fatal` says no other request can escape, or a server that is down.
    """
    failures: dict[int, str] = {}
    waiting = iter(enumerate(payloads))
    in_a_row, answered, last = 0, 0, None

    async def work() -> None:
        nonlocal in_a_row, answered, last
        for place, payload in waiting:
            try:
                answer = await client.post(path, payload)
            except RemoteError as failure:
                if is_fatal(failure):
                    raise RewardError(f"reward {name!r}: {failure}") from failure
                failures[place] = shortened(failure.reason)
                in_a_row += 1
                last = failure if _may_be_gone(failure) else last
                if in_a_row >= FAILED_IN_A_ROW or len(failures) == len(payloads):
                    raise down(failure) from failure
            else:
                in_a_row, answered, last = 0, place, None
                on_answer(place, answer)

    def down(failure: RemoteError) -> RewardError:
        return RewardError(
            f"reward {name!r}: {len(failures)} of {len(payloads)} requests failed, the last "
            f"{in_a_row} in a row: {failure}; run again when the server answers: what is stored stays"
        )

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(at_once, len(payloads))):
                tasks.create_task(work())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    if last is not None:
        try:
            await client.post(path, payloads[answered])
        except RemoteError as failure:
            raise down(failure) from failure
    return failures


def _may_be_gone(failure: RemoteError) -> bool:
    """Whether it is no word on this request itself: no connection, no answer in time, no JSON, 408, 429, 5xx."""
    return failure.status is None or failure.status in (408, 429) or failure.status >= 500


def is_refusal(failure: RemoteError) -> bool:
    """Whether the server refuses the request itself (4xx), which says that the settings are wrong."""
    return failure.status is not None and 400 <= failure.status < 500 and failure.status not in (408, 429)
