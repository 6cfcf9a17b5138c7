"""Draws from real servers on loopback: the small one of openai_server.py, with its faults."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from nonpareil import remote
from nonpareil.engines.openai import OpenAIEngine
from nonpareil.errors import ConfigError, RemoteError
from nonpareil.records import Group, Prompt, SamplingParams
from nonpareil.remote import JsonClient
from tests.engines.openai_server import MODEL, OpenAIServer
from tests.tiny import UNEVEN, make_model, make_tokenizer, said, worst_error

SAMPLING = SamplingParams(max_completion_length=8, seed=5)
TEXTS = [Prompt(f"t{i}", text, []) for i, text in enumerate(["the film", "a", "not very good", "was"])]
TALKS = [Prompt(f"c{i}", [{"role": "user", "content": str(p.prompt)}], []) for i, p in enumerate(TEXTS)]


@pytest.fixture
def serve() -> Iterator[Callable[..., OpenAIServer]]:
    servers = []

    def start(**habits: Any) -> OpenAIServer:
        servers.append(OpenAIServer(**habits))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)


def engine_of(server: OpenAIServer, model: str = MODEL, prompt: Prompt = UNEVEN[0]) -> OpenAIEngine:
    return OpenAIEngine(model, client_of(server), (prompt, SAMPLING))


def client_of(server: OpenAIServer) -> JsonClient:
    return JsonClient(server.url, timeout=30, max_concurrency=4, max_retries=2)


def test_what_is_stored_is_what_the_served_model_drew(serve):
    server = serve()
    engine = engine_of(server)
    told: list[tuple[int, int]] = []
    drawn = engine.draw(UNEVEN, 5, SAMPLING, lambda prompts, tokens: told.append((prompts, tokens)))
    assert worst_error(make_model(), UNEVEN, drawn, SAMPLING) < 1e-4
    tokenizer = make_tokenizer()
    for prompt, draws in zip(UNEVEN, drawn, strict=True):
        assert draws.completions == [said(ids) for ids in draws.completion_token_ids]
        for ids, reason in zip(draws.completion_token_ids, draws.finish_reasons, strict=True):
            assert reason == ("stop" if ids[-1] == tokenizer.eos_token_id else "length")
        assert len({tuple(ids) for ids in draws.completion_token_ids}) > 1
        assert Group.of(prompt, draws).prompt_token_ids == prompt.token_ids
    lengths = [sum(map(len, draws.completion_token_ids)) for draws in drawn]
    assert sorted(told) == sorted((1, length) for length in lengths)
    # The trial, then one request per prompt.
    assert [request["n"] for _, request in server.posts] == [2] + [5] * len(UNEVEN)
    assert engine.describe() == {
        "engine": "openai",
        "model": MODEL,
        "server": "vllm",
        "endpoint": "completions",
        "token_ids": True,
        "logprobs": True,
        "special_tokens": "in the text",
    }


@pytest.mark.parametrize("habit", [{"most": 1}, {"most": 3}, {"refuses_many": True}])
def test_a_server_that_answers_fewer_choices_gives_the_same_groups(serve, habit):
    usual = engine_of(serve()).draw(UNEVEN, 7, SAMPLING)
    server = serve(**habit)
    assert engine_of(server).draw(UNEVEN, 7, SAMPLING) == usual
    # Noticed at the trial of two, where it answers but one.
    asked = [request["n"] for _, request in server.posts]
    assert asked[0] == 2
    if habit != {"most": 3}:
        assert set(asked[1:]) == {1}
    seeds = [request["seed"] for _, request in server.posts[1:] if request["max_tokens"] == 8]
    assert len(set(seeds)) == len(seeds), "two requests with one seed draw the same"


def test_requests_stay_within_the_protocols_most_choices(serve):
    server = serve()
    (drawn,) = engine_of(server).draw(UNEVEN[:1], 150, replace(SAMPLING, max_completion_length=2))
    assert len(drawn.completions) == 150
    assert sorted(request["n"] for _, request in server.posts) == [2, 22, 128]


def test_the_seed_decides_and_the_other_prompts_do_not(serve):
    engine = engine_of(serve())
    together = engine.draw(UNEVEN, 4, SAMPLING)
    assert [engine.draw([prompt], 4, SAMPLING)[0] for prompt in UNEVEN] == together
    other = engine.draw(UNEVEN, 4, replace(SAMPLING, seed=6))
    assert all(a.completion_token_ids != b.completion_token_ids for a, b in zip(together, other, strict=True))


@pytest.mark.parametrize("habit", [{"most": 1}, {}])
def test_draws_that_are_all_equal_are_refused(serve, habit):
    server = serve(ignores_seed=True, **habit)
    with pytest.raises(RemoteError, match=r"equal completions throughout: the server is greedy"):
        engine_of(server).draw(UNEVEN, 3, SAMPLING)


@pytest.mark.parametrize("most", [2, 4])
def test_draws_repeated_within_a_request_are_refused(serve, most):
    """The groups are mixed, of two draws that are repeated: no group of draws that differ."""
    server = serve(repeats=True, most=most)
    with pytest.raises(RemoteError, match=r"choices of each request are equal.*the server draws once"):
        engine_of(server).draw(UNEVEN, 8, SAMPLING)


@pytest.mark.parametrize("change", [{"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_logprobs_of_another_distribution_than_the_one_sampled_are_not_kept(serve, change):
    server = serve()
    sampling = replace(SAMPLING, **change)
    client = JsonClient(server.url, timeout=30, max_concurrency=4, max_retries=2)
    engine = OpenAIEngine(MODEL, client, (UNEVEN[0], sampling))
    drawn = engine.draw(UNEVEN, 3, sampling)
    assert all(ids for draws in drawn for ids in draws.completion_token_ids)
    assert not any(values for draws in drawn for values in draws.logprobs)
    assert engine.describe()["logprobs"] is False
    for _, request in server.posts:
        assert {name: request[name] for name in change} == change


@pytest.mark.parametrize(("habit", "value"), [({"owner": "proxy"}, -0.7), ({}, 0.7), ({}, 1e-3)])
def test_logprobs_that_may_be_anothers_or_are_none_are_not_kept(serve, habit, value):
    """A server that may add its own top_k or repetition_penalty, or numbers that no probability has."""

    def spoil(number: int, request: dict, answer: dict) -> None:
        for choice in answer["choices"]:  # asked for or not
            choice["logprobs"] = {"token_logprobs": [value] * len(choice["token_ids"])}

    server = serve(spoil=spoil, **habit)
    engine = engine_of(server)
    drawn = engine.draw(UNEVEN, 3, SAMPLING)
    assert all(ids for draws in drawn for ids in draws.completion_token_ids)
    assert not any(values for draws in drawn for values in draws.logprobs)
    assert engine.describe()["logprobs"] is False
    assert habit == {} or not any("logprobs" in request for _, request in server.posts)


def test_text_and_talk_without_a_tokenizer(serve):
    for prompts, endpoint in ((TEXTS, "completions"), (TALKS, "chat/completions")):
        plain = serve(owner="someone")
        engine = engine_of(plain, prompt=prompts[0])
        drawn = engine.draw(prompts, 3, SAMPLING)
        assert {path for path, _ in plain.posts} == {endpoint}
        for _, request in plain.posts:
            sent = {"model", "n", "max_tokens", "temperature", "top_p", "seed", "prompt", "messages"}
            assert set(request) <= sent, "a strict server refuses what it does not know"
        assert all(draws.completion_token_ids == draws.logprobs == [[], [], []] for draws in drawn)
        assert all(Group.of(p, d).prompt_token_ids == [] for p, d in zip(prompts, drawn, strict=True))
        assert (engine.describe()["token_ids"], engine.describe()["server"]) == (False, "someone")

        # vLLM gives the ids of text too, and is told to leave out the model's own generation_config.
        vllm = serve()
        known = engine_of(vllm, prompt=prompts[0]).draw(prompts, 3, SAMPLING)
        assert [draws.completions for draws in known] == [draws.completions for draws in drawn]
        read = [
            Prompt(p.prompt_id, p.prompt, d.prompt_token_ids) for p, d in zip(prompts, known, strict=True)
        ]
        assert all(prompt.token_ids[0] == 1 for prompt in read)
        kept = [Group.of(p, d).prompt_token_ids for p, d in zip(prompts, known, strict=True)]
        assert kept == [prompt.token_ids for prompt in read]
        assert worst_error(make_model(), read, known, SAMPLING) < 1e-4
        assert all(request["repetition_penalty"] == 1.0 for _, request in vllm.posts[1:])
        assert all(request["top_k"] == request["min_p"] == 0 for _, request in vllm.posts[1:])


@pytest.mark.parametrize(("ids", "logprobs"), [(False, True), (True, False)])
def test_what_a_server_does_not_give_is_empty(serve, ids, logprobs):
    engine = engine_of(serve(ids=ids, logprobs=logprobs))
    drawn = engine.draw(UNEVEN, 3, SAMPLING)
    assert {bool(one) for draws in drawn for one in draws.completion_token_ids} == {ids}
    assert {bool(one) for draws in drawn for one in draws.logprobs} == {False}  # of no use without ids
    assert (engine.describe()["token_ids"], engine.describe()["logprobs"]) == (ids, False)


def test_a_group_has_ids_of_all_its_completions_or_of_none(serve):
    def spoil(number: int, request: dict, answer: dict) -> None:
        if number == 2:
            answer["choices"][0].pop("token_ids")
        if number == 3:
            answer["choices"][0]["logprobs"]["token_logprobs"].append(-0.5)

    drawn = engine_of(serve(spoil=spoil)).draw(UNEVEN, 3, SAMPLING)
    kept = sorted(
        tuple(kind(lists) for lists in (d.completion_token_ids, d.logprobs) for kind in (any, all))
        for d in drawn
    )
    neither, no_logprobs, both = (False,) * 4, (True, True, False, False), (True,) * 4
    assert kept == [neither, no_logprobs] + [both] * 3


def first(answer: dict) -> dict:
    return answer["choices"][0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: first(a).update(finish_reason="content_filter"), "finish_reason='content_filter'"),
        (lambda a: first(a).update(finish_reason=None), "finish_reason=None"),
        (lambda a: first(a).update(finish_reason="tool_calls"), "finish_reason='tool_calls'"),
        (lambda a: a["choices"].clear(), "has 0 choices, and n=3 were asked for"),
        (lambda a: a["choices"].extend([first(a)] * 4), "has 7 choices, and n=3"),
        (lambda a: a.update(choices="?"), "no list of choices"),
        (lambda a: first(a).update(text=None), "a choice has no text"),
        (lambda a: first(a).update(token_ids=[7] * 9), "9 tokens, over max_completion_length=8"),
        (
            lambda a: a.update(usage={"completion_tokens": 25}),
            "25 tokens for n=3 and max_completion_length=8",
        ),
        (lambda a: first(a).update(prompt_token_ids=[1, 1]), "read other prompt ids than were sent"),
    ],
)
def test_answers_that_cannot_be_used_are_errors(serve, change, says):
    server = serve(spoil=lambda number, request, answer: change(answer) if number else None)
    with pytest.raises(RemoteError, match=says):
        engine_of(server).draw(UNEVEN, 3, SAMPLING)


@pytest.mark.parametrize(
    "answer", [{"error": "wrong key sk-789"}, {"choices": [{"finish_reason": "stop", "x": "sk-789"}]}]
)
def test_a_key_that_an_answer_repeats_is_in_no_error(serve, monkeypatch, answer):
    monkeypatch.setenv("ENGINE_KEY", "sk-789")
    server = serve(spoil=lambda number, request, given: (given.clear(), given.update(answer)))
    client = JsonClient(server.url, api_key_env="ENGINE_KEY", timeout=30, max_concurrency=4, max_retries=2)
    with pytest.raises(RemoteError, match=r"(wrong key |'x': ')\*\*\*"):
        OpenAIEngine(MODEL, client, (UNEVEN[0], SAMPLING)).describe()


def test_sampling_that_cannot_work_is_refused_before_any_request(serve):
    server = serve()
    with pytest.raises(ConfigError, match=r"temperature=0\.0 must be above 0"):
        engine_of(server).draw(UNEVEN, 2, replace(SAMPLING, temperature=0.0))
    assert server.posts == []


def test_chats_that_are_no_plain_text(serve):
    def empty(number: int, request: dict, answer: dict) -> None:
        for choice in answer["choices"]:
            choice["message"]["content"] = None if number == 1 else "so"
            if number == 2:
                choice["message"]["reasoning_content"] = "because"

    drawn = engine_of(serve(spoil=empty), prompt=TALKS[0]).draw(TALKS[:3], 2, SAMPLING)
    assert sorted(draws.completions for draws in drawn) == [["", ""], ["so", "so"], ["so", "so"]]
    # Where the reasoning is kept apart, the ids are not those of the completion.
    assert [any(draws.completion_token_ids) for draws in drawn].count(False) == 1

    def tool(number: int, request: dict, answer: dict) -> None:
        first(answer)["message"]["tool_calls"] = [{"type": "function"}]

    with pytest.raises(RemoteError, match="called a tool"):
        engine_of(serve(spoil=tool), prompt=TALKS[0]).describe()


def test_refusals_carry_the_servers_words_and_storms_pass(serve):
    with pytest.raises(RemoteError, match="404 Not Found: refused, 404"):
        engine_of(serve(), model="no-such-model").describe()
    with pytest.raises(RemoteError, match="400 Bad Request: refused, 400"):
        engine_of(serve(refuse=lambda number: 400 if number > 2 else None)).draw(UNEVEN, 3, SAMPLING)
    with pytest.raises(RemoteError, match=r"gave up after 3 tries; the last: 503 .*refused, 503"):
        engine_of(serve(refuse=lambda number: 503 if number > 2 else None)).draw(UNEVEN, 3, SAMPLING)
    usual = engine_of(serve()).draw(UNEVEN, 3, SAMPLING)
    stormy = serve(refuse=lambda number: 429 if number % 2 else None)
    client = JsonClient(stormy.url, timeout=30, max_concurrency=4, max_retries=30)
    assert OpenAIEngine(MODEL, client, (UNEVEN[0], SAMPLING)).draw(UNEVEN, 3, SAMPLING) == usual


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_without_a_list_of_models(serve, status):
    engine = engine_of(serve(lists_models=status))
    described = engine.describe()
    assert (described["model"], described["server"]) == (MODEL, None)
    assert len(engine.draw(UNEVEN, 2, SAMPLING)) == len(UNEVEN)


def test_a_server_too_busy_to_list_its_models_is_not_taken_for_another(serve):
    with pytest.raises(RemoteError, match=r"GET .*models: gave up after 3 tries; the last: 503"):
        engine_of(serve(lists_models=503)).describe()


# --- Answers that are no draws


def engine_over(server: OpenAIServer, prompt: Prompt, tokenizer: Any = None) -> OpenAIEngine:
    client = JsonClient(server.url, timeout=30, max_concurrency=4, max_retries=2)
    return OpenAIEngine(MODEL, client, (prompt, SAMPLING), tokenizer)


BAD_IDS = [-1, 2**31, 10**30, 1.5, True, "7", None, [7], {"id": 7}]


@pytest.mark.parametrize("field", ["token_ids", "prompt_token_ids"])
@pytest.mark.parametrize(("sent", "bad"), [*((True, bad) for bad in BAD_IDS), (False, -1), (False, "7")])
def test_ids_that_are_no_tokens_are_errors(serve, bad, field, sent):
    def spoil(number: int, request: dict, answer: dict) -> None:
        if number:
            first(answer)[field] = [7, bad]

    prompts = UNEVEN if sent else TEXTS
    with pytest.raises(RemoteError, match=rf"^{field} holds .*whole numbers from 0 to 2147483647"):
        engine_over(serve(spoil=spoil), prompts[0]).draw(prompts, 3, SAMPLING)


def test_ids_out_of_the_tokenizers_vocabulary_are_errors(serve):
    tokenizer = make_tokenizer()

    def spoil(number: int, request: dict, answer: dict) -> None:
        first(answer)["token_ids"] = [len(tokenizer)]

    with pytest.raises(RemoteError, match=rf"holds {len(tokenizer)}; .* 0 to {len(tokenizer) - 1}"):
        engine_over(serve(spoil=spoil), UNEVEN[0], tokenizer).describe()
    drawn = engine_over(serve(), UNEVEN[0], tokenizer).draw(UNEVEN, 5, SAMPLING)
    assert worst_error(make_model(), UNEVEN, drawn, SAMPLING) < 1e-4


def test_special_tokens_come_from_vllm_or_from_the_ids(serve):
    """A server leaves them out unless it is told otherwise, which others than vLLM may not understand."""
    tokenizer = make_tokenizer()

    def skips(number: int, request: dict, answer: dict) -> None:
        for choice in answer["choices"]:
            if request.get("skip_special_tokens", True):
                choice["text"] = tokenizer.decode(choice["token_ids"], skip_special_tokens=True)

    for owner, known in (("vllm", None), ("vllm", tokenizer), ("another", tokenizer)):
        server = serve(owner=owner, spoil=skips)
        engine = engine_over(server, UNEVEN[0], known)
        drawn = engine.draw(UNEVEN, 5, SAMPLING)
        assert any("<user>" in text for draws in drawn for text in draws.completions)
        for draws in drawn:
            assert draws.completions == [said(ids) for ids in draws.completion_token_ids]
        asked = {request.get("skip_special_tokens") for _, request in server.posts}
        assert asked == ({False} if owner == "vllm" else {None})
        assert engine.describe()["special_tokens"] == "in the text"
    engine = engine_over(serve(owner="another", spoil=skips), UNEVEN[0])
    assert not any(
        "<user>" in text for draws in engine.draw(UNEVEN, 5, SAMPLING) for text in draws.completions
    )
    assert "special_tokens" not in engine.describe()


@pytest.mark.parametrize("written", ["{}", "  {}\n", "{}\ufffd", "<s>{}"])
def test_ids_are_held_against_the_text(serve, written):
    """Spaces, halves of characters and special tokens are written in one way or another; words are not."""
    tokenizer = make_tokenizer()

    def write(number: int, request: dict, answer: dict) -> None:
        for choice in answer["choices"]:
            special = written.startswith("<s>")
            text = tokenizer.decode(choice["token_ids"], skip_special_tokens=not special)
            choice["text"] = written.removeprefix("<s>").format(text)

    drawn = engine_over(serve(spoil=write), UNEVEN[0], tokenizer).draw(UNEVEN, 3, SAMPLING)
    assert all(ids for draws in drawn for ids in draws.completion_token_ids)

    def another(number: int, request: dict, answer: dict) -> None:
        first(answer)["text"] = "some other words"

    with pytest.raises(
        RemoteError, match=r"ids of a completion read .* and its text is 'some other words': the tok"
    ):
        engine_over(serve(spoil=another), UNEVEN[0], tokenizer).describe()


@pytest.mark.parametrize(
    "bad", [0.7, float("nan"), float("-inf"), -1e31, -(10**400), "-1", True, None, [-1.0]]
)
def test_logprobs_that_are_none_are_not_kept_and_that_is_told_once(serve, bad, caplog):
    def spoil(number: int, request: dict, answer: dict) -> None:
        if number > 1:
            first(answer)["logprobs"]["token_logprobs"][-1] = bad

    drawn = engine_of(serve(spoil=spoil)).draw(UNEVEN, 3, SAMPLING)
    assert sum(any(draws.logprobs) for draws in drawn) == 1
    assert all(ids for draws in drawn for ids in draws.completion_token_ids)
    told = [record.getMessage() for record in caplog.records if record.name == "nonpareil.engines.openai"]
    assert len(told) == 1
    assert "no log-prob, a number of 0 or less, of each token of every completion" in told[0]


@pytest.mark.parametrize(
    "numbers", [[0, 0, 1], [0, 1, 3], [-1, 0, 1], [0, 1, None], [0, 1, "2"], [0, True, 2], [0, {}, 2]]
)
def test_choices_are_different_ones(serve, numbers):
    def spoil(number: int, request: dict, answer: dict) -> None:
        for choice, index in zip(answer["choices"], numbers if number else range(2), strict=True):
            choice["index"] = index

    with pytest.raises(RemoteError, match=r"choices are numbered \[.*\]; n=3 different ones"):
        engine_of(serve(spoil=spoil)).draw(UNEVEN, 3, SAMPLING)


def test_choices_without_a_number_come_as_they_stand(serve):
    def spoil(number: int, request: dict, answer: dict) -> None:
        answer["choices"].sort(key=lambda choice: choice.pop("index"))

    assert engine_of(serve(spoil=spoil)).draw(UNEVEN, 3, SAMPLING) == engine_of(serve()).draw(
        UNEVEN, 3, SAMPLING
    )


def test_half_a_character_is_no_text(serve):
    def spoil(number: int, request: dict, answer: dict) -> None:
        first(answer)["text"] = "good \ud83d"

    with pytest.raises(RemoteError, match=r"half a character.*'good \\ud83d'"):
        engine_of(serve(spoil=spoil)).describe()


@pytest.mark.parametrize("field", ["finish_reason", "text", "usage", "logprobs", "choices", "index"])
@pytest.mark.parametrize("value", [["\x1b[2J"] * 50, {"a": [1e999]}, 10**4000, "\u202e\x1b[31m", [[[[[]]]]]])
def test_nothing_in_an_answer_is_a_traceback_or_a_wild_message(serve, field, value):
    def spoil(number: int, request: dict, answer: dict) -> None:
        (answer if field in ("usage", "choices") else first(answer))[field] = value

    said = ""
    try:
        engine_of(serve(spoil=spoil)).describe()
    except RemoteError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 600


@pytest.mark.parametrize(
    "listed", [5, None, {"data": 7}, {"data": [3, None]}, {"data": [{"id": MODEL, "owned_by": ["x"]}]}]
)
def test_a_list_of_models_of_another_form_names_nobody(serve, listed, monkeypatch):
    server = serve()
    handler = server.http.RequestHandlerClass
    monkeypatch.setattr(handler, "do_GET", lambda self: self.answer(200, listed))
    assert engine_of(server).describe()["server"] is None


@pytest.mark.parametrize("honours", [True, False], ids=["the server stops", "the server goes on"])
def test_stop_strings_end_a_text_whatever_the_server_does(serve, honours):
    def cut(number: int, request: dict[str, Any], answer: dict[str, Any]) -> None:
        for choice in answer["choices"] if honours else ():
            before, found, _ = choice["text"].partition(" good")
            choice |= {"text": before, "finish_reason": "stop" if found else choice["finish_reason"]}

    server, sampling = serve(spoil=cut), replace(SAMPLING, stop=(" good",))
    free = engine_of(serve()).draw(UNEVEN, 5, SAMPLING)
    engine = OpenAIEngine(MODEL, client_of(server), (UNEVEN[0], sampling), make_tokenizer())
    stopped = 0
    for before, after in zip(free, engine.draw(UNEVEN, 5, sampling), strict=True):
        assert after.completions == [text.partition(" good")[0] for text in before.completions]
        for text, was, reason in zip(
            before.completions, before.finish_reasons, after.finish_reasons, strict=True
        ):
            assert reason == ("stop" if " good" in text else was)
            stopped += " good" in text
        assert after.completion_token_ids == after.logprobs == [[]] * 5
    assert stopped
    assert all(request["stop"] == [" good"] for _, request in server.posts)
    assert not any("return_token_ids" in request for _, request in server.posts)
    assert engine.describe()["token_ids"] is False


def test_a_penalty_is_asked_of_servers_that_are_known_to_read_it(serve):
    sampling = replace(SAMPLING, repetition_penalty=1.3)
    server = serve()
    engine = OpenAIEngine(MODEL, client_of(server), (UNEVEN[0], sampling))
    (drawn, *_) = engine.draw(UNEVEN, 2, sampling)
    assert {request["repetition_penalty"] for _, request in server.posts} == {1.3}
    assert drawn.logprobs == [[], []], "a server's log-probs may be those without the penalty"
    other = serve(owner="somebody")
    engine = OpenAIEngine(MODEL, client_of(other), (UNEVEN[0], sampling))
    with pytest.raises(ConfigError, match=r"repetition_penalty=1.3: the protocol has no such setting.*vllm"):
        engine.draw(UNEVEN, 2, sampling)
    assert not other.posts
