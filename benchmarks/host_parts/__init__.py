"""What `benchmarks.host` is made of: cases, the simulated device, the process that measures, one driver a version.

A driver is all that differs between commits of the package. `driver.py` goes with the package beside it,
`driver_COMMIT.py` with the package at that commit.
"""
