// alloy status on counter files that are right, cut short, foreign or left over. Each file carries the number of a process that
// lives.
#include "base/counters.h"
#include "command.h"

#include <csignal>
#include <cstring>
#include <ctime>
#include <memory>

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace alloy::test {
namespace {

namespace fs = std::filesystem;

// A process that does nothing until the object goes.
struct sleeper {
    pid_t process = fork();
    sleeper() {
        if (process == 0) {
            while (true) pause();
        }
    }
    ~sleeper() {
        kill(process, SIGKILL);
        waitpid(process, nullptr, 0);
    }
};

class status : public ::testing::Test {
protected:
    temporary_folder runtime;
    fs::path folder = runtime.path / ("ggml-alloy-" + std::to_string(getuid()));
    sleeper alive;

    void SetUp() override { fs::create_directory(folder); }
    finished look(std::vector<std::string> arguments = {}) {
        arguments.insert(arguments.begin(), "status");
        return run_alloy(arguments, {{"XDG_RUNTIME_DIR", runtime.path}});
    }
    fs::path file_of(int process) const { return folder / (std::to_string(process) + ".counters"); }
    void write(int process, const std::string & bytes) const {
        runtime.write(fs::relative(file_of(process), runtime.path), bytes);
    }
    void write(int process, const counter_block & block) const {
        write(process, {reinterpret_cast<const char *>(&block), sizeof(block)});
    }

    static std::unique_ptr<counter_block> good_block(int process) {
        auto block = std::make_unique<counter_block>();
        std::memcpy(block->magic, "alloyctr", 8);
        block->version = counter_version;
        block->num_counters = num_counters;
        block->process = process;
        block->started = static_cast<uint64_t>(std::time(nullptr));
        std::strcpy(block->program, "llama-server");
        std::strcpy(block->host, "0.26.0");
        std::strcpy(block->isa, "avx2");
        block->values[static_cast<int>(counter::kernel_steps)] = 300;
        block->values[static_cast<int>(counter::delegated_nodes)] = 100;
        block->values[static_cast<int>(counter::weight_bytes)] = 3 << 20;
        block->delegated[29] = 40;
        block->delegated[30] = 60;
        std::strcpy(block->op_names[29], "MUL_MAT");
        std::strcpy(block->op_names[30], "SOFT_MAX");
        return block;
    }
};

TEST_F(status, no_process) {
    finished result = look();
    EXPECT_EQ(result.code, 0);
    EXPECT_EQ(result.out, "No process uses the plugin now.\n");
    EXPECT_EQ(look({"--json"}).out, "[]\n");
    result = look({"--pid", "1"});
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(result.out, "Process 1 does not use the plugin"));
    EXPECT_EQ(look({"--pid", "minus"}).code, 2);
    EXPECT_EQ(look({"--watch", "0"}).code, 2);
}

TEST_F(status, shows_a_process) {
    write(alive.process, *good_block(alive.process));
    const finished result = look();
    EXPECT_EQ(result.code, 0);
    EXPECT_TRUE(has(result.out, "llama-server (process " + std::to_string(alive.process) + "), up ")) << result.out;
    EXPECT_TRUE(has(result.out, "host ggml 0.26.0, avx2")) << result.out;
    EXPECT_TRUE(has(result.out, "3.0 MiB")) << result.out;
    EXPECT_TRUE(has(result.out, "75.0 %")) << result.out;
    EXPECT_LT(result.out.find("SOFT_MAX"), result.out.find("MUL_MAT")) << result.out; // the larger one first
    EXPECT_EQ(result.err, "");
    EXPECT_TRUE(has(look({"--pid", std::to_string(alive.process)}).out, "llama-server"));
    EXPECT_EQ(look({"--pid", "1"}).code, 1);
}

TEST_F(status, json) {
    write(alive.process, *good_block(alive.process));
    const auto list = nlohmann::json::parse(look({"--json"}).out);
    ASSERT_EQ(list.size(), 1u);
    EXPECT_EQ(list[0]["process"], alive.process);
    EXPECT_EQ(list[0]["counters"]["kernel_steps"], 300);
    EXPECT_EQ(list[0]["counters"].size(), static_cast<size_t>(num_counters));
    EXPECT_EQ(list[0]["delegated"]["SOFT_MAX"], 60);
    EXPECT_EQ(list[0]["own_share"], 0.75);
}

TEST_F(status, files_of_dead_processes_are_removed) {
    int dead = 0;
    {
        const sleeper gone;
        dead = gone.process;
    }
    write(dead, *good_block(dead));
    EXPECT_EQ(look().out, "No process uses the plugin now.\n");
    EXPECT_FALSE(fs::exists(file_of(dead)));
    // The number belongs to a younger process now.
    auto block = good_block(alive.process);
    block->started -= 86400;
    write(alive.process, *block);
    EXPECT_EQ(look().out, "No process uses the plugin now.\n");
    EXPECT_FALSE(fs::exists(file_of(alive.process)));
}

TEST_F(status, foreign_files_are_named_and_left_alone) {
    const std::string bytes(reinterpret_cast<const char *>(good_block(alive.process).get()), sizeof(counter_block));
    const auto complaint = [&](const std::string & content) {
        write(alive.process, content);
        const finished result = look();
        EXPECT_EQ(result.code, 0);
        EXPECT_EQ(result.out, "No process uses the plugin now.\n");
        EXPECT_TRUE(fs::exists(file_of(alive.process)));
        return result.err;
    };
    EXPECT_TRUE(has(complaint(bytes.substr(0, 100)), "100 bytes, expected " + std::to_string(sizeof(counter_block))));
    EXPECT_TRUE(has(complaint("alloyct"), "no counter file"));
    EXPECT_TRUE(has(complaint(std::string(100000, 'x')), "no counter file"));
    EXPECT_EQ(complaint(""), "");                                    // just being made
    EXPECT_EQ(complaint(std::string(sizeof(counter_block), 0)), ""); // likewise
    auto block = good_block(alive.process);
    block->version = 99;
    EXPECT_TRUE(
        has(complaint({reinterpret_cast<const char *>(block.get()), sizeof(*block)}), "counters of version 99, expected 2"));
    block = good_block(alive.process + 1);
    EXPECT_TRUE(has(complaint({reinterpret_cast<const char *>(block.get()), sizeof(*block)}), "says process"));
}

TEST_F(status, every_length_is_survived) {
    const std::string bytes(reinterpret_cast<const char *>(good_block(alive.process).get()), sizeof(counter_block));
    for (size_t size = 0; size < bytes.size(); size += 97) {
        write(alive.process, bytes.substr(0, size));
        EXPECT_EQ(look().code, 0) << size;
    }
}

TEST_F(status, things_that_are_no_files) {
    ASSERT_EQ(mkfifo(file_of(alive.process).c_str(), 0600), 0);
    fs::create_directory(folder / "12.counters");
    fs::create_symlink("/dev/zero", folder / "1.counters");
    runtime.write(fs::relative(folder / "notes.counters", runtime.path), "hello");
    const finished result = look();
    EXPECT_EQ(result.code, 0);
    EXPECT_TRUE(has(result.err, "expected a name like 1234.counters")) << result.err;
}

TEST_F(status, wild_contents_are_shown_safely) {
    auto block = good_block(alive.process);
    std::memset(block->program, 'A', sizeof(block->program)); // no end
    std::memset(block->host, 27, sizeof(block->host));        // terminal escapes
    std::memset(block->isa, 0xff, sizeof(block->isa));        // no UTF-8
    for (auto & op : block->op_names) std::memset(op, 0xc3, sizeof(op));
    block->num_counters = UINT32_MAX;
    block->started = UINT64_MAX / 2;
    for (auto & value : block->values) value = UINT64_MAX;
    for (auto & value : block->delegated) value = UINT64_MAX;
    write(alive.process, *block);
    const finished result = look();
    EXPECT_EQ(result.code, 0);
    EXPECT_TRUE(has(result.out, "AAAA")) << result.out;
    EXPECT_FALSE(has(result.out, "\033")) << result.out;
    EXPECT_EQ(nlohmann::json::parse(look({"--json"}).out).size(), 1u);
}

TEST_F(status, shows_what_heads_are_compressed_to) {
    auto block = good_block(alive.process);
    block->kv_codecs[3][0].store(0x43); // values n4, keys n5
    block->kv_codecs[3][1].store(0x50); // values n3, keys are rows
    write(alive.process, *block);
    EXPECT_TRUE(has(look({"--kv"}).out, "layer   3  n5/n4  rows/n3")) << look({"--kv"}).out;
    EXPECT_FALSE(has(look().out, "n5/n4"));
    const auto kv = nlohmann::json::parse(look({"--json"}).out).at(0).at("kv");
    ASSERT_EQ(kv.size(), 1u);
    EXPECT_EQ(kv[0]["layer"], 3);
    EXPECT_EQ(kv[0]["heads"], (std::vector<std::string>{"n5/n4", "rows/n3"}));
}

TEST_F(status, watch_looks_again) {
    write(alive.process, *good_block(alive.process));
    const finished result = run_command({"/bin/sh", "-c", std::string(ALLOY_BINARY) + " status --json --watch 0.05 | head -n 3"},
                                        {{"XDG_RUNTIME_DIR", runtime.path}});
    EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 3) << result.out;
}

} // namespace
} // namespace alloy::test
