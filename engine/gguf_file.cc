#include "gguf_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <ggml-cpu.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <pagemill/engine.hpp>

#include "ggml_messages.h"

namespace pagemill::engine {

GgufFile::GgufFile(const std::string& path) : path_(path) {
  map();
  const GgmlMessages messages;
  ggml_context* tensors = nullptr;
  gguf_.reset(gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = &tensors}));
  tensors_.reset(tensors);
  if (!gguf_) fail(fmt::format("not a GGUF file that can be read: {}", messages.last("no reason given")));
  place_tensors();
}

void GgufFile::fail(const std::string& what) const {
  throw ModelError(path_ + ": " + what);
}

void GgufFile::Unmap::operator()(void* data) const {
  munmap(data, bytes);
}

void GgufFile::map() {
  const int file = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail(std::strerror(errno));
  struct stat status;
  fstat(file, &status);
  const auto bytes = static_cast<size_t>(status.st_size);
  void* data = S_ISREG(status.st_mode) && bytes > 0 ? mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0)
                                                    : MAP_FAILED;
  close(file);
  if (data == MAP_FAILED) fail("expected a file with contents");
  mapping_ = {data, Unmap{bytes}};
}

void GgufFile::place_tensors() {
  const size_t begin = gguf_get_data_offset(gguf_.get()), bytes = mapping_.get_deleter().bytes;
  for (int64_t i = 0; i < gguf_get_n_tensors(gguf_.get()); ++i) {
    const size_t offset = gguf_get_tensor_offset(gguf_.get(), i), size = gguf_get_tensor_size(gguf_.get(), i);
    if (begin > bytes || offset > bytes - begin || size > bytes - begin - offset) {
      fail(fmt::format("cut: tensor {} ends at byte {}, the file at byte {}",
                       gguf_get_tensor_name(gguf_.get(), i), begin + offset + size, bytes));
    }
    tensor_bytes_ += static_cast<int64_t>(size);
  }
  if (gguf_get_n_tensors(gguf_.get()) == 0) fail("holds no tensors: expected a model's weights");
  buffer_.reset(ggml_backend_cpu_buffer_from_ptr(mapping_.get(), bytes));
  for (ggml_tensor* t = ggml_get_first_tensor(tensors_.get()); t;
       t = ggml_get_next_tensor(tensors_.get(), t)) {
    const size_t offset = gguf_get_tensor_offset(gguf_.get(), gguf_find_tensor(gguf_.get(), t->name));
    ggml_backend_tensor_alloc(buffer_.get(), t, static_cast<char*>(mapping_.get()) + begin + offset);
  }
}

std::optional<double> GgufFile::number(const std::string& key) const {
  const int64_t id = find(key);
  if (id < 0) return std::nullopt;
  switch (gguf_get_kv_type(gguf_.get(), id)) {
    case GGUF_TYPE_UINT8: return gguf_get_val_u8(gguf_.get(), id);
    case GGUF_TYPE_INT8: return gguf_get_val_i8(gguf_.get(), id);
    case GGUF_TYPE_UINT16: return gguf_get_val_u16(gguf_.get(), id);
    case GGUF_TYPE_INT16: return gguf_get_val_i16(gguf_.get(), id);
    case GGUF_TYPE_UINT32: return gguf_get_val_u32(gguf_.get(), id);
    case GGUF_TYPE_INT32: return gguf_get_val_i32(gguf_.get(), id);
    case GGUF_TYPE_UINT64: return static_cast<double>(gguf_get_val_u64(gguf_.get(), id));
    case GGUF_TYPE_INT64: return static_cast<double>(gguf_get_val_i64(gguf_.get(), id));
    case GGUF_TYPE_FLOAT32: return gguf_get_val_f32(gguf_.get(), id);
    case GGUF_TYPE_FLOAT64: return gguf_get_val_f64(gguf_.get(), id);
    default:
      fail(fmt::format("{} is of type {}: expected a number", key,
                       gguf_type_name(gguf_get_kv_type(gguf_.get(), id))));
  }
}

std::optional<int64_t> GgufFile::integer(const std::string& key) const {
  const std::optional<double> value = number(key);
  if (!value) return std::nullopt;
  if (std::abs(*value) > 1e15 || *value != std::floor(*value)) {
    fail(fmt::format("{} is {}: expected an integer", key, *value));
  }
  return static_cast<int64_t>(*value);
}

int64_t GgufFile::integer(const std::string& key, int64_t low, int64_t high) const {
  const std::optional<int64_t> value = integer(key);
  if (!value) fail(fmt::format("{} is missing", key));
  if (*value < low || *value > high) {
    fail(fmt::format("{} is {}: expected {} to {}", key, *value, low, high));
  }
  return *value;
}

std::optional<std::string> GgufFile::string(const std::string& key) const {
  const int64_t id = find(key);
  if (id < 0) return std::nullopt;
  if (gguf_get_kv_type(gguf_.get(), id) != GGUF_TYPE_STRING) {
    fail(fmt::format("{} is of type {}: expected a string", key,
                     gguf_type_name(gguf_get_kv_type(gguf_.get(), id))));
  }
  return gguf_get_val_str(gguf_.get(), id);
}

std::string GgufFile::required_string(const std::string& key) const {
  std::optional<std::string> value = string(key);
  if (!value) fail(fmt::format("{} is missing", key));
  return *value;
}

std::optional<std::vector<bool>> GgufFile::booleans(const std::string& key) const {
  const int64_t id = find(key);
  if (id < 0 || gguf_get_kv_type(gguf_.get(), id) != GGUF_TYPE_ARRAY ||
      gguf_get_arr_type(gguf_.get(), id) != GGUF_TYPE_BOOL) {
    return std::nullopt;
  }
  const auto* values = static_cast<const int8_t*>(gguf_get_arr_data(gguf_.get(), id));
  return std::vector<bool>(values, values + gguf_get_arr_n(gguf_.get(), id));
}

int64_t GgufFile::array_size(const std::string& key) const {
  const int64_t id = find(key);
  if (id < 0 || gguf_get_kv_type(gguf_.get(), id) != GGUF_TYPE_ARRAY) return 0;
  return static_cast<int64_t>(gguf_get_arr_n(gguf_.get(), id));
}

ggml_tensor* GgufFile::optional_tensor(const std::string& name, std::initializer_list<int64_t> shape) const {
  ggml_tensor* tensor = ggml_get_tensor(tensors_.get(), name.c_str());
  if (!tensor) return nullptr;
  std::vector<int64_t> wanted(shape);
  wanted.resize(GGML_MAX_DIMS, 1);
  const std::vector<int64_t> found(tensor->ne, tensor->ne + GGML_MAX_DIMS);
  if (found != wanted) {
    fail(fmt::format("tensor {} has shape [{}]: expected [{}]", name, fmt::join(found, ", "),
                     fmt::join(wanted, ", ")));
  }
  const bool multiplies = ggml_get_type_traits_cpu(tensor->type)->vec_dot != nullptr;
  if (shape.size() == 1 ? tensor->type != GGML_TYPE_F32 : !multiplies) {
    fail(fmt::format("tensor {} is of type {}: expected {}", name, ggml_type_name(tensor->type),
                     shape.size() == 1 ? "f32" : "one that matrices can have"));
  }
  return tensor;
}

ggml_tensor* GgufFile::tensor(const std::string& name, std::initializer_list<int64_t> shape) const {
  ggml_tensor* tensor = optional_tensor(name, shape);
  if (!tensor) fail(fmt::format("tensor {} is missing", name));
  return tensor;
}

}  // namespace pagemill::engine
