"""How `nonpareil curve` shows rules, a gold reward, N beyond the draws, and early stops."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nonpareil.evaluation.beside_curve import BesideCurve
    from nonpareil.evaluation.beyond import Beyond, EarlyStops
    from nonpareil.evaluation.gold import GoldCurve
    from nonpareil.evaluation.rule_values import RuleValues


def show_beside(terminal: "Console", beside: "BesideCurve", reward: str) -> None:
    """A table each, and what to make of it. `reward`: what the curve's rewards are called."""
    if beside.rules is not None:
        _rules(terminal, beside.rules, reward, None if beside.gold is None else beside.gold.name)
    if beside.gold is not None:
        _gold(terminal, beside.gold)
    if beside.beyond is not None:
        _beyond(terminal, beside.beyond)
    if beside.early_stops is not None:
        _early(terminal, beside.early_stops)


def _rules(terminal: "Console", values: "RuleValues", reward: str, gold: str | None) -> None:
    from rich.markup import escape

    from nonpareil.evaluation.numbers import bracket, number

    name = "success" if reward == "pass@N" else reward
    title = f"What rules of selection are worth ({values.num_prompts_used} prompts)"
    table = _table(title, "rule", name, "95%", "win rate", "KL <=", "tokens")
    for one in values.rules:
        win = None if one.win_rate is None else one.win_rate.estimate
        table.add_row(
            *(escape(one.rule), number(one.reward.estimate), bracket(one.reward), number(win)),
            *(number(one.kl_upper_bound), number(one.tokens_per_prompt, 0)),
        )
    terminal.print(table)
    if gold is not None:
        table = _table(f"The same choices, valued by {escape(gold)}", "rule", "gold", "95%")
        for one in values.rules:
            mean = None if one.gold is None else one.gold.estimate
            table.add_row(escape(one.rule), number(mean), bracket(one.gold))
        terminal.print(table)
    for note in values.notes():
        terminal.print(note, soft_wrap=True, markup=False)
    terminal.print(
        "Win rates are against one further draw, with one draw less to choose from. KL <= is that of the choice to "
        "an even draw among the completions, nats, which the answers' own KL never exceeds (of best-of-N the first "
        "table has it). Tokens are those drawn per prompt.",
        soft_wrap=True,
    )


def _gold(terminal: "Console", curve: "GoldCurve") -> None:
    from rich.markup import escape

    from nonpareil.evaluation.numbers import bracket, number

    title = f"Best-of-N by the reward, valued by {escape(curve.name)} ({curve.num_prompts_used} prompts)"
    table = _table(title, "N", "gold", "95%")
    for point in curve.points:
        table.add_row(str(point.n), number(point.gold.estimate), bracket(point.gold))
    terminal.print(table)
    terminal.print(curve.sentence(), soft_wrap=True, markup=False)
    if curve.gold_missing:
        terminal.print(
            f"{curve.gold_missing} completions without a gold value are left out, as if they had not been drawn.",
            soft_wrap=True,
        )


def _beyond(terminal: "Console", found: "Beyond") -> None:
    from nonpareil.evaluation.numbers import bracket, number

    table = _table("pass@N beyond the draws (a model, not measured)", "N", "pass@N", "95%")
    for point in found.points:
        table.add_row(str(point.n), number(point.pass_at_n.estimate), bracket(point.pass_at_n))
    terminal.print(table)
    terminal.print(found.sentence(), soft_wrap=True)


def _early(terminal: "Console", stops: "EarlyStops") -> None:
    from nonpareil.evaluation.numbers import number

    names = ("N", "draws", "tokens per prompt", "KL (nats)", "KL of best-of-N")
    table = _table(f"As good as best-of-N, stopping early ({stops.at})", *names)
    for one in stops.points:
        table.add_row(
            *(str(one.n), number(one.draws, 2), number(one.tokens_per_prompt, 0)),
            *(number(one.kl), number(one.kl_of_best_of_n)),
        )
    terminal.print(table)
    terminal.print(stops.sentence(), soft_wrap=True, markup=False)


def _table(title: str, *names: str) -> "Table":
    from rich.table import Table

    table = Table(title=title)
    for name in names:
        table.add_column(
            name, justify="left" if name == "rule" else "right", no_wrap=name == "95%", overflow="fold"
        )
    return table
