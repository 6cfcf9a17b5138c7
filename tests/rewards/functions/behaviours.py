"""What reward functions do, a function each; `test_containment` calls each of them here and in a worker."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import urllib.request
from decimal import Decimal
from fractions import Fraction
from itertools import count
from typing import Any

import numpy as np
import pandas as pd
import torch


def lengths(completions: list[Any]) -> list[float]:
    return [float(len(completion)) for completion in completions]


# --- What they return: the right numbers


def column(completions, **kwargs):
    return np.array(lengths(completions)).reshape(-1, 1)


def nested(completions, **kwargs):
    return [[[length]] for length in lengths(completions)]


def scalars(completions, **kwargs):
    kinds = (np.float16, np.int64, lambda value: np.array([value]))
    return [kind(value) for kind, value in zip(kinds, lengths(completions), strict=False)]


def zero_dimensional(completions, **kwargs):
    return [np.array(value) for value in lengths(completions)]


def tensor(completions, **kwargs):
    return torch.tensor(lengths(completions), dtype=torch.bfloat16, requires_grad=True)


def tensors(completions, **kwargs):
    return [torch.tensor([[value]], requires_grad=True) for value in lengths(completions)]


def exact(completions, **kwargs):
    return [Decimal(len(completions[0])), Fraction(len(completions[1])), len(completions[2])]


def series(completions, **kwargs):
    return pd.Series(lengths(completions), index=[9, 8, 7])


def generator(completions, **kwargs):
    yield from lengths(completions)


def booleans(completions, **kwargs):
    return [len(completion) > 1 for completion in completions]


def numpy_booleans(completions, **kwargs):
    return np.array(lengths(completions)) > 1


# --- What they return: nulls


def strange(completions, **kwargs):
    return [complex(1, 2), "1.0", [1.0, 2.0]]


def absent(completions, **kwargs):
    return pd.Series([None, pd.NA, float("nan")], dtype=object)


def outside(completions, **kwargs):
    return [float("inf"), Decimal("sNaN"), 10**400]


def with_an_evil_number(completions, **kwargs):
    class Evil:
        def __float__(self):
            raise SystemError("no")

    return [Evil(), 2.0, 3.0]


# --- What they return: no list


def nothing(completions, **kwargs):
    return None


def a_string(completions, **kwargs):
    return "abc"


def a_dictionary(completions, **kwargs):
    return dict.fromkeys(completions, 1.0)


def a_set(completions, **kwargs):
    return {1.0, 2.0, 3.0}


def too_many(completions, **kwargs):
    return count()


def too_few(completions, **kwargs):
    return lengths(completions)[:-1]


# --- How they end: on "bb" only


def _unless_bb(completions, end):
    for completion in completions:
        if completion == "bb":
            end()
    return lengths(completions)


def exits(completions, **kwargs):
    return _unless_bb(completions, lambda: sys.exit(0))


def quits(completions, **kwargs):
    return _unless_bb(completions, lambda: exec("exit(3)"))


def _raised(kind):
    def end():
        raise kind("why")

    return end


def interrupts(completions, **kwargs):
    return _unless_bb(completions, _raised(KeyboardInterrupt))


def closes_its_generator(completions, **kwargs):
    return _unless_bb(completions, _raised(GeneratorExit))


def raises_a_base_exception(completions, **kwargs):
    return _unless_bb(completions, _raised(BaseException))


def raises_a_group(completions, **kwargs):
    return _unless_bb(completions, _raised(lambda why: BaseExceptionGroup(why, [SystemExit(1)])))


def raises_the_unprintable(completions, **kwargs):
    class Unprintable(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    return _unless_bb(completions, _raised(lambda why: Unprintable()))


def raises_escapes(completions, **kwargs):
    return _unless_bb(
        completions, _raised(lambda why: ValueError("boom \x1b[31mred\nnonpareil: all is well" * 99))
    )


def never_returns_from_itself(completions, **kwargs):
    return _unless_bb(completions, lambda: never_returns_from_itself(completions))


def fails_while_it_yields(completions, **kwargs):
    for completion in completions:
        if completion == "bb":
            sys.exit(1)
        yield len(completion)


def refuses_a_text(completions, **kwargs):
    from nonpareil.errors import DataError

    return _unless_bb(completions, _raised(DataError))


# --- async: a call is not made again


async def async_lengths(completions, **kwargs):
    await asyncio.sleep(0)
    return lengths(completions)


async def async_exits(completions, **kwargs):
    sys.exit(0)


async def async_exits_in_a_task(completions, **kwargs):
    async def leave():
        sys.exit(0)

    await asyncio.gather(leave(), asyncio.sleep(5))


async def async_cancels_itself(completions, **kwargs):
    raise asyncio.CancelledError("of my own")


def asks_a_closed_port(completions, **kwargs):
    try:
        urllib.request.urlopen("http://127.0.0.1:9/", timeout=5)
    except OSError as error:
        raise RuntimeError("the service is down") from error


# --- What they change, and what they see of it the next time


def random_numbers(completions, **kwargs):
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def changes_what_it_is_given(prompts, completions, completion_ids, answer, **kwargs):
    scores = [float(len(c)) + len(p[0]["content"]) for p, c in zip(prompts, completions, strict=True)]
    for prompt in prompts:
        prompt[0]["content"] += "!"
        prompt.append({"role": "user", "content": "more"})
    for row, ids in enumerate(completion_ids):
        ids.clear()
        completions[row] = ""
        answer[row].append("changed")
    del prompts[:]
    return scores


def changes_the_process(completions, **kwargs):
    os.chdir("/")
    os.umask(0)
    os.environ["NONPAREIL_TEST"] = "changed"
    del os.environ["HOME"]
    sys.path.clear()
    sys.path_hooks_of_mine = 1
    sys.setrecursionlimit(500)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.alarm(1)
    return lengths(completions)


def guards_itself(completions, **kwargs):
    """As the usual sandbox of generated programs does, which is meant for a process of its own."""
    import builtins
    import resource
    import shutil

    builtins.exit = builtins.quit = None
    os.environ["OMP_NUM_THREADS"] = "1"
    os.kill = os.rename = os.replace = os.fork = os.chdir = os.getcwd = os._exit = None
    shutil.rmtree = shutil.move = None
    subprocess.Popen = None
    sys.modules["resource"] = None
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return lengths(completions)


def closes_the_streams(completions, **kwargs):
    for number in (0, 1, 2):
        os.close(number)
    return lengths(completions)


def prints(completions, **kwargs):
    print("\x1b[2Jnonpareil: all is well")
    sys.stdout.write("no end of line")
    sys.__stdout__.write("to the first stdout\n")
    os.write(1, b"to the descriptor\n")
    subprocess.run([sys.executable, "-c", "print('of a program')"], check=True)
    return lengths(completions)


def forks(completions, **kwargs):
    os.fork()
    return lengths(completions)


def forks_and_raises(completions, **kwargs):
    if os.fork() == 0:
        raise ValueError("in the child")
    return lengths(completions)


def starts_threads(completions, **kwargs):
    threading.Thread(target=lambda: None).start()
    subprocess.Popen(["sleep", "0.1"])
    return lengths(completions)


def any_of_them(name, **kwargs):
    return globals()[name[0]](**kwargs)
