"""The weights that an upstream serves, as the user names them: what makes its groups fit to train them."""

from typing import TYPE_CHECKING, Any

from nonpareil.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from nonpareil.options.serve import ServeOptions
    from nonpareil.serving.records import Drawn
    from nonpareil.serving.upstream import HttpUpstream


def known_weights(options: "ServeOptions", upstream: "HttpUpstream") -> dict[str, Any]:
    """What stored groups say of them, as of a policy that was drawn from here.

    That the upstream serves these weights is the user's word. What can be seen is held against it: the trial's
    token ids must be those of this tokenizer. In which dtype they are served is unknown, and not said.

    Raises:
        ConfigError: no groups are kept, the upstream gives no token ids, or they are another tokenizer's.
        ModelError: no such model.
    """
    from nonpareil.commands.policies.local import LocalPolicy

    where = f"groups_model={options.groups_model!r}"
    if options.groups is None:
        raise ConfigError(f"{where} is not read without groups; remove it, or give groups")
    if upstream.trial is None or not _has_ids(upstream.trial):
        raise ConfigError(
            f"{where}: the upstream gives no token ids (a vLLM server does), without which no group can train a "
            "model; remove it: curve, export and methods that need rewards alone (vbon) take such groups"
        )
    policy = LocalPolicy(
        options.groups_model or "", field="groups_model", trust_remote_code=options.trust_remote_code
    )
    if (said := _disagreement(upstream.trial, policy.tokenizer)) is not None:
        raise ConfigError(f"{where} is not what the upstream serves: {said}; name the served model's own")
    upstream.known_weights = True
    return {name: value for name, value in policy.info().items() if name != "dtype"}


def _has_ids(trial: "Drawn") -> bool:
    return bool(trial.prompt_token_ids) and all(answer.token_ids for answer in trial.answers)


def _disagreement(trial: "Drawn", tokenizer: "Tokenizer") -> str | None:
    """Which ids the tokenizer reads otherwise than the server, in words; None where there are none."""
    from nonpareil.serving.upstream import PROBE

    def read(ids: list[int], *, skip: bool) -> str:
        return _bare(str(tokenizer.decode(ids, skip_special_tokens=skip)))

    prompt = trial.prompt_token_ids or []
    asked = read(tokenizer(PROBE, add_special_tokens=False)["input_ids"], skip=False)
    if max(prompt) >= len(tokenizer) or asked not in read(prompt, skip=False):
        return f"its prompt's ids do not read {PROBE!r} here"
    for answer in trial.answers:
        ids = answer.token_ids or []
        if max(ids) >= len(tokenizer) or _bare(answer.text) not in (read(ids, skip=s) for s in (True, False)):
            return f"the ids {ids} of an answer do not read {answer.text!r:.40} here"
    return None


def _bare(text: str) -> str:
    """Without spaces, and characters cut in half: servers that decode token by token have their own ways."""
    return "".join(text.replace("\ufffd", "").split())
