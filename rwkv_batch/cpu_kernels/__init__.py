"""Native CPU kernels: C++ with OpenMP, one op a file. The system's compiler builds them when an engine needs them."""
