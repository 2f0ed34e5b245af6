"""Native CPU kernels: C++ with OpenMP, one op a file, built once by the system's compiler when an engine asks."""
