"""Stop strings end a completion at the token that completes them, wherever token borders lie; and a penalty."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast
from transformers.generation import RepetitionPenaltyLogitsProcessor

from nonpareil.engines.decoding import completion_texts, first_stop, stopped
from nonpareil.engines.rows import Completion
from nonpareil.engines.stop_strings import StopStrings
from nonpareil.errors import ConfigError
from nonpareil.records import Prompt, SamplingParams
from tests.tiny import GOOD, UNEVEN, forced_logits, make_engine, make_model
from tests.tokenizers_of_all_kinds import EOS, KINDS, SPECIAL

SAMPLING = SamplingParams(max_completion_length=12, seed=5)
STOPS = ("\n\n", "said:", " 5 €", "</think>", "。文")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return KINDS[request.param]()


def ending(tokenizer: PreTrainedTokenizerFast, prompt: list[int], ids: list[int]) -> int | None:
    """The fewest tokens whose text has a stop string, by trying all."""
    for count in range(1, len(ids) + 1):
        (text,) = completion_texts(tokenizer, prompt, [ids[:count]], {EOS})
        if first_stop(text, STOPS) is not None:
            return count
    return None


def test_a_row_ends_with_the_token_that_completes_a_stop_string(tokenizer: PreTrainedTokenizerFast) -> None:
    choose = random.Random(0)
    prompt = Prompt("p", "x", tokenizer("He said: one\n")["input_ids"])
    pieces = [
        tokenizer.encode(text, add_special_tokens=False) for text in ("\n\n", "\n", "said:", "a 5 €", "was")
    ]
    pieces += [[token] for token in range(4, len(SPECIAL))]
    plain = range(len(SPECIAL), len(tokenizer))
    rows = []
    for _ in range(40):
        row: list[int] = []
        while len(row) < 14:
            row += choose.choice(pieces) if choose.random() < 0.3 else [choose.choice(plain)]
        rows.append(row[:14])
    stops = StopStrings(tokenizer, STOPS, {EOS}, [prompt] * len(rows))
    found: dict[int, int] = {}
    for step in range(14):
        running = [row for row in range(len(rows)) if row not in found]
        for row in stops.ended(running, [rows[row][step] for row in running]):
            found[row] = step + 1
    expected = {i: ending(tokenizer, prompt.token_ids, row) for i, row in enumerate(rows)}
    assert found == {i: count for i, count in expected.items() if count is not None}
    assert 10 < len(found) < 40
    rows = [row[: found.get(i)] for i, row in enumerate(rows)]
    drawn = [Completion(row, [-1.0] * len(row), "length") for row in rows]
    texts = completion_texts(tokenizer, prompt.token_ids, rows, {EOS})
    cut, said = stopped(tokenizer, prompt.token_ids, drawn, texts, {EOS}, STOPS)
    for i, (one, text) in enumerate(zip(cut, said, strict=True)):
        assert (one.token_ids, len(one.logprobs)) == (rows[i], len(rows[i]))
        assert one.finish_reason == ("stop" if i in found else "length")
        assert not any(stop in text for stop in STOPS)
        assert texts[i].startswith(text)


def test_an_empty_line_stops_whether_it_is_one_token_or_two() -> None:
    tokenizer = KINDS["bytes"]()
    newline = tokenizer.encode("\n", add_special_tokens=False)
    both = tokenizer.encode("\n\n", add_special_tokens=False)
    assert len(newline) == 1
    forms = {tuple(both), (*newline, *newline)}
    assert len(forms) == 2, "the tokenizer has no token of its own for an empty line"
    for form in forms:
        ids = [*tokenizer.encode("good", add_special_tokens=False), *form]
        stops = StopStrings(tokenizer, ["\n\n"], {EOS}, [Prompt("p", "x", newline)])
        assert [stops.ended([0], [token]) for token in ids] == [[]] * (len(ids) - 1) + [[0]]
        beyond = [Completion([*ids, *newline, *ids], [-1.0] * (2 * len(ids) + 1), "length")]
        texts = completion_texts(tokenizer, newline, [beyond[0].token_ids], {EOS})
        (cut,), (said,) = stopped(tokenizer, newline, beyond, texts, {EOS}, ["\n\n"])
        assert (cut.token_ids, cut.finish_reason, said) == (ids, "stop", "good")
    begins = StopStrings(tokenizer, ["\n\n"], {EOS}, [Prompt("p", "x", newline)])
    assert begins.ended([0], newline) == []  # the prompt's own line end is none of the completion's


def test_stopped_draws_are_the_free_ones_up_to_there() -> None:
    engine = make_engine()
    free = engine.draw(UNEVEN, 12, SAMPLING)
    cut = engine.draw(UNEVEN, 12, replace(SAMPLING, stop=(" good", "very long")))
    reasons = []
    for before, after in zip(free, cut, strict=True):
        for i, text in enumerate(before.completions):
            place = first_stop(text, (" good", "very long"))
            ids, own = after.completion_token_ids[i], before.completion_token_ids[i]
            assert after.completions[i] == (text if place is None else text[:place])
            assert ids == own[: len(ids)]
            assert after.logprobs[i] == pytest.approx(before.logprobs[i][: len(ids)], abs=1e-5)
            if place is None:
                assert (len(ids), after.finish_reasons[i]) == (len(own), before.finish_reasons[i])
            else:
                assert after.finish_reasons[i] == "stop"
                assert ids[-1] == GOOD or text[place:].startswith("very long")
                reasons.append(before.finish_reasons[i])
    assert {"stop", "length"} == set(reasons), "the tiny model no longer says good"


@pytest.mark.parametrize("penalty", [1.7, 0.6])
def test_a_penalty_is_transformers_own_and_the_logprobs_are_of_what_was_drawn_from(penalty: float) -> None:
    model, prompts = make_model(), UNEVEN[:3]
    sampling = replace(SAMPLING, temperature=0.8, repetition_penalty=penalty, max_completion_length=8)
    processor, engine = RepetitionPenaltyLogitsProcessor(penalty), make_engine(model)
    drawn = engine.draw(prompts, 4, sampling)
    alone = [engine.draw([prompt], 4, sampling)[0] for prompt in prompts]
    free = engine.draw(prompts, 4, replace(sampling, repetition_penalty=1.0))
    moved = 0.0
    for prompt, draws, one in zip(prompts, drawn, alone, strict=True):
        assert draws.completion_token_ids == one.completion_token_ids
        for ids, recorded in zip(draws.completion_token_ids, draws.logprobs, strict=True):
            logits = forced_logits(model, prompt.token_ids, ids)
            for step, token in enumerate(ids):
                before = torch.tensor([[*prompt.token_ids, *ids[:step]]])
                scores = processor(before, logits[step][None].clone())[0]
                expected = (scores / 0.8).log_softmax(-1)[token]
                assert recorded[step] == pytest.approx(expected.item(), abs=1e-4)
                moved = max(moved, abs(recorded[step] - (logits[step] / 0.8).log_softmax(-1)[token].item()))
    assert moved > 0.1
    assert [d.completions for d in drawn] != [d.completions for d in free]


def test_what_is_no_text_is_refused() -> None:
    for stop in (("",), (3,)):
        with pytest.raises(ConfigError, match="is no text that could end a completion"):
            make_engine().draw(UNEVEN, 2, replace(SAMPLING, stop=stop))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"repetition_penalty=0.0 must be above 0"):
        make_engine().draw(UNEVEN, 2, replace(SAMPLING, repetition_penalty=0.0))
