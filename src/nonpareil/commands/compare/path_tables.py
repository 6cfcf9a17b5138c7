"""What methods pay for equal win rates, as tables."""

from nonpareil.commands.compare.equal_win_rate import EqualWinRate, MethodPath
from nonpareil.commands.compare.over_seeds import OverSeeds
from nonpareil.commands.compare.text_table import TextTable
from nonpareil.evaluation.intervals import few_prompts
from nonpareil.evaluation.numbers import MISSING, bracket, number
from nonpareil.evaluation.path_tables import UNREACHED, reached_cell
from nonpareil.maths.bootstrap import Interval

_TITLE = "KL at equal win rate"
_NONE_SEEN = "no difference seen"


def path_tables(equal: EqualWinRate) -> list[TextTable]:
    """The KL of every path at every win rate, and the paired differences of methods on paths of one kind."""
    return [_kl(equal), *([_differences(equal)] if equal.differences else [])]


def _kl(equal: EqualWinRate) -> TextTable:
    rates = [f"{rate:g}" for rate in equal.win_rates]
    header = ["method", "path", "reaches", *(f"KL at {rate}" for rate in rates)]
    header += [f"efficiency at {rate}" for rate in rates]
    rows = [_row(path, len(rates)) for path in equal.paths]
    least = [number(kl) for kl in equal.least_kl]
    rows.append(["best possible", "", "", *least, *("1" for _ in rates)])
    few = few_prompts(equal.num_prompts)
    note = (
        f"Nats, means over seeds with 95% intervals over the {equal.num_prompts} prompts that every point was "
        "measured on, ± standard deviation over seeds. Checkpoints: from the reference through the checkpoints to "
        "the final policy. Interpolation: policies between the reference and the final one, and beyond it. Between "
        "the points win rate and root of the KL go by monotone cubics; nothing is said beyond the last. Reaches: "
        "the highest win rate of the path; of several seeds, that of the one that reaches least. An end of ∞: some "
        "resamples of the prompts do not reach the win rate. Efficiency: least KL of any policy at this win rate, "
        "ties counted / KL."
    )
    brief = tuple(range(3 + len(rates)))
    return TextTable(_TITLE, f"{note} {few}" if few else note, header, rows, 1, brief)


def _row(path: MethodPath, count: int) -> list[str]:
    start = [path.method, path.path, number(path.highest)]
    if not path.at:
        return [*start, *(["one point only"] * count), *([MISSING] * count)]
    kl = [_cell(row.kl, spread) for row, spread in zip(path.at, path.over_seeds, strict=True)]
    return [*start, *kl, *(reached_cell(row, row.kl_efficiency, 2) for row in path.at)]


def _cell(interval: Interval | None, spread: OverSeeds | None) -> str:
    """The KL; where some of several seeds alone do not reach the win rate, how many."""
    if interval is None:
        return UNREACHED if spread is None else f"{UNREACHED} by {spread.missing} of {spread.seeds} seeds"
    sd = "" if spread is None or spread.sd is None else f" ± {number(spread.sd)}"
    ends = bracket(interval)
    return f"{number(interval.estimate)}{sd}{'' if ends == MISSING else f' {ends}'}"


def _differences(equal: EqualWinRate) -> TextTable:
    rows = [
        [
            f"{each.first} - {each.second}",
            each.path,
            f"{each.win_rate:g}",
            f"{number(each.kl.estimate)} {bracket(each.kl)}",
            each.better or _NONE_SEEN,
        ]
        for each in equal.differences
    ]
    note = (
        "The first less the second, where both reach the win rate by the same kind of path, with 95% intervals "
        "over prompts, paired. A method is named only where the interval excludes zero. Of methods and win rates "
        "that are not here one of the two does not reach it."
    )
    header = ["methods", "path", "win rate", "KL, nats: difference", "better"]
    return TextTable(f"{_TITLE}: which is better", note, header, rows)
