"""What a value is fitted on or asked about: stored groups, the policy that drew them, and a network."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nonpareil.errors import ConfigError, DataError, ModelError
from nonpareil.options.values import ValueGroupsOptions
from nonpareil.records import Group
from nonpareil.terminal import tell
from nonpareil.training.stored_folder import check_drawn_from, is_served, manifest_of, reward_settings

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy


class DrawnGroups(NamedTuple):
    """Stored groups of a policy on this machine."""

    path: str
    groups: list[Group]
    manifest: dict[str, Any]
    policy: "LocalPolicy"

    @property
    def where(self) -> str:
        """For messages."""
        return f"groups={self.path!r}"

    @property
    def temperature(self) -> float:
        """That they were drawn at."""
        return float(self.manifest["draw"]["sampling"]["temperature"])

    @property
    def identity(self) -> str:
        """As credits and values name them."""
        from nonpareil.rollouts.credits import groups_identity

        return groups_identity(Path(self.path))

    @property
    def rewards(self) -> dict[str, Any] | None:
        """All that decides them, by name, as credits keep it; None where the folder does not say."""
        described = self.manifest.get("rewards")
        return None if described is None else reward_settings(described)


def drawn_groups(options: ValueGroupsOptions) -> DrawnGroups:
    """The groups of a folder, which must be the policy's, scored, and more than a few; no weight is read.

    Raises:
        NonpareilError: no such groups or policy, groups of another one or of a server, or groups that no value can
            be fitted on.
    """
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.models.model_init import model_init
    from nonpareil.rollouts.reading import read_groups

    if options.groups is None:
        raise ConfigError("groups is missing; give a folder written by `nonpareil sample`: --groups FOLDER")
    manifest = manifest_of(Path(options.groups))
    drawn = manifest["draw"]["model"]
    policy = LocalPolicy(
        options.model_name_or_path or drawn["path"],
        options.model_revision or (None if options.model_name_or_path else drawn.get("revision")),
        options.dtype,
        trust_remote_code=options.trust_remote_code,
        init=model_init(options, gguf_file=options.gguf_file),
    )
    policy.check_plain("a value's network")
    check_drawn_from(options.groups, manifest, policy, "the model that the value is of")
    return checked(DrawnGroups(options.groups, read_groups(options.groups), manifest, policy))


def checked(drawn: DrawnGroups) -> DrawnGroups:
    """The same groups, where a value can be fitted on them.

    Raises:
        DataError: a server drew them, or as `values.examples.check_groups`.
        ConfigError: they were drawn from a part of the vocabulary, and the next token's law is another one.
    """
    from nonpareil.values.examples import check_groups

    if is_served(drawn.manifest):
        raise DataError(
            f"{drawn.where} was drawn from a server, whose next-token distributions are not known; draw groups "
            "with engine=transformers"
        )
    sampling = drawn.manifest["draw"]["sampling"]
    for name, whole in (("top_p", 1.0), ("top_k", 0), ("min_p", 0.0)):
        if sampling.get(name, whole) != whole:
            raise ConfigError(
                f"{drawn.where} was drawn with {name}={sampling[name]}, from a part of the vocabulary, and a value "
                f"is about all next tokens; draw groups with {name}={whole}"
            )
    check_groups(drawn.groups, drawn.where)
    return drawn


class Beginning(NamedTuple):
    """What a value's network begins as."""

    path: str
    revision: str | None
    is_default: bool
    """Whether the policy is to stand in where it does not do."""
    first_ids: tuple[int, ...] = ()
    """Token ids with which it was trained to begin every text, as the groups' rewards say."""


def beginning(drawn: DrawnGroups, asked: str | None) -> Beginning:
    """The model asked for, else the groups' reward model where it reads the policy's tokens, else the policy.

    Raises:
        ModelError: one was asked for that does not.
    """
    policy = drawn.policy
    if asked is not None:
        if reason := _unfit(asked, None, drawn):
            raise ModelError(
                f"init_model_name_or_path={asked!r} {reason}; begin with the policy: "
                f"init_model_name_or_path={policy.name_or_path}"
            )
        return Beginning(asked, None, False, first_ids(asked, drawn))
    rewards = (drawn.manifest.get("rewards") or {}).get("rewards", [])
    if len(rewards) == 1 and rewards[0].get("kind") == "model" and rewards[0].get("path"):
        path, revision = rewards[0]["path"], rewards[0].get("revision")
        reason = _unfit(path, revision, drawn)
        if not reason:
            return Beginning(path, revision, True, first_ids(path, drawn))
        tell(f"the value begins with the policy, since the reward model {path!r} {reason}")
    return policy_itself(policy)


def policy_itself(policy: "LocalPolicy") -> Beginning:
    """The policy, or the base of an adapter, which is a whole model."""
    name, revision = policy.base or (policy.name_or_path, policy.revision)
    return Beginning(name, revision, False)


def first_ids(path: str, drawn: DrawnGroups) -> tuple[int, ...]:
    """What `prepend_bos` put before each text, where this model scored the groups and has the policy's tokens."""
    from nonpareil.models.fingerprint import fingerprint
    from nonpareil.models.loading import load_tokenizer

    trust = drawn.policy.trust_remote_code
    for reward in (drawn.manifest.get("rewards") or {}).get("rewards", []):
        if not reward.get("prepend_bos"):
            continue
        if reward.get("path") == path or fingerprint(path, trust_remote_code=trust) == reward.get(
            "fingerprint"
        ):
            return (load_tokenizer(path, reward.get("revision"), trust_remote_code=trust).bos_token_id,)
    return ()


def _unfit(path: str, revision: str | None, drawn: DrawnGroups) -> str:
    """Why a model cannot read the groups' token ids, as far as is seen without its weights; or nothing."""
    from nonpareil.models.loading import load_tokenizer, stated_limits
    from nonpareil.models.pretrained import read_config

    trust = drawn.policy.trust_remote_code
    try:
        tokenizer = load_tokenizer(path, revision, field="init_model_name_or_path", trust_remote_code=trust)
        window, vocabulary = stated_limits(read_config(path, revision, trust_remote_code=trust))
    except ModelError as error:
        return f"cannot be read ({error})"
    if tokenizer.get_vocab() != drawn.policy.tokenizer.get_vocab():
        return "has another tokenizer than the policy, whose tokens a value must read"
    first = len(first_ids(path, drawn))
    longest = first + max(
        len(g.prompt_token_ids) + max(map(len, g.completion_token_ids)) for g in drawn.groups
    )
    if window is not None and window < longest:
        return f"reads {window} tokens at most, and the longest text of the groups has {longest}"
    tokens = drawn.policy.config.get_text_config().vocab_size
    if vocabulary is not None and vocabulary < tokens:
        return f"has {vocabulary} tokens, and the policy {tokens}"
    return ""
