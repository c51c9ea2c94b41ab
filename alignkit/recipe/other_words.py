"""Map the words of other tools to ours: options, keys, values, commands.

One table serves everything that a person may type: unknown options of every command, unknown keys
of recipes, `--set`, and configurations of other tools. It only explains; it makes no word of
another tool work. Spellings are compared ignoring case, and hyphens equal underscores.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """Another tool's word: our settings it may mean, the likeliest first, or none and why.

    `value` is the setting's value that means the same; `note` tells what differs.
    """

    ours: tuple[str, ...] = ()
    value: str = ""
    note: str = ""

    def here(self, known: Collection[str]) -> str | None:
        """Return the first of our settings that is known; `trainer.optim` counts as `trainer`."""
        return next((name for name in self.ours if name.partition(".")[0] in known), None)


def normal(text: object) -> str:
    """Normalize what may be written with hyphens, spaces or capitals."""
    return str(text).strip().lstrip("-").lower().replace("-", "_").replace(" ", "_")


def meaning(word: object) -> Word | None:
    """Return what another tool's word means, as far as the table knows it."""
    return WORDS.get(normal(word))


def value_meant(setting: str, given: object) -> str | None:
    """Return our value for another spelling of it: `nf4` for a quantization of `4bit`."""
    return VALUES.get(setting, {}).get(normal(given))


# --- options and keys ----------------------------------------------------------------------------

TRAIN_DATA = (
    "dataset datasets dataset_name dataset_path dataset_id dataset_mixer dataset_dir data "
    "data_path data_file data_files data_dir train_file train_files train_data train_dataset "
    "train_path training_data training_file training_files train_dataset_path prompt_data prompts "
    "prompt_file prompt_dataset preference_dataset_path input_data rl_dataset"
)

