"""How the numbers of an evaluation came about, as its report's last table says."""

from typing import TYPE_CHECKING, Any

from nonpareil.options.rewards import without_addresses

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.options.evaluate import EvaluateOptions


def report_context(
    options: "EvaluateOptions", policy: "LocalPolicy", reference: "LocalPolicy", num_prompts: int
) -> dict[str, Any]:
    """Models, prompts, rewards and sampling, without addresses, and the versions at work."""
    from importlib.metadata import version

    from nonpareil import __version__

    named = without_addresses(type(options), vars(options))
    return {
        "policy": policy.info(),
        "reference": reference.info(),
        "prompts": {"source": options.prompt_source, "split": options.dataset_split, "count": num_prompts},
        "reward": {
            "model": named["reward_model_name_or_path"],
            "functions": named["reward_funcs"],
            "endpoints": named["reward_endpoints"] or [],
            "weights": options.reward_weights,
            "unseen": named["unseen_reward"],
        },
        "sampling": options.sampling().described(),
        "completions per prompt": {
            "policy": options.num_generations,
            "reference": options.num_reference_samples,
        },
        # A checkout on PYTHONPATH has no metadata.
        "versions": {"nonpareil": __version__, **{name: version(name) for name in ("torch", "transformers")}},
    }
