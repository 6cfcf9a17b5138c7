"""The table at the end of `distill`, where rewards are 0 and 1, and where there are several."""

import json

import torch
from rich.console import Console

from nonpareil.commands.distill.show import before_and_after
from nonpareil.evaluation import Evaluation, evaluate_groups
from nonpareil.evaluation.rows import summary_rows
from nonpareil.records import Group


def group(row: int, rewards: list[float]) -> Group:
    size = len(rewards)
    return Group(
        prompt_id=f"prompt-{row}",
        prompt="Say it.",
        prompt_token_ids=[1],
        completions=["yes"] * size,
        completion_token_ids=[[2, 3]] * size,
        finish_reasons=["stop"] * size,
        logprobs=[[-0.5, 0.0]] * size,
        rewards_by_name={"main": list(rewards)},
        rewards=list(rewards),
    )


def test_a_policy_that_always_succeeds_is_worth_as_many_as_the_groups_show():
    policy = [group(row, [1.0] * 4) for row in range(10)]
    reference = [group(row, [1.0, 0.0] * 4) for row in range(10)]
    kl = torch.full((10, 4), 0.7)
    evaluation = evaluate_groups(policy, reference, policy_kl=kl, policy_log_ratio=kl, n=(2,))
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(before_and_after(evaluation))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines()]
    told = {row[0]: row[1:] for row in rows if row}
    assert told["success rate"][:2] == [".500", "1.000"]
    before, after, interval = told["worth best-of-"]
    assert (before, after) == ("1.00", ">= 7")
    assert interval.endswith(", >= 7]")
    assert interval[1] in "123"  # ten prompts without a failure say no more


def test_several_rewards_have_a_row_each_and_a_single_one_has_none():
    def sided(right: float, words: float) -> list[Group]:
        groups = [group(row, [right + words] * 4) for row in range(10)]
        for each in groups:
            each.rewards_by_name = {"right": [right] * 4, "words": [words] * 3 + [None], "other": [1.0] * 4}
        return groups

    kl = torch.full((10, 4), 0.7)
    shown = []
    for names in (["right", "words"], ["right"], []):
        sides = sided(1.0, 12.5), sided(0.0, 20.0)
        evaluation = evaluate_groups(*sides, policy_kl=kl, policy_log_ratio=kl, n=(2,), reward_names=names)
        console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(before_and_after(evaluation))
        shown.append(console.export_text())
        if names[1:]:
            lines = {
                line.split("│")[1].strip(): line.split("│")[2:4]
                for line in shown[0].splitlines()
                if "│" in line
            }
            assert [cell.strip() for cell in lines["right"]] == [".000", "1.000"]
            assert [cell.strip() for cell in lines["words"]] == ["20.000", "12.500"]
            rows = {row.label: row for row in summary_rows(evaluation)}
            assert rows["right, win rate"].value == "1.000"
            assert rows["words, win rate"].value == ".000"
            assert rows["right, policy"].note == "success rate"
            assert rows["words, reference"].note == "mean"
            told = json.loads(json.dumps(evaluation.to_dict()))
            assert [one["reward"] for one in told["each_reward"]] == ["right", "words"]
            assert told["each_reward"][1]["policy_mean"]["estimate"] == 12.5
            assert Evaluation.from_dict(told) == evaluation
            del told["each_reward"]  # as an earlier version wrote it
            assert Evaluation.from_dict(told).each_reward == ()
    assert shown[1] == shown[2]
    assert "right" not in shown[1]
