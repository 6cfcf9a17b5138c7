"""What a fitted value's report leaves in doubt: whether it tells anything at all."""

from pathlib import Path

from nonpareil.terminal import tell
from nonpareil.text_files import parse_json, read_text

REPORT = "report.json"
"""Beside the value: how good it was on held-out prompts."""


def tell_doubt(value: str | Path) -> None:
    """Say so where the held-out gain of a value's folder is not shown to be above 0; nothing without a report."""
    path = Path(value).expanduser() / REPORT
    report = parse_json(read_text(path), str(path)) if path.is_file() else None
    if not isinstance(report, dict) or not isinstance(gain := report.get("gain"), dict):
        return
    if (gain.get("low") or 0.0) > 0:
        return
    estimate, low, high = (float(gain.get(name) or 0.0) for name in ("estimate", "low", "high"))
    tell(
        f"value={str(value)!r} may tell nothing: it is {estimate:.3g} nats a prefix better than a uniform law on "
        f"{report.get('prompts')} held-out prompts, with a 95% interval of [{low:.3g}, {high:.3g}], which reaches "
        "0. Fit it on more prompts, or on more completions of each"
    )
