// The CPU kernels against plain loops, in shapes drawn at random: linked with the kernels' sources for one instruction
// set, and run on such a processor or in an emulator. Prints what differs, or "right".
#include <cstdio>
#include <cstdlib>
#include <random>
#include <type_traits>
#include <vector>

#include "product.h"
#include "wkv7.cpp"

extern "C" int64_t int8_inputs();
extern "C" int64_t has_bfloat16_pairs();
extern "C" void set_region_threads(int32_t threads);

typedef int32_t (*Kernel)(const void* arguments);

#define DECLARE_PRODUCT(NAME, T) extern "C" int32_t NAME(const void*);
FOR_EACH_DTYPE(DECLARE_PRODUCT, linear)
FOR_EACH_DTYPE(DECLARE_PRODUCT, mm8)
FOR_EACH_DTYPE(DECLARE_PRODUCT, w8a8)
FOR_EACH_DTYPE(DECLARE_PRODUCT, w8a16)

static void run(Kernel kernel, const std::vector<Product>& products, int64_t rows) {
  const Products arguments = {products.data(), (int64_t)products.size(), rows};
  kernel(&arguments);
}

static std::mt19937 dice(1);
static int differences = 0;

static int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(dice); }

template <typename T>
static std::vector<T> draw_numbers(int64_t n, float size = 1) {
  std::vector<T> x(n);
  for (T& one : x) one = from_float<T>(std::normal_distribution<float>(0, size)(dice));
  return x;
}

static std::vector<int8_t> draw_bytes(int64_t n) {
  std::vector<int8_t> x(n);
  for (int8_t& one : x) one = (int8_t)draw(-127, 127);
  return x;
}

static void check(const char* what, int64_t rows, double got, double expected, double bound) {
  if (std::abs(got - expected) <= bound) return;
  if (++differences <= 20) printf("%s, %d rows: got %.9g, expected %.9g\n", what, (int)rows, got, expected);
}

// Half the distance of neighboring numbers of T near x, and an error of float32 sums whose terms add up to `magnitude`.
template <typename T>
static double bound_of(double x, double magnitude) {
  const double step = sizeof(T) == 4 ? 0x1p-24 : std::is_same<T, bf16>::value ? 0x1p-8 : 0x1p-11;
  return step * std::abs(x) + 0x1p-19 * magnitude + 0x1p-24;
}

// [outputs, inputs] as panels [outputs / PANEL, units, PANEL, together], padded with zeros.
template <typename W>
static std::vector<W> pack(const std::vector<W>& weight, int64_t outputs, int64_t inputs, int64_t together) {
  const int64_t panels = (outputs + PANEL - 1) / PANEL, units = (inputs + together - 1) / together;
  std::vector<W> packed(panels * units * PANEL * together);
  for (int64_t n = 0; n < outputs; ++n)
    for (int64_t k = 0; k < inputs; ++k) {
      int64_t channel = n % PANEL;  // both halves of a panel in one word: see kinds.h
      if (std::is_same<W, bf16>::value && together == 1) channel = channel % LANES * 2 + channel / LANES;
      const int64_t unit = (n / PANEL * units + k / together) * PANEL + channel;
      packed[unit * together + k % together] = weight[n * inputs + k];
    }
  return packed;
}

struct Shape {
  int64_t rows, outputs, inputs;
};

static Shape draw_shape() { return {draw(1, 13), draw(1, 5 * PANEL), draw(1, 4) == 1 ? draw(1, 9) : draw(10, 700)}; }

// Terms of results before the activation, their sum, and the sum of their magnitudes.
struct Sum {
  double value = 0, magnitude = 0;
  void add(double term) {
    value += term;
    magnitude += std::abs(term);
  }
};

static double activated(double x, int64_t activation) {
  if (activation == SQUARED_RELU) return x > 0 ? x * x : 0;
  if (activation == SIGMOID) return 1 / (1 + std::exp(-x));
  return activation == TANH ? std::tanh(x) : x;
}

