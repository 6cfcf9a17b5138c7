"""Work of many requests in one batch: whose results are whose, what one failure costs, what leaving ends."""

import asyncio
import threading

import pytest

from nonpareil.serving.joined import Abandoned, Joined


def test_what_waits_is_done_together_by_its_key_and_a_failure_is_its_own():
    batches, begun, going = [], threading.Event(), threading.Event()

    def work(batch):
        batches.append(list(batch.jobs))
        if batch.jobs == ["first"]:
            begun.set()
            going.wait(10)
        if "bad" in batch.jobs:
            raise ValueError("bad")
        return [job.upper() for job in batch.jobs]

    async def run():
        joined = Joined(work, key=len, most=3, name="test")
        first = asyncio.create_task(joined.submit("first"))
        await asyncio.to_thread(begun.wait, 10)
        rest = [asyncio.create_task(joined.submit(job)) for job in ("one", "four", "bad", "two", "six")]
        await asyncio.sleep(0)
        going.set()
        found = await asyncio.gather(first, *rest, return_exceptions=True)
        await joined.close()
        return found

    found = asyncio.run(run())
    assert found[:3] == ["FIRST", "ONE", "FOUR"]
    assert isinstance(found[3], ValueError)
    assert found[4:] == ["TWO", "SIX"]
    assert batches == [["first"], ["one", "bad", "two"], ["one"], ["bad"], ["two"], ["four"], ["six"]]


def test_work_ends_when_nobody_waits_for_it_and_who_left_before_is_not_done():
    at, done, seen = threading.Event(), threading.Event(), []

    def work(batch):
        seen.append(list(batch.jobs))
        at.set()
        try:
            while True:
                batch.check()
                done.wait(0.01)
        except Abandoned:
            done.set()
            raise

    async def run():
        joined = Joined(work, name="test")
        tasks = [asyncio.create_task(joined.submit("a"))]
        await asyncio.to_thread(at.wait, 10)
        tasks.append(asyncio.create_task(joined.submit("b")))
        await asyncio.sleep(0)
        for task in reversed(tasks):
            task.cancel()
        assert await asyncio.to_thread(done.wait, 10)
        await joined.close()
        with pytest.raises(RuntimeError, match="closed"):
            await joined.submit("c")

    asyncio.run(run())
    assert seen == [["a"]]
