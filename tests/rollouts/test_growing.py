"""A folder grows into what it would have been, had all been asked for at once; a kill on the way loses nothing."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nonpareil.engines.transformers import TransformersEngine
from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Group
from nonpareil.rollouts import read_groups, tokenize_prompts
from nonpareil.rollouts.manifest import read_manifest, write_manifest
from nonpareil.rollouts.reading import GROWN_FROM, read_available
from nonpareil.rollouts.store import notes_of, read_table, with_notes, write_table
from tests.rollouts.conftest import (
    CHAT_TEMPLATE,
    make_engine,
    make_prompts,
    make_tokenizer,
    never,
    roll,
    shards,
)

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {"prompts": make_prompts(5), "num_generations": 3}  # shards of 2, 2 and 1 prompts
WHOLE: dict[str, Any] = {"prompts": make_prompts(8), "num_generations": 7}


class Counting(TransformersEngine):
    """Counts what is drawn."""

    drawn = 0

    def complete(self, requests: Any, on_progress: Any = None) -> Any:
        groups = super().complete(requests, on_progress)
        Counting.drawn += sum(len(group) for request in groups for group in request)
        return groups


def counting_engine() -> Counting:
    plain = make_engine()
    Counting.drawn = 0
    return Counting(plain.model, plain.tokenizer)


def alike(groups: list[Group], others: list[Group]) -> None:
    assert len(groups) == len(others)
    for one, other in zip(groups, others, strict=True):
        for name in (
            "prompt_id",
            "prompt",
            "prompt_token_ids",
            "completions",
            "completion_token_ids",
            "columns",
        ):
            assert getattr(one, name) == getattr(other, name)
        assert (one.finish_reasons, one.rewards) == (other.finish_reasons, other.rewards)
        assert one.rewards_by_name == other.rewards_by_name
        for own, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert own == pytest.approx(theirs, abs=1e-5)


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> list[Group]:
    return roll(tmp_path_factory.mktemp("whole") / "out", **WHOLE).groups()


@pytest.mark.parametrize(
    "steps",
    [
        [{"num_generations": 7}, {}],
        [{"prompts": WHOLE["prompts"]}, {}],
        [{}],
        [{"num_generations": 4}, {"prompts": make_prompts(6), "num_generations": 4}, {}],
    ],
)
def test_a_folder_grows_into_what_it_would_have_been(
    tmp_path: Path, at_once: list[Group], steps: list[Any]
) -> None:
    roll(tmp_path / "out", **SMALL)
    there = 15
    for step in steps:
        asked = {**(SMALL if step else WHOLE), **step}
        result = roll(tmp_path / "out", **{**asked, "engine": counting_engine})
        wanted = len(asked["prompts"]) * asked["num_generations"]
        assert Counting.drawn - wanted + there <= 60  # what the engine's own check draws is little
        there = wanted
        assert result.manifest["complete"]
        assert GROWN_FROM not in result.manifest
        assert result.manifest["counts"]["completions"] == wanted
    alike(result.groups(), at_once)
    again = roll(tmp_path / "out", **{**WHOLE, "engine": never})
    assert (again.shards_drawn, again.shards_scored) == (0, 0)


def test_only_what_is_missing_is_drawn(tmp_path: Path) -> None:
    roll(tmp_path / "out", **{**SMALL, "prompts": make_prompts(4)})
    plain = make_engine()
    engine = Counting(plain.model, plain.tokenizer)
    Counting.drawn = 0
    result = roll(tmp_path / "out", **{**SMALL, "engine": engine})
    assert Counting.drawn == 3  # the fifth prompt's
    assert (result.shards_drawn, result.shards_scored) == (3, 1)  # the scores of whole groups stay
    Counting.drawn = 0
    roll(tmp_path / "out", **{**SMALL, "num_generations": 4, "engine": engine})
    assert Counting.drawn == 5  # one more of each


def test_readers_of_a_folder_that_grows_know(tmp_path: Path) -> None:
    roll(tmp_path / "out", **SMALL)
    before = read_groups(tmp_path / "out")
    with pytest.raises(Interrupted):
        roll(tmp_path / "out", **{**WHOLE, "engine": lambda: Interrupting(make_engine(), after=1)})
    said = r"0 of 4 shards are there; 1 are not drawn .* 2 have not grown yet .* 1 lack these scores"
    with pytest.raises(DataError, match=said):
        read_groups(tmp_path / "out")
    groups, lacking = read_available_after_scoring(tmp_path)
    assert [len(group) for group in groups] == [7, 7]
    assert "have not grown yet" in lacking
    assert groups[0].completion_token_ids[:3] == before[0].completion_token_ids
    with pytest.raises(ConfigError, match=r"num_generations: 7 there, 3 now"):
        roll(tmp_path / "out", **SMALL)


def read_available_after_scoring(tmp_path: Path) -> tuple[list[Group], str]:
    """The grown shard is taken for scored: the manifest is that of a run that only draws."""
    manifest = {k: v for k, v in read_manifest(tmp_path / "out").items() if k != "scoring"}
    write_manifest(tmp_path / "out", manifest)
    return read_available(tmp_path / "out")


class Interrupted(Exception):
    """In place of a kill."""


class Interrupting:
    """An engine that ends after some shards."""

    def __init__(self, engine: TransformersEngine, after: int):
        self.engine, self.left = engine, after
        self.describe = engine.describe

    def draw(self, *arguments: Any) -> Any:
        raise Interrupted

    def draw_more(self, *arguments: Any) -> Any:
        if not self.left:
            raise Interrupted
        self.left -= 1
        return self.engine.draw_more(*arguments)


@pytest.mark.parametrize("lost", [False, True], ids=["", "and the manifest is lost"])
def test_a_growth_that_was_cut_short_goes_on(tmp_path: Path, at_once: list[Group], lost: bool) -> None:
    roll(tmp_path / "out", **SMALL)
    grown = {**SMALL, "num_generations": 7}
    with pytest.raises(Interrupted):
        roll(tmp_path / "out", **{**grown, "engine": lambda: Interrupting(make_engine(), after=1)})
    done = shards(tmp_path / "out")[0].stat().st_mtime_ns
    if lost:
        (tmp_path / "out" / "manifest.json").unlink()
    result = roll(tmp_path / "out", **{**grown, "reward": None})
    assert result.shards_drawn == 2
    assert shards(tmp_path / "out")[0].stat().st_mtime_ns == done
    alike(roll(tmp_path / "out", **WHOLE).groups(), at_once)


DIES = """
import os, signal, sys
from pathlib import Path
from tests.rollouts.conftest import make_prompts, roll

