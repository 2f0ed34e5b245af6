"""Modules of `benchmarks.scaling`: the simulation of a job with many workers, its costs, its chart, and real jobs."""