// Two products of one call, the second with an epilogue.
template <typename T>
static void check_linear(Kernel kernel, const char* what) {
  const Shape shapes[2] = {draw_shape(), draw_shape()};
  const int64_t rows = shapes[0].rows;
  const int64_t together = std::is_same<T, bf16>::value && has_bfloat16_pairs() ? 2 : 1;
  std::vector<T> x[2], weight[2], packed[2], y[2], gate, out;
  std::vector<Product> products(2);
  for (int i = 0; i < 2; ++i) {
    const int64_t outputs = shapes[i].outputs, inputs = shapes[i].inputs;
    x[i] = draw_numbers<T>(rows * inputs);
    weight[i] = draw_numbers<T>(outputs * inputs, 1 / std::sqrt((float)inputs));
    packed[i] = pack(weight[i], outputs, inputs, together);
    y[i].resize(rows * outputs);
    products[i].inputs = inputs, products[i].outputs = outputs;
    products[i].x = x[i].data(), products[i].weight = packed[i].data(), products[i].y = y[i].data();
  }
  gate = draw_numbers<T>(rows * shapes[1].outputs);
  out = draw_numbers<T>(rows * shapes[1].outputs);
  y[1] = out;
  products[1].activation = draw(LINEAR, TANH);
  products[1].gate = gate.data(), products[1].out = y[1].data();
  run(kernel, products, rows);
  for (int i = 0; i < 2; ++i)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t n = 0; n < shapes[i].outputs; ++n) {
        const int64_t inputs = shapes[i].inputs, at = r * shapes[i].outputs + n;
        Sum sum;
        for (int64_t k = 0; k < inputs; ++k)
          sum.add((double)to_float(x[i][r * inputs + k]) * to_float(weight[i][n * inputs + k]));
        double expected = activated(sum.value, products[i].activation), magnitude = 1 + sum.magnitude;
        if (i == 1) {
          if (products[1].activation == SQUARED_RELU) magnitude *= 1 + sum.magnitude;
          magnitude = magnitude * std::abs(to_float(gate[at])) + std::abs(to_float(out[at]));
          expected = expected * to_float(gate[at]) + to_float(out[at]);
        }
        check(what, rows, to_float(y[i][at]), expected, bound_of<T>(expected, magnitude));
      }
}

// The bytes stand for scale[n] input_scale[k] (byte + 128.5) + minimum[n] + input_minimum[k].
template <typename T>
static void check_mm8(Kernel kernel, const char* what) {
  const auto [rows, outputs, inputs] = draw_shape();
  const std::vector<T> x = draw_numbers<T>(rows * inputs);
  const std::vector<int8_t> bytes = draw_bytes(outputs * inputs), packed = pack(bytes, outputs, inputs, 1);
  const auto scale = draw_numbers<float>(outputs, 0.1f), minimum = draw_numbers<float>(outputs);
  const auto input_scale = draw_numbers<float>(inputs, 0.1f), input_minimum = draw_numbers<float>(inputs);
  std::vector<T> y(rows * outputs);
  Product p{};
  p.inputs = inputs, p.outputs = outputs, p.x = x.data(), p.weight = packed.data(), p.y = y.data();
  p.scale = scale.data(), p.minimum = minimum.data();
  p.input_scale = input_scale.data(), p.input_minimum = input_minimum.data();
  run(kernel, {p}, rows);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t n = 0; n < outputs; ++n) {
      Sum sum;
      for (int64_t k = 0; k < inputs; ++k) {
        const double input = to_float(x[r * inputs + k]), both = (double)scale[n] * input_scale[k];
        sum.add(input * both * bytes[n * inputs + k]);
        sum.add(input * both * 128.5);
        sum.add(input * minimum[n]);
        sum.add(input * input_minimum[k]);
      }
      check(what, rows, to_float(y[r * outputs + n]), sum.value, bound_of<T>(sum.value, sum.magnitude));
    }
}

