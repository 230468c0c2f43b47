/* Pagemill: ragged paged attention for CPUs. C ABI.
 *
 * One call takes a whole serving step (sequences that decode one token, sequences that prefill
 * thousands, and everything between), stores the step's new keys and values in a paged cache, and
 * attends to the cache.
 *
 * Letters: B sequences, T tokens of the step, H query heads, K KV heads, G = H / K, D head dim,
 * P page size in tokens, S keys of one sequence.
 *
 * Meaning. Query i of sequence b sits at position kv_len[b] - q_len[b] + i (or first_position[b] + i)
 * and sees key j of its sequence, 0 <= j < kv_len[b], when
 *     j <= position                      (causal),
 *     j >= position - window_left        (window_left >= 0), and
 *     j <= position + window_right       (window_right >= 0).
 * score = scale * q_scale * k_scale * (q . k); then soft_cap * tanh(score / soft_cap); then minus
 * alibi_slopes[h] * |position - j|; then softmax over the visible keys in f32, with exp(sinks[h])
 * added once to the denominator; out = v_scale * sum_j p_j v_j. lse is the natural logarithm of the
 * denominator, the sink included. Where nothing is visible, out is 0 and lse is the sink or -inf.
 * The result is as if every write of the step came before every read, across sequences too.
 * Slots at and past kv_len, and pages that no query sees, are never read into a product and never
 * written: they may hold NaN.
 *
 * Conventions. Every struct begins with struct_size; start from its PM_*_INIT. Fields past the
 * caller's struct_size take the value that PM_*_INIT gives them. Strides are in elements; the innermost
 * dimension is contiguous; a stride of 0 stands for the contiguous one. Every function that can fail
 * returns a pm_status; pm_last_error() is the message of the calling thread's last failure. A call
 * that fails has written nothing but that message. Nothing here throws, aborts or prints, except what
 * PAGEMILL_LOG asks for on stderr.
 *
 * Environment:
 *   PAGEMILL_ISA=<name>          forces an ISA (see pm_isa_get)
 *   PAGEMILL_LOG=dispatch,tune   reports the choice of kernels, and the files of the cost model
 *   PAGEMILL_TUNE=<file>         cost model, instead of the one that `pagemill tune` stored for this CPU and
 *                                ISA in $XDG_CACHE_HOME/pagemill (or ~/.cache/pagemill); empty: defaults
 */
#ifndef PAGEMILL_PAGEMILL_H_
#define PAGEMILL_PAGEMILL_H_

#include <stddef.h>
#include <stdint.h>

#if defined(PAGEMILL_STATIC)
#define PM_API
#elif defined(__GNUC__)
#define PM_API __attribute__((visibility("default")))
#else
#define PM_API
#endif

#define PM_VERSION_MAJOR 0
#define PM_VERSION_MINOR 1
#define PM_VERSION_PATCH 0

