"""Every argument of vLLM and of Hugging Face's `from_pretrained` is renamed, ignored with a warning, or refused."""

from __future__ import annotations

import inspect
import logging
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from rwkv_batch import LLM, SamplingParams, vllm_arguments
from rwkv_batch.arguments import settings_of
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.sampling_params import SAMPLING_FIELDS
from rwkv_batch.settings import EngineSettings, ModelSettings
from rwkv_batch.vllm_arguments import ABSENT_METHODS, GENERATE_ARGUMENTS, LLM_ARGUMENTS, SAMPLING_ARGUMENTS

ENGINE_ARGS = """
model enable_return_routed_experts return_sampling_mask model_weights served_model_name tokenizer hf_config_path runner
convert skip_tokenizer_init enable_prompt_embeds tokenizer_mode trust_remote_code allowed_local_media_path
allowed_media_domains download_dir safetensors_load_strategy safetensors_prefetch_num_threads
safetensors_prefetch_block_size load_format config_format dtype kv_cache_dtype seed max_model_len
cudagraph_capture_sizes max_cudagraph_capture_size ir_op_priority distributed_executor_backend pipeline_parallel_size
master_addr master_port nnodes node_rank distributed_timeout_seconds cpu_distributed_timeout_seconds numa_bind
numa_bind_nodes numa_bind_cpus device_ids tensor_parallel_size prefill_context_parallel_size
decode_context_parallel_size dcp_comm_backend dcp_q_replicate dcp_kv_cache_interleave_size cp_kv_cache_interleave_size
data_parallel_size data_parallel_rank data_parallel_start_rank data_parallel_size_local data_parallel_address
data_parallel_rpc_port data_parallel_hybrid_lb data_parallel_external_lb data_parallel_multi_port_external_lb
data_parallel_backend enable_expert_parallel enable_batch_sharded_sampling enable_ep_weight_filter moe_backend
linear_backend all2all_backend enable_elastic_ep enable_dbo ubatch_size dbo_decode_token_threshold dp_sync_interval
dbo_prefill_token_threshold disable_nccl_for_dp_synchronization eplb_config enable_eplb expert_placement_strategy
max_parallel_loading_workers block_size enable_prefix_caching prefix_caching_hash_algo prefix_cache_retention_interval
disable_sliding_window disable_cascade_attn offload_backend cpu_offload_gb cpu_offload_params offload_group_size
offload_num_in_group offload_prefetch_step offload_params gpu_memory_utilization kv_cache_memory_bytes
max_num_batched_tokens max_num_scheduled_tokens max_num_partial_prefills max_long_partial_prefills
long_prefill_token_threshold max_num_seqs max_num_queued_reqs max_num_queued_tokens max_logprobs logprobs_mode
use_fp64_gumbel enable_trace_replay disable_log_stats aggregate_engine_logging revision code_revision hf_token
hf_overrides model_class_overrides tokenizer_revision quantization quantization_config allow_deprecated_quantization
enforce_eager disable_custom_all_reduce language_model_only limit_mm_per_prompt enable_mm_embeds interleave_mm_strings
media_io_kwargs mm_processor_kwargs mm_processor_cache_gb mm_processor_cache_type mm_shm_cache_max_object_size_mb
mm_hasher_algorithm mm_encoder_only mm_encoder_tp_mode mm_encoder_attn_backend mm_encoder_attn_dtype
mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path mm_encoder_fp8_scale_save_margin io_processor_plugin
renderer_num_workers skip_mm_profiling video_pruning_rate video_pruning_method mm_tensor_ipc mm_processor_device
mm_ipc_gpu_memory_gb mm_device_do_normalize enable_lora max_loras max_lora_rank default_mm_loras fully_sharded_loras
max_cpu_loras lora_dtype lora_target_modules enable_tower_connector_lora specialize_active_lora
enable_mixed_moe_lora_format enable_moe_shared_loras ray_workers_use_nsight num_gpu_blocks_override
model_loader_extra_config ignore_patterns enable_chunked_prefill disable_chunked_mm_input scheduler_reserve_full_isl
prefill_schedule_interval watermark disable_hybrid_kv_cache_manager structured_outputs_config reasoning_parser
reasoning_parser_plugin speculative_config spec_method spec_model spec_tokens diffusion_config
show_hidden_metrics_for_version otlp_traces_endpoint collect_detailed_traces per_request_spec_decode_metrics
kv_cache_metrics kv_cache_metrics_sample cudagraph_metrics enable_layerwise_nvtx_tracing enable_mfu_metrics
enable_logging_iteration_details jit_monitor_mode jit_monitor_verbose enable_mm_processor_stats scheduling_policy
scheduler_cls pooler_config compilation_config attention_config mamba_config kernel_config enable_flashinfer_autotune
enable_bf16x3_router_gemm worker_cls worker_extension_cls profiler_config kv_transfer_config kv_events_config
ec_transfer_config ec_manager_config reasoning_config generation_config enable_sleep_mode enable_cumem_allocator
enable_nccl_comm_suspend override_generation_config model_impl override_attention_dtype attention_backend
calculate_kv_scales kv_cache_dtype_skip_layers mamba_cache_dtype mamba_ssm_cache_dtype mamba_block_size
prefix_match_unit mamba_cache_mode replayssm_buffer_len use_replayssm mamba_backend mamba_ssu_algorithm
enable_mamba_cache_stochastic_rounding mamba_cache_philox_rounds additional_config use_tqdm_on_load
pt_load_map_location logits_processors async_scheduling stream_interval kv_sharing_fast_prefill optimization_level
performance_mode fault_tolerance_config enable_fault_tolerance kv_offloading_size kv_offloading_backend tokens_only
shutdown_timeout weight_transfer_config fail_on_environ_validation gdn_prefill_backend kda_prefill_backend
"""
"""Fields of vLLM's `EngineArgs` in 2026."""
OLDER_ENGINE_ARGS = """
task swap_space max_seq_len_to_capture rope_scaling rope_theta use_v2_block_manager num_lookahead_slots preemption_mode
tokenizer_pool_size tokenizer_pool_type tokenizer_pool_extra_config enable_lora_bias lora_extra_vocab_size
long_lora_scaling_factors enable_prompt_adapter max_prompt_adapters max_prompt_adapter_token device num_scheduler_steps
multi_step_stream_outputs scheduler_delay_factor guided_decoding_backend logits_processor_pattern speculative_model
num_speculative_tokens speculative_draft_tensor_parallel_size ngram_prompt_lookup_max ngram_prompt_lookup_min
qlora_adapter_name_or_path disable_async_output_proc override_neuron_config override_pooler_config
disable_mm_preprocessor_cache
"""
FROM_PRETRAINED = """
pretrained_model_name_or_path torch_dtype dtype device_map max_memory offload_folder offload_state_dict offload_buffers
low_cpu_mem_usage attn_implementation use_safetensors weights_only cache_dir force_download resume_download proxies
local_files_only token use_auth_token revision code_revision subfolder variant gguf_file state_dict config
ignore_mismatched_sizes output_loading_info trust_remote_code load_in_8bit load_in_4bit quantization_config tp_plan
device_mesh use_flash_attention_2 use_cache generation_config
"""
SAMPLING = """
n presence_penalty frequency_penalty repetition_penalty temperature top_p top_k min_p seed stop stop_token_ids
ignore_eos max_tokens min_tokens logprobs prompt_logprobs prompt_logprob_token_ids prompt_logprob_start
logprob_token_ids flat_logprobs detokenize skip_special_tokens spaces_between_special_tokens include_stop_str_in_output
output_kind stream_interval skip_clone logit_bias allowed_token_ids extra_args bad_words skip_reading_prefix_cache
thinking_token_budget repetition_detection routed_experts_prompt_start trace_decode_token_ids truncate_prompt_tokens
best_of use_beam_search length_penalty early_stopping logits_processors structured_outputs guided_decoding
"""
OWN = {field.name for group in (ModelSettings, EngineSettings) for field in fields(group)}


