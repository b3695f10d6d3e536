"""Which of verl's keys our loop honours, and why not the others.

Invariant: every key under verl's `actor_rollout_ref` that is not refused here changes what verl's
workers do. Reasons name the recipe's key to use instead, where there is one.
"""

from __future__ import annotations

import re

FREE_FORM = (
    "actor.fsdp_config.mixed_precision",
    "actor.fsdp_config.wrap_policy",
    "actor.optim.override_optimizer_config",
    "model.fused_kernel_options",
    "model.override_config",
    "ref.fsdp_config.mixed_precision",
)
"""Keys below which verl takes any name (they are dictionaries, or absent from its YAML)."""

_SCHEDULE = (
    "the learning rate follows `optimiser.schedule`, `.warmup` and `.min_lr_ratio`, over the"
    " updates of `algorithm.iterations`"
)
_MICRO = "micro-batches are cut by tokens; set `trainer.max_tokens_per_micro_batch`"
_PROFILER = "our loop starts no verl profiler"
_LORA = (
    "adapters begin anew and engines take them merged in; set `model.lora_rank` and `.lora_alpha`"
)
_RANKS = "ranks follow the recipe's `trainer.ranks` and `trainer.nodes`"
_SEQUENCE = "every rank computes whole rows"
_UNREAD = "verl's FSDP2 worker does not read it"

# First match wins. Checked against verl 0.9.1.
_REFUSED: tuple[tuple[str, str], ...] = (
    (r"actor_rollout_ref\..*", "leave out the prefix `actor_rollout_ref.`"),
    (r"data\..*", "tasks come from the recipe's `data`"),
    (r"trainer\..*", "our loop takes the place of verl's trainer; see the recipe's own keys"),
    (r"algorithm\..*", "advantages come from the recipe's `algorithm.credit`"),
    (
        r"(reward|reward_model|custom_reward_function)\..*",
        "rewards come from the recipe's `reward`",
    ),
    (r"critic\..*", "the critic follows the recipe's `critic`"),
    (
        r"(distillation|transfer_queue|global_profiler|ray_kwargs|sandbox_fusion|skip)\..*",
        "our loop does not use that part of verl",
    ),
    (r"(hybrid_engine|nccl_timeout)", _RANKS),
    (r"rollout\.log_prob_max_token_len_per_gpu", ""),
    (r"rollout\..*", "generation follows the recipe's `engine` and `sampling`"),
    (r"ref\.(log_prob_max_token_len_per_gpu|fsdp_config\.(?!forward_only|strategy).*)", ""),
    (r"ref\..*", "the reference model follows the actor's settings"),
    (r"model\.(path|hf_config_path|tokenizer_path)", "set `policies.NAME.model`"),
    (r"model\.(lora|lora_adapter_path|target_parameters)(\..*)?", _LORA),
    (r"model\.mtp\..*", "multi-token prediction is not supported"),
    (r"model\.external_lib", "import your library in the recipe's modules instead"),
    (r"actor\.(fsdp_config\.)?strategy", "the policy is trained with fsdp2"),
    (r"actor\.(loss_agg_mode|loss_scale_factor)", "the loss is the token sum that weights define"),
    (r"actor\.ppo_mini_batch_size", "set `optimiser.mini_batches`"),
    (r"actor\.ppo_(infer_)?micro_batch_size(_per_gpu)?", _MICRO),
    (r"actor\.(use_dynamic_bsz|ppo_infer_max_token_len_per_gpu)", _MICRO),
    (r"actor\.ppo_epochs", "set `optimiser.ppo_epochs`"),
    (r"actor\.entropy_coeff", "set `optimiser.entropy_coeff`"),
    (r"actor\.kl_loss_type", "set `optimiser.kl_estimator`"),
    (r"actor\.policy_loss\.loss_mode", "set `algorithm.loss`"),
    (r"actor\.kl_loss_coef", "set `optimiser.kl_coeff`"),
    (r"actor\.use_kl_loss", "set `optimiser.kl_coeff`"),
    (r"actor\.clip_ratio", "set `optimiser.clip_low` and `.clip_high`"),
    (r"actor\.grad_clip", f"{_UNREAD}; set `optimiser.grad_clip` or `actor.optim.clip_grad`"),
    (r"actor\.use_remove_padding", f"{_UNREAD}; set `model.use_remove_padding`"),
    (r"actor\.optim\.(lr_scheduler_type|lr_warmup_steps(_ratio)?|warmup_style)", _SCHEDULE),
    (r"actor\.optim\.(total_training_steps|min_lr_ratio|num_cycles|zero_indexed_step)", _SCHEDULE),
    (r"actor\.checkpoint\..*", "checkpoints hold what a resume and an export need"),
    (r"actor\.(shuffle|data_loader_seed)", "mini-batches are cut in the order of the rows"),
    (r"actor\.profiler\..*", _PROFILER),
    (r"actor\.(fsdp_config\.)?ulysses_sequence_parallel_size", _SEQUENCE),
    (r"actor\.fsdp_config\.(fsdp_size|forward_only)", _RANKS),
    (r"actor\.fsdp_config\.(dtype|use_orig_params|turbo_config\..*)", _UNREAD),
    (r"actor\.(rollout_n|use_rollout_log_probs|use_prefix_grouper)", _UNREAD),
    (r"actor\.(calculate_sum_pi_squared|freeze_vision_tower)", _UNREAD),
    (r"actor\.(fsdp_config\.)?qat\..*", "engines take unquantised weights"),
)


def refusal(key: str) -> str | None:
    """Why our loop does not honour `key`; None if it does."""
    for pattern, reason in _REFUSED:
        if re.fullmatch(pattern, key):
            return reason or None
    return None