# (our settings, the likeliest first, with the value that means the same; words of other tools)
SETTINGS: tuple[tuple[str, str], ...] = (
    ("data prompts candidates files file", TRAIN_DATA),
    (
        "files file data candidates prompts",
        "input input_file infile input_path in_file in files file filename",
    ),
    (
        "eval_data eval_prompts held_out",
        "eval_dataset eval_file eval_files eval_path val_data val_dataset val_file val_files "
        "valid_file validation_file validation_files validation_data validation_dataset test_data "
        "test_dataset test_datasets test_file dev_file eval_prompt_data",
    ),
    (
        "eval_fraction held_out",
        "val_set_size val_size validation_split val_split test_size eval_ratio val_ratio "
        "split_dataset_ratio eval_split_ratio validation_fraction",
    ),
    (
        "model_name_or_path model run policies",
        "model base_model model_name model_path model_id model_dir pretrain pretrained "
        "pretrained_model pretrained_model_name_or_path base_model_name_or_path hf_model "
        "hf_model_id model_or_path checkpoint_path checkpoint_dir ckpt_dir policy_model "
        "actor_model actor_model_name_or_path backbone base sft_model_path",
    ),
    ("revision", "model_revision base_model_revision revision_of_model commit"),
    ("policy", "adapter adapter_path adapter_name_or_path lora_model_dir peft_model sft_model"),
    ("name", "run_name experiment_name job_name"),
    (
        "output runs_dir work",
        "output_dir out_dir outdir output_path out o save_path save_dir save_folder result_dir "
        "results_dir target_dir run_dir runs_dir default_local_dir destination log_dir",
    ),
    ("config_file recipe", "recipe recipe_file config config_path cfg yaml config_name"),
    ("settings", "override overrides set_ settings"),
    ("only until", "stage stages only_stage stop_after"),
    ("learning_rate", "lr peak_lr max_lr actor_learning_rate actor_lr policy_lr optimizer_lr"),
    (
        "value_learning_rate",
        "critic_learning_rate critic_lr value_lr value_model_lr vf_lr critic_optimizer_lr",
    ),
    ("head_learning_rate", "head_lr score_lr"),
    (
        "num_train_epochs num_ppo_epochs",
        "epochs epoch num_epochs n_epochs max_epochs total_epochs nb_epochs train_epochs",
    ),
    ("num_ppo_epochs", "ppo_epochs noptepochs ppo_epoch update_epochs num_iterations mu"),
    (
        "max_steps total_episodes",
        "steps num_steps max_train_steps num_train_steps train_steps total_steps max_iters iters "
        "num_training_steps total_training_steps max_steps_per_epoch iterations",
    ),
    ("total_episodes", "episodes num_episodes max_episodes"),
    (
        "per_device_train_batch_size batch_size",
        "batch_size bs batchsize train_batch_size micro_batch_size micro_train_batch_size "
        "per_device_batch_size device_batch_size mini_batch_size train_micro_batch_size_per_gpu "
        "ppo_micro_batch_size_per_gpu micro_batch_size_per_gpu per_gpu_batch_size",
    ),
    (
        "per_device_eval_batch_size batch_size",
        "eval_batch_size val_batch_size valid_batch_size micro_eval_batch_size",
    ),
    ("rollout_batch_size", "rollout_size ppo_batch_size rollouts_per_step"),
    (
        "rollout_forward_batch_size",
        "micro_rollout_batch_size local_rollout_forward_batch_size rollout_micro_batch_size",
    ),
    ("num_mini_batches", "num_minibatches n_minibatches ppo_minibatches"),
    (
        "gradient_accumulation_steps",
        "grad_accum grad_acc grad_accumulation gradient_accumulation grad_accum_steps "
        "grad_acc_steps accumulation_steps accumulate_grad_batches accum_steps ga accum "
        "gradient_accumulation_step",
    ),
    (
        "max_length",
        "max_seq_len max_seq_length max_sequence_length sequence_len sequence_length seq_len "
        "seq_length seqlen context_length ctx_len cutoff_len cutoff_length block_size "
        "model_max_length max_len max_context_length tokenizer_max_seq_len max_model_len",
    ),
    (
        "response_length max_new_tokens",
        "max_tokens max_new_token max_completion_length max_response_length generate_max_len "
        "max_gen_len max_gen_tokens gen_len generation_max_length num_tokens new_tokens "
        "max_generated_tokens max_output_tokens response_len",
    ),
    (
        "n rloo_k n_samples",
        "num_samples samples n_samples_per_prompt num_return_sequences num_generations best_of k "
        "group_size num_rollouts_per_prompt samples_per_prompt num_completions",
    ),
    ("temperature temperatures", "temp sampling_temperature gen_temperature t"),
    ("top_p", "topp nucleus_p"),
    ("limit", "max_samples max_examples max_rows num_examples n_examples n_prompts subset"),
    ("lora_r", "lora_rank rank r peft_lora_r lora_dim lora_r_value adapter_rank lora_size"),
    ("lora_alpha", "alpha peft_lora_alpha lora_scaling scaling"),
    ("lora_dropout", "dropout peft_lora_dropout adapter_dropout"),
    (
        "lora_target_modules",
        "lora_target target_modules lora_modules lora_attn_modules modules_to_train lora_targets",
    ),
    ("lora_target_modules=all-linear", "lora_target_linear lora_all_linear target_all_linear"),
    ("lora_target_modules", "apply_lora_to_mlp apply_lora_to_output"),
    (
        "quantization",
        "quantization_bit quant_bits bits quantize quantize_base quant load_in_nbit quant_type "
        "bnb_4bit_quant_type quantization_method quantisation",
    ),
    (
        "quantization=nf4",
        "load_in_4bit use_4bit in_4bit 4bit load_4bit four_bit qlora use_qlora load_in_4_bit",
    ),
    ("quantization=int8", "load_in_8bit use_8bit in_8bit 8bit load_8bit int8 load_in_8_bit"),
    ("quantization=none", "no_quantization full_precision no_quant disable_quantization"),
    ("dtype=bfloat16", "bf16 bfloat16 use_bf16 bf16_full_eval pure_bf16"),
    ("dtype=float16", "fp16 float16 half use_fp16 pure_fp16"),
    ("dtype=float32", "fp32 float32 use_fp32"),
    (
        "dtype",
        "torch_dtype precision mixed_precision compute_dtype model_dtype infer_dtype param_dtype "
        "bnb_4bit_compute_dtype",
    ),
    ("attn_implementation", "attention attn attention_implementation attn_impl"),
    (
        "attn_implementation=flash_attention_2",
        "flash_attn flash_attention use_flash_attn use_flash_attention use_flash_attention_2 fa2 "
        "flash_attn_2 use_flash_attn_2",
    ),
    ("attn_implementation=sdpa", "sdp_attention use_sdpa sdpa_attention"),
    (
        "chat_template",
        "template chat_template_path chat_template_jinja custom_chat_template prompt_template "
        "apply_chat_template conversation_template",
    ),
    ("gradient_checkpointing", "use_gradient_checkpointing activation_checkpointing "
     "enable_activation_checkpointing grad_checkpoint grad_checkpointing recompute"),
    ("packing", "sample_packing pack pack_sequences neat_packing packing_samples packed "
     "multipack"),
    ("train_on=all", "train_on_inputs train_on_prompt train_on_input train_on_source"),
    (
        "train_on=completion",
        "train_on_responses_only completion_only_loss assistant_only_loss train_on_responses "
        "mask_prompt train_only_on_responses train_on_completions completion_only mask_inputs",
    ),
    ("warmup_steps", "warmup num_warmup_steps lr_warmup_steps warmup_iters warmup_epochs"),
    ("lr_scheduler_type", "lr_scheduler scheduler lr_schedule scheduler_type lr_decay_style "
     "schedule lr_scheduler_name"),
    ("weight_decay", "wd l2 decay optimizer_weight_decay"),
    (
        "max_grad_norm",
        "grad_clip clip_grad clip_grad_norm gradient_clip gradient_clipping gradient_clip_val "
        "max_norm grad_norm_clip clip_grad_max_norm",
    ),
    ("logging_steps", "log_every log_steps log_interval logging_interval log_every_n_steps "
     "log_freq print_every"),
    (
        "save_steps",
        "save_every save_interval save_freq checkpoint_every checkpoint_interval ckpt_every "
        "checkpointing_steps save_every_n_steps saves_per_epoch checkpoint_freq",
    ),
    ("save_total_limit", "max_checkpoints keep_checkpoints keep_last max_ckpt_num max_ckpts "
     "max_checkpoints_to_keep max_actor_ckpt_to_keep"),
    ("eval_steps", "eval_every eval_interval test_freq val_every evals_per_epoch eval_freq "
     "run_val_every_n_steps val_check_interval"),
    ("eval_strategy", "evaluation_strategy do_eval eval_mode"),
    ("seed", "random_seed random_state rng_seed rand_seed data_seed"),
    ("report_to", "logger loggers tracker log_with reporter report logging_backend"),
    ("report_to=wandb", "wandb use_wandb wandb_project wandb_mode wandb_entity wandb_name "
     "wandb_run_name wandb_org"),
    ("report_to=tensorboard", "tensorboard use_tensorboard tensorboard_dir"),
    ("report_to=mlflow", "mlflow mlflow_tracking_uri mlflow_experiment_name"),
    (
        "beta kl_coef",
        "dpo_beta pref_beta rl_beta kl_beta preference_beta kto_beta simpo_beta temperature_beta",
    ),
    (
        "kl_coef beta",
        "init_kl_coef kl_coefficient kl_penalty_coef kl_loss_coef kl_weight kl kl_ctrl_coef "
        "kl_penalty beta_kl init_kl_coefficient kl_coeff adaptive_kl_ctrl",
    ),
    ("kl_target", "ppo_target target_kl kl_target_value target_kl_coef"),
    ("kl_horizon", "horizon kl_ctrl_horizon"),
    ("kl_estimator", "kl_penalty_type kl_type kl_loss_type use_kl_estimator_k3"),
    ("loss_type", "pref_loss dpo_loss dpo_loss_type rl loss_fn preference_loss loss"),
    ("loss_weights", "rpo_alpha pref_ftx ftx_gamma sft_weight nll_loss_coef rpo_weight"),
    ("label_smoothing", "dpo_label_smoothing label_smoothing_factor ls pref_label_smoothing"),
    (
        "reference",
        "ref_model reference_model ref_model_path ref_model_name_or_path ref_pretrain ref "
        "reference_model_path reference_free ref_policy ref_model_dir",
    ),
    (
        "reward_model",
        "reward_model_path reward_model_name_or_path reward_pretrain rm rm_path rm_model "
        "reward_model_id reward_model_name critic_pretrain reward_model_dir",
    ),
    ("reward", "reward_funcs reward_func reward_function reward_fn reward_functions "
     "custom_reward_function reward_funcs_registry"),
    ("reward_url", "remote_rm_url reward_endpoint rm_url reward_server reward_api "
     "reward_server_url"),
    ("rollout_url", "vllm_server_base_url vllm_url rollout_endpoint vllm_server_host use_vllm "
     "vllm_base_url"),
    ("cliprange", "eps_clip clip_range clip_ratio clip_eps clip_epsilon epsilon ppo_clip"),
    ("cliprange_value", "value_clip clip_range_value cliprange_vf value_clip_range vf_clip"),
    ("dual_clip", "dual_clip_ratio clip_ratio_c"),
    ("vf_coef", "value_loss_coef vf_loss_coef value_coef vf_coefficient critic_loss_coef"),
    ("lam", "gae_lambda lambd lambda gae_lam lambda_ lmbda"),
    ("gamma", "discount discount_factor"),
    ("entropy_coef", "entropy_coeff ent_coef entropy_loss_coef entropy_bonus"),
    ("whiten_rewards", "normalize_reward_batch use_score_norm_batch"),
    ("normalize_rewards", "normalize_reward reward_normalization use_score_norm use_score_scaling"),
    ("normalize_advantage", "normalize_advantages whiten_advantages advantage_normalization "
     "norm_adv scale_rewards"),
    ("reward_clip", "reward_clip_range score_clip clip_reward cliprange_reward"),
    ("value_warmup", "critic_warmup critic_warmup_steps freezing_actor_steps"),
    ("missing_eos_penalty", "non_eos_penalty truncation_penalty"),
    ("stop_token", "stop stop_sequence stop_tokens stop_token_id"),
    ("early_stopping_patience", "early_stopping patience early_stop"),
    ("center_rewards_coefficient", "center_rewards reward_centering_coef"),
    ("on_overlong", "truncation truncation_mode truncation_side excess_length_strategy "
     "filter_overlong_prompts overlong truncate"),
    ("format", "dataset_format data_format formatting dataset_type chat_format dataset_template "
     "input_format from_format"),
    ("columns", "column_map columns field_mapping map_columns column_mapping rename"),
    ("columns", "prompt_column chosen_column rejected_column text_column dataset_text_field "
     "input_key label_key chosen_key rejected_key prompt_key output_key text_field "
     "field_messages messages_key field_instruction field_output response_key"),
    ("judges judge", "judge_model grader annotator_model evaluator judge_name"),
    ("a", "model_a candidate_model policy_a"),
    ("b baseline", "model_b baseline_model reference_outputs policy_b"),
    ("fresh", "overwrite overwrite_output_dir force restart from_scratch no_resume clobber"),
    ("dry_run", "dryrun check plan validate_only no_train test_run"),
    ("as_json", "output_json json_output print_json"),
    ("strict", "fail_on_warning warnings_as_errors werror"),
    ("annotators annotator", "user username rater labeler labeller annotator_id"),
    ("web", "gui ui browser"),
    ("total", "size num_rows n_rows sample_size"),
    ("parts", "ratio ratios split_ratio train_split train_ratio splits"),
    ("by", "balance_by column key_by group_by stratify_by"),
    ("on_bad_row", "skip_bad_rows ignore_errors skip_errors on_error skip_invalid drop_invalid"),
    ("trainer.optim", "optim optimizer optimizer_name optimizer_type optim_type"),
    ("trainer.neftune_noise_alpha", "neftune neftune_alpha neftune_noise_alpha"),
    ("trainer.adam_beta1", "adam_beta1 adam_b1 beta1"),
    ("trainer.adam_beta2", "adam_beta2 adam_b2 beta2"),
    ("trainer.adam_epsilon", "adam_epsilon adam_eps"),
    ("trainer.lr_scheduler_kwargs", "lr_scheduler_kwargs min_lr lr_min cosine_min_lr_ratio"),
    ("trainer.dataloader_num_workers", "num_workers dataloader_num_workers workers"),
)  # fmt: skip

