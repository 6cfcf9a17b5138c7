"""The whole server over vLLM's own, a real one on loopback: marked vllm."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")

from transformers import AutoTokenizer

from nonpareil.commands.serve.weights import known_weights
from nonpareil.errors import ConfigError
from nonpareil.options.serve import ServeOptions
from nonpareil.rollouts import read_groups
from nonpareil.serving.group_folder import GroupFolder
from nonpareil.serving.upstream import HttpUpstream
from tests.engines.test_openai_servers import policy, vllm_url  # noqa: F401  (fixtures)
from tests.serving.groups import length, reward
from tests.serving.running import served
from tests.serving.test_known_weights import check_draws

pytestmark = pytest.mark.vllm
TEXTS = ["the film", "a good", "not very dull", "was long and", "bad"]


@pytest.fixture
def upstream(vllm_url: str) -> HttpUpstream:  # noqa: F811
    upstream = HttpUpstream(vllm_url, for_groups=True)
    asyncio.run(upstream.check(60))
    return upstream


def test_vllm_draws_n_in_one_request_and_its_groups_are_the_policys(
    upstream: HttpUpstream,
    policy: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    assert upstream.describe() == {"engine": "openai", "model": "tiny", "server": "vllm"}
    options = ServeOptions(
        engine="openai", base_url="http://127.0.0.1:9", groups=str(tmp_path), groups_model=str(policy)
    )
    with GroupFolder(tmp_path / "g") as groups:
        groups.begin(reward(), known_weights(options, upstream), upstream.describe())
        with served(upstream, length, best_of=6, max_tokens=8, writer=groups) as server:
            client = server.client()
            asks: list[Any] = [
                client.completions.create(model="tiny", prompt=text, seed=i, max_tokens=8)
                for i, text in enumerate(TEXTS)
            ]
            again = client.completions.create(model="tiny", prompt=TEXTS[0], seed=0, max_tokens=8)
            assert again.nonpareil["scores"] == asks[0].nonpareil["scores"]
            chat = client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "the film"}],
                max_tokens=8,
                logprobs=True,
                top_logprobs=2,
                extra_body={"best_of": 3, "chat_template_kwargs": {"mood": "good"}},
            )
            assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 2
            stopped = client.completions.create(
                model="tiny", prompt="the", max_tokens=8, stop=["film"], temperature=0.5
            )
    for answer in asks:
        assert len(answer.nonpareil["scores"]) == 6
        assert length([answer.choices[0].text])[0] == max(answer.nonpareil["scores"])
        assert 6 <= answer.usage.completion_tokens <= 48
    assert "film" not in stopped.choices[0].text
    names = sorted(path.name for path in (tmp_path / "g").glob("*-n*"))
    assert [name.rsplit("-", 1)[0] if name.count("-") > 3 else name for name in names] == [
        *("chat-n3-t1-max8", "text-n6-t0.5-max8", "text-n6-t1-max8")
    ]
    kind = tmp_path / "g" / "text-n6-t1-max8"
    found = read_groups(kind)
    assert found[0].completions == found[-1].completions  # one seed, one group
    check_draws(kind, policy, [*TEXTS, TEXTS[0]])
    (chatted,) = read_groups(tmp_path / "g" / names[0])
    tokenizer = AutoTokenizer.from_pretrained(policy)
    rendered = tokenizer.apply_chat_template(chatted.prompt, add_generation_prompt=True)["input_ids"]
    assert chatted.prompt_token_ids == rendered
    (cut,) = read_groups(tmp_path / "g" / names[1])
    assert not any(cut.completion_token_ids)  # a stop string cuts text, and not ids


def test_what_vllm_refuses_is_said_to_the_client_in_its_words(upstream: HttpUpstream) -> None:
    with served(upstream, length, best_of=2, max_tokens=8) as server:
        from openai import BadRequestError

        with pytest.raises(BadRequestError, match=r"maximum (context|model) length"):
            server.client().completions.create(model="tiny", prompt="the " * 70, max_tokens=8)
        with pytest.raises(BadRequestError, match="top_p"):
            server.client().completions.create(model="tiny", prompt="the", max_tokens=8, top_p=7)
    with pytest.raises(ConfigError, match=r"does not serve it; did you mean 'tiny'"):
        asyncio.run(HttpUpstream(upstream._client.base_url, model="tinny").check(60))
