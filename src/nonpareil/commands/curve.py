"""Say what best-of-N is worth for every N, from groups on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.beside_curve import show_beside
from nonpareil.commands.command import Command
from nonpareil.commands.places import check_output, inputs_of
from nonpareil.commands.selection import check_reads, gold_scores
from nonpareil.console import console
from nonpareil.errors import ConfigError
from nonpareil.folders import writing
from nonpareil.options.curve import CurveOptions
from nonpareil.selection import parse_rules
from nonpareil.selection.rule import Rule, needs_of
from nonpareil.terminal import tell

if TYPE_CHECKING:
    from nonpareil.evaluation.beside_curve import BesideCurve
    from nonpareil.evaluation.curve import CurveReport


def run(options: CurveOptions) -> dict[str, Any]:
    """Write curve.json and curve.png; returns the curve, a `BestOfNReport`, and where they are.

    Of a run that is not finished it is the curve of the shards that are, and `unfinished` says of how many.

    Raises:
        NonpareilError: no such groups, groups without rewards, a max_n beyond m, or files there that are not ours.
    """
    if options.groups is None:
        raise ConfigError("groups is missing; give a folder written by `nonpareil sample`: --groups FOLDER")
    rules = parse_rules(options.rules or [])
    check_reads(options, rules)
    from nonpareil.evaluation import best_of_n_report
    from nonpareil.evaluation.report import write_curve
    from nonpareil.rollouts.numbers import read_numbers

    source = Path(options.groups)
    output_dir = Path(options.output_dir) if options.output_dir is not None else _beside(source)
    check_output("output_dir", output_dir, inputs_of(options))
    with writing(output_dir, "curve") as folder:
        folder.refuse_foreign(["curve.json", "curve.png"])
        groups, lacking = read_numbers(source)
        curve = best_of_n_report(groups, options.max_n, seed=options.seed)
        beside = _beside_curve(options, rules, curve, groups, source)
        path = write_curve(curve, output_dir, beside.to_dict())
    result = {"report": curve, "beside": beside, "curve": str(path), "picture": str(output_dir / "curve.png")}
    if lacking:
        tell(f"{source} is not finished: {lacking}; this is the curve of those")
        result["unfinished"] = lacking
    return result


def _beside_curve(
    options: CurveOptions, rules: Sequence[Rule], curve: "CurveReport", groups: Any, source: Path
) -> "BesideCurve":
    """What was asked for beside the curve; groups are read whole where texts, log-probs or names are needed."""
    import torch

    from nonpareil.evaluation.beside_curve import BesideCurve, Gold, beside_curve
    from nonpareil.records import GroupNumbers
    from nonpareil.rollouts.candidates import candidates_of_groups
    from nonpareil.rollouts.reading import read_available
    from nonpareil.selection.candidates import Candidates, numbers_of

    if not (rules or options.gold_reward or options.extrapolate or options.adaptive_n):
        return BesideCurve()
    gold, needs = None, needs_of(rules)
    if isinstance(groups, GroupNumbers) and options.gold_reward is None and not needs:
        order = sorted(range(len(groups)), key=groups.prompt_ids.__getitem__)
        candidates = Candidates(torch.from_numpy(groups.rewards[order]))
    else:
        whole = sorted(read_available(source)[0], key=lambda group: group.prompt_id)
        candidates = candidates_of_groups(whole, needs, options.answers, options.similarity)
        if options.gold_reward is not None:
            name, values = gold_scores(options.gold_reward, whole)
            gold = Gold(name, numbers_of(values))
    return beside_curve(
        curve,
        candidates,
        rules=rules,
        gold=gold,
        extrapolate=options.extrapolate,
        adaptive_n=options.adaptive_n,
        seed=options.seed,
    )


def _beside(source: Path) -> Path:
    return source / "curve" if source.is_dir() else source.with_name(source.stem + "-curve")


def show(result: dict[str, Any]) -> None:
    """The tables, and what to make of them; on stderr."""
    from rich.table import Table

    from nonpareil.evaluation.by_source import curve_cells, source_table
    from nonpareil.evaluation.intervals import few_prompts
    from nonpareil.evaluation.numbers import bracket, number

    curve = result["report"]
    prompts = "1 prompt" if curve.num_prompts_used == 1 else f"{curve.num_prompts_used} prompts"
    table = Table(title=f"What best-of-N is worth ({prompts})")
    for name in ("N", curve.reward_name, "95%", "win rate", "KL (nats)", "tokens per prompt"):
        table.add_column(name, justify="right", no_wrap=name == "95%")
    for point in curve.points:
        win = None if point.win_rate is None else point.win_rate.estimate
        table.add_row(
            str(point.n),
            number(point.reward.estimate),
            bracket(point.reward),
            number(win),
            number(point.kl_upper_bound),
            number(point.tokens_per_prompt, 0),
        )
    terminal = console()
    terminal.print(table)
    if curve.by_source:
        terminal.print(source_table(curve.source_headings(), curve_cells(curve.by_source), "curve.json"))
    for line in (curve.recommendation(), *curve.notes(), few_prompts(curve.num_prompts_used)):
        if line:
            terminal.print(line, soft_wrap=True)
    show_beside(terminal, result["beside"], curve.reward_name)


def as_json(result: dict[str, Any]) -> dict[str, Any]:
    """The curve's points beside where it is."""
    others = {name: value for name, value in result.items() if name not in ("report", "beside", "unfinished")}
    unfinished = {name: result[name] for name in ("unfinished",) if name in result}
    return {**others, **result["report"].to_dict(), **result["beside"].to_dict(), **unfinished}


COMMAND = Command(
    description=__doc__,
    example="nonpareil curve --groups nonpareil-groups",
    options=lambda: [CurveOptions],
    run=run,
    show=show,
    as_json=as_json,
)