@pytest.fixture(autouse=True)
def nothing_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_arguments, "_warned", set())


def settings(**given: Any) -> dict[str, Any]:
    """The settings that `LLM(**given)` has, by name, without a model."""
    bound = inspect.signature(LLM).bind(**given)
    bound.apply_defaults()
    model, engine = settings_of(bound.arguments)
    return {**vars(model), **vars(engine)}


@pytest.mark.parametrize("names", [ENGINE_ARGS, OLDER_ENGINE_ARGS, FROM_PRETRAINED], ids=["new", "old", "hf"])
def test_every_argument_of_LLM_is_known(names: str) -> None:
    assert set(names.split()) - OWN - LLM_ARGUMENTS.keys() == set()


def test_every_field_of_SamplingParams_is_known() -> None:
    known = SAMPLING_FIELDS.keys() | SAMPLING_ARGUMENTS.keys()
    assert set(SAMPLING.split()) - known == set()
    assert {"use_tqdm", "lora_request", "priority", "tokenization_kwargs"} <= {
        *inspect.signature(LLM.generate).parameters,
        *GENERATE_ARGUMENTS,
    }


def test_no_name_is_our_own_and_foreign_too() -> None:
    assert not OWN & LLM_ARGUMENTS.keys()
    assert not SAMPLING_FIELDS.keys() & SAMPLING_ARGUMENTS.keys()
    renamed = [one.text for one in LLM_ARGUMENTS.values() if one.effect == "renamed" and one.convert is None]
    assert set(renamed) <= OWN
    assert not [name for name in ABSENT_METHODS if hasattr(LLM, name)]


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"max_num_seqs": np.int64(8)}, "max_batch_size", 8),
        ({"max_num_batched_tokens": 512}, "max_batch_tokens", 512),
        ({"enable_prefix_caching": False}, "prefix_sharing", False),
        ({"enable_prefix_caching": None}, "prefix_sharing", True),
        ({"gpu_memory_utilization": 0.5}, "memory_share", 0.5),
        ({"torch_dtype": torch.bfloat16}, "dtype", "bfloat16"),
        ({"dtype": torch.float16}, "dtype", "float16"),
        ({"dtype": "half"}, "dtype", "float16"),
        ({"dtype": "float"}, "dtype", "float32"),
        ({"dtype": "bf16"}, "dtype", "bf16"),
        ({"device": torch.device("cuda", 1)}, "device", "cuda:1"),
        ({"device": 1}, "device", "cuda:1"),
        ({"device_map": "auto"}, "device", "auto"),
        ({"device_map": {"": 0}}, "device", "cuda:0"),
        ({"device_map": {"": "cpu"}}, "device", "cpu"),
        ({"device_ids": [2]}, "device", "cuda:2"),
        ({"skip_tokenizer_init": True}, "tokenizer", None),
        ({"skip_tokenizer_init": False}, "tokenizer", "auto"),
        ({"tokenizer": None}, "tokenizer", None),
        ({"model": "m.pth", "tokenizer": "m.pth"}, "tokenizer", "auto"),
        ({"pretrained_model_name_or_path": "m.pth"}, "model", "m.pth"),
        ({"model": "hf://a/b", "revision": "v1"}, "model", "hf://a/b@v1"),
        ({"model": "hf://a/b@v2", "revision": "v1"}, "model", "hf://a/b@v2"),
        ({"seed": None}, "seed", 0),
        ({"seed": np.uint8(7)}, "seed", 7),
        ({"prefix_sharing": np.bool_(False)}, "prefix_sharing", False),
        ({"gpu_memory_utilization": 1}, "memory_share", 1),
        ({"data_parallel_size": 4}, "data_parallel", 4),
        ({"max_batch_size": 4, "max_num_seqs": 4}, "max_batch_size", 4),
    ],
)
def test_an_argument_becomes_a_setting(given: dict[str, Any], name: str, value: Any) -> None:
    found = settings(**given)[name]
    assert (found, type(found)) == (value, type(value))


