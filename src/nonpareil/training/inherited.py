"""What the fields of `transformers.TrainingArguments` may be here, in one place: ranges, and what nothing reads."""

from collections.abc import Mapping

from transformers.trainer_pt_utils import AcceleratorConfig

from nonpareil.setting_types import SEED, Limits

_OWN_EVALUATION = "evaluation during training draws one completion per prompt, as max_tokens_per_batch allows"
_OWN_LOADER = "prompts are already tokenised, and batches of them are not loaded by other processes"
_OWN_LOSS = "the loss is the method's own"
_NO_DDP = "gradients are summed without DDP's wrapper"
_SCRIPTS = "scripts of transformers read it, no trainer"

_LEVELS = Limits(choices=("detail", "debug", "info", "warning", "error", "critical", "passive"))
_COUNT = Limits(at_least=1)
_SHARE = Limits(at_least=0, below=1)
_POSITIVE = Limits(above=0)
_NOT_NEGATIVE = Limits(at_least=0)

RANGES = {
    "warmup_steps": Limits(at_least=0, why="below 1 a share of all steps"),
    "warmup_ratio": Limits(at_least=0, at_most=1),  # of older transformers
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": _POSITIVE,
    "max_grad_norm": Limits(at_least=0, why="0 clips nothing"),
    "neftune_noise_alpha": _POSITIVE,
    "torch_empty_cache_steps": _COUNT,
    "data_seed": Limits(at_least=0, at_most=SEED),
    "ddp_timeout": _COUNT,
    "local_rank": Limits(at_least=-1),
    "accelerator_config": Limits(also=(AcceleratorConfig,)),
    "debug": Limits(
        choices=("underflow_overflow", "tpu_metrics_debug"),
        also=(None,),  # as HfArgumentParser and TRL's parser give its default
    ),
    "log_level": _LEVELS,
    "log_level_replica": _LEVELS,
    "ddp_backend": Limits(choices=("nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl")),
    "train_sampling_strategy": Limits(
        choices=("random", "sequential"), why="prompts are not grouped by their length"
    ),
    "eval_steps": Limits(above=0, of="eval_strategy=steps", why="below 1 a share of all steps"),
    "eval_delay": Limits(at_least=0, of="eval_strategy"),
}
"""By name; what is not here has its type alone."""

BELONGING = {
    **dict.fromkeys(
        ("hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
        "push_to_hub",
    ),
    "gradient_checkpointing_kwargs": "gradient_checkpointing",
    "liger_kernel_config": "use_liger_kernel",
    "greater_is_better": "metric_for_best_model",
}
"""Read only where another one was given."""

UNREAD = {
    **dict.fromkeys(
        (
            *("per_device_eval_batch_size", "eval_accumulation_steps", "prediction_loss_only"),
            *(
                "eval_do_concat_batches",
                "eval_use_gather_object",
                "include_for_metrics",
                "batch_eval_metrics",
            ),
            *("label_names", "bf16_full_eval", "fp16_full_eval"),
        ),
        _OWN_EVALUATION,
    ),
    **dict.fromkeys(
        (
            *("dataloader_num_workers", "dataloader_persistent_workers"),
            *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
            "length_column_name",
        ),
        _OWN_LOADER,
    ),
    **dict.fromkeys(("label_smoothing_factor", "average_tokens_across_devices"), _OWN_LOSS),
    **dict.fromkeys(
        (
            *("ddp_find_unused_parameters", "ddp_bucket_cap_mb"),
            *("ddp_broadcast_buffers", "ddp_static_graph"),
        ),
        _NO_DDP,
    ),
    **dict.fromkeys(("do_train", "do_predict"), _SCRIPTS),
    "auto_find_batch_size": "per_device_train_batch_size sets a step's statistics, max_tokens_per_batch its memory",
    "include_num_input_tokens_seen": "num_tokens is always logged",
    "parallelism_config": "shard_weights splits the weights",
    "fsdp_config": "shard_weights splits the weights",
}
"""What the trainer has in another way, and why; only the default is taken. (transformers sets `do_eval` itself.)"""

REFUSED = {
    "fsdp": "is not used (on the CPU it would silently be DDP); give shard_weights=true",
    "deepspeed": "is not read; ask for ZeRO-3 by accelerate's config (recipes/launch/zero3.yaml)",
}
"""Never taken, and what to give instead."""

LIMITS: Mapping[str, Limits] = {
    **RANGES,
    **{name: Limits(of=owner) for name, owner in BELONGING.items()},
    **{name: Limits(unread=reason) for name, reason in UNREAD.items()},
    **{name: Limits(refused=reason) for name, reason in REFUSED.items()},
}
