"""Groups of a server whose weights somebody here has: they train those weights, and no others."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import nonpareil
from nonpareil.commands.serve.weights import known_weights
from nonpareil.errors import ConfigError, DataError
from nonpareil.options.serve import ServeOptions
from nonpareil.records import Prompt, SamplingParams
from nonpareil.rollouts import read_groups
from nonpareil.serving.group_folder import GroupFolder
from nonpareil.serving.upstream import HttpUpstream
from tests.engines.openai_server import OpenAIServer
from tests.serving.groups import request, reward, scored
from tests.tiny import make_model, make_tokenizer, worst_error

TEXTS = ["the film", "a good", "not very dull", "was long and", "bad"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server of these tests serves."""
    folder = tmp_path_factory.mktemp("weights")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def server() -> Any:
    """A tiny real model behind vLLM's habits, but for its chat, which is no template's."""

    def textual(number: int, asked: dict, answer: dict) -> None:
        answer["usage"]["prompt_tokens"] = 3

    server = OpenAIServer(
        spoil=textual, refuse=lambda number: 400 if "messages" in server.posts[number][1] else None
    )
    yield server
    server.close()


def options_of(groups: Any, model: Path) -> ServeOptions:
    kept = None if groups is None else str(groups)
    return ServeOptions(engine="openai", base_url="http://127.0.0.1:9", groups=kept, groups_model=str(model))


def opened(url: str) -> HttpUpstream:
    upstream = HttpUpstream(url, model="tiny", for_groups=True)
    asyncio.run(upstream.check(60))
    return upstream


def keep(upstream: HttpUpstream, model: dict[str, Any], folder: Path, best_of: int = 4) -> Path:
    """The folder of the groups of a few requests."""
    with GroupFolder(folder) as groups:
        groups.begin(reward(), model, upstream.describe())

        async def work() -> None:
            for seed, text in enumerate(TEXTS):
                asked = request(text, best_of, seed)
                found = await upstream.draw(asked)
                await groups.write(asked, found, scored(text, found, reward()), [0], "best_of_n")
            await upstream.close()

        asyncio.run(work())
        (kind,) = groups.folders()
    return kind


def check_draws(kind: Path, folder: Path, texts: list[str] = TEXTS) -> None:
    """Ids, and the log-probs of the policy itself, of every answer."""
    groups = read_groups(kind)
    prompts = [Prompt(g.prompt_id, g.prompt, g.prompt_token_ids) for g in groups]
    assert all(all(g.completion_token_ids) and all(g.logprobs) for g in groups)
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    assert worst_error(model, prompts, groups, SamplingParams(max_completion_length=8)) < 1e-3  # type: ignore[arg-type]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [g.prompt_token_ids for g in groups] == [tokenizer(text)["input_ids"] for text in texts]


def test_what_is_no_model_of_the_upstreams_is_refused(
    server: OpenAIServer, weights: Path, tmp_path: Path
) -> None:
    upstream = opened(server.url)
    options = options_of(tmp_path / "g", weights)
    found = known_weights(options, upstream)
    assert found["fingerprint"]
    assert upstream.describe()["engine"] == "served"
    assert "dtype" not in found
    other = tmp_path / "other"
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(other)
    make_model().save_pretrained(other)
    stored = (other / "tokenizer.json").read_text().replace('"good"', '"goot"').replace('"film"', '"fill"')
    (other / "tokenizer.json").write_text(stored.replace('"<unk>"', '"<unknown>"'))
    upstream.trial.answers[0].token_ids[:] = [tokenizer.convert_tokens_to_ids("good")]
    object.__setattr__(upstream.trial.answers[0], "text", "good")
    with pytest.raises(ConfigError, match=r"groups_model=.* is not what the upstream serves"):
        known_weights(options_of("g", other), upstream)
    with pytest.raises(ConfigError, match=r"groups_model=.* is not read without groups"):
        known_weights(options_of(None, weights), upstream)
    upstream.trial.answers[1].token_ids.clear()
    with pytest.raises(ConfigError, match="gives no token ids"):
        known_weights(options, upstream)


@pytest.mark.slow
def test_its_groups_train_these_weights_and_no_others(
    server: OpenAIServer, weights: Path, tmp_path: Path
) -> None:
    upstream = opened(server.url)
    unknown = keep(upstream, {"path": "tiny"}, tmp_path / "unknown")
    upstream = opened(server.url)
    options = options_of(tmp_path / "g", weights)
    kind = keep(upstream, known_weights(options, upstream), tmp_path / "g")
    check_draws(kind, weights)
    train: dict[str, Any] = {
        **{
            "method": "sft_bon",
            "n": 4,
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "report_to": "none",
        },
        **{"use_cpu": True, "evaluate_after": False, "reward_funcs": "tests.serving.groups.length"},
    }
    nonpareil.distill(groups=str(kind), output_dir=str(tmp_path / "model"), **train)
    assert (tmp_path / "model" / "model.safetensors").is_file()
    with pytest.raises(DataError, match="keep them with groups_model, which says whose they are"):
        nonpareil.distill(
            groups=str(unknown), model_name_or_path=str(weights), output_dir=str(tmp_path / "m2"), **train
        )
    make_model(seed=1).save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="was drawn from"):
        nonpareil.distill(
            groups=str(kind),
            model_name_or_path=str(tmp_path / "other"),
            output_dir=str(tmp_path / "m3"),
            **train,
        )