#ifdef __cplusplus
extern "C" {
#endif

typedef enum pm_status {
  PM_OK = 0,
  PM_INVALID_ARGUMENT = 1, /* the caller's mistake */
  PM_UNSUPPORTED = 2,      /* legal, but this build or machine cannot do it */
  PM_OUT_OF_MEMORY = 3
} pm_status;

typedef enum pm_dtype {
  PM_F32 = 0,
  PM_BF16 = 1,
  PM_F16 = 2,
  /* Of caches alone. A number beyond the largest, infinity too, is stored as the largest; NaN stays NaN. */
  PM_F8E4M3 = 3, /* OCP's, as float8_e4m3fn: largest 448, no infinity */
  PM_F8E5M2 = 4  /* largest 57344 */
} pm_dtype;

typedef enum pm_layout {
  /* With r = 4 / sizeof(element), per (page, KV head): K as [P/16][D/r][16][r], V as [P/r][D][r].
   * P is a multiple of 16. Pointers and page and head strides are multiples of 64 bytes. */
  PM_TILES = 0,
  /* A key is D contiguous elements at page * stride_page + slot * stride_token + head * stride_head.
   * Any P. Covers [pages, P, K, D], [pages, K, P, D], token slots (P = 1), K and V interleaved. */
  PM_ROWS = 1,
  /* No cache: every sequence attends to its own k_new and v_new of this step (encoders). */
  PM_NO_CACHE = 2
} pm_layout;

/* The static options of a plan: what all layers that share it have in common. */
typedef struct pm_config {
  size_t struct_size;
  int32_t num_heads;    /* H, a multiple of K; H / K <= 128 */
  int32_t num_kv_heads; /* K */
  int32_t head_dim;     /* D, a multiple of 8 from 16 to 512 */
  int32_t v_head_dim;   /* 0 = head_dim; others are unsupported for now */
  pm_dtype dtype;       /* of q, k_new and v_new: PM_F32, PM_BF16 or PM_F16 */
  pm_dtype out_dtype;   /* dtype, or PM_F32 */
  pm_dtype cache_dtype; /* with PM_NO_CACHE: ignored */
  pm_layout layout;
  int32_t page_size;       /* P in tokens, 1 to 1024 */
  int64_t num_pages;       /* pages of the cache: page indices are in [0, num_pages) */
  int32_t causal;          /* 0 or 1; pm_batch.causal overrides it per sequence */
  int32_t window_left;     /* keys before the query's position that it sees; -1 = no bound */
  int32_t window_right;    /* keys after it; -1 = no bound */
  int32_t write_cache;     /* 0: k_new and v_new are ignored and the cache is only read */
  int32_t batch_invariant; /* 1: the bits of an output row depend only on its position, its q, the
                              visible keys and values and the static options */
  int32_t threads;         /* parts to plan for; 0 = pm_default_threads() */
  const char* isa;         /* NULL = PAGEMILL_ISA, else the best of the machine */
} pm_config;

#define PM_CONFIG_INIT \
  {sizeof(pm_config), 0, 0, 0, 0, PM_BF16, PM_BF16, PM_BF16, PM_TILES, 0, 0, 1, -1, -1, 1, 0, 0, NULL}

/* The metadata of one step. All of it is copied by pm_plan_build. */
typedef struct pm_batch {
  size_t struct_size;
  int32_t num_seqs;           /* B, from 0 */
  int64_t num_tokens;         /* T: rows of q, k_new, v_new, out */
  const int32_t* query_start; /* [B + 1], rising from 0, last <= T; rows past the last are left alone */
  const int32_t* kv_len;      /* [B] keys of each sequence, its new tokens included;
                                 PM_NO_CACHE: NULL, or equal to q_len */
  const int32_t* page_table;  /* [num_rows, pages_per_seq]; entries outside every query's window and
                                 past kv_len are neither read nor checked */
  int64_t page_table_stride;  /* elements between rows; 0 = pages_per_seq */
  int32_t pages_per_seq;
  int32_t page_table_rows;       /* number of rows; 0 = B */
  const int32_t* row_index;      /* [B] row of page_table of each sequence, or NULL for 0 .. B-1 */
  const int32_t* first_position; /* [B] position of each sequence's first query, or NULL */
  const uint8_t* causal;         /* [B] 0 or 1, or NULL for pm_config.causal */
} pm_batch;

#define PM_BATCH_INIT {sizeof(pm_batch), 0, 0, NULL, NULL, NULL, 0, 0, 0, NULL, NULL, NULL}

/* The tensors and scalars of one layer. */
typedef struct pm_args {
  size_t struct_size;
  const void* q; /* [T, H, D] dtype */
  int64_t q_stride_token, q_stride_head;
  const void* k_new; /* [T, K, D] dtype; ignored unless written or PM_NO_CACHE */
  int64_t k_new_stride_token, k_new_stride_head;
  const void* v_new; /* [T, K, D] dtype */
  int64_t v_new_stride_token, v_new_stride_head;
  void* out; /* [T, H, D] out_dtype; must not overlap any input or the cache. Of bf16 what is below 2^-126
              * may become 0. */
  int64_t out_stride_token, out_stride_head;
  float* lse;               /* [T, H], or NULL */
  int64_t lse_stride_token; /* 0 = H; the head stride is 1 */
  void* k_cache;            /* cache_dtype; contiguous default for PM_TILES: K and V planes of a head side by
                               side, [pages, K, 2, P * D] with v_cache = k_cache + P * D; for PM_ROWS:
                               [pages, P, K, D] each */
  int64_t k_stride_page, k_stride_token, k_stride_head; /* stride_token: PM_ROWS only */
  void* v_cache;
  int64_t v_stride_page, v_stride_token, v_stride_head;
  float scale;    /* 0 = 1 / sqrt(D) */
  float soft_cap; /* 0 = none */
  float q_scale;  /* the true q is q_scale * q */
  float k_scale;  /* stored = k_new / k_scale, rounded to nearest even; scores multiply it back */
  float v_scale;
  const float* sinks;        /* [H] logits, or NULL */
  const float* alibi_slopes; /* [H], or NULL */
} pm_args;

#define PM_ARGS_INIT \
  {sizeof(pm_args),  \
   NULL,             \
   0,                \
   0,                \
   NULL,             \
   0,                \
   0,                \
   NULL,             \
   0,                \
   0,                \
   NULL,             \
   0,                \
   0,                \
   NULL,             \
   0,                \
   NULL,             \
   0,                \
   0,                \
   0,                \
   NULL,             \
   0,                \
   0,                \
   0,                \
   0.0f,             \
   0.0f,             \
   1.0f,             \
   1.0f,             \
   1.0f,             \
   NULL,             \
   NULL}

/* Runs task(arg, 0) .. task(arg, n - 1) once each, in any order, on any threads (perhaps all on one),
 * and returns when all are done. Tasks never wait for one another. */
typedef struct pm_executor {
  size_t struct_size;
  void* context;
  void (*parallel_for)(void* context, int32_t n, void (*task)(void* arg, int32_t index), void* arg);
} pm_executor;

#define PM_EXECUTOR_INIT {sizeof(pm_executor), NULL, NULL}

typedef struct pm_plan pm_plan; /* immutable between builds: any number of threads may run it at once */
typedef struct pm_pool pm_pool;

/* Message of this thread's last failed call, "" before any. Valid until its next failure. */
PM_API const char* pm_last_error(void);
PM_API const char* pm_status_name(pm_status status);
PM_API const char* pm_version(void);

/* A plan: built once a step, run for every layer. Building again reuses its storage; a failed build
 * leaves the previous contents. Building while another thread runs the plan is a data race. */
PM_API pm_status pm_plan_create(pm_plan** plan);
PM_API void pm_plan_destroy(pm_plan* plan);
PM_API pm_status pm_plan_build(pm_plan* plan, const pm_config* config, const pm_batch* batch);

typedef struct pm_plan_stats {
  size_t struct_size;
  size_t workspace_bytes; /* what a run of this plan needs; 64-byte alignment */
  int32_t parts;          /* tasks that a run hands to the executor; 1 = runs inline */
  int64_t items;          /* work items: queries, keys and KV heads that one thread takes together */
  int64_t split_items;    /* those of them that cover only a part of their keys */
  int64_t merges;         /* merges of split items */
  int64_t stored_tokens;  /* new tokens stored in the phase before attention */
  int64_t fused_tokens;   /* new tokens stored by the items that attend to them */
  const char* isa;
  const char* kernel; /* name of the attention kernel of most items, such as attend_bf16_d128_avx512bf16 */
} pm_plan_stats;
PM_API pm_status pm_plan_get_stats(const pm_plan* plan, pm_plan_stats* stats);

/* What the plan expects by its cost model, in nanoseconds. */
typedef struct pm_estimate {
  size_t struct_size;
  double unsplit_ns; /* all work of the step on one thread, without splits and merges */
  double run_ns;     /* of pm_run with the plan's threads, until the last one ends */
} pm_estimate;
PM_API pm_status pm_plan_estimate(const pm_plan* plan, pm_estimate* estimate);

/* Where the cost model of an ISA (NULL = as pm_config.isa) comes from. Strings outlive every plan. */
typedef struct pm_tune_info {
  size_t struct_size;
  const char* isa;
  const char* path;    /* where plans look for what `pagemill tune` measured, "" = nowhere */
  int32_t tuned;       /* 1: measured, 0: defaults */
  double error;        /* median relative error of measured costs, on shapes that were not fitted */
  const char* problem; /* why a file at that path is not used, "" if none is there */
} pm_tune_info;
PM_API pm_status pm_tune_get(const char* isa, pm_tune_info* info);

/* Stores k_new and v_new (if the plan writes) and attends. workspace: workspace_bytes of the plan, 64-byte
 * aligned, contents of no meaning before or after, one per concurrent call. executor: NULL = a pool of
 * the library's own, shared by the process. Allocates nothing. */
PM_API pm_status pm_run(const pm_plan* plan, const pm_args* args, void* workspace, size_t workspace_bytes,
                        const pm_executor* executor);
/* The two halves of pm_run: the cache update alone (q, out and lse may be NULL), and attention alone. */
PM_API pm_status pm_store(const pm_plan* plan, const pm_args* args, void* workspace, size_t workspace_bytes,
                          const pm_executor* executor);
PM_API pm_status pm_attend(const pm_plan* plan, const pm_args* args, void* workspace, size_t workspace_bytes,
                           const pm_executor* executor);

/* For hosts that are already inside a parallel region. Each of `parts` threads (1 <= parts <= threads of
 * the plan) calls phase 0; all wait for each other (the host's barrier); each calls phase 1. Together the
 * calls do what pm_run does. Every call validates and returns the same status. */
#define PM_PHASES 2
PM_API pm_status pm_run_part(const pm_plan* plan, const pm_args* args, void* workspace,
                             size_t workspace_bytes, int32_t phase, int32_t part, int32_t parts);

/* Plans and runs in one call, with storage of its own. */
PM_API pm_status pm_attention(const pm_config* config, const pm_batch* batch, const pm_args* args,
                              const pm_executor* executor);

/* Merges two partial results over disjoint keys: with m = max(lse_a, lse_b),
 *   lse = m + ln(exp(lse_a - m) + exp(lse_b - m)),  out = exp(lse_a - lse) a + exp(lse_b - lse) b.
 * Two -inf give out 0 and lse -inf. a, b, out: [rows, D] contiguous, dtype; lse: [rows] f32 (out_lse may
 * be NULL). out may be a or b, out_lse may be lse_a or lse_b; other overlap is not allowed. */
PM_API pm_status pm_merge(pm_dtype dtype, int64_t rows, int32_t head_dim, const void* a, const float* lse_a,
                          const void* b, const float* lse_b, void* out, float* out_lse);

/* A cache by itself, for conversion. Strides as in pm_args. */
typedef struct pm_cache {
  size_t struct_size;
  pm_layout layout; /* PM_TILES or PM_ROWS */
  pm_dtype dtype;
  int32_t num_kv_heads, head_dim, page_size;
  int64_t num_pages;
  void* k;
  int64_t k_stride_page, k_stride_token, k_stride_head;
  void* v;
  int64_t v_stride_page, v_stride_token, v_stride_head;
} pm_cache;
#define PM_CACHE_INIT {sizeof(pm_cache), PM_TILES, PM_BF16, 0, 0, 0, 0, NULL, 0, 0, 0, NULL, 0, 0, 0}

/* Copies n whole pages, src_pages[i] of src to dst_pages[i] of dst (NULL = 0 .. n-1), converting layout
 * and dtype (to fp8 as a store does, with scale 1). Same K, D and P. src and dst must not overlap; dst_pages
 * must be distinct. */
PM_API pm_status pm_convert(const pm_cache* src, const int32_t* src_pages, const pm_cache* dst,
                            const int32_t* dst_pages, int64_t n);

/* The threads that the affinity mask and the cgroup CPU quota allow this process. */
PM_API int32_t pm_default_threads(void);
/* A pool of threads - 1 workers and the caller (0 = pm_default_threads()). Workers spin for some tens of
 * microseconds after work, then sleep; they are not pinned. After fork() the child's first use starts new
 * workers. Concurrent parallel_for calls on one pool run one after the other. */
PM_API pm_status pm_pool_create(int32_t threads, pm_pool** pool);
PM_API void pm_pool_destroy(pm_pool* pool);
PM_API pm_status pm_pool_executor(pm_pool* pool, pm_executor* executor);

typedef struct pm_isa_info {
  size_t struct_size;
  const char* name;   /* scalar, avx2, avx512, avx512bf16, amx, amx_emulated */
  int32_t available;  /* this machine and OS can run it */
  int32_t selected;   /* what a NULL pm_config.isa picks now */
  const char* reason; /* why it is not selected, "" if it is */
} pm_isa_info;
PM_API int32_t pm_isa_count(void);
PM_API pm_status pm_isa_get(int32_t index, pm_isa_info* info); /* best first */

typedef struct pm_kernel_info {
  size_t struct_size;
  const char* name; /* attend_<products>_d<head dim, 0 = any>_<isa> */
  const char* isa;
  int32_t head_dim; /* 0 = any */
} pm_kernel_info;
PM_API int32_t pm_kernel_count(void);
PM_API pm_status pm_kernel_get(int32_t index, pm_kernel_info* info);

#ifdef __cplusplus
}
#endif
#endif /* PAGEMILL_PAGEMILL_H_ */
