// Types and functions that all kernels share. No standard headers, as NVRTC has none. A build for the host (the tests'
// emulator) defines the functions inside `#ifdef __CUDACC__` before it includes this file.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef signed char int8;

#ifdef __CUDACC__
static __device__ __forceinline__ float half_to_float(u16 bits) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
}
static __device__ __forceinline__ u16 float_to_half(float x) {
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

#if __CUDA_ARCH__ >= 800
// 16 bytes from global to shared memory, or zeros; complete after a wait for the group that it is committed to.
static __device__ __forceinline__ void copy_async(void* to, const void* from, bool is_valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from),
               "r"(is_valid ? 16 : 0)
               : "memory");
}
static __device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most LEFT of this thread's groups of copies are incomplete.
template <int LEFT>
static __device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// sums[16, 8] += a[16, 16] b[16, 8] by a warp, on its tensor core. With g = lane / 4 and i = 2 * (lane % 4), a lane has
// sums at (g, i), (g, i + 1) and the same of row g + 8; a pairs of numbers of a at (g, i), (g + 8, i), (g, i + 8),
// (g + 8, i + 8), along the row; and b pairs at (i, g), (i + 8, g), along the column.
static __device__ __forceinline__ void multiply_16x8x16(float (&sums)[4], const u32 (&a)[4], const u32 (&b)[2],
                                                        bool is_half) {
  if (is_half)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif
#endif

struct bf16 {
  u16 bits;
};
struct f16 {
  u16 bits;
};
template <typename T>
struct IsHalf {
  static constexpr bool value = false;
};
template <>
struct IsHalf<f16> {
  static constexpr bool value = true;
};

static __device__ __forceinline__ float to_float(float x) { return x; }
static __device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
static __device__ __forceinline__ float to_float(f16 x) { return half_to_float(x.bits); }

// Rounds to nearest, ties to even.
static __device__ __forceinline__ void assign(float& y, float x) { y = x; }
static __device__ __forceinline__ void assign(f16& y, float x) { y.bits = float_to_half(x); }
static __device__ __forceinline__ void assign(bf16& y, float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
  const u32 bits = __float_as_uint(x);
  y.bits = x == x ? (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : (u16)0x7fc0;
#endif
}

// COUNT adjacent numbers, aligned to their size together: one load or store of up to 16 bytes.
template <typename T, int COUNT>
struct alignas(sizeof(T) * COUNT) Pack {
  T at[COUNT];
};
template <int COUNT, typename T>
static __device__ __forceinline__ void load(float (&x)[COUNT], const T* from) {
  const Pack<T, COUNT> pack = *reinterpret_cast<const Pack<T, COUNT>*>(from);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) x[i] = to_float(pack.at[i]);
}
template <int COUNT, typename T>
static __device__ __forceinline__ void store(T* to, const float (&x)[COUNT]) {
  Pack<T, COUNT> pack;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) assign(pack.at[i], x[i]);
  *reinterpret_cast<Pack<T, COUNT>*>(to) = pack;
}

// Byte `i` of four, a signed integer whose sign bit has been flipped, as a float. The bits of 2^23 + byte are assembled
// by a permutation of bytes, which is faster than a conversion.
static __device__ __forceinline__ float flipped_to_float(u32 four, int i) {
  return __uint_as_float(__byte_perm(four, 0x4B000000u, 0x7440 | i)) - 8388736.0f;
}

static __device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// The sum over the lanes of a warp whose numbers differ in the bits FROM .. TO - 1 (powers of two); every lane gets it.
template <int FROM, int TO>
static __device__ __forceinline__ float sum_lanes(float x) {
#pragma unroll
  for (int bit = FROM; bit < TO; bit *= 2) x += __shfl_xor_sync(0xffffffffu, x, bit);
  return x;
}
static __device__ __forceinline__ float sum_warp(float x) { return sum_lanes<1, 32>(x); }
static __device__ __forceinline__ float max_warp(float x) {
#pragma unroll
  for (int bit = 1; bit < 32; bit *= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, bit));
  return x;
}
