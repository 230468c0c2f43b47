// A GGUF file: typed metadata, and tensors that lie in the mapped file. Every mistake in the file ends here,
// as a ModelError that names file, key or tensor, value and expectation.
#ifndef PAGEMILL_ENGINE_GGUF_FILE_H_
#define PAGEMILL_ENGINE_GGUF_FILE_H_

#include <ggml-backend.h>
#include <ggml.h>
#include <gguf.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace pagemill::engine {

class GgufFile {
 public:
  explicit GgufFile(const std::string& path);

  // Metadata; nothing where the key is missing.
  std::optional<int64_t> integer(const std::string& key) const;  // of any integer type
  std::optional<double> number(const std::string& key) const;    // of any integer or floating-point type
  std::optional<std::string> string(const std::string& key) const;
  std::optional<std::vector<bool>> booleans(const std::string& key) const;
  int64_t array_size(const std::string& key) const;  // 0 where there is none
  // Those that must be there, from low to high.
  int64_t integer(const std::string& key, int64_t low, int64_t high) const;
  std::string required_string(const std::string& key) const;

  // shape: elements of each dimension, innermost first.
  ggml_tensor* tensor(const std::string& name, std::initializer_list<int64_t> shape) const;
  ggml_tensor* optional_tensor(const std::string& name,
                               std::initializer_list<int64_t> shape) const;  // or null

  int64_t tensor_bytes() const { return tensor_bytes_; }
  const std::string& path() const { return path_; }
  [[noreturn]] void fail(const std::string& what) const;  // prefixed by the path

 private:
  struct Unmap {
    size_t bytes;
    void operator()(void* data) const;
  };
  template <auto free>
  struct Free {
    template <class T>
    void operator()(T* p) const {
      free(p);
    }
  };

  void map();
  void place_tensors();
  int64_t find(const std::string& key) const { return gguf_find_key(gguf_.get(), key.c_str()); }

  std::string path_;
  std::unique_ptr<void, Unmap> mapping_{nullptr, Unmap{0}};
  std::unique_ptr<gguf_context, Free<gguf_free>> gguf_;
  std::unique_ptr<ggml_context, Free<ggml_free>> tensors_;
  std::unique_ptr<ggml_backend_buffer, Free<ggml_backend_buffer_free>> buffer_;
  int64_t tensor_bytes_ = 0;
};

}  // namespace pagemill::engine

#endif  // PAGEMILL_ENGINE_GGUF_FILE_H_
