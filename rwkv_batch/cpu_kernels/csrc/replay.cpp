// Replays recorded calls of kernels. A forward pass of one batch size is the same calls in every step.
#include <cstdint>

// All kernels of a forward pass have this signature. They return 0, or what is wrong with their inputs.
typedef int32_t (*Kernel)(const void* params);

struct Call {
  const void* kernel;
  const void* params;
};

struct Calls {
  const Call* calls;
  int64_t count;
};

// Makes the calls in their order, up to the first one that does not return 0. Returns what the last one returned.
extern "C" int32_t replay(const Calls* p) {
  for (int64_t i = 0; i < p->count; ++i)
    if (const int32_t wrong = ((Kernel)p->calls[i].kernel)(p->calls[i].params)) return wrong;
  return 0;
}