replace, count = os.replace, 0

def dying(source, target):
    global count
    count += 1
    if count == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = dying
roll(Path(sys.argv[1]), prompts=make_prompts(8), num_generations=7)
"""


@pytest.mark.slow  # one import of torch each; `test_kill.py` and the interruptions above hold the same writes
@pytest.mark.parametrize("file", [1, 3])  # the manifest of the larger folder; its second shard
def test_kill_9_while_it_grows_and_run_again(tmp_path: Path, at_once: list[Group], file: int) -> None:
    roll(tmp_path / "out", **SMALL)
    before = [group.completion_token_ids for group in read_groups(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", DIES, str(tmp_path / "out"), str(file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))},
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL
    assert len(shards(tmp_path / "out")) == 3
    if file == 1:
        assert [group.completion_token_ids for group in read_groups(tmp_path / "out")] == before
    alike(roll(tmp_path / "out", **WHOLE).groups(), at_once)


def test_other_prompts_and_smaller_ones_are_no_growth(tmp_path: Path) -> None:
    roll(tmp_path / "out", **WHOLE)
    for changes, said in (
        ({"num_generations": 5}, "num_generations: 7 there, 5 now"),
        ({"prompts": make_prompts(5)}, "prompts.count: 8 there, 5 now"),
        ({"prompts": make_prompts(9)[1:], "num_generations": 9}, "other prompts, or another order"),
        ({"prompts": [*make_prompts(9)[1:], make_prompts(1)[0]]}, "other prompts, or another order"),
    ):
        with pytest.raises(ConfigError, match=said):
            roll(tmp_path / "out", **{**WHOLE, **changes, "engine": never})


@pytest.mark.parametrize("engine", ["vllm", "openai"])
def test_an_engine_without_keys_takes_more_prompts_and_no_more_completions(
    tmp_path: Path, engine: str
) -> None:
    def described() -> TransformersEngine:
        made = make_engine()
        made.describe = lambda: {"engine": engine}  # type: ignore[method-assign]
        return made

    roll(tmp_path / "out", **{**SMALL, "engine": described})
    with pytest.raises(ConfigError, match=rf"num_generations from 3 to 4\), and engine={engine} cannot draw"):
        roll(tmp_path / "out", **{**SMALL, "num_generations": 4, "engine": never})
    more = {**SMALL, "prompts": make_prompts(8), "engine": described}
    assert roll(tmp_path / "out", **more).manifest["counts"]["prompts"] == 8


def test_a_folder_that_does_not_say_what_drew_it_takes_nothing_more(tmp_path: Path) -> None:
    """Scoring anew draws nothing, and goes on."""
    whole = roll(tmp_path / "out", **SMALL)
    draw = {key: value for key, value in whole.manifest["draw"].items() if key != "engine"}
    manifest = {key: value for key, value in whole.manifest.items() if key != "sha256"} | {"draw": draw}
    for path in shards(tmp_path / "out"):
        table = read_table(path)
        notes = notes_of(table.schema)
        write_table(path, with_notes(table, replace(notes, draw=draw)))
    write_manifest(tmp_path / "out", manifest)
    for more in ({"num_generations": 4}, {"prompts": make_prompts(8)}):
        with pytest.raises(
            ConfigError, match=r"does not say which engine drew it .*; give another output_dir"
        ):
            roll(tmp_path / "out", **{**SMALL, **more, "engine": never})
    shards(tmp_path / "out")[0].unlink()
    with pytest.raises(ConfigError, match="does not say which engine drew it"):
        roll(tmp_path / "out", **SMALL)


def test_conversations_of_another_day_do_not_join_those_of_the_first(tmp_path: Path) -> None:
    def chats(count: int, day: str) -> Any:
        tokenizer = make_tokenizer(chat=True)
        tokenizer.chat_template = CHAT_TEMPLATE
        rows = [{"prompt": [{"role": "user", "content": f"the film {word}"}]} for word in ("a", "was", "bad")]
        prompts = tokenize_prompts(rows, tokenizer)[:count]
        return [
            type(p)(p.prompt_id, p.prompt, [*p.token_ids, 6 + (day == "two")], {}, p.rendering)
            for p in prompts
        ]

    one = {"prompts": chats(2, "one"), "num_generations": 3, "reward": None}
    roll(tmp_path / "out", **one)
    with pytest.raises(ConfigError, match="renders its prompts otherwise now"):
        roll(tmp_path / "out", **{**one, "prompts": chats(3, "two"), "engine": never})
    grown = roll(tmp_path / "out", **{**one, "prompts": chats(2, "two"), "num_generations": 4})
    assert {group.prompt_token_ids[-1] for group in grown.groups()} == {6}
    more = roll(tmp_path / "out", **{**one, "prompts": chats(3, "one"), "num_generations": 4})
    assert more.manifest["counts"]["prompts"] == 3
