"""Whether a request is drawn as the groups were that tell its quantiles: another law has other quantiles."""

from nonpareil.records import SamplingParams
from nonpareil.serving.calibration import Calibration
from nonpareil.serving.group_kinds import LIMITS, NotStored, given_fields, sampling_asked
from nonpareil.serving.problems import refused
from nonpareil.serving.records import DrawRequest
from nonpareil.serving.stopping import QUANTILE

_LIMIT = "max_completion_length"
_USUAL = SamplingParams().described()


def check_alike(request: DrawRequest, calibration: Calibration) -> None:
    """Refuse a request whose answers follow another law than the calibration's.

    Raises:
        UpstreamError: 400, by the field's name.
    """
    other_ways = f"give stop_at_reward, or max_draws={request.best_of}, as best_of is"
    remedy = f"ask for that, {other_ways}"
    try:
        asked = sampling_asked(given_fields(request), {})
    except NotStored as why:
        raise refused(f"{QUANTILE} is told by plain draws, and here {why}; {other_ways}", QUANTILE) from why
    for name, value in asked.items():
        there = calibration.sampling.get(name, _USUAL.get(name))
        if value != there:
            field = (
                next((one for one in LIMITS if one in request.forwarded), name) if name == _LIMIT else name
            )
            raise refused(
                f"{field}={value!r}: {QUANTILE} is told by groups of {field}={there!r}; {remedy}", field
            )
    for name in calibration.sampling.keys() - asked.keys() - {"seed"}:
        if (there := calibration.sampling[name]) != _USUAL.get(name):
            raise refused(
                f"{name} is not given: {QUANTILE} is told by groups of {name}={there!r}; {remedy}", name
            )
