"""The parts of `benchmarks.gpu`, and the processes that run them."""
