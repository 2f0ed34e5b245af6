// Runs kernels on memory of its own, in which every tensor is an allocation of exactly its size, so that the address
// sanitizer sees what is read or written outside of it. Reads calls from stdin and answers on stdout:
//
//     PATH of a library, grid x, grid y, threads, bytes of the parameters, number of buffers: one line
//     the parameters; of each buffer, its pointer's offset in them and its size, int64, and its bytes
//  →  the bytes of all buffers
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

static void receive(void* to, size_t size) {
  if (size && std::fread(to, 1, size, stdin) != size) std::exit(4);
}

int main() {
  char path[4096];
  int grid_x, grid_y, threads, num_bytes, num_buffers;
  while (std::scanf("%4095s %d %d %d %d %d", path, &grid_x, &grid_y, &threads, &num_bytes, &num_buffers) == 6) {
    std::getchar();
    std::vector<long long> params((num_bytes + 7) / 8);
    receive(params.data(), num_bytes);
    std::vector<char*> buffers(num_buffers);
    std::vector<int64_t> sizes(num_buffers);
    for (int i = 0; i < num_buffers; ++i) {
      int64_t offset;
      receive(&offset, 8);
      receive(&sizes[i], 8);
      buffers[i] = static_cast<char*>(std::malloc(sizes[i]));
      receive(buffers[i], sizes[i]);
      std::memcpy(reinterpret_cast<char*>(params.data()) + offset, &buffers[i], sizeof(char*));
    }
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      std::fprintf(stderr, "%s\n", dlerror());
      return 5;
    }
    auto run = reinterpret_cast<void (*)(const void*, int, int, int)>(dlsym(library, "run"));
    run(params.data(), grid_x, grid_y, threads);
    for (int i = 0; i < num_buffers; ++i) {
      std::fwrite(buffers[i], 1, sizes[i], stdout);
      std::free(buffers[i]);
    }
    std::fflush(stdout);
  }
  return 0;
}
