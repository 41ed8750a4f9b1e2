// The few facts of a model file that sizes and limits depend on.
#pragma once
#include <cstdint>
#include <string>

namespace alloy::tool {

struct gguf_info {
    uint64_t vocabulary = 0;      // tokens
    uint64_t trained_context = 0; // 0: not told
    uint64_t file_type = 0;       // 0 f32, 1 f16, 32 bf16, others quantised
    bool is_quantised() const { return file_type > 1 && file_type != 32; }
};

// Reads the header only. Returns false and one line when the file is cut short or has no vocabulary.
bool read_gguf_info(const std::string & path, gguf_info & info, std::string & complaint);

} // namespace alloy::tool
