/* A C11 program that uses nothing but pagemill.h: builds a plan, runs a step of two sequences, and compares
 * with results that follow from its inputs (all scores equal, so that outputs are means of values). */
#include <math.h>
#include <pagemill/pagemill.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPECT(condition)                                                                  \
  do {                                                                                     \
    if (!(condition)) {                                                                    \
      fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, pm_last_error()); \
      exit(1);                                                                             \
    }                                                                                      \
  } while (0)

enum { kHeads = 2, kDim = 16, kPage = 4, kPages = 4, kTokens = 4 };

struct step {
  float q[kTokens * kHeads * kDim], k_new[kTokens * kDim], v_new[kTokens * kDim]; /* [T, H or 1, D] */
  float out[kTokens * kHeads * kDim], lse[kTokens * kHeads];
  float k_cache[kPages * kPage * kDim], v_cache[kPages * kPage * kDim]; /* [pages, P, 1, D] */
};

/* Sequence 0: one new token after 5 cached ones (pages 2, 0). Sequence 1: three new tokens (page 3). */
static const int32_t kQueryStart[] = {0, 1, 4}, kKvLen[] = {6, 3}, kTable[] = {2, 0, 3, -1};

static pm_config make_config(void) {
  pm_config config = PM_CONFIG_INIT;
  config.num_heads = kHeads;
  config.num_kv_heads = 1;
  config.head_dim = kDim;
  config.dtype = config.out_dtype = config.cache_dtype = PM_F32;
  config.layout = PM_ROWS;
  config.page_size = kPage;
  config.num_pages = kPages;
  config.threads = 2;
  return config;
}

static pm_batch make_batch(void) {
  pm_batch batch = PM_BATCH_INIT;
  batch.num_seqs = 2;
  batch.num_tokens = kTokens;
  batch.query_start = kQueryStart;
  batch.kv_len = kKvLen;
  batch.page_table = kTable;
  batch.pages_per_seq = 2;
  return batch;
}

/* q = 0; v of key j of sequence s is 10 s + j in every dim. Cached keys are random, what follows them is NaN.
 */
static pm_args make_args(struct step* s) {
  pm_args args = PM_ARGS_INIT;
  memset(s, 0xff, sizeof *s);
  memset(s->q, 0, sizeof s->q);
  for (int j = 0; j < 5; ++j)
    for (int d = 0; d < kDim; ++d) {
      int at = ((j < kPage ? 2 : 0) * kPage + j % kPage) * kDim + d;
      s->k_cache[at] = (float)(j * d % 7);
      s->v_cache[at] = (float)j;
    }
  for (int t = 0; t < kTokens; ++t)
    for (int d = 0; d < kDim; ++d) {
      s->k_new[t * kDim + d] = (float)(t - d);
      s->v_new[t * kDim + d] = (float)(t == 0 ? 5 : 10 + t - 1);
    }
  args.q = s->q, args.k_new = s->k_new, args.v_new = s->v_new;
  args.out = s->out, args.lse = s->lse;
  args.k_cache = s->k_cache, args.v_cache = s->v_cache;
  return args;
}

static void expect_results(const struct step* s) {
  static const double kMean[] = {2.5, 10, 10.5, 11}, kKeys[] = {6, 1, 2, 3};
  for (int t = 0; t < kTokens; ++t)
    for (int h = 0; h < kHeads; ++h) {
      EXPECT(fabs(s->lse[t * kHeads + h] - log(kKeys[t])) < 1e-4);
      for (int d = 0; d < kDim; ++d) EXPECT(fabs(s->out[(t * kHeads + h) * kDim + d] - kMean[t]) < 1e-3);
    }
  EXPECT(s->v_cache[(0 * kPage + 1) * kDim] == 5 && s->k_cache[(0 * kPage + 1) * kDim + 3] == -3);
  EXPECT(s->v_cache[(3 * kPage + 2) * kDim] == 12);
  EXPECT(isnan(s->v_cache[(3 * kPage + 3) * kDim]) && isnan(s->k_cache[1 * kPage * kDim]));
}

