"""Answers of a policy before and after its training, side by side: the first of each held-out prompt.

    python recipes/chat/answers.py --reference OUT/reference --policy OUT/runs/jbond/seed-0/evaluation/final/policy

Both are folders of groups that an evaluation left. What cannot be printed is shown escaped.
"""

import argparse
from collections.abc import Sequence

from nonpareil.records import Group
from nonpareil.rollouts import read_groups
from nonpareil.terminal import printable


def asked(group: Group) -> str:
    """The last turn of the prompt."""
    prompt = group.prompt if isinstance(group.prompt, str) else group.prompt[-1]["content"]
    return printable(prompt.replace("\n", " "))


def first_answers(group: Group, count: int) -> Sequence[str]:
    """Reward and text of the first completions."""
    drawn = list(zip(group.rewards, group.completions, strict=True))[:count]
    return [f"{reward:5.2f}  {printable(text)}" for reward, text in drawn]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", required=True)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--answers", type=int, default=1, help="of each prompt and side")
    args = parser.parse_args()
    before = {group.prompt_id: group for group in read_groups(args.reference)}
    for group in list(read_groups(args.policy))[: args.prompts]:
        print(f"\n{asked(group)}")
        for side, source in (("before", before[group.prompt_id]), ("after ", group)):
            for line in first_answers(source, args.answers):
                print(f"  {side} {line}")


if __name__ == "__main__":
    main()
