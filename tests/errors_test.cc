// Every mistake of a caller: its status, a message that names argument and value, and nothing written.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "mistakes.h"

namespace pagemill {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

template <class T>
void shift(T*& p, ptrdiff_t bytes) {
  p = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p) + bytes);
}

struct Mistake {
  const char* name;
  std::function<void(Case&)> make;
  std::vector<std::string> message;
  pm_status status = PM_INVALID_ARGUMENT;
  Spec spec = good();
};

std::ostream& operator<<(std::ostream& out, const Mistake& mistake) {
  return out << mistake.name;
}

const std::vector<Mistake> kConfigMistakes = {
    {"StructSizeZero", [](Case& c) { c.config.struct_size = 0; }, {"config.struct_size = 0"}},
    {"HeadsNotMultiple", [](Case& c) { c.config.num_heads = 5; }, {"num_heads = 5", "num_kv_heads = 2"}},
    {"HeadsZero", [](Case& c) { c.config.num_heads = 0; }, {"num_heads = 0"}},
    {"HeadsNegative", [](Case& c) { c.config.num_heads = -4; }, {"num_heads = -4"}},
    {"KvHeadsZero", [](Case& c) { c.config.num_kv_heads = 0; }, {"num_kv_heads = 0"}},
    {"KvHeadsNegative", [](Case& c) { c.config.num_kv_heads = -2; }, {"num_kv_heads = -2"}},
    {"GroupTooLarge", [](Case& c) { c.config.num_heads = 258; }, {"num_heads = 258", "128"}, PM_UNSUPPORTED},
    {"HeadDimNegative", [](Case& c) { c.config.head_dim = -64; }, {"head_dim = -64"}},
    {"HeadDim12", [](Case& c) { c.config.head_dim = 12; }, {"head_dim = 12"}, PM_UNSUPPORTED},
    {"HeadDim8", [](Case& c) { c.config.head_dim = 8; }, {"head_dim = 8"}, PM_UNSUPPORTED},
    {"HeadDim520", [](Case& c) { c.config.head_dim = 520; }, {"head_dim = 520"}, PM_UNSUPPORTED},
    {"VHeadDim", [](Case& c) { c.config.v_head_dim = 32; }, {"v_head_dim = 32", "64"}, PM_UNSUPPORTED},
    {"Dtype", [](Case& c) { c.config.dtype = pm_dtype(5); }, {"dtype = 5"}},
    {"DtypeOfCachesAlone",
     [](Case& c) { c.config.dtype = PM_F8E4M3; },
     {"dtype = 3", "PM_F32, PM_BF16 or PM_F16"}},
    {"CacheDtype", [](Case& c) { c.config.cache_dtype = pm_dtype(5); }, {"cache_dtype = 5", "PM_F8E5M2"}},
    {"OutDtype", [](Case& c) { c.config.out_dtype = PM_F16; }, {"out_dtype = 2"}},
    {"Layout", [](Case& c) { c.config.layout = pm_layout(3); }, {"layout = 3"}},
    {"PageSizeZero", [](Case& c) { c.config.page_size = 0; }, {"page_size = 0"}},
    {"PageSizeNegative", [](Case& c) { c.config.page_size = -16; }, {"page_size = -16"}},
    {"PageSize1040", [](Case& c) { c.config.page_size = 1040; }, {"page_size = 1040"}, PM_UNSUPPORTED},
    {"PageSizeOfTiles", [](Case& c) { c.config.page_size = 24; }, {"page_size = 24", "16"}, PM_UNSUPPORTED},
    {"NumPagesNegative", [](Case& c) { c.config.num_pages = -1; }, {"num_pages = -1"}},
    {"Causal", [](Case& c) { c.config.causal = 2; }, {"causal = 2"}},
    {"WriteCache", [](Case& c) { c.config.write_cache = 2; }, {"write_cache = 2"}},
    {"BatchInvariant", [](Case& c) { c.config.batch_invariant = -1; }, {"batch_invariant = -1"}},
    {"WindowLeft", [](Case& c) { c.config.window_left = -2; }, {"window_left = -2"}},
    {"WindowRight", [](Case& c) { c.config.window_right = -7; }, {"window_right = -7"}},
    {"Threads", [](Case& c) { c.config.threads = -1; }, {"threads = -1"}},
    {"IsaUnknown", [](Case& c) { c.config.isa = "sse9"; }, {"isa = sse9", "scalar"}},
};