static void serial(void* context, int32_t n, void (*task)(void* arg, int32_t index), void* arg) {
  ++*(int*)context;
  for (int32_t i = 0; i < n; ++i) task(arg, i);
}

static void test_plan_and_run(void) {
  static struct step s;
  pm_config config = make_config();
  pm_batch batch = make_batch();
  pm_args args = make_args(&s);
  pm_plan* plan = NULL;
  pm_plan_stats stats = {.struct_size = sizeof stats};
  EXPECT(pm_plan_create(&plan) == PM_OK);
  EXPECT(pm_plan_build(plan, &config, &batch) == PM_OK);
  EXPECT(pm_plan_get_stats(plan, &stats) == PM_OK);
  EXPECT(stats.items > 0 && stats.kernel && stats.isa && stats.stored_tokens + stats.fused_tokens == kTokens);
  size_t bytes = (stats.workspace_bytes + 63) / 64 * 64;
  void* workspace = aligned_alloc(64, bytes ? bytes : 64);
  EXPECT(pm_run(plan, &args, workspace, bytes, NULL) == PM_OK);
  expect_results(&s);

  int calls = 0;
  pm_executor executor = PM_EXECUTOR_INIT;
  executor.context = &calls;
  executor.parallel_for = serial;
  args = make_args(&s);
  EXPECT(pm_run(plan, &args, workspace, bytes, &executor) == PM_OK);
  expect_results(&s);

  args = make_args(&s);
  for (int32_t phase = 0; phase < PM_PHASES; ++phase)
    EXPECT(pm_run_part(plan, &args, workspace, bytes, phase, 0, 1) == PM_OK);
  expect_results(&s);

  args = make_args(&s);
  EXPECT(pm_store(plan, &args, workspace, bytes, NULL) == PM_OK);
  EXPECT(pm_attend(plan, &args, workspace, bytes, NULL) == PM_OK);
  expect_results(&s);
  free(workspace);
  pm_plan_destroy(plan);
  pm_plan_destroy(NULL);
}

static void test_one_call(void) {
  static struct step s;
  pm_config config = make_config();
  pm_batch batch = make_batch();
  pm_args args = make_args(&s);
  pm_pool* pool = NULL;
  pm_executor executor = PM_EXECUTOR_INIT;
  EXPECT(pm_pool_create(2, &pool) == PM_OK);
  EXPECT(pm_pool_executor(pool, &executor) == PM_OK);
  EXPECT(pm_attention(&config, &batch, &args, &executor) == PM_OK);
  expect_results(&s);
  pm_pool_destroy(pool);
}

static void test_errors(void) {
  static struct step s;
  pm_config config = make_config();
  pm_batch batch = make_batch();
  pm_args args = make_args(&s);
  config.num_kv_heads = 3;
  EXPECT(pm_attention(&config, &batch, &args, NULL) == PM_INVALID_ARGUMENT);
  EXPECT(strstr(pm_last_error(), "num_heads = 2") != NULL);
  EXPECT(isnan(s.out[0]) && isnan(s.v_cache[3 * kPage * kDim]));
}

static void test_tables(void) {
  pm_isa_info isa = {.struct_size = sizeof isa};
  pm_kernel_info kernel = {.struct_size = sizeof kernel};
  int selected = 0;
  EXPECT(pm_isa_count() > 0 && pm_kernel_count() > 0);
  for (int32_t i = 0; i < pm_isa_count(); ++i) {
    EXPECT(pm_isa_get(i, &isa) == PM_OK && isa.name && isa.reason);
    EXPECT(!isa.selected == (isa.reason[0] != 0));
    selected += isa.selected;
  }
  EXPECT(selected == 1);
  EXPECT(pm_kernel_get(0, &kernel) == PM_OK && kernel.name && kernel.isa);
  EXPECT(pm_kernel_get(pm_kernel_count(), &kernel) == PM_INVALID_ARGUMENT);
  EXPECT(pm_isa_get(-1, &isa) == PM_INVALID_ARGUMENT);
  EXPECT(strcmp(pm_version(), "0.1.0") == 0 && pm_default_threads() > 0);
}

int main(void) {
  test_plan_and_run();
  test_one_call();
  test_errors();
  test_tables();
  return 0;
}