# Notes on words whose setting exists but differs in something.
NOTES: dict[str, str] = {
    "warmup_ratio": "it counts steps, not a share of them",
    "warmup_epochs": "it counts steps, not epochs",
    "apply_chat_template": "it is a template file; the model's own template is always applied",
    "reference_model": "start is a frozen copy of the adapter it starts from, backbone the bare "
    "model",
    "ref_model": "start is a frozen copy of the adapter it starts from, backbone the bare model",
    "max_prompt_length": "it counts prompt and completion together",
    "max_prompt_len": "it counts prompt and completion together",
    "prompt_max_len": "it counts prompt and completion together",
    "saves_per_epoch": "it counts steps between checkpoints",
    "evals_per_epoch": "it counts steps between evaluations",
    "use_vllm": "it is the address of a server",
    "dataset_text_field": "NEW=OLD reads column OLD as NEW; data convert --map writes it that way",
    "train_on_inputs": "if true; if false, completion",
    "template": "it is a file, not a name; without it the model's own template is used",
}

# Settings that are meant only by words with a note.
NOTED: tuple[tuple[str, str], ...] = (
    ("warmup_steps", "warmup_ratio"),
    ("max_length", "max_prompt_length max_prompt_len prompt_max_len"),
)

# Words that need no setting, and why.
NONE: tuple[tuple[str, str], ...] = (
    (
        "alignkit always trains adapters (LoRA); remove it",
        "use_lora lora use_peft peft finetuning_type tuner_type train_type use_adapter lora_only "
        "peft_type enable_lora full_finetuning adapter_type",
    ),
    (
        "code that comes with a model is never run",
        "trust_remote_code trust_code allow_remote_code model_trust_remote_code",
    ),
    (
        "run the same command again to resume",
        "resume resume_from_checkpoint auto_resume_from_checkpoints resume_from load_checkpoint "
        "auto_resume resume_mode continue_training",
    ),
    (
        "the device is chosen automatically, a GPU if there is one; CUDA_VISIBLE_DEVICES limits it",
        "device device_map gpu gpus use_cuda cuda no_cuda gpu_ids num_gpus n_gpus device_id cpu "
        "use_cpu n_gpus_per_node accelerator",
    ),
    (
        "start several processes from outside: torchrun --nproc-per-node N -m alignkit …",
        "num_processes nproc_per_node nnodes num_nodes world_size local_rank num_machines ddp "
        "tensor_parallel_size nproc tensor_model_parallel_size vllm_tensor_parallel_size",
    ),
    (
        "only adapters are trained, so nothing needs to be sharded",
        "deepspeed deepspeed_config zero_stage fsdp fsdp_config zero adam_offload zero3 "
        "deepspeed_plugin fsdp_transformer_layer_cls_to_wrap",
    ),
    (
        "nothing is uploaded; a finished run is a directory you can publish yourself",
        "push_to_hub hub_model_id hub_token hub_strategy hub_private_repo push_to_hub_model_id",
    ),
    (
        "the tokenizer is the model's own",
        "tokenizer tokenizer_name tokenizer_path tokenizer_type tokenizer_name_or_path "
        "use_fast_tokenizer tokenizer_config tokenizer_use_fast processor",
    ),
    (
        "the model must be a causal language model, which needs no option",
        "model_type auto_model_type type_of_model architecture task_type",
    ),
    (
        "the command itself trains; use eval and generate to evaluate and predict",
        "do_train do_predict do_generate predict_with_generate",
    ),
    (
        "trained weights are fp32; dtype sets only the arithmetic",
        "tf32 amp fp8 autocast use_amp",
    ),
)  # fmt: skip