const std::vector<Mistake> kBatchMistakes = {
    {"StructSizeZero", [](Case& c) { c.batch.struct_size = 0; }, {"batch.struct_size = 0"}},
    {"SeqsNegative", [](Case& c) { c.batch.num_seqs = -1; }, {"num_seqs = -1"}},
    {"TokensNegative", [](Case& c) { c.batch.num_tokens = -1; }, {"num_tokens = -1"}},
    {"QueryStartNull", [](Case& c) { c.batch.query_start = nullptr; }, {"query_start = NULL"}},
    {"QueryStartMisaligned", [](Case& c) { shift(c.batch.query_start, 2); }, {"query_start = 0x", "4 bytes"}},
    {"QueryStartFirst", [](Case& c) { edit(c.batch.query_start)[0] = 1; }, {"query_start[0] = 1"}},
    {"QueryStartFalls", [](Case& c) { edit(c.batch.query_start)[2] = 2; }, {"query_start[2] = 2"}},
    {"QueryStartNegative", [](Case& c) { edit(c.batch.query_start)[1] = -1; }, {"query_start[1] = -1"}},
    {"QueryStartPastTokens",
     [](Case& c) { c.batch.num_tokens = 5; },
     {"query_start[3] = 6", "num_tokens = 5"}},
    {"KvLenNull", [](Case& c) { c.batch.kv_len = nullptr; }, {"kv_len = NULL"}},
    {"KvLenMisaligned", [](Case& c) { shift(c.batch.kv_len, 1); }, {"kv_len = 0x"}},
    {"KvLenNegative", [](Case& c) { edit(c.batch.kv_len)[1] = -1; }, {"kv_len[1] = -1"}},
    {"KvLenShortOfWrites", [](Case& c) { edit(c.batch.kv_len)[0] = 2; }, {"kv_len[0] = 2", "q_len[0] = 3"}},
    {"KvLenShortOfCausal",
     [](Case& c) { edit(c.batch.kv_len)[0] = 2; },
     {"kv_len[0] = 2", "q_len[0] = 3"},
     PM_INVALID_ARGUMENT,
     read_only(true)},
    {"KvLenWithoutCache",
     [](Case& c) {
       c.batch.kv_len = c.batch.query_start;  // 0, 3, 4 where 3, 1, 2 is right
     },
     {"kv_len[0] = 0", "3"},
     PM_INVALID_ARGUMENT,
     good(PM_NO_CACHE)},
    {"KvLenWithoutCacheMisaligned",
     [](Case& c) {
       c.batch.kv_len = c.batch.query_start;
       shift(c.batch.kv_len, 2);
     },
     {"kv_len = 0x", "4 bytes"},
     PM_INVALID_ARGUMENT,
     good(PM_NO_CACHE)},
    {"RowIndexMisaligned",
     [](Case& c) {
       c.batch.row_index = c.batch.kv_len;
       shift(c.batch.row_index, 2);
     },
     {"row_index = 0x", "4 bytes"}},
    {"FirstPositionMisaligned",
     [](Case& c) {
       c.batch.first_position = c.batch.kv_len;
       shift(c.batch.first_position, 1);
     },
     {"first_position = 0x", "4 bytes"}},
    {"TableNull", [](Case& c) { c.batch.page_table = nullptr; }, {"page_table = NULL"}},
    {"TableMisaligned", [](Case& c) { shift(c.batch.page_table, 2); }, {"page_table = 0x"}},
    {"TableTooShort", [](Case& c) { c.batch.pages_per_seq = 2; }, {"pages_per_seq = 2", "3"}},
    {"TableNegative", [](Case& c) { c.batch.pages_per_seq = -3; }, {"pages_per_seq = -3"}},
    {"TableStride", [](Case& c) { c.batch.page_table_stride = 2; }, {"page_table_stride = 2", "3"}},
    {"TableRows", [](Case& c) { c.batch.page_table_rows = 2; }, {"page_table_rows = 2", "3"}},
    {"PageNegative", [](Case& c) { *entry(c, 1, 0) = -1; }, {"page_table[1][0] = -1"}},
    {"PageReadAfterTheLast",
     [](Case& c) { *entry(c, 1, 0) = static_cast<int32_t>(c.config.num_pages); },
     {"page_table[1][0] = 9", "9)"}},
    {"PageTooLarge",
     [](Case& c) { *entry(c, 1, 2) = int32_t(c.config.num_pages); },
     {"page_table[1][2] = 9", "9)"}},
    {"PageReadOnlyTooLarge",
     [](Case& c) { *entry(c, 0, 1) = 1 << 30; },
     {"page_table[0][1] = 1073741824"},
     PM_INVALID_ARGUMENT,
     read_only(false)},
    {"TwoWriters", [](Case& c) { *entry(c, 2, 0) = *entry(c, 1, 2); }, {"page_table[2][0] = ", "sequence 1"}},
    {"RowIndex",
     [](Case& c) {
       static const int32_t rows[] = {0, 1, 3};
       c.batch.row_index = rows;
     },
     {"row_index[2] = 3"}},
    {"RowIndexNegative",
     [](Case& c) {
       static const int32_t rows[] = {0, -1, 2};
       c.batch.row_index = rows;
     },
     {"row_index[1] = -1"}},
    {"CausalFlag",
     [](Case& c) {
       static const uint8_t flags[] = {0, 1, 2};
       c.batch.causal = flags;
     },
     {"causal[2] = 2"}},
};

