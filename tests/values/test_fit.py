"""A value fitted on groups whose law is known: what it learns, what changes nothing, what is refused."""

import copy
import math
import random
from dataclasses import replace

import pytest
import torch

from nonpareil.errors import DataError, DivergedError
from nonpareil.models.logprobs import TokenSequences
from nonpareil.values.examples import Examples, check_groups, split_groups
from nonpareil.values.fit import fit_network, prefix_losses
from nonpareil.values.model import ValueModel, ValueNotes
from nonpareil.values.network import load_network
from nonpareil.values.report import squared_within, value_report
from nonpareil.values.settings import FitSettings
from tests.tiny import END, GOOD, make_model, make_tokenizer
from tests.values.conftest import group_of

BINS = 4


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    make_model().save_pretrained(folder)
    return load_network(str(folder), BINS, fresh_head=True)


@pytest.fixture(scope="module")
def fitted(network, groups):
    model = copy.deepcopy(network)
    own, held_out = split_groups(groups, 0.2, seed=0)
    settings = FitSettings(
        bins=BINS,
        learning_rate=1e-2,
        num_train_epochs=8,
        per_device_train_batch_size=64,
        max_tokens_per_batch=200,
    )
    seen = []
    examples = Examples.of(own, BINS)
    fit_network(model, examples, settings, lambda *done: seen.append(done))
    assert sum(count for count, _ in seen) == 8 * len(examples)
    assert sum(tokens for _, tokens in seen) == 8 * sum(examples.sequences.lengths())
    return model, value_report(model, Examples.of(held_out, BINS), examples.first_prompts(len(held_out)))


def test_a_fit_learns_what_prefixes_are_worth_and_its_report_says_so(fitted) -> None:
    model, report = fitted
    assert report.gain.low > 0
    assert not report.tells_nothing
    assert abs(report.gain.estimate - report.fitted_gain) < 0.15
    end = report.by_position[-1]
    assert end.tokens is None
    assert end.completions == report.completions
    assert end.squared_correlation > 0.8
    assert [one.tokens for one in report.by_position][:2] == [1, 2]
    assert 0 < report.by_position[0].squared_correlation < end.squared_correlation
    predicted = [tenth.predicted for tenth in report.calibration]
    assert predicted == sorted(predicted)
    assert all(abs(tenth.predicted - tenth.seen) < 0.15 for tenth in report.calibration)
    assert report.to_dict()["gain"]["estimate"] == report.gain.estimate

    texts = TokenSequences([[1, 7, 7]] * 2, [[GOOD, GOOD, GOOD, END], [9, 10, END]])
    values = ValueModel(model, make_tokenizer(), ValueNotes(BINS)).at(4).prefix_values(texts)
    assert values[0, 4] > 0.5
    assert values[1, 3] < -0.5


def test_no_budget_of_tokens_changes_the_gradient_and_embeddings_stay(network, groups) -> None:
    """The mean over all prefixes of a step's completions, however it is split into passes."""
    examples = Examples.of(groups[:6], BINS)
    after = []
    for tokens in (10, 100_000):
        model = copy.deepcopy(network)
        settings = FitSettings(bins=BINS, learning_rate=1e-3, max_tokens_per_batch=tokens)
        fit_network(model, examples, settings)
        after.append(model)
    for (name, one), other, before in zip(
        after[0].named_parameters(), after[1].parameters(), network.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)
        if "embed" in name:
            assert torch.equal(one, before)


def test_the_loss_is_the_cross_entropy_of_each_prefix_alone(network, groups) -> None:
    model = copy.deepcopy(network)
    torch.nn.init.normal_(model.score.weight, std=0.2)
    examples = Examples.of(groups[:2], BINS)
    losses = prefix_losses(model, examples, [3, 9]).tolist()
    for row in (3, 9):
        prompt, completion = examples.sequences.prompt_ids[row], examples.sequences.completion_ids[row]
        for end in range(len(completion) + 1):
            ids = torch.tensor([prompt + completion[:end]])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            expected = -(examples.labels[row] * logits.log_softmax(-1)).sum().item()
            assert losses.pop(0) == pytest.approx(
                expected, abs=0.05
            )  # bfloat16, where the machine gains from it
    assert not losses


def test_examples_leave_failed_rewards_out_and_prompts_keep_together(groups) -> None:
    rewards = [1.0, None, 2.0, 2.0, None, 0.0, 5.0, 6.0]
    some = [replace(groups[0], rewards=rewards), replace(groups[1], rewards=[None] * 7 + [1.0]), groups[2]]
    examples = Examples.of(some, BINS)
    assert examples.prompts == [0] * 6 + [1] * 8
    assert examples.num_prompts == 2
    assert examples.sequences.completion_ids[1] == groups[0].completion_token_ids[2]
    torch.testing.assert_close(examples.labels.sum(-1), torch.ones(14))
    torch.testing.assert_close(examples.labels[:6].sum(0), torch.full((BINS,), 6 / BINS))
    assert len(examples.first_prompts(1)) == 6
    assert Examples.of([], BINS).num_prompts == 0

    fit, held_out = split_groups(groups, 0.3, seed=1)
    assert len(fit) + len(held_out) == len(groups)
    assert len(held_out) == 24
    assert split_groups(groups[::-1], 0.3, seed=1)[1] == held_out[::-1]
    again = replace(held_out[0], prompt_id="another")
    assert again in split_groups([again, *groups], 0.3, seed=1)[1]
    assert len(split_groups(groups, 0.01, seed=1)[1]) == 8
    assert split_groups(groups, 0.3, seed=2)[1] != held_out


def test_correlation_within_prompts_heeds_no_difference_between_them() -> None:
    prompts = torch.tensor([0, 0, 0, 1, 1, 1])
    quantiles = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3], dtype=torch.float64)
    assert squared_within(quantiles + 5 * prompts, quantiles, prompts) == pytest.approx(1)
    assert squared_within(-quantiles - 5 * prompts, quantiles, prompts) == pytest.approx(1)
    assert math.isnan(squared_within(prompts.double(), quantiles, prompts))


def test_what_cannot_be_fitted_is_refused_before_a_model_is_needed(groups) -> None:
    check_groups(groups, "groups='g'")
    for some, said in [
        ([replace(groups[0], rewards=None), *groups[1:]], "without rewards"),
        (groups[:19], "19 prompts; a value needs 20"),
        ([replace(group, rewards=[3.0] * 8) for group in groups], "equal at every prompt"),
        ([replace(group, rewards=[None] * 7 + [1.0]) for group in groups], "equal at every prompt"),
        ([*groups[1:], replace(groups[0], prompt_token_ids=[])], "without token ids"),
        ([*groups[1:], replace(groups[0], completion_token_ids=[[]] * 8)], "without token ids"),
    ]:
        with pytest.raises(DataError, match=f"groups='g'.*{said}"):
            check_groups(some, "groups='g'")


def test_a_value_of_chance_tells_nothing_and_a_fit_that_diverges_is_stopped(network) -> None:
    draw = random.Random(1)
    groups = [group_of(number, draw) for number in range(40)]
    chance = [replace(group, rewards=[draw.random() for _ in group.rewards]) for group in groups]
    model = copy.deepcopy(network)
    settings = FitSettings(bins=BINS, learning_rate=1e-2, num_train_epochs=4, per_device_train_batch_size=32)
    examples = Examples.of(chance[:30], BINS)
    fit_network(model, examples, settings)
    assert value_report(model, Examples.of(chance[30:], BINS), examples).tells_nothing

    with torch.no_grad():
        model.score.weight.fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"learning_rate 0.01"):
        fit_network(model, examples, settings)
