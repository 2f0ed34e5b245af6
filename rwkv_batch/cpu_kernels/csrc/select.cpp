// select_tokens: one token for each row. log_normalizer: the logarithm of each row's mass.
#include "parallel.h"
#include "select_row.h"

struct Select {
  int64_t num_rows, vocab;
  const float* logits;  // [B, V]
  const float *temperature, *filter_temperature;
  const double *top_p, *min_p, *uniform;
  const int64_t* top_k;  // KEEP_ALL where it is off
  const bool *greedy, *untempered;
  int64_t* token_ids;
};

struct Normalize {
  int64_t num_rows, vocab;
  const float* logits;
  double* out;
};

extern "C" void select_tokens(const Select* p) {
  for_each_tile(p->num_rows, [p](int64_t i) {
    LogitsRow& row = thread_object<LogitsRow>();
    Selector& selector = thread_object<Selector>();
    const Filter filter = {p->temperature[i], p->filter_temperature[i], p->top_p[i], p->min_p[i], p->top_k[i],
                           p->greedy[i],      p->untempered[i]};
    row.read(p->logits + i * p->vocab, p->vocab);
    p->token_ids[i] = selector.select(row, filter, p->uniform[i]);
  });
}

extern "C" void log_normalizer(const Normalize* p) {
  for_each_tile(p->num_rows, [p](int64_t i) {
    LogitsRow& row = thread_object<LogitsRow>();
    row.read(p->logits + i * p->vocab, p->vocab);
    p->out[i] = row.log_normalizer();
  });
}