MEANINGLESS = {
    "tensor_parallel_size": 2,
    "trust_remote_code": True,
    "enforce_eager": True,
    "max_model_len": 4096,
    "swap_space": 4,
    "disable_log_stats": True,
    "attn_implementation": "flash_attention_2",
    "max_logprobs": 20,
    "hf_token": "x",
}


def test_what_means_nothing_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert settings(**MEANINGLESS) == settings()
    assert [record.getMessage().split(" has no effect: ")[0] for record in caplog.records] == [
        f"LLM: {name}" for name in MEANINGLESS
    ]
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_None_and_what_asks_for_nothing_needs_no_word(caplog: pytest.LogCaptureFixture) -> None:
    off = {
        "max_model_len": None,
        "enable_lora": False,
        "quantization": None,
        "quantization_config": {},
        "hf_overrides": None,
        "load_format": "safetensors",
        "kv_cache_dtype": "auto",
        "tokenizer_mode": "auto",
        "task": "generate",
        "logits_processors": [],
        "generation_config": "vllm",
        "revision": None,
        "num_speculative_tokens": 0,
    }
    assert settings(**off) == settings()
    SamplingParams(skip_special_tokens=True, best_of=1, length_penalty=1.0, logits_processors=None, extra_args={})  # type: ignore[call-arg]
    SamplingParams(n=3, best_of=3)  # type: ignore[call-arg]
    assert not caplog.records


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"enable_lora": True}, "enable_lora: got True, which has no equal here: merge the adapter"),
        (
            {"speculative_config": {"method": "ngram"}},
            "speculative_config: got {'method': 'ngram'}, which has no equal",
        ),
        ({"hf_overrides": {"a": 1}}, "hf_overrides: got {'a': 1}, which has no equal here"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: got .*sizes and constants come from the checkpoint"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype: got 'fp8', .*`state_dtype='float16'` halves"),
        ({"quantization": "awq"}, "quantization: got 'awq', .*'int8' or 'w8a8' quantizes any RWKV model"),
        ({"load_in_8bit": True}, "load_in_8bit: got True, .*`quantization='int8'`"),
        ({"load_format": "dummy"}, "load_format: got 'dummy'"),
        ({"task": "embed"}, "task: got 'embed', .*this engine generates and scores"),
        ({"device_map": "balanced"}, "device_map: got 'balanced', expected one device; `strategy`"),
        ({"device_ids": [0, 1]}, r"device_ids: got \[0, 1\], expected one device"),
        ({"max_num_seqs": 3, "max_batch_size": 4}, "max_batch_size: got 4, and 3 under another name; give one"),
        ({"gpu_memory_utilization": 2}, "gpu_memory_utilization: got 2, expected a number above 0 up to 1"),
        ({"max_num_seq": 3}, r"max_num_seq: LLM has no such argument \(did you mean 'max_num_seqs', here 'max_batch"),
        ({"max_num_seqs": "8"}, "max_num_seqs: got '8', expected an integer or None"),
        ({"seed": 1.5}, "seed: got 1.5, expected an integer"),
        ({"seed": True}, "seed: got True, expected an integer"),
        ({"enable_prefix_caching": "yes"}, "enable_prefix_caching: got 'yes', expected True or False"),
        ({"gpu_memory_utilization": "0.9"}, "gpu_memory_utilization: got '0.9', expected a number"),
        ({"model": None}, "model: got None, expected a text or a path"),
        ({"tokenizer": object()}, "tokenizer: got <object obj.*, expected a text or None"),
        ({"max_batchsize": 3}, r"max_batchsize: LLM has no such argument \(did you mean 'max_batch_size'\?\)"),
        ({"zzzz": 3}, "zzzz: LLM has no such argument$"),
    ],
)
def test_what_would_change_results_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        settings(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"best_of": 4}, "best_of: got 4, which has no equal here: sample `n` completions"),
        ({"n": 2, "best_of": 4}, "best_of: got 4"),
        ({"use_beam_search": True}, "use_beam_search: got True"),
        ({"logits_processors": [len]}, "logits_processors: got .*`logit_bias`"),
        ({"thinking_token_budget": 5}, "thinking_token_budget: got 5"),
        ({"max_token": 5}, r"max_token: SamplingParams has no such argument \(did you mean 'max_tokens'\?\)"),
        ({"max_new_token": 5}, r"max_new_token: .*\(did you mean 'max_new_tokens', here 'max_tokens'\?\)"),
    ],
)
def test_a_field_of_sampling_that_has_no_equal_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        SamplingParams(**given)


def test_names_of_hugging_face_s_generate() -> None:
    given: dict[str, Any] = {"max_new_tokens": 5, "num_return_sequences": 2, "do_sample": False}
    assert SamplingParams(**given) == SamplingParams(max_tokens=5, n=2, temperature=0.0)
    given = {"do_sample": True, "temperature": 0.5}
    assert SamplingParams(**given) == SamplingParams(temperature=0.5)


def test_a_field_of_sampling_without_effect_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    given: dict[str, Any] = {"skip_special_tokens": False, "flat_logprobs": True, "output_kind": "final"}
    for _ in range(2):
        assert SamplingParams(**given) == SamplingParams()
    assert [record.getMessage().split(":")[1] for record in caplog.records] == [
        " skip_special_tokens has no effect",
        " flat_logprobs has no effect",
        " output_kind has no effect",
    ]