// Sums of integers are exact, and so are results.
template <typename T>
static void check_integers(Kernel kernel, const char* what, bool is_w8a8) {
  const auto [rows, outputs, inputs] = draw_shape();
  std::vector<T> x = draw_numbers<T>(rows * inputs), y(rows * outputs);
  if (draw(1, 4) == 1) std::fill_n(x.begin(), inputs, T{});
  const std::vector<int8_t> bytes = draw_bytes(outputs * inputs);
  const std::vector<int8_t> packed = pack(bytes, outputs, inputs, is_w8a8 ? int8_inputs() : 2);
  const std::vector<float> scale = draw_numbers<float>(outputs);
  std::vector<int32_t> weight_sums(outputs);
  for (int64_t i = 0; i < outputs * inputs; ++i) weight_sums[i / inputs] += bytes[i];
  Product p{};
  p.inputs = inputs, p.outputs = outputs, p.x = x.data(), p.weight = packed.data(), p.y = y.data();
  p.scale = scale.data(), p.weight_sums = weight_sums.data();
  p.levels = is_w8a8 ? 127 : std::min<int64_t>(32767, INT32_MAX / (127 * inputs));
  run(kernel, {p}, rows);
  for (int64_t r = 0; r < rows; ++r) {
    float largest = 0;
    for (int64_t k = 0; k < inputs; ++k) largest = std::max(largest, std::abs(to_float(x[r * inputs + k])));
    const float own = largest > 0 ? largest / (float)p.levels : 1;
    for (int64_t n = 0; n < outputs; ++n) {
      int64_t sum = 0;
      for (int64_t k = 0; k < inputs; ++k)
        sum += (int64_t)std::nearbyint(to_float(x[r * inputs + k]) / own) * bytes[n * inputs + k];
      const float expected = (float)sum * (own * scale[n]);
      check(what, rows, to_float(y[r * outputs + n]), to_float(from_float<T>(expected)), 0);
    }
  }
}

// Numbers of one head, in float64.
struct Head {
  std::vector<double> r, decay, key, value, removal, rate, gate;
};

template <typename T>
static Head head_of(const Wkv7& p, int64_t at, int64_t first) {
  const auto number = [at](const void* x, int64_t i) { return (double)to_float(((const T*)x)[at + i]); };
  const auto sigmoid_of = [](double x) { return 1 / (1 + std::exp(-x)); };
  Head h;
  double squares = 0;
  for (int64_t i = 0; i < p.size; ++i) {
    const double k = number(p.k, i), rate = sigmoid_of(p.a0[first + i] + number(p.a, i));
    double value = number(p.v, i);
    if (p.v_first) value += (number(p.v_first, i) - value) * sigmoid_of(p.v0[first + i] + number(p.v_gate, i));
    h.r.push_back(number(p.r, i));
    h.decay.push_back(std::exp(-std::exp(-0.5) * sigmoid_of(p.w0[first + i] + number(p.w, i))));
    h.key.push_back(k * (1 + (rate - 1) * p.k_a[first + i]));
    h.value.push_back(value);
    h.removal.push_back(k * p.k_k[first + i]);
    h.rate.push_back(rate);
    h.gate.push_back(number(p.g, i));
    squares += h.removal[i] * h.removal[i];
  }
  for (double& x : h.removal) x /= std::max(std::sqrt(squares), 1e-12);
  return h;
}

