// A model, a text and a place to work for tests of `alloy quality`.
#pragma once
#include "command.h"

#include <fstream>
#include <sstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace alloy::test {

namespace fs = std::filesystem;
using json = nlohmann::ordered_json;

template <class T> std::string bytes(T value) { return {reinterpret_cast<const char *>(&value), sizeof(value)}; }
inline std::string text(const std::string & t) { return bytes<uint64_t>(t.size()) + t; }

// A header with a vocabulary of so many tokens and nothing else of use.
inline std::string gguf(int vocabulary) {
    std::string file = "GGUF" + bytes<uint32_t>(3) + bytes<uint64_t>(0) + bytes<uint64_t>(4);
    file += text("general.name") + bytes<uint32_t>(8) + text("fake");
    file += text("fake.context_length") + bytes<uint32_t>(4) + bytes<uint32_t>(2048);
    file +=
        text("tokenizer.ggml.scores") + bytes<uint32_t>(9) + bytes<uint32_t>(6) + bytes<uint64_t>(2) + bytes(1.0f) + bytes(2.0f);
    file += text("tokenizer.ggml.tokens") + bytes<uint32_t>(9) + bytes<uint32_t>(8) + bytes<uint64_t>(vocabulary);
    for (int i = 0; i < vocabulary; i++) file += text(std::to_string(i));
    return file;
}

class quality_scene : public ::testing::Test {
protected:
    temporary_folder folder;
    std::string model = folder.write("model.gguf", gguf(1000)), prose = folder.write("prose", std::string(9000, 'a'));
    std::string host = "bench_run_time";
    fs::path state = folder.path / "state", scratch = folder.path / "scratch", log = folder.path / "log";
    environment set = {{"FAKE_PPL_LOG", log}, {"FAKE_PPL_KLD", "0.0004"}, {"FAKE_PPL_STOCK_KLD", "0.0101"}, {"TMPDIR", scratch}};

    void SetUp() override { fs::create_directory(scratch); }
    std::vector<std::string> words(std::vector<std::string> more) const {
        std::vector<std::string> all = {"quality",       "-m",       model,         "-f",      prose, "--host",
                                        fake_host(host), "--plugin", fake_plugin(), "--state", state};
        all.insert(all.end(), more.begin(), more.end());
        return all;
    }
    finished run(std::vector<std::string> more = {}) const { return run_alloy(words(std::move(more)), set); }
    bool left_nothing() const { return (!fs::exists(state) || fs::is_empty(state)) && fs::is_empty(scratch); }
};

} // namespace alloy::test
