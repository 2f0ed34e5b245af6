"""CUDA C++ kernels: one op a file. Nothing is compiled or imported until an engine needs an op."""
