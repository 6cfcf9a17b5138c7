"""The temperature that an evaluation draws and compares at: that of the policy's training unless told otherwise."""

from typing import TYPE_CHECKING, Any

from nonpareil.terminal import tell

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy


def measured_temperature(
    given: float | None, policy: "LocalPolicy", reference: "LocalPolicy"
) -> dict[str, Any]:
    """`measured` and, in words, `from`; it is told of where a model was trained at another, or it is not the usual.

    Raises:
        ModelError: a model whose note of its training's temperature cannot be read.
    """
    from nonpareil.models.trained import trained_temperature

    trained = {
        side: trained_temperature(source.name_or_path, source.revision)
        for side, source in (("policy", policy), ("reference", reference))
    }
    own = trained["policy"]
    if given is not None:
        measured, source = given, "as given"
    elif own is not None:
        measured, source = own, "as the policy was trained"
        if measured != 1:
            tell(f"temperature {measured:g}: draws, rewards and KL are at what the policy was trained at")
    else:
        measured, source = 1.0, "by default; nothing says what the policy was trained at"
    for side, temperature in trained.items():
        if temperature not in (None, measured):
            tell(
                f"the {side} was trained at temperature {temperature:g}, and draws, rewards and KL are at "
                f"{measured:g} ({source}), where it is another policy"
            )
    return {"measured": measured, "from": source}