def _table() -> dict[str, Word]:
    words: dict[str, Word] = {}
    for reason, others in NONE:
        words |= {word: Word(note=reason) for word in others.split()}
    for settings, others in (*SETTINGS, *NOTED):
        names, _, value = settings.partition("=")
        for word in others.split():
            words.setdefault(word, Word(tuple(names.split()), value, NOTES.get(word, "")))
    return words


WORDS: Mapping[str, Word] = _table()


# --- values --------------------------------------------------------------------------------------


def _values(**spellings: str) -> dict[str, str]:
    """Map each other spelling to our value."""
    return {word: value for value, words in spellings.items() for word in words.split()}


# Only spellings of the same thing: a mere resemblance does not count.
VALUES: dict[str, dict[str, str]] = {
    "quantization": _values(
        nf4="4bit 4_bit 4 int4 q4 bnb_4bit bitsandbytes bnb_nf4 load_in_4bit qlora nf_4",
        int8="8bit 8_bit 8 llm.int8 llm_int8 q8 bnb_8bit load_in_8bit bnb_int8",
        none="no false off null 16bit 16_bit 16 32 full fp16 bf16 float16 bfloat16 fp32 float32 "
        "unquantized",
    ),
    "dtype": _values(
        bfloat16="bf16 torch.bfloat16 bfloat",
        float16="fp16 half torch.float16 f16",
        float32="fp32 float full torch.float32 f32",
    ),
    "lr_scheduler_type": _values(
        linear="linear_decay linear_with_warmup",
        cosine="cosine_decay cosine_with_warmup cosineannealinglr cosine_annealing",
        constant="fixed flat",
        polynomial="polynomial_decay poly",
        inverse_sqrt="inverse_square_root invsqrt rsqrt",
    ),
    "eval_strategy": _values(
        no="none never off false", steps="step true", epoch="epochs each_epoch every_epoch"
    ),
    "on_overlong": _values(
        error="raise fail stop",
        drop="skip filter discard remove",
        truncate_prompt="truncate cut left truncate_left keep_end",
    ),
    "on_bad_row": _values(error="raise fail stop", drop="skip ignore filter discard remove"),
    "train_on": _values(
        completion="completions assistant response responses output outputs answer answers",
        all="full everything both inputs whole",
    ),
    "objective": _values(
        pairs="pair pairwise bt bradley_terry", plackett_luce="pl plackettluce listwise"
    ),
    "reference": _values(start="initial policy sft copy", backbone="base model bare base_model"),
    "pairs": {
        "best_worst": "best-worst",
        "best_vs_worst": "best-worst",
        "best_vs_rest": "best-vs-rest",
        "best_rest": "best-vs-rest",
        "neighbours": "adjacent",
        "neighbors": "adjacent",
    },
    "weight": _values(group="prompt prompts ranking item", pair="pairs each"),
    "value": _values(head="v_head value_head", adapter="lora"),
    "kl_estimator": _values(k1="kl log_ratio", k2="mse", k3="low_var_kl"),
    "cache_reference": _values(auto="default", always="true yes on", never="false no off none"),
    "ties": _values(half="0.5", drop="skip ignore remove exclude"),
}


