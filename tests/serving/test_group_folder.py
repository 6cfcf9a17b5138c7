"""The folder of served groups: what is kept, what is not and why, one writer, kill -9, age, and what reads it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nonpareil.errors import ConfigError, DataError
from nonpareil.evaluation import best_of_n_report
from nonpareil.rollouts import export, read_groups
from nonpareil.rollouts.manifest import read_manifest
from nonpareil.rollouts.numbers import read_numbers
from nonpareil.serving import group_shards
from nonpareil.serving.group_folder import GroupFolder
from nonpareil.serving.records import Drawn, DrawRequest
from nonpareil.serving.redaction import load_redaction
from tests.serving.groups import CHAT, ENGINE, MODEL, drawn, request, reward, scored

ROOT = Path(__file__).resolve().parents[2]
KIND = "text-n3-t1-max8"


def begun(folder: Path, weight: float = 1.0, **settings: Any) -> GroupFolder:
    groups = GroupFolder(folder, **settings)
    try:
        groups.begin(reward(weight), MODEL, ENGINE)
    except BaseException:
        groups.release()
        raise
    return groups


def put(groups: GroupFolder, asked: DrawRequest, found: Drawn, chosen: tuple[int, ...] = (0,)) -> None:
    asyncio.run(groups.write(asked, found, scored(asked.prompt, found, reward()), chosen, "best_of_n"))


def rows(folder: Path, kind: str = KIND) -> list:
    return read_groups(folder / kind)


def test_a_request_is_kept_whole_and_read_as_any_group(tmp_path: Path) -> None:
    with begun(tmp_path / "g") as groups:
        put(groups, request(seed=9), drawn("a", "a film", "null"), (1, 0))
        put(groups, request(), drawn("b", "bb", "bbb", reasons=["stop", "length", "stop"]))
        put(groups, request(CHAT), drawn("c", "cc", "ccc"))
    one, two = rows(tmp_path / "g")
    assert (one.prompt, one.completions, one.prompt_token_ids) == (
        "how long ?",
        ["a", "a film", "null"],
        [1, 4],
    )
    assert one.completion_token_ids == [[5, 6, 2], [5, 7, 2], [5, 8, 2]]
    assert one.logprobs == [[-0.5, -0.25, -1.0]] * 3
    assert one.rewards == one.rewards_by_name["length"] == [1, 6, None]
    assert two.finish_reasons == ["stop", "length", "stop"]
    # One prompt asked twice is two groups.
    assert one.prompt_id.split("-")[0] == two.prompt_id.split("-")[0]
    assert (one.prompt_id[-2:], two.prompt_id[-2:]) == ("-0", "-1")
    assert (one.columns["served_seed"], one.columns["served_rule"], one.columns["served_choice"]) == (
        *(9, "best_of_n", [1, 0]),
    )
    assert datetime.now(UTC) - datetime.fromisoformat(one.columns["served_at"]) < timedelta(minutes=5)
    (chat,) = rows(tmp_path / "g", "chat-n3-t1-max8")
    assert chat.prompt == CHAT
    manifest = read_manifest(tmp_path / "g" / KIND)
    assert manifest["complete"]
    assert manifest["counts"]["completions"] == 6
    failed = manifest["counts"]["failed_rewards"]["length"]
    assert failed == {"count": 1, "reasons": {"returned None": 1}} or failed["count"] == 1
    assert manifest["draw"]["sampling"] == {
        **{"max_completion_length": 8, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    }


def test_curve_export_and_pandas_read_it(tmp_path: Path) -> None:
    with begun(tmp_path / "g") as groups:
        for i in range(4):
            put(groups, request(f"prompt {i}"), drawn("a" * (i + 1), "b" * 5, "c" * (9 - i)))
    folder = tmp_path / "g" / KIND
    numbers, lacking = read_numbers(folder)
    assert not lacking
    assert best_of_n_report(numbers).points[-1].reward.estimate == pytest.approx((9 + 8 + 7 + 6) / 4)
    report = export(read_groups(folder), tmp_path / "best.jsonl", "preference")
    assert report.rows == 4
    assert json.loads((tmp_path / "best.jsonl").read_text().split("\n")[0])["chosen"] == "c" * 9
    with pytest.raises(DataError, match=f"there are groups below it: .*{KIND}"):
        read_groups(tmp_path / "g")


def test_requests_drawn_otherwise_have_folders_of_their_own(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with begun(tmp_path / "g") as groups:
        put(groups, request(temperature=0.5), drawn("a", "bb", "c"))
        put(groups, request(max_tokens=9), drawn("a", "bb", "c"))
        put(groups, request(best_of=2), drawn("a", "bb"))
        put(groups, request(top_p=0.9, stop="x"), drawn("a", "bb", "c"))
        put(groups, request(CHAT, tools=tools), drawn("a", "bb", "c"))
        put(groups, request(CHAT, chat_template_kwargs={"thinking": False}), drawn("a", "bb", "c"))
        # None of these changes a draw.
        put(
            groups,
            request(temperature=1, top_k=-1, presence_penalty=0, user="u", logprobs=3),
            drawn("a", "b", "c"),
        )
        names = [path.name for path in groups.folders()]
    plain = ["text-n2-t1-max8", "text-n3-t0.5-max8", KIND, "text-n3-t1-max9"]
    assert set(plain) < set(names)
    assert len(names) == 7
    for name in names:
        assert len(rows(tmp_path / "g", name)) == 1
    manifests = {name: read_manifest(tmp_path / "g" / name)["draw"] for name in names}
    renderings = [draw["prompts"].get("rendering") for draw in manifests.values()]
    assert {"chat_template_kwargs": {"thinking": False}} in renderings
    assert {"chat_template_kwargs": {}, "tools": True} in renderings
    with_tools = next(n for n, d in manifests.items() if d["prompts"].get("rendering", {}).get("tools"))
    assert rows(tmp_path / "g", with_tools)[0].columns["tools"] == tools
    assert any(draw["sampling"].get("stop") == ["x"] for draw in manifests.values())


def test_names_and_calls_of_messages_are_kept_in_a_folder_of_their_own(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    calls = [
        {"role": "user", "content": "hi", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
    ]
    for _ in range(2):  # a second server goes on where the first one stopped
        with begun(tmp_path / "g") as groups:
            put(groups, request(calls), drawn("a", "bb", "c"))
            put(groups, request([{**CHAT[0], "name": "me"}]), drawn("a", "b", "c"))
            put(groups, request(CHAT), drawn("c", "cc", "ccc"))
            assert not groups.not_stored
    plain, more = sorted((path.name for path in (tmp_path / "g").iterdir() if path.is_dir()), key=len)
    assert plain == "chat-n3-t1-max8"
    assert more.startswith("chat-n3-t1-max8-")
    kept = [{k: v for k, v in message.items() if k != "refusal"} for message in calls]
    assert [group.prompt for group in rows(tmp_path / "g", more)] == [kept, [{**CHAT[0], "name": "me"}]] * 2
    assert [group.prompt for group in rows(tmp_path / "g", plain)] == [CHAT] * 2


@pytest.mark.parametrize(
    ("asked", "found", "why"),
    [
        (request(), drawn("a", "b"), "not drawn as often"),
        (request(best_of=1), drawn("a"), "best_of is 1"),
        (request(), drawn("a", "b", "c", reasons=["stop", "content_filter", "stop"]), "'content_filter'"),
        (
            request(response_format={"type": "json_object"}),
            drawn("a", "b", "c"),
            "response_format was asked for",
        ),
        (request(logit_bias={"5": 1}), drawn("a", "b", "c"), "logit_bias was asked for"),
        (request(max_tokens=None), drawn("a", "b", "c"), "max_tokens was not given"),
        (request(temperature="warm"), drawn("a", "b", "c"), "not all numbers"),
        (request([{**CHAT[0], "weight": 1}]), drawn("a", "b", "c"), "what no group holds"),
        (
            request([*CHAT, {"role": "assistant", "content": "It"}]),
            drawn("a", "b", "c"),
            "the assistant spoke last",
        ),
    ],
)
def test_what_no_group_can_hold_truthfully_is_counted_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: DrawRequest, found: Drawn, why: str
) -> None:
    with begun(tmp_path / "g") as groups:
        put(groups, asked, found)
        put(groups, asked, found)
        ((reason, count),) = groups.not_stored.items()
    assert why in reason
    assert count == 2
    assert caplog.text.count(why) == 1
    assert not list((tmp_path / "g").glob("*/data/*"))


def test_ids_of_all_answers_or_of_none(tmp_path: Path) -> None:
    found = drawn("a", "b", "c")
    object.__setattr__(found.answers[1], "token_ids", None)
    with begun(tmp_path / "g") as groups:
        put(groups, request(), found)
    (one,) = rows(tmp_path / "g")
    assert one.completion_token_ids == one.logprobs == [[], [], []]
    assert one.prompt_token_ids == []


def test_shards_fill_one_after_another_and_a_restart_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(group_shards, "SHARD_SIZE", 4)
    for _ in range(2):
        with begun(tmp_path / "g", flush=1) as groups:
            for i in range(6):
                put(groups, request(f"prompt {i}"), drawn("a", "b", "c"))
            assert groups.stored == 6
            found = rows(tmp_path / "g")  # read while it grows
    assert len(found) == 12
    assert [one.prompt_id.rpartition("-")[2] for one in found] == [str(i) for i in range(12)]
    shards = sorted(path.name for path in (tmp_path / "g" / KIND / "data").iterdir())
    assert shards == [f"shard-{i:05d}.parquet" for i in range(4)]
    assert read_manifest(tmp_path / "g" / KIND)["counts"]["prompts"] == 12
    (tmp_path / "g" / KIND / "data" / "shard-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"lacks shard-00001\.parquet between its shards"):
        rows(tmp_path / "g")


def test_one_writer_and_no_mixing(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    with begun(folder) as groups:
        put(groups, request(), drawn("a", "b", "c"))
        with pytest.raises(ConfigError, match="is being written to by another server"):
            GroupFolder(folder)
    with pytest.raises(
        ConfigError, match=r"another model or reward: weights.length is 1.0 there and 2.0 now"
    ):
        begun(folder, weight=2.0)
    with (
        GroupFolder(folder) as groups,
        pytest.raises(ConfigError, match=r"model\.path is 'the-model' there and 'b'"),
    ):
        groups.begin(reward(), {"path": "b"}, ENGINE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="holds things that no server of ours stored"):
        GroupFolder(tmp_path / "other")
    with GroupFolder(tmp_path / "unused"):
        pass
    assert not (tmp_path / "unused").exists()


def test_old_shards_go_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nonpareil.serving import group_folder

    clock = {"days": 5}

    def past() -> str:
        return (datetime.now(UTC) - timedelta(days=clock["days"])).strftime("%Y-%m-%dT%H:%M:%SZ")

    monkeypatch.setattr(group_folder, "now", past)
    monkeypatch.setattr(group_shards, "SHARD_SIZE", 2)
    folder = tmp_path / "g"
    with begun(folder, flush=1) as groups:
        for days in (5, 4, 3, 3, 0):
            clock["days"] = days
            put(groups, request(f"{days} days"), drawn("a", "b", "c"))
    mine = folder / KIND / "data" / "notes.txt"
    mine.write_text("x")
    with begun(folder, keep_days=3.5):
        pass
    # The first shard is all older; the second's are not.
    assert [one.prompt for one in rows(folder)] == ["3 days", "3 days", "0 days"]
    assert mine.exists()
    assert read_manifest(folder / KIND)["counts"]["prompts"] == 3
    shard = folder / KIND / "data" / "shard-00001.parquet"
    shard.write_bytes(content := shard.read_bytes() + b"")
    os.utime(shard, (1, 1))
    with begun(folder, keep_days=1):  # the same bytes are still ours
        pass
    assert [one.prompt for one in rows(folder)] == ["0 days"]
    last = folder / KIND / "data" / "shard-00002.parquet"
    last.write_bytes(content)
    with pytest.raises(DataError, match=r"in another's place|of another folder"):
        rows(folder)


@pytest.fixture
def redact(tmp_path: Path) -> Callable[[str], Any]:
    def made(body: str) -> Any:
        path = tmp_path / f"redact{len(body)}.py"
        path.write_text(f"def fn(group):\n    {body}\n")
        return load_redaction(f"{path}:fn")

    return made


def test_redaction_comes_before_anything_is_kept(tmp_path: Path, redact: Callable[[str], Any]) -> None:
    hide = redact("return {k: eval(repr(v).replace('Ann', '***')) for k, v in group.items()}")
    with begun(tmp_path / "g", redact=hide) as groups:
        put(groups, request("to Ann"), drawn("dear Ann", "b", "c"))
        put(groups, request("to Bob"), drawn("dear Bob", "b", "c"))
    ann, bob = rows(tmp_path / "g")
    assert (ann.prompt, ann.completions) == ("to ***", ["dear ***", "b", "c"])
    # Its ids are those of the words that were there.
    assert ann.prompt_token_ids == []
    assert ann.completion_token_ids == ann.logprobs == [[], [], []]
    assert bob.prompt_token_ids == [1, 4]
    for body, why in {
        "return None": "kept nothing",
        "raise ValueError('Ann')": "failed: ValueError",
        "raise SystemExit": "failed: SystemExit",
        "return {'prompt': 'x'}": "returned no prompt and completions",
        "return {**group, 'completions': ['a']}": "another number",
    }.items():
        with begun(tmp_path / why, redact=redact(body)) as groups:
            put(groups, request("to Ann"), drawn("dear Ann", "b", "c"))
            (reason,) = groups.not_stored
        assert why in reason
        assert "Ann" not in reason
        assert not list((tmp_path / why).glob("*/data/*"))
    naming = redact("return {**group, 'prompt': [{**m, 'name': 'x'} for m in group['prompt']]}")
    with begun(tmp_path / "named", redact=naming) as groups:  # that folder's shards have no column for names
        put(groups, request(CHAT), drawn("a", "b", "c"))
        put(groups, request([{**CHAT[0], "name": "Ann"}]), drawn("a", "b", "c"))
        assert groups.not_stored == {"groups_redact gave messages names or calls that they had not": 1}
        (folder,) = groups.folders()[-1:]
    assert [group.prompt[0]["name"] for group in read_groups(folder)] == ["x"]
    with pytest.raises(ConfigError, match="groups_redact='nowhere:fn'"):
        load_redaction("nowhere:fn")


def test_a_disk_that_fails_costs_no_answer_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with begun(tmp_path / "g", flush=1) as groups:
        put(groups, request(), drawn("a", "b", "c"))
        data = tmp_path / "g" / KIND / "data"
        moved = data.rename(tmp_path / "moved")
        data.write_text("no folder")  # whoever is root may write anywhere else
        put(groups, request(), drawn("d", "e", "f"))
        assert groups.unflushed == 1
        data.unlink()
        moved.rename(data)
        put(groups, request(), drawn("g", "h", "i"))
        assert (groups.stored, groups.unflushed) == (3, 0)
    assert [one.completions[0] for one in rows(tmp_path / "g")] == ["a", "d", "g"]
    assert "a request leaves no group" in caplog.text or "could not be written" in caplog.text


KILLED = """
import asyncio, os, signal, sys
from dataclasses import replace
from pathlib import Path
from tests.serving.test_group_folder import begun, drawn, put, request

groups = begun(Path(sys.argv[1]), flush=4)
replace, shards = os.replace, 0
def dying(source, target):
    global shards
    shards += str(target).endswith(".parquet")
    if shards == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = dying
for i in range(20):
    put(groups, request(f"prompt {i}"), drawn("a", "b", "c"))
    print(i, flush=True)
"""


@pytest.mark.slow
def test_kill_9_loses_no_more_than_it_says(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "g")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    answered = len(done.stdout.split())
    assert answered == 11  # the twelfth was to write the third time
    found = rows(tmp_path / "g")
    assert answered - len(found) <= 4
    assert [one.prompt for one in found] == [f"prompt {i}" for i in range(8)]
    assert list((tmp_path / "g" / KIND / "data").glob(".*.tmp"))
    with begun(tmp_path / "g") as groups:
        assert not list((tmp_path / "g" / KIND / "data").glob(".*.tmp"))
        put(groups, request("prompt 8"), drawn("a", "b", "c"))
    assert [one.prompt for one in rows(tmp_path / "g")] == [f"prompt {i}" for i in range(9)]
