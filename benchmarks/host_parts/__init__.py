"""Modules of `benchmarks.host`: cases, the simulated device, the process that measures, a driver for each version.

A driver holds everything that differs between commits of the package. `driver.py` belongs to the present package,
`driver_COMMIT.py` to the package at that commit.
"""
