"""Tests that `make quick` leaves out, by kind. They have the marker `slow`; `make test` runs them first."""

from __future__ import annotations

SLOW: dict[str, tuple[str, ...]] = {
    "kernels are compiled ahead of time": (
        "kernels/test_triton_aot.py",
        "kernels/test_launch_path.py",
        "kernels/test_cuda_build.py",
        "test_call_in_process.py",
        "benchmarks/test_gpu_compile_cache.py",
    ),
    "a browser opens a page": ("job/report/test_page_in_browser.py", "suite/test_page_in_browser.py"),
    "kernels run in Triton's interpreter": (
        "engine/test_late_copies.py",
        "engine/test_replay.py",
        "engine/test_simulated_device.py",
        "engine/test_transfers.py",
        "engine/test_triton_engine.py",
        "kernels/test_int8.py",
        "kernels/test_launches.py",
        "kernels/test_shift_lerp.py",
        "kernels/test_triton_glue.py",
        "kernels/test_triton_linear.py",
        "kernels/test_triton_low_rank.py",
        "kernels/test_triton_project.py",
        "kernels/test_triton_sample.py",
        "kernels/test_triton_sample_filters.py",
        "kernels/test_triton_score.py",
        "kernels/test_triton_wkv.py",
        "checks/test_checks.py",
    ),
    "kernels are compiled for an emulated processor": (
        "kernels/test_cpu_products.py",
        "kernels/test_cuda_mm8.py",
        "kernels/test_cuda_on_host.py",
    ),
    "compilers and devices are probed in processes of their own": (
        "kernels/test_probe.py",
        "kernels/test_probe_launch.py",
    ),
    "benchmarks and commands run as a whole": (
        "commands/test_status.py::test_a_job_that_runs_and_is_killed",
        "benchmarks/test_benchmark_scaling.py::test_a_long_job_rehearses",
        "job/test_retry.py::test_a_worker_serves_error_rows_again",
        "integrations/test_inspect_ai.py::test_samples_that_inspect_ends_at_its_time_limit_free_their_slots",
        "integrations/test_inspect_ai.py::test_the_real_evaluation",
        "integrations/test_inspect_ai_settings.py::test_a_response_schema_is_followed",
        "integrations/test_lighteval.py::test_a_completion_ends_where_the_turn_of_the_chat_format_ends",
        "integrations/test_lighteval.py::test_the_real_command",
        "integrations/test_lighteval.py::test_thoughts_are_whole_so_that_lighteval_can_remove_them",
        "integrations/test_lighteval.py::test_wrong_arguments_end_the_real_command_without_a_traceback",
        "integrations/test_lm_eval_command.py",
        "integrations/test_lm_eval_options.py",
        "job/output/test_object_storage.py::test_fault_schedules_change_no_content",
        "job/output/test_object_storage.py::test_a_folder_with_more_names_than_a_page",
        "job/test_demo_jobs.py::test_a_killed_job_ends_like_an_undisturbed_one",
        "job/test_memory.py",
        "job/test_object_stores.py",
        "job/test_process.py",
        "job/test_score_jobs.py",
        "job/test_streams.py::test_the_exit_code_is_that_of_the_work",
        "job/workers/test_local.py",
        "job/test_streams.py::test_a_signal_writes_no_message_into_a_file_of_the_job",
        "mutation/test_mutation.py",
        "suite/test_command.py::test_a_killed_process_costs_a_task_and_a_signal_none",
        "test_structure.py::test_a_missing_harness_is_an_extra",
        "integrations/test_ray.py::test_results_do_not_depend_on_actors_and_one_whose_engine_fails_is_replaced",
        "measure/test_bench.py",
        "benchmarks/test_benchmark_peers.py",
        "benchmarks/test_benchmark_quality.py::test_it_rehearses",
        "benchmarks/test_benchmark_shares.py",
        "benchmarks/test_benchmark_soak.py::test_it_rehearses",
        "benchmarks/test_benchmark_tokenizers.py::test_it_rehearses",
        "checks/test_check_command.py",
        "docs/test_examples.py::test_the_examples_of_a_page_run",
        "benchmarks/test_gpu_benchmark.py",
        "benchmarks/test_gpu_processes.py",
        "benchmarks/test_host_benchmark.py",
    ),
    "engines run in processes of their own": (
        "data_parallel/test_ended_processes.py",
        "data_parallel/test_parallel_rows.py",
        "integrations/test_data_parallel.py",
        "job/workers/test_ray_workers.py",
    ),
    "the package is built and installed": ("test_packaging.py",),
    "something fails at every line or step": (
        "job/test_any_table.py",
        "job/test_crash.py::test_the_disk_fails_at_every_durable_step",
        "engine/test_interrupts.py::test_an_exception_at_any_line_leaves_the_engine_usable",
        "job/test_crash.py::test_a_crash_at_every_durable_step",
        "job/test_retry.py::test_a_crash_at_every_third_durable_step",
    ),
    "models of all versions run in several ways": (
        "models/files/test_chatrwkv_converted.py",
        "models/test_versions.py",
        "checks/test_check_references.py",
    ),
}
"""Kind → files and folders below tests/, or tests of a file as file::test."""


def kind_of(nodeid: str) -> str | None:
    """Returns the kind of a slow test, None for another test. `nodeid` is pytest's name of it."""
    name = nodeid.removeprefix("tests/").partition("[")[0]
    for kind, places in SLOW.items():
        if any(name == place or name.startswith((f"{place}::", f"{place}/")) for place in places):
            return kind
    return None
