// RWKV-4: a scalar recurrence per channel in the log domain, times sigmoid(r).
#include "common.h"

struct Wkv4 {
  Rows rows;
  int64_t width, slot_stride;
  const void *r, *k, *v;       // [M, A]
  const float *decay, *bonus;  // [A]
  float *aa, *bb, *pp;         // slot s at + s * slot_stride
  void* out;                   // [M, A]
};

constexpr int64_t BLOCK = 256;  // channels that one thread takes at a time

template <typename T>
static void run(const Wkv4& p) {
  const int64_t blocks = (p.width + BLOCK - 1) / BLOCK;
  const int64_t chunk = chunk_size(p.rows.num_rows * blocks);
  const auto advance_block = [&](int64_t tile) {
    const int64_t row = tile / blocks, first = tile % blocks * BLOCK, last = std::min(first + BLOCK, p.width);
    const int32_t slot = p.rows.slot[row];
    if (slot < 0) {  // padding
      for (int32_t token = p.rows.start[row]; token < p.rows.start[row + 1]; ++token)
        std::fill((T*)p.out + token * p.width + first, (T*)p.out + token * p.width + last, T{});
      return;
    }
    float *aa = p.aa + slot * p.slot_stride, *bb = p.bb + slot * p.slot_stride, *pp = p.pp + slot * p.slot_stride;
    for (int32_t token = p.rows.start[row]; token < p.rows.start[row + 1]; ++token) {
      const T *r = (const T*)p.r + token * p.width, *k = (const T*)p.k + token * p.width;
      const T* v = (const T*)p.v + token * p.width;
      T* out = (T*)p.out + token * p.width;
      for (int64_t i = first; i < last; ++i) {
        const float key = to_float(k[i]), value = to_float(v[i]), boosted = p.bonus[i] + key;
        float q = pp[i] > boosted ? pp[i] : boosted;
        float past = fast_exp(pp[i] - q), now = fast_exp(boosted - q);
        const float y = (past * aa[i] + now * value) / (past * bb[i] + now);
        const float decayed = pp[i] + p.decay[i];
        q = decayed > key ? decayed : key;
        past = fast_exp(decayed - q);
        now = fast_exp(key - q);
        aa[i] = past * aa[i] + now * value;
        bb[i] = past * bb[i] + now;
        pp[i] = q;
        out[i] = from_float<T>(y * sigmoid(to_float(r[i])));
      }
    }
  };
  for_each_tile(p.rows.num_rows * blocks, advance_block, chunk);
}

#define DEFINE(NAME, T) \
  extern "C" int32_t NAME(const void* p) { return run<T>(*(const Wkv4*)p), 0; }
FOR_EACH_DTYPE(DEFINE, wkv4)
