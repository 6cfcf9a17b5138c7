"""Credits on disk as training data: read, and compared with the policy and groups of this run."""

from pathlib import Path
from typing import TYPE_CHECKING

from nonpareil.errors import ConfigError

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.rollouts.credits import StoredCredits


def load_credits(path: str, groups: str, policy: "LocalPolicy") -> "StoredCredits":
    """The credits of a folder; whether each is that of its completion is seen when the groups are read.

    Raises:
        DataError: no such credits, or some that are not whole.
        ConfigError: credits of another policy or other groups.
    """
    from nonpareil.rollouts.credits import groups_identity, read_credits

    credits = read_credits(Path(path))
    here = policy.info()["fingerprint"]
    if credits.source.policy != here:
        raise ConfigError(
            f"credits={path!r} were made with another policy ({credits.source.policy}) than "
            f"model_name_or_path={policy.name_or_path!r} ({here}); make them with the model that is trained"
        )
    if credits.source.groups != groups_identity(Path(groups)):
        raise ConfigError(
            f"credits={path!r} are of other groups than groups={groups!r}; make them of these, or give the groups "
            "that they are of"
        )
    return credits
