// One kernel as a shared library. Compiled with SOURCE, the kernel's file, and KERNEL, its name.
#include "shim.h"
#include SOURCE

extern "C" void run(const void* params, int grid_x, int grid_y, int threads) {
  host::run(params, grid_x, grid_y, threads, [](const void* p) { KERNEL(*static_cast<const Params*>(p)); });
}