# --- commands ------------------------------------------------------------------------------------

# What other tools call a command -> what to type here, by command group.
COMMANDS: dict[str, dict[str, str]] = {
    "": _values(
        **{
            "sft, reward, dpo, ppo and rloo train one stage; run goes through a recipe": "train "
            "training tune learn fit trainer launch",
            "alignkit sft": "finetune fine_tune fine_tuning supervised instruct pt pretrain",
            "alignkit reward": "rm reward_model reward_modeling reward_modelling train_rm "
            "train_reward reward_trainer",
            "alignkit dpo --loss-type …": "ipo orpo simpo cpo preference pref rrhf slic",
            "alignkit dpo; unpaired labels have no trainer here": "kto bco",
            "alignkit rloo, its nearest relative": "grpo reinforce gspo dapo drgrpo",
            "alignkit ppo": "rlhf rl online ppo_trainer",
            "alignkit eval": "evaluate evaluation benchmark judge lm_eval test winrate",
            "alignkit generate": "infer inference sample predict batch_generate completions",
            "alignkit chat": "cli talk interactive repl webchat serve api",
            "alignkit rank": "annotate label collect labeling labelling feedback",
            "alignkit data": "dataset datasets preprocess prepare process dataprep tokenize",
            "alignkit data convert": "convert",
            "alignkit data check": "check validate lint",
            "alignkit doctor": "env environment info diagnose health system_info",
            "alignkit demo": "quickstart example tutorial start hello",
            "alignkit --version": "version",
            "alignkit --help": "help",
        }
    ),
    "data": _values(
        **{
            "alignkit data check": "validate lint verify inspect view show head",
            "alignkit data convert": "export import transform reformat format to",
            "alignkit data clean": "dedup dedupe deduplicate filter normalize repair fix scrub",
            "alignkit data pairs": "pair make_pairs expand preferences aggregate",
            "alignkit data mix": "merge concat concatenate combine blend shuffle interleave join",
            "alignkit data stats": "describe statistics count summary info report",
            "alignkit data balance": "resample upsample downsample",
            "alignkit data split": "train_test_split divide partition",
            "alignkit data formats": "list types",
        }
    ),
    "eval": _values(
        **{
            "alignkit eval winrate": "win_rate judge compare arena pairwise elo rating",
            "alignkit eval reward": "rm reward_model rewardbench accuracy",
            "alignkit eval perplexity": "ppl loss",
            "alignkit eval power": "sample_size",
            "alignkit eval drift": "diff compare_files",
            "alignkit eval fairness": "bias",
            "alignkit eval replies": "generations completions outputs text",
        }
    ),
}
