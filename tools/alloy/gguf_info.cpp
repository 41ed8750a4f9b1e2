#include "gguf_info.h"

#include <fstream>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

enum value_type : uint32_t {
    uint8,
    int8,
    uint16,
    int16,
    uint32,
    int32,
    float32,
    boolean,
    text,
    array,
    uint64,
    int64,
    float64,
    num_types
};
constexpr uint64_t bytes_of[num_types] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}; // text, array: by their own length

struct reader {
    std::ifstream file;
    uint64_t size;

    template <class T> T take() {
        T value{};
        file.read(reinterpret_cast<char *>(&value), sizeof(T));
        return value;
    }
    bool skip(uint64_t bytes) {
        if (!file || bytes > size) return false;
        file.seekg(static_cast<std::streamoff>(bytes), std::ios::cur);
        return file && static_cast<uint64_t>(file.tellg()) <= size;
    }
    bool take_text(std::string & into) {
        const auto length = take<uint64_t>();
        if (!file || length > 65536) return false;
        into.resize(length);
        return static_cast<bool>(file.read(into.data(), static_cast<std::streamsize>(length)));
    }
    // `number`: of an unsigned integer, or the length of an array.
    bool take_value(uint32_t type, uint64_t & number) {
        if (type == text) return skip(take<uint64_t>());
        if (type == array) {
            const auto of = take<uint32_t>();
            number = take<uint64_t>();
            if (of >= num_types || of == array || number > size) return false;
            if (of != text) return skip(number * bytes_of[of]);
            for (uint64_t i = 0; i < number; i++) {
                if (!skip(take<uint64_t>())) return false;
            }
            return true;
        }
        if (type >= num_types) return false;
        number = type == uint32 ? take<uint32_t>() : type == uint64 ? take<uint64_t>() : 0;
        return type == uint32 || type == uint64 ? static_cast<bool>(file) : skip(bytes_of[type]);
    }
};

bool ends_with(const std::string & text, const std::string & end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

} // namespace

bool read_gguf_info(const std::string & path, gguf_info & info, std::string & complaint) {
    reader in{std::ifstream(path, std::ios::binary | std::ios::ate), 0};
    complaint = path + ": the header is cut short or of an unknown kind";
    if (!in.file) return false;
    in.size = static_cast<uint64_t>(in.file.tellg());
    in.file.seekg(8);    // magic, version
    in.take<uint64_t>(); // tensors
    const auto pairs = in.take<uint64_t>();
    for (uint64_t i = 0; i < pairs; i++) {
        std::string key;
        uint64_t number = 0;
        if (!in.take_text(key) || !in.take_value(in.take<uint32_t>(), number)) return false;
        if (key == "tokenizer.ggml.tokens") info.vocabulary = number;
        if (key == "general.file_type") info.file_type = number;
        if (ends_with(key, ".context_length")) info.trained_context = number;
    }
    if (!in.file) return false;
    complaint = path + ": the model has no vocabulary";
    return info.vocabulary > 0;
}

} // namespace alloy::tool
