// One product, and its epilogue: from sums to results.
#pragma once
#include "vectors.h"

// Output channels that lie side by side in a packed weight.
constexpr int PANEL = 2 * LANES;

enum Activation { LINEAR, SQUARED_RELU, SIGMOID, TANH };

// One product of several that share their rows.
struct Product {
  int64_t inputs, outputs;  // C_in, C_out
  const void* x;            // [M, C_in]
  const void* weight;       // [C_out / PANEL, units, PANEL], the last panel padded with zeros
  const float *scale, *minimum, *input_scale, *input_minimum;  // [C_out], [C_out], [C_in], [C_in]; of 8-bit weights
  const int32_t* weight_sums;                                  // [C_out], of int8 weights
  int64_t levels;                                              // integer that the largest input of a row is scaled to
  int64_t activation;
  const void* gate;  // [M, C_out] or null
  void* out;         // [M, C_out]: the result is added to it; or null
  void* y;           // [M, C_out] where out is null
  int64_t y_is_float;
};

struct Products {
  const Product* products;  // [count]
  int64_t count, rows;
};

// Applies an activation to a panel of results.
static inline void activate(float* v, int64_t activation) {
  switch (activation) {
    case SQUARED_RELU:
      for (int i = 0; i < PANEL; i += LANES) {
        const Floats x = load(v + i), positive = x < 0.0f ? Floats{} : x;
        store(v + i, positive * positive);
      }
      break;
    case SIGMOID:
      for (int i = 0; i < PANEL; ++i) v[i] = sigmoid(v[i]);
      break;
    case TANH:
      for (int i = 0; i < PANEL; ++i) v[i] = 1.0f - 2.0f / (1.0f + fast_exp(2.0f * v[i]));
      break;
    default:
      break;
  }
}

// Multiplies a panel of one row with its gate, if any, and adds it to `out`, if any, else writes it to `y`.
template <typename T, typename Y>
static inline void put(const float* v, const T* gate, T* out, Y* y) {
  for (int i = 0; i < PANEL; i += LANES) {
    const Floats gated = gate ? load(v + i) * load(gate + i) : load(v + i);
    if (out) store(out + i, load(out + i) + gated);
    else store(y + i, gated);
  }
}

// Does what `put` does, for n < PANEL channels, through copies of a whole panel's size.
template <typename T, typename Y>
static void put_some(int n, const float* v, const T* gate, T* out, Y* y) {
  T all_gates[PANEL] = {}, all_outs[PANEL] = {};
  Y all_ys[PANEL];
  if (gate) std::memcpy(all_gates, gate, n * sizeof(T));
  if (out) std::memcpy(all_outs, out, n * sizeof(T));
  put(v, gate ? all_gates : nullptr, out ? all_outs : nullptr, all_ys);
  if (out) std::memcpy(out, all_outs, n * sizeof(T));
  else std::memcpy(y, all_ys, n * sizeof(Y));
}

// The epilogue of one panel, from output channel `first` on, for all rows of a block.
template <typename T, typename Form>
static void finish(const Product& p, int64_t first_row, int64_t rows, int64_t first, const float* sums,
                   const typename Form::Row* kept) {
  const int n = (int)std::min<int64_t>(PANEL, p.outputs - first);
  const auto channels = Form::channels(p, first, n);
  for (int64_t row = 0; row < rows; ++row) {
    alignas(64) float v[PANEL];
    Form::scale(channels, kept[row], sums + row * PANEL, v);
    activate(v, p.activation);
    const int64_t offset = (first_row + row) * p.outputs + first;
    const T* gate = p.gate ? (const T*)p.gate + offset : nullptr;
    T* out = p.out ? (T*)p.out + offset : nullptr;
    auto put_to = [&](auto* y) { n == PANEL ? put(v, gate, out, y + offset) : put_some(n, v, gate, out, y + offset); };
    if (p.y_is_float) put_to((float*)p.y);
    else put_to((T*)p.y);
  }
}

// Copies n numbers, followed by zeros up to a panel.
template <typename Number>
static inline void copy_panel(Number (&to)[PANEL], const Number* from, int n) {
  for (int i = 0; i < PANEL; ++i) to[i] = i < n ? from[i] : Number{};
}
