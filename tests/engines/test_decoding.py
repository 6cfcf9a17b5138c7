"""prompt + completion is the text that the model wrote, whatever kind of tokenizer wrote it."""

import random

import pytest
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from nonpareil.engines.decoding import HALF, WINDOW, completion_texts
from nonpareil.engines.vllm.requests import VLLMChoice, draws_of
from nonpareil.records import Prompt, SamplingParams
from tests.tokenizers_of_all_kinds import BOS, EOS, KINDS, PAD, SPECIAL, TEXT, THINK, THOUGHT, TURN, UNK

BORDERS = {UNK, BOS, EOS, PAD}
PROMPTS = [
    "",
    "The film was",
    "He said: ",
    "naïve café",
    "5 €",
    "日本語の文章",
    "🙂",
    " two  spaces\n",
    "x" * 40,
]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return KINDS[request.param]()


def whole(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """The text of all ids at once, without what marks borders and as it is, by transformers itself."""
    kept = [token for token in ids if token not in BORDERS]
    return tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_prompt_and_completion_are_the_text_of_all_the_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    choose = random.Random(0)
    plain = range(len(SPECIAL), len(tokenizer))
    checked = 0
    for text in [*PROMPTS, *TEXT[:5]]:
        prompt = tokenizer(text)["input_ids"]
        drawn = [[choose.choice(plain) for _ in range(choose.randint(0, 12))] for _ in range(40)]
        drawn += [tokenizer(other, add_special_tokens=False)["input_ids"] for other in TEXT[:5]]
        completions = completion_texts(tokenizer, prompt, [[*ids, EOS] for ids in drawn], {EOS})
        for ids, completion in zip(drawn, completions, strict=True):
            read, all_of_it = whole(tokenizer, prompt), whole(tokenizer, prompt + ids)
            if all_of_it.startswith(read):
                assert read + completion == all_of_it
                checked += 1
            else:  # byte fallback, which reads the prompt's own characters as broken beside a broken one
                assert HALF in all_of_it
                assert completion == whole(tokenizer, [*letter(tokenizer), *ids])[1:]
    assert checked > 500


def letter(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return tokenizer.encode("a", add_special_tokens=False)


@pytest.mark.parametrize(
    "kind", ["bytes", "bytes_tidied", "llama_2", "metaspace_always", "metaspace_first", "metaspace_never"]
)
@pytest.mark.parametrize("prompt", ["", "The film was", "The film was ", "naïve café", "I said:\n", "  two"])
def test_a_string_prompt_is_followed_by_what_was_written(kind: str, prompt: str) -> None:
    """Cut anywhere, the ids of a text give the text back: the first space, lines and punctuation with it."""
    tokenizer = KINDS[kind]()
    text = f"{prompt}{prompt and ' '}good . He didn't say: \n\nIs it very  good ?"
    size, ids = len(before := tokenizer(prompt)["input_ids"]), tokenizer(text)["input_ids"]
    assert ids[:size] == before, "the prompt's last token does not go on in the text"
    for end in ([], [EOS], [TURN]):
        [completion] = completion_texts(tokenizer, before, [ids[size:] + end], {EOS, TURN})
        assert prompt + completion == text


def test_a_chat_turn_keeps_the_space_that_it_begins_with() -> None:
    for kind in ("llama_2", "metaspace_first", "bytes"):
        tokenizer = KINDS[kind]()
        prompt = [BOS, *tokenizer.encode("user: hi", add_special_tokens=False), TURN]
        ids = tokenizer.encode("was good", add_special_tokens=False)
        before, all_of_it = whole(tokenizer, prompt), whole(tokenizer, [*prompt, *ids, EOS])
        [completion] = completion_texts(tokenizer, prompt, [[*ids, EOS]], {EOS})
        assert before + completion == all_of_it
        assert completion == ("was good" if kind == "bytes" else " was good")


def test_special_tokens_stay_save_the_end_and_the_borders(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = tokenizer("The film was")["input_ids"]
    good = tokenizer.encode("good", add_special_tokens=False)
    drawn = [THINK, *good, THOUGHT, PAD, BOS, *good, TURN]
    texts = completion_texts(tokenizer, prompt, [drawn, [*drawn, EOS], [TURN], []], {EOS, TURN})
    squeezed = ["".join(text.split()) for text in texts]
    assert squeezed == [
        "<think>good</think>good", "<think>good</think>good<|im_end|>", "", ""
    ], "a token that can end a completion is left out where it ended it"  # fmt: skip


@pytest.mark.parametrize("character", ["é", "€", "🙂"])
@pytest.mark.parametrize("kind", ["bytes", "llama_2"])
def test_a_character_may_be_cut_by_the_prompts_end_or_the_length_limit(kind: str, character: str) -> None:
    tokenizer = KINDS[kind]()
    single = {bytes([b]): tokenizer.convert_tokens_to_ids(token(kind, b)) for b in character.encode()}
    assert UNK not in single.values()
    ids = [single[bytes([b])] for b in character.encode()]
    before = tokenizer("caf")["input_ids"]
    for cut in range(1, len(ids)):
        [completion] = completion_texts(tokenizer, before + ids[:cut], [ids[cut:]], {EOS})
        assert "caf" + completion == "caf" + character, "whole in the completion, whose prompt says caf"
        [limited] = completion_texts(tokenizer, before, [ids[:cut]], {EOS})
        assert set(limited) == {HALF}
    assert completion_texts(tokenizer, before, [ids], {EOS}) == [character]


def token(kind: str, byte: int) -> str:
    if kind == "llama_2":
        return f"<0x{byte:02X}>"
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()[byte]


@pytest.mark.parametrize("character", ["é", "🙂"])
def test_a_tokenizer_in_python_that_drops_half_characters(character: str) -> None:
    tokenizer = ByT5Tokenizer()
    prompt, ids = (
        tokenizer.encode(text, add_special_tokens=False) for text in ("The caf", f"{character} was")
    )
    assert len(ids) > len(character) + 4
    for cut in range(4):
        [completion] = completion_texts(tokenizer, prompt + ids[:cut], [[*ids[cut:], 1]], {1})
        read = tokenizer.decode(prompt + ids[:cut])
        assert read + completion == f"The caf{character} was", "of half a character the prompt says nothing"


def test_a_broken_byte_behind_a_prompt_of_bytes_leaves_the_prompt_whole() -> None:
    tokenizer = KINDS["llama_2"]()
    prompt = tokenizer("café")["input_ids"]
    broken = tokenizer.convert_tokens_to_ids("<0xFF>")
    assert whole(tokenizer, [*prompt, broken]) == "caf" + 3 * HALF, "which is not what was asked"
    assert completion_texts(tokenizer, prompt, [[broken]], {EOS}) == [HALF]


def test_a_long_prompt_is_decoded_once(tokenizer: PreTrainedTokenizerFast, monkeypatch) -> None:
    """Only its last tokens are read again for each completion, more of them where those cut a character."""
    prompt = tokenizer(" ".join(TEXT))["input_ids"]
    ids = tokenizer(" very good", add_special_tokens=False)["input_ids"]
    expected = whole(tokenizer, prompt + ids)[len(whole(tokenizer, prompt)) :]
    read = []
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **options: read.append(len(ids)) or decode(ids, **options)
    )
    assert completion_texts(tokenizer, prompt, [ids] * 50, {EOS}) == [expected] * 50
    assert len(prompt) > 300
    assert sum(read) < 2 * len(prompt) + 60 * (2 * WINDOW + len(ids))


def test_vllms_answers_are_read_by_the_same_rule() -> None:
    """In process and over its server, which both give ids alone."""
    tokenizer = KINDS["llama_2"]()
    prompt = Prompt("p", "The film was", tokenizer("The film was")["input_ids"])
    ids = [THINK, *tokenizer.encode("very good", add_special_tokens=False), THOUGHT, TURN]
    choice = VLLMChoice(ids, [-1.0] * len(ids), "stop")
    drawn = draws_of(prompt, [choice], 1, SamplingParams(), frozenset({EOS, TURN}), tokenizer)
    assert drawn.completions == ["<think> very good</think>"]
    assert drawn.completion_token_ids == [ids]
