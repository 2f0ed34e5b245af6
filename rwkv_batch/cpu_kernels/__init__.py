"""Native CPU kernels: C++ with a pool of threads, one op a file. The system's compiler builds them where needed."""
