/* The C ABI: two sequences, one of which decodes a token while the other prefills three, then a mistake and
 * its message. All keys are equal, so that each output is the mean of the values seen. */
#include <math.h>
#include <pagemill/pagemill.h>
#include <stdio.h>

enum { B = 2, T = 4, H = 2, K = 1, D = 16, P = 4, PAGES = 3 };

static float q[T][H][D], k[T][K][D], v[T][K][D], out[T][H][D];
static float k_cache[PAGES][P][K][D], v_cache[PAGES][P][K][D];

int main(void) {
  for (int t = 0; t < T; ++t)
    for (int d = 0; d < D; ++d) v[t][0][d] = (float)(t + 1);
  for (int slot = 0; slot < P; ++slot)
    for (int d = 0; d < D; ++d) v_cache[2][slot][0][d] = 9;

  pm_config config = PM_CONFIG_INIT;
  config.num_heads = H, config.num_kv_heads = K, config.head_dim = D;
  config.dtype = config.out_dtype = config.cache_dtype = PM_F32;
  config.layout = PM_ROWS, config.page_size = P, config.num_pages = PAGES;

  const int32_t query_start[B + 1] = {0, 1, 4}, kv_len[B] = {5, 3}, page_table[B][2] = {{2, 0}, {1, -1}};
  pm_batch batch = PM_BATCH_INIT;
  batch.num_seqs = B, batch.num_tokens = T, batch.pages_per_seq = 2;
  batch.query_start = query_start, batch.kv_len = kv_len, batch.page_table = page_table[0];

  pm_args args = PM_ARGS_INIT;
  args.q = q, args.k_new = k, args.v_new = v, args.out = out;
  args.k_cache = k_cache, args.v_cache = v_cache;
  if (pm_attention(&config, &batch, &args, NULL) != PM_OK) {
    fprintf(stderr, "%s\n", pm_last_error());
    return 1;
  }

  const float expected[T] = {(4 * 9 + 1) / 5.0f, 2, (2 + 3) / 2.0f, (2 + 3 + 4) / 3.0f};
  int wrong = 0;
  for (int t = 0; t < T; ++t) {
    printf("token %d: %.4f, expected %.4f\n", t, out[t][H - 1][D - 1], expected[t]);
    wrong += !(fabsf(out[t][H - 1][D - 1] - expected[t]) < 1e-5f);
  }

  args.q = NULL;
  const pm_status status = pm_attention(&config, &batch, &args, NULL);
  printf("without q: %s: %s\n", pm_status_name(status), pm_last_error());
  return wrong || status != PM_INVALID_ARGUMENT;
}
