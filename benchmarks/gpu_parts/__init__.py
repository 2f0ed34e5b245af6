"""The parts of `benchmarks.gpu`, one idea a file."""
