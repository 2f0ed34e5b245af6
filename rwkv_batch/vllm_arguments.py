"""Arguments of vLLM's offline API and of Hugging Face's `from_pretrained` that this package lacks under their names.

One table: what each name becomes. A name that means nothing here is accepted, with one warning in a process. A name
that would change results is refused, unless its value asks for nothing. The page docs/reference/vllm.md is written
from this table.
"""

from __future__ import annotations

import difflib
import logging
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import ConfigurationError
from .structured_outputs import constraint_fields

Effect = Literal["renamed", "none", "refused"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Foreign:
    """An argument that this library does not have under this name.

    Args:
        name: in vLLM's or in Hugging Face's API.
        effect: "renamed": it is an argument of this library. "none": it is accepted, with one warning. "refused": it
            raises, unless its value asks for nothing.
        text: "renamed": the argument here. "none": why it has no effect. "refused": what to do instead.
        off: values that ask for nothing. None does under every name, False and what is empty under a refused one.
        convert: makes the value of the argument here, {name here: value}, from the foreign value.
    """

    name: str
    effect: Effect
    text: str
    off: tuple[Any, ...] = ()
    convert: Callable[[Any], dict[str, Any]] | None = None

    def is_off(self, value: Any) -> bool:
        """Whether a value asks for nothing."""
        if value is None or any(type(value) is type(off) and value == off for off in self.off):
            return True
        is_empty = value is False or (isinstance(value, (str, list, tuple, dict, set)) and not value)
        return is_empty and self.effect == "refused"


def _renamed(**names: str) -> Iterator[Foreign]:
    yield from (Foreign(name, "renamed", here) for name, here in names.items())


def _converted(name: str, here: str, convert: Callable[[Any], dict[str, Any]]) -> Foreign:
    return Foreign(name, "renamed", here, convert=convert)


def _without_effect(reason: str, names: str) -> Iterator[Foreign]:
    yield from (Foreign(name, "none", reason) for name in names.split())


def _without_effect_unless(reason: str, **defaults: Any) -> Iterator[Foreign]:
    """Names that have no effect, with vLLM's default, which needs no warning."""
    yield from (Foreign(name, "none", reason, (default,)) for name, default in defaults.items())


def _refused(name: str, instead: str, *off: Any) -> Foreign:
    return Foreign(name, "refused", instead, off)


def _refused_all(instead: str, names: str) -> Iterator[Foreign]:
    yield from (_refused(name, instead, 0) for name in names.split())


def _by_name(*entries: Foreign | Iterable[Foreign]) -> dict[str, Foreign]:
    flat = [one for entry in entries for one in ([entry] if isinstance(entry, Foreign) else entry)]
    return {one.name: one for one in flat}


def _device_of_map(value: Any) -> dict[str, Any]:
    """The device of Hugging Face's `device_map`, where that names one for the whole model."""
    if isinstance(value, Mapping) and len(value) == 1 and "" in value:
        value = value[""]
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"cuda:{value}"
    if isinstance(value, Mapping) or value in ("balanced", "balanced_low_0", "sequential"):
        raise ConfigurationError(
            f"got {reprlib.repr(value)}, expected one device; `strategy` divides a model", setting="device_map"
        )
    return {"device": value}


def _device_of_ids(value: Any) -> dict[str, Any]:
    """The device of vLLM's `device_ids`, where that lists one."""
    if len(value) != 1:
        raise ConfigurationError(
            f"got {reprlib.repr(value)}, expected one device; `strategy` divides a model", setting="device_ids"
        )
    return {"device": f"cuda:{value[0]}"}


LLM_ARGUMENTS = _by_name(
    _renamed(
        max_num_seqs="max_batch_size",
        max_num_batched_tokens="max_batch_tokens",
        enable_prefix_caching="prefix_sharing",
        gpu_memory_utilization="memory_share",
        data_parallel_size="data_parallel",
        torch_dtype="dtype",
        pretrained_model_name_or_path="model",
    ),
    _converted("device_map", "device", _device_of_map),
    _converted("device_ids", "device", _device_of_ids),
    _converted("skip_tokenizer_init", "tokenizer=None", lambda value: {"tokenizer": None} if value else {}),
    _converted("revision", "model='hf://owner/repo@revision'", lambda value: {"revision": value}),
    _without_effect(
        "an engine runs a model on one device; `strategy` divides a model among several, and `data_parallel` runs one "
        "engine on each",
        "tensor_parallel_size pipeline_parallel_size data_parallel_rank data_parallel_start_rank "
        "data_parallel_size_local data_parallel_address data_parallel_rpc_port data_parallel_backend "
        "data_parallel_hybrid_lb data_parallel_external_lb data_parallel_multi_port_external_lb dp_sync_interval "
        "distributed_executor_backend prefill_context_parallel_size decode_context_parallel_size dcp_comm_backend "
        "dcp_q_replicate dcp_kv_cache_interleave_size cp_kv_cache_interleave_size master_addr master_port nnodes "
        "node_rank distributed_timeout_seconds cpu_distributed_timeout_seconds max_parallel_loading_workers "
        "disable_custom_all_reduce disable_nccl_for_dp_synchronization enable_nccl_comm_suspend "
        "enable_batch_sharded_sampling ray_workers_use_nsight enable_fault_tolerance fault_tolerance_config tp_plan "
        "tp_size device_mesh max_memory numa_bind numa_bind_nodes numa_bind_cpus",
    ),
    _without_effect(
        "RWKV has no experts to place",
        "enable_expert_parallel enable_ep_weight_filter enable_elastic_ep enable_eplb eplb_config "
        "expert_placement_strategy all2all_backend moe_backend enable_dbo ubatch_size dbo_decode_token_threshold "
        "dbo_prefill_token_threshold enable_bf16x3_router_gemm",
    ),
    _without_effect(
        "a recurrent state has a fixed size, so there is no KV cache to divide, to move or to swap",
        "block_size swap_space num_gpu_blocks_override kv_cache_memory_bytes kv_offloading_size kv_offloading_backend "
        "kv_cache_dtype_skip_layers calculate_kv_scales kv_cache_metrics kv_cache_metrics_sample "
        "kv_sharing_fast_prefill prefix_caching_hash_algo prefix_cache_retention_interval prefix_match_unit "
        "disable_hybrid_kv_cache_manager watermark scheduler_reserve_full_isl kv_transfer_config kv_events_config "
        "ec_transfer_config ec_manager_config preemption_mode num_lookahead_slots use_v2_block_manager "
        "mamba_block_size mamba_cache_mode use_replayssm replayssm_buffer_len use_cache",
    ),
    _without_effect(
        "RWKV reads prompts of any length; `SamplingParams.max_tokens` limits a completion",
        "max_model_len max_seq_len_to_capture disable_sliding_window",
    ),
    _without_effect(
        "RWKV has no attention",
        "attention_backend attention_config attn_implementation use_flash_attention_2 disable_cascade_attn "
        "override_attention_dtype",
    ),
    _without_effect(
        "`backend` chooses the kernels, and the engine records its steps by itself",
        "enforce_eager compilation_config cudagraph_capture_sizes max_cudagraph_capture_size optimization_level "
        "performance_mode kernel_config linear_backend mamba_backend mamba_config mamba_ssu_algorithm "
        "enable_mamba_cache_stochastic_rounding mamba_cache_philox_rounds gdn_prefill_backend kda_prefill_backend "
        "enable_flashinfer_autotune ir_op_priority async_scheduling disable_async_output_proc num_scheduler_steps "
        "multi_step_stream_outputs jit_monitor_mode jit_monitor_verbose additional_config",
    ),
    _without_effect(
        "the engine cuts and orders prompts by itself; results do not depend on it",
        "enable_chunked_prefill max_num_partial_prefills max_long_partial_prefills long_prefill_token_threshold "
        "max_num_scheduled_tokens prefill_schedule_interval scheduling_policy scheduler_delay_factor stream_interval "
        "max_num_queued_reqs max_num_queued_tokens disable_chunked_mm_input",
    ),
    _without_effect(
        "code of a model's repository is never executed",
        "trust_remote_code code_revision model_impl tokenizer_revision",
    ),
    _without_effect(
        "a model file is recognized by its content, and read in its own way",
        "config_format hf_config_path model_loader_extra_config ignore_patterns safetensors_load_strategy "
        "safetensors_prefetch_num_threads safetensors_prefetch_block_size pt_load_map_location use_safetensors "
        "low_cpu_mem_usage ignore_mismatched_sizes output_loading_info offload_folder offload_state_dict "
        "offload_buffers weights_only",
    ),
    _without_effect(
        "`strategy` keeps layers in host memory",
        "cpu_offload_gb cpu_offload_params offload_backend offload_group_size offload_num_in_group "
        "offload_prefetch_step offload_params",
    ),
    _without_effect(
        "the package huggingface_hub finds the token and the cache: HF_TOKEN, HF_HOME, HF_HUB_OFFLINE",
        "hf_token token use_auth_token download_dir cache_dir local_files_only force_download resume_download proxies",
    ),
    _without_effect(
        "`llm.stats()` has the engine's counters",
        "disable_log_stats aggregate_engine_logging show_hidden_metrics_for_version otlp_traces_endpoint "
        "collect_detailed_traces cudagraph_metrics enable_layerwise_nvtx_tracing enable_mfu_metrics "
        "enable_logging_iteration_details enable_mm_processor_stats per_request_spec_decode_metrics profiler_config "
        "use_tqdm_on_load",
    ),
    _without_effect(
        "prompts are text",
        "limit_mm_per_prompt enable_mm_embeds interleave_mm_strings media_io_kwargs mm_processor_kwargs "
        "mm_processor_cache_gb mm_processor_cache_type mm_shm_cache_max_object_size_mb mm_hasher_algorithm "
        "mm_encoder_only mm_encoder_tp_mode mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path "
        "mm_encoder_fp8_scale_save_path mm_encoder_fp8_scale_save_margin mm_tensor_ipc mm_processor_device "
        "mm_ipc_gpu_memory_gb mm_device_do_normalize skip_mm_profiling video_pruning_rate video_pruning_method "
        "language_model_only allowed_local_media_path allowed_media_domains disable_mm_preprocessor_cache",
    ),
    _without_effect(
        "it concerns servers",
        "served_model_name reasoning_parser reasoning_parser_plugin reasoning_config renderer_num_workers "
        "shutdown_timeout tokens_only fail_on_environ_validation weight_transfer_config",
    ),
    _without_effect("a model is in memory until `llm.close()`", "enable_sleep_mode enable_cumem_allocator"),
    _without_effect(
        "the extra `structured` compiles every constraint",
        "guided_decoding_backend guided_decoding_disable_fallback guided_decoding_disable_any_whitespace",
    ),
    _without_effect(
        "`enable_lora` is off",
        "max_loras max_lora_rank fully_sharded_loras max_cpu_loras lora_dtype lora_extra_vocab_size enable_lora_bias "
        "long_lora_scaling_factors default_mm_loras lora_target_modules enable_tower_connector_lora "
        "specialize_active_lora enable_mixed_moe_lora_format enable_moe_shared_loras max_prompt_adapters "
        "max_prompt_adapter_token",
    ),
    _without_effect("`SamplingParams.logprobs` has no such limit", "max_logprobs"),
    _without_effect(
        "the tokenizer is one process", "tokenizer_pool_size tokenizer_pool_type tokenizer_pool_extra_config"
    ),
    _without_effect("the format of quantization is named by `quantization`", "allow_deprecated_quantization"),
    _refused("enable_lora", "merge the adapter into the checkpoint, and load that"),
    _refused("enable_prompt_adapter", "`init_state` loads tuned initial states"),
    _refused("qlora_adapter_name_or_path", "merge the adapter into the checkpoint, and load that"),
    _refused_all(
        "leave it out: the engine has no draft model",
        "speculative_config speculative_model num_speculative_tokens speculative_draft_tensor_parallel_size "
        "ngram_prompt_lookup_max ngram_prompt_lookup_min spec_method spec_model spec_tokens",
    ),
    _refused_all(
        "leave it out: sizes and constants come from the checkpoint; `ln_x_eps` is the only one to set",
        "hf_overrides rope_scaling rope_theta model_class_overrides override_neuron_config config",
    ),
    _refused("quantization_config", "`quantization='int8'` or `'w8a8'` quantizes any RWKV model when it is loaded"),
    _refused("load_in_8bit", "`quantization='int8'` stores weights in 8 bits"),
    _refused("load_in_4bit", "`quantization='int8'` stores weights in 8 bits; there is no format of 4 bits"),
    _refused("kv_cache_dtype", "there is no KV cache; `state_dtype='float16'` halves the recurrent states", "auto"),
    _refused("mamba_cache_dtype", "`state_dtype` is the number format of the states", "auto", "float32"),
    _refused("mamba_ssm_cache_dtype", "`state_dtype` is the number format of the states", "auto", "float32"),
    _refused(
        "load_format",
        "leave it out: a file is recognized by its content",
        *("auto", "safetensors", "pt", "hf", "npcache", "fastsafetensors", "runai_streamer", "mistral"),
    ),
    _refused("tokenizer_mode", "`tokenizer` names a vocabulary or a tokenizer.json", "auto", "slow", "hf"),
    _refused("runner", "this engine generates and scores", "auto", "generate"),
    _refused("task", "this engine generates and scores", "auto", "generate"),
    _refused("convert", "this engine generates and scores", "auto", "none"),
    _refused("pooler_config", "this engine generates and scores"),
    _refused("override_pooler_config", "this engine generates and scores"),
    _refused("diffusion_config", "this engine generates and scores"),
    _refused("generation_config", "give the values to `SamplingParams`", "auto", "vllm"),
    _refused("override_generation_config", "give the values to `SamplingParams`"),
    _refused(
        "logits_processors", "`logit_bias`, `allowed_token_ids` and `bad_token_ids` of `SamplingParams` change logits"
    ),
    _refused("logits_processor_pattern", "`logit_bias` of `SamplingParams` changes logits"),
    _refused("structured_outputs_config", "leave it out: the extra `structured` compiles every constraint"),
    _refused("worker_cls", "the engine has no such class to replace", "auto"),
    _refused("worker_extension_cls", "the engine has no such class to replace"),
    _refused("scheduler_cls", "the engine has no such class to replace"),
    _refused("io_processor_plugin", "change prompts before the call"),
    _refused("enable_prompt_embeds", "prompts are text or token ids"),
    _refused("enable_return_routed_experts", "RWKV has no experts"),
    _refused("return_sampling_mask", "leave it out"),
    _refused("use_fp64_gumbel", "leave it out: the random numbers are those of Philox"),
    _refused("enable_trace_replay", "leave it out"),
    _refused("model_weights", "name the file of the weights as `model`"),
    _refused("subfolder", "name the folder as `model`: hf://owner/repo/folder"),
    _refused("variant", "name the file as `model`: hf://owner/repo/file"),
    _refused("gguf_file", "convert the model to .safetensors or .pth"),
    _refused("state_dict", "save the weights to a file, and name that as `model`"),
)
"""Arguments of vLLM's `LLM` and `EngineArgs`, and of Hugging Face's `from_pretrained`."""

SAMPLING_ARGUMENTS = _by_name(
    _converted("structured_outputs", "json_schema, regex, grammar", constraint_fields),
    _converted("guided_decoding", "json_schema, regex, grammar", constraint_fields),
    _without_effect_unless("special tokens have no text", skip_special_tokens=True, spaces_between_special_tokens=True),
    _without_effect(
        "`generate` returns finished results only", "output_kind stream_interval skip_clone skip_reading_prefix_cache"
    ),
    _without_effect_unless("log-probabilities are lists of dicts", flat_logprobs=False),
    _without_effect_unless("there is no custom sampler to read it", extra_args={}),
    _without_effect_unless("RWKV has no experts", routed_experts_prompt_start=0),
    _refused("best_of", "sample `n` completions, and choose by `cumulative_logprob`", 1),
    _refused("use_beam_search", "there is no beam search; sample `n` completions, and choose by `cumulative_logprob`"),
    _refused("beam_width", "there is no beam search; sample `n` completions, and choose by `cumulative_logprob`"),
    _refused("length_penalty", "there is no beam search", 1.0, 1),
    _refused("early_stopping", "there is no beam search"),
    _refused("logits_processors", "`logit_bias`, `allowed_token_ids` and `bad_token_ids` change logits"),
    _refused("thinking_token_budget", "`max_tokens` limits a completion", -1),
    _refused("logprob_token_ids", "`logprobs` returns the most likely tokens; `llm.score` scores given ones"),
    _refused("prompt_logprob_token_ids", "`prompt_logprobs` returns the most likely tokens"),
    _refused("prompt_logprob_start", "`prompt_logprobs` begins with the second token", 0, 1),
    _refused("trace_decode_token_ids", "`llm.score` scores given tokens"),
    _refused("repetition_detection", "leave it out"),
    _renamed(max_new_tokens="max_tokens", num_return_sequences="n"),
    _converted("do_sample", "temperature=0", lambda value: {} if value else {"temperature": 0.0}),
)
"""Fields of vLLM's `SamplingParams`, older ones included, and common names of Hugging Face's `generate`."""

GENERATE_ARGUMENTS = _by_name(
    _without_effect("the engine orders prompts by itself; results do not depend on it", "priority"),
    _refused("lora_request", "merge the adapter into the checkpoint, and load that"),
    _refused("prompt_adapter_request", "`init_state` of `LLM` loads tuned initial states"),
    _refused("guided_options_request", "give `structured_outputs` to `SamplingParams`"),
    _refused("tokenization_kwargs", "`SamplingParams.truncate_prompt_tokens` cuts prompts"),
    _without_effect_unless("messages are text in any of OpenAI's forms", chat_template_content_format="auto"),
    _without_effect_unless("prompts are text", mm_processor_kwargs={}),
)
"""Arguments of vLLM's `LLM.generate` and `LLM.chat`."""

ABSENT_METHODS = {
    "beam_search": "generate with `n` samples, and choose by `cumulative_logprob`",
    "embed": "vectors are no result of this engine",
    "encode": "llm.get_tokenizer().encode converts text; hidden states are no result",
    "classify": "llm.score compares continuations",
    "reward": "llm.score returns log-likelihoods",
    "apply_model": "there are no workers to call",
    "collective_rpc": "there are no workers to call",
    "get_metrics": "llm.stats() has the engine's counters",
    "llm_engine": "llm.summary has the model's sizes; llm.stats() the engine's counters",
    "preprocess_chat": "llm.get_tokenizer().apply_chat_template renders a conversation",
    "reset_prefix_cache": "states of shared prefixes are kept during one call only",
    "reset_mm_cache": "prompts are text",
    "set_tokenizer": "LLM(tokenizer=...) names the tokenizer",
    "start_profile": "`rwkv-batch bench` measures a model",
    "stop_profile": "`rwkv-batch bench` measures a model",
}
"""Methods and attributes of vLLM's `LLM` that are absent here → what there is."""

_warned: set[tuple[str, str]] = set()


def own_arguments(
    owner: str, given: Mapping[str, Any], own: Iterable[str], table: Mapping[str, Foreign]
) -> dict[str, Any]:
    """Returns what foreign arguments become: arguments of this library by name.

    Args:
        owner: whose arguments they are, for messages: "LLM".
        given: the foreign arguments.
        own: the names of the owner's arguments here.
        table: what becomes of a name.

    Raises:
        ConfigurationError: a name is not known, or a value has no equal here.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        entry = table.get(name)
        if entry is None:
            raise ConfigurationError(f"{owner} has no such argument{_guess(name, own, table)}", setting=name)
        if entry.effect == "renamed" and value is not None:
            found |= {entry.text: value} if entry.convert is None else entry.convert(value)
        elif entry.effect == "none" and not entry.is_off(value):
            warn_once(owner, name, entry.text)
        elif entry.effect == "refused" and not entry.is_off(value):
            shown = reprlib.repr(value)
            raise ConfigurationError(f"got {shown}, which has no equal here: {entry.text}", setting=name)
    return found


def absent_method(name: str) -> str:
    """The end of a sentence that says what there is in place of a method of vLLM's `LLM`; "" for other names."""
    return f", which vLLM's has: {ABSENT_METHODS[name]}" if name in ABSENT_METHODS else ""


def warn_once(owner: str, name: str, reason: str) -> None:
    """Logs, once in a process, that an argument has no effect."""
    if (owner, name) not in _warned:
        _warned.add((owner, name))
        logger.warning("%s: %s has no effect: %s", owner, name, reason)


def _guess(name: str, own: Iterable[str], table: Mapping[str, Foreign]) -> str:
    """The known name that is most like `name`, as the end of a sentence; "" where none is like it."""
    close = difflib.get_close_matches(name, [*own, *table], n=1)
    if not close:
        return ""
    entry = table.get(close[0])
    here = f", here {entry.text!r}" if entry is not None and entry.effect == "renamed" else ""
    return f" (did you mean {close[0]!r}{here}?)"
