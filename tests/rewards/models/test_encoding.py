"""Exactly the tokens the reward model was trained on, or a clear refusal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, RobertaConfig

from nonpareil.errors import ConfigError, DataError, ModelError
from nonpareil.records import Prompt
from nonpareil.rewards import RewardModel
from nonpareil.rewards.models.encoding import length_limit
from tests.rewards.conftest import make_llama, make_tokenizer, request_of

BOS, EOS = 1, 2
CPU32: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
CHAT = [{"role": "user", "content": "was the film good"}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def words(path: str, ids: list[int]) -> str:
    return AutoTokenizer.from_pretrained(path).decode(ids)


def test_a_string_is_tokenised_once_with_the_tokenizers_own_bos(llama_rm: str) -> None:
    (ids,) = RewardModel(llama_rm, **CPU32).inspect(request_of(("the film was ", "good")))
    assert words(llama_rm, ids) == "<s> the film was good"


def test_a_chat_has_one_bos_when_both_template_and_tokenizer_would_write_it(llama_rm: str) -> None:
    (ids,) = RewardModel(llama_rm, **CPU32).inspect(request_of((CHAT, answer("very good"))))
    assert words(llama_rm, ids) == "<s> <user> was the film good </s> <assistant> very good </s>"
    assert ids.count(BOS) == 1


def test_a_chat_gets_no_other_special_token_than_its_templates(save: Callable[..., str]) -> None:
    tokenizer = make_tokenizer(bert=True)  # to a plain text it adds <s> and </s>
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    path = save(make_llama(), tokenizer)
    ids = RewardModel(path, **CPU32).inspect(request_of((CHAT, answer("very good")), ("the ", "film")))
    assert words(path, ids[0]) == "<user> was the film good <assistant> very good"
    assert words(path, ids[1]) == "<s> the film </s>"


def test_a_prompt_that_already_begins_with_the_bos_gets_no_second(llama_rm: str) -> None:
    (ids,) = RewardModel(llama_rm, **CPU32).inspect(request_of(("<s> the film was ", "good")))
    assert ids.count(BOS) == 1


def test_prepend_bos_once_for_a_tokenizer_that_does_not(save: Callable[..., str]) -> None:
    tokenizer = make_tokenizer()
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    path = save(make_llama(), tokenizer)
    core["post_processor"] = None
    (Path(path) / "tokenizer.json").write_text(json.dumps(core))
    without, with_bos = (RewardModel(path, **CPU32, prepend_bos=flag) for flag in (False, True))
    data = request_of(("the film was ", "good"), ("<s> the film was ", "good"))
    assert without.inspect(data)[0] == with_bos.inspect(data)[0][1:]
    assert [ids.count(BOS) for ids in with_bos.inspect(data)] == [1, 1]


def test_append_eos_once(llama_rm: str) -> None:
    data = request_of(("the film was ", "good"), ("the film was ", "good </s>"), (CHAT, answer("good")))
    rows = RewardModel(llama_rm, **CPU32, append_eos=True).inspect(data)
    assert rows[0] == rows[1]
    assert [row[-2:].count(EOS) for row in rows] == [1, 1, 1]


def test_a_prefilled_assistant_turn_is_continued(llama_rm: str) -> None:
    (ids,) = RewardModel(llama_rm, **CPU32).inspect(request_of(([*CHAT, *answer("very ")], answer("good"))))
    assert words(llama_rm, ids) == "<s> <user> was the film good </s> <assistant> very good </s>"


def test_arguments_of_the_template_reach_it_or_are_refused(save: Callable[..., str]) -> None:
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = "{{ mood | default('') }} " + tokenizer.chat_template
    path = save(make_llama(), tokenizer)
    plain = RewardModel(path, **CPU32)
    moody = RewardModel(path, **CPU32, chat_template_kwargs={"mood": "good"})
    data = request_of((CHAT, answer("bad")))
    assert words(path, moody.inspect(data)[0]) == "good " + words(path, plain.inspect(data)[0])
    assert "chat_template_kwargs" not in plain.describe()  # as stored scores of earlier versions say
    assert moody.describe()["chat_template_kwargs"] == {"mood": "good"}
    strings = [Prompt("p", "the film", [1])]
    moody.check_prompts([*strings, Prompt("q", CHAT, [1])], 4, None)
    with pytest.raises(ConfigError, match=r"reward_chat_template_kwargs=.*the prompts are strings"):
        moody.check_prompts(strings, 4, None)
    for bad, says in (({"moood": 1}, "never mentions 'moood'"), ({"tokenize": 1}, "is set here")):
        with pytest.raises(ConfigError, match=f"reward_chat_template_kwargs: .*{says}"):
            RewardModel(path, **CPU32, chat_template_kwargs=bad)


def test_strings_and_chats_in_one_request_keep_their_order(llama_rm: str) -> None:
    pairs = [("the film was ", "good"), (CHAT, answer("bad")), ("the film was ", "bad")]
    reward = RewardModel(llama_rm, **CPU32)
    assert reward.inspect(request_of(*pairs)) == [reward.inspect(request_of(pair))[0] for pair in pairs]


def test_a_chat_without_template_is_refused(save: Callable[..., str]) -> None:
    reward = RewardModel(save(make_llama(), make_tokenizer(chat=False)), **CPU32)
    with pytest.raises(ModelError, match="has no chat template, but the prompts are conversations"):
        reward.score(request_of((CHAT, answer("good"))))


def test_a_conversation_the_template_refuses_is_named(save: Callable[..., str]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    reward = RewardModel(save(make_llama(), tokenizer), **CPU32)
    with pytest.raises(DataError, match=r"\['user', 'assistant'\]: roles must alternate"):
        reward.score(request_of((CHAT, answer("good"))))


def test_overlong_is_an_error_that_names_length_limit_and_remedy(llama_rm: str) -> None:
    reward = RewardModel(llama_rm, **CPU32)
    with pytest.raises(DataError, match=r"74 tokens is longer than the 64 .*overlong='truncate'"):
        reward.score(request_of(("film " * 70, "was very good")))


def test_truncation_drops_the_left_of_the_prompt_and_keeps_the_bos(llama_rm: str) -> None:
    reward = RewardModel(llama_rm, **CPU32, overlong="truncate", max_length=8, append_eos=True)
    data = request_of(("a bad dull long film ", "but very very good"), ("the film was ", "good"))
    assert words(llama_rm, reward.inspect(data)[0]) == "<s> long film but very very good </s>"
    assert reward.truncated == 0  # looking is not counted
    assert reward.score(data).failures == [None, None]
    assert reward.truncated == 1


def test_truncation_never_cuts_the_completion(llama_rm: str) -> None:
    reward = RewardModel(llama_rm, **CPU32, overlong="truncate", max_length=6, append_eos=True)
    scores = reward.score(
        request_of(("a film ", "was very very good"), ("a film ", "was not very very good"))
    )
    assert scores.failures == [None, "completion alone is over the limit of 6 tokens"]
    assert scores.values[1] is None


def test_truncation_keeps_an_encoders_beginning_and_end(bert_rm: str) -> None:
    reward = RewardModel(bert_rm, **CPU32, overlong="truncate", max_length=5)
    (ids,) = reward.inspect(request_of(("the film was ", "very good")))
    assert words(bert_rm, ids) == "<s> was very good </s>"


def test_the_limit_is_the_least_of_model_and_tokenizer() -> None:
    tokenizer, config = make_tokenizer(), make_llama().config
    assert length_limit(tokenizer, config) == 64
    tokenizer.model_max_length = 48
    assert length_limit(tokenizer, config) == 48
    roberta = RobertaConfig(max_position_embeddings=514, pad_token_id=1)
    tokenizer.model_max_length = int(1e30)
    assert length_limit(tokenizer, roberta) == 512


def test_append_eos_needs_an_eos(bert_rm: str) -> None:
    with pytest.raises(ModelError, match=r"append_eos=True, but .* has no eos_token"):
        RewardModel(bert_rm, **CPU32, append_eos=True)


def test_a_random_head_is_refused_by_name(causal_lm: str) -> None:
    with pytest.raises(ModelError, match=r"score\.weight.*random head"):
        RewardModel(causal_lm, **CPU32)


def test_two_labels_are_refused(save: Callable[..., str]) -> None:
    path = save(make_llama(num_labels=2), make_tokenizer())
    with pytest.raises(ModelError, match="num_labels=2"):
        RewardModel(path, **CPU32)
    with pytest.raises(ModelError, match="num_labels=2"):
        RewardModel(make_llama(num_labels=2), make_tokenizer())


def test_a_directory_without_tokenizer_is_refused(save: Callable[..., str]) -> None:
    with pytest.raises(ModelError, match="no tokenizer"):
        RewardModel(save(make_llama(), None), **CPU32)


def test_a_model_in_memory_needs_its_tokenizer() -> None:
    with pytest.raises(ModelError, match="needs its own tokenizer"):
        RewardModel(make_llama())


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such directory"):
        RewardModel(tmp_path / "nowhere", **CPU32)


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    reward = RewardModel(make_llama(vocabulary=10), make_tokenizer())
    with pytest.raises(ModelError, match="token 19, but its model has 10 embeddings"):
        reward.score(request_of(("the film was ", "but")))


def test_a_prompt_without_room_is_refused_before_anything_is_drawn(
    llama_rm: str, caplog: pytest.LogCaptureFixture
) -> None:
    """64 positions; a prompt has its words and the beginning token."""
    reward = RewardModel(llama_rm, **CPU32)
    own, other = make_tokenizer(chat=True), make_tokenizer(["a", "film"])
    prompts = [Prompt(str(words), "film " * words, [1]) for words in (3, 55)]
    reward.check_prompts(prompts, 8, own)  # 56 + 8
    with pytest.raises(
        DataError, match=r"prompt 55 \('film .*has 56 tokens .* takes 64, and max_completion_length=9 "
    ):
        reward.check_prompts(prompts, 9, own)
    RewardModel(llama_rm, **CPU32, overlong="truncate").check_prompts(prompts, 9, own)
    # Another tokenizer's tokens are no measure: what may fit is warned of, what cannot is refused.
    reward.check_prompts(prompts, 9, other)
    assert "may not fit beside it" in caplog.text
    with pytest.raises(DataError, match=r"has 64 tokens"):
        reward.check_prompts([Prompt("63", "film " * 63, [1])], 1, None)
