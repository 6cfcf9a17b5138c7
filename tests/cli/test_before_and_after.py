"""The table at the end of `distill`, where rewards are 0 and 1."""

import torch
from rich.console import Console

from nonpareil.commands.distill.show import before_and_after
from nonpareil.evaluation import evaluate_groups
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