const std::vector<Mistake> kArgsMistakes = {
    {"StructSizeZero", [](Case& c) { c.args.struct_size = 0; }, {"args.struct_size = 0"}},
    {"QNull", [](Case& c) { c.args.q = nullptr; }, {"q = NULL"}},
    {"KNewNull", [](Case& c) { c.args.k_new = nullptr; }, {"k_new = NULL"}},
    {"VNewNull", [](Case& c) { c.args.v_new = nullptr; }, {"v_new = NULL"}},
    {"OutNull", [](Case& c) { c.args.out = nullptr; }, {"out = NULL"}},
    {"KCacheNull", [](Case& c) { c.args.k_cache = nullptr; }, {"k_cache = NULL"}},
    {"VCacheNull", [](Case& c) { c.args.v_cache = nullptr; }, {"v_cache = NULL"}},
    {"KNewNullWithoutCache",
     [](Case& c) { c.args.k_new = nullptr; },
     {"k_new = NULL"},
     PM_INVALID_ARGUMENT,
     good(PM_NO_CACHE)},
    {"QMisaligned", [](Case& c) { shift(c.args.q, 1); }, {"q = 0x", "2 bytes"}},
    {"KNewMisaligned", [](Case& c) { shift(c.args.k_new, 1); }, {"k_new = 0x"}},
    {"VNewMisaligned", [](Case& c) { shift(c.args.v_new, 1); }, {"v_new = 0x"}},
    {"OutMisaligned", [](Case& c) { shift(c.args.out, 1); }, {"out = 0x"}},
    {"LseMisaligned", [](Case& c) { shift(c.args.lse, 2); }, {"lse = 0x", "4 bytes"}},
    {"SinksMisaligned", [](Case& c) { shift(c.args.sinks, 1); }, {"sinks = 0x"}},
    {"SlopesMisaligned", [](Case& c) { shift(c.args.alibi_slopes, 2); }, {"alibi_slopes = 0x"}},
    {"KTilesMisaligned", [](Case& c) { shift(c.args.k_cache, 32); }, {"k_cache = 0x", "64 bytes"}},
    {"VTilesMisaligned", [](Case& c) { shift(c.args.v_cache, -32); }, {"v_cache = 0x", "64 bytes"}},
    {"RowsMisaligned",
     [](Case& c) { shift(c.args.k_cache, 1); },
     {"k_cache = 0x", "2 bytes"},
     PM_INVALID_ARGUMENT,
     good(PM_ROWS)},
    {"QStrideToken", [](Case& c) { c.args.q_stride_token = -256; }, {"q_stride_token = -256"}},
    {"QStrideHead", [](Case& c) { c.args.q_stride_head = 63; }, {"q_stride_head = 63", "64"}},
    {"KNewStrideHead", [](Case& c) { c.args.k_new_stride_head = 8; }, {"k_new_stride_head = 8"}},
    {"VNewStrideToken", [](Case& c) { c.args.v_new_stride_token = 1; }, {"v_new_stride_token = 1"}},
    {"OutStrideHead", [](Case& c) { c.args.out_stride_head = 32; }, {"out_stride_head = 32"}},
    {"OutRowsOverlap", [](Case& c) { c.args.out_stride_token = 128; }, {"out_stride_token = 128"}},
    {"LseStride", [](Case& c) { c.args.lse_stride_token = 3; }, {"lse_stride_token = 3", "4"}},
    {"KStridePageNotLines",
     [](Case& c) { c.args.k_stride_page = 4096 + 8; },
     {"k_stride_page = 4104", "64 bytes"}},
    {"VStrideHeadNotLines", [](Case& c) { c.args.v_stride_head = 2048 + 16; }, {"v_stride_head = 2064"}},
    {"KStrideHeadShort", [](Case& c) { c.args.k_stride_head = 64; }, {"k_stride_head = 64"}},
    {"KStridePageNegative", [](Case& c) { c.args.k_stride_page = -4096; }, {"k_stride_page = -4096"}},
    {"VStrideTokenShort",
     [](Case& c) { c.args.v_stride_token = 63; },
     {"v_stride_token = 63"},
     PM_INVALID_ARGUMENT,
     good(PM_ROWS)},
    {"ScaleNaN", [](Case& c) { c.args.scale = kNaN; }, {"scale = nan"}},
    {"ScaleInf", [](Case& c) { c.args.scale = -kInf; }, {"scale = -inf"}},
    {"SoftCapNegative", [](Case& c) { c.args.soft_cap = -1; }, {"soft_cap = -1"}},
    {"SoftCapNaN", [](Case& c) { c.args.soft_cap = kNaN; }, {"soft_cap = nan"}},
    {"QScaleNaN", [](Case& c) { c.args.q_scale = kNaN; }, {"q_scale = nan"}},
    {"KScaleZero", [](Case& c) { c.args.k_scale = 0; }, {"k_scale = 0"}},
    {"VScaleInf", [](Case& c) { c.args.v_scale = kInf; }, {"v_scale = inf"}},
};

class Errors : public testing::TestWithParam<Mistake> {};
const auto name_of = [](const auto& info) { return info.param.name; };
INSTANTIATE_TEST_SUITE_P(Config, Errors, testing::ValuesIn(kConfigMistakes), name_of);
INSTANTIATE_TEST_SUITE_P(Batch, Errors, testing::ValuesIn(kBatchMistakes), name_of);
INSTANTIATE_TEST_SUITE_P(Args, Errors, testing::ValuesIn(kArgsMistakes), name_of);

TEST_P(Errors, SayWhatIsWrongAndTouchNothing) {
  const Mistake& mistake = GetParam();
  Case c(mistake.spec);
  mistake.make(c);
  EXPECT_EQ(pm_attention(&c.config, &c.batch, &c.args, nullptr), mistake.status);
  expect_message(mistake.message);
  expect_untouched(c);
}

}  // namespace
}  // namespace pagemill