// Advances the state of one head by one token, and returns its output.
static std::vector<double> advance_head(const Wkv7& p, const Head& h, int64_t first, std::vector<double>& state) {
  const int64_t n = p.size;
  std::vector<double> y(n);
  double mean = 0, variance = 0, bonus = 0;
  for (int64_t v = 0; v < n; ++v) {
    double removed = 0;
    for (int64_t k = 0; k < n; ++k) removed += state[k * n + v] * h.removal[k];
    for (int64_t k = 0; k < n; ++k) {
      double& s = state[k * n + v];
      s = s * h.decay[k] - removed * h.removal[k] * h.rate[k] + h.key[k] * h.value[v];
      y[v] += s * h.r[k];
    }
    mean += y[v] / n;
    bonus += h.r[v] * h.key[v] * p.r_k[first + v];
  }
  for (int64_t v = 0; v < n; ++v) variance += (y[v] - mean) * (y[v] - mean) / n;
  for (int64_t v = 0; v < n; ++v) {
    const double normed = (y[v] - mean) / std::sqrt(variance + p.eps);
    y[v] = (normed * p.norm_weight[first + v] + p.norm_bias[first + v] + bonus * h.value[v]) * h.gate[v];
  }
  return y;
}

// Three rows of some tokens; the second row is padding.
template <typename T>
static void check_wkv7(Kernel kernel, const char* what) {
  constexpr int64_t SIZES[] = {64, 31, 16, 3};
  const int64_t heads = draw(1, 3), size = SIZES[draw(0, 3)], width = heads * size, slots = 4;
  const int32_t slot[] = {2, -1, 0}, start[] = {0, 3, 5, 6};
  const int64_t tokens = start[3];
  std::vector<T> vectors[8], out(tokens * width, from_float<T>(7));
  for (auto& x : vectors) x = draw_numbers<T>(tokens * width);
  std::vector<float> weights[8], state = draw_numbers<float>(slots * heads * size * size);
  for (auto& x : weights) x = draw_numbers<float>(width);
  const bool is_later = draw(0, 1);
  const Wkv7 p = {{3, slot, start},
                  heads,
                  size,
                  heads * size * size,
                  vectors[0].data(),
                  vectors[1].data(),
                  vectors[2].data(),
                  vectors[3].data(),
                  vectors[4].data(),
                  vectors[5].data(),
                  is_later ? vectors[6].data() : nullptr,
                  is_later ? vectors[7].data() : nullptr,
                  weights[0].data(),
                  weights[1].data(),
                  weights[2].data(),
                  weights[3].data(),
                  weights[4].data(),
                  weights[5].data(),
                  weights[6].data(),
                  weights[7].data(),
                  1e-3f,
                  state.data(),
                  out.data()};
  const std::vector<float> before = state;
  kernel(&p);
  std::vector<double> expected(before.begin(), before.end());
  for (int row = 0; row < 3; ++row)
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t place = (slot[row] * heads + head) * size * size;
      std::vector<double> own;
      if (slot[row] >= 0) own.assign(expected.begin() + place, expected.begin() + place + size * size);
      for (int64_t token = start[row]; token < start[row + 1]; ++token) {
        const int64_t at = token * width + head * size;
        std::vector<double> y(size);
        if (slot[row] >= 0) y = advance_head(p, head_of<T>(p, at, head * size), head * size, own);
        for (int64_t i = 0; i < size; ++i) check(what, 3, to_float(out[at + i]), y[i], bound_of<T>(y[i], 100));
      }
      std::copy(own.begin(), own.end(), expected.begin() + (slot[row] >= 0 ? place : 0));
    }
  for (size_t i = 0; i < state.size(); ++i) check("state", 3, state[i], expected[i], bound_of<float>(expected[i], 20));
}

#define CHECK(NAME, T)                                  \
  check_linear<T>(linear##NAME, "linear" #NAME);        \
  check_mm8<T>(mm8##NAME, "mm8" #NAME);                 \
  check_integers<T>(w8a8##NAME, "w8a8" #NAME, true);    \
  check_integers<T>(w8a16##NAME, "w8a16" #NAME, false); \
  check_wkv7<T>(wkv7##NAME, "wkv7" #NAME);

int main(int, char** arguments) {
  const int rounds = atoi(arguments[1]);
  for (int i = 0; i < rounds; ++i)
    for (const int threads : {1, 3}) {
      set_region_threads(threads);
      FOR_EACH_DTYPE(CHECK, )
    }
  if (differences) printf("%d results differ\n", differences);
  else puts("right");
}
