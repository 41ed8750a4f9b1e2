// alloy run: the program gets exactly its arguments, gives exactly its ending, and -dev only where it is needed.
#include "command.h"

#include <csignal>
#include <filesystem>

#include <gtest/gtest.h>

namespace alloy::test {
namespace {

namespace fs = std::filesystem;
using words = std::vector<std::string>;

const std::string run_time = fake_host("run_time") + "/llama-cli";
const std::string linked_in = fake_host("linked_in") + "/llama-cli";

finished run(words command, const environment & set = {}) {
    words arguments = {"run", "--plugin", fake_plugin()};
    arguments.insert(arguments.end(), command.begin(), command.end());
    return run_alloy(arguments, set);
}

TEST(run, sets_the_variable_and_keeps_the_arguments) {
    const finished result = run({run_time, "-p", "two words", "", "--", "-h", "--plugin", "it's \"quoted\""});
    EXPECT_EQ(result.code, 0);
    EXPECT_EQ(result.out, "ggml 0.0.1-fake\nGGML_BACKEND_PATH=" + fake_plugin() +
                              "\n[-p]\n[two words]\n[]\n[--]\n[-h]\n[--plugin]\n[it's \"quoted\"]\n");
    EXPECT_EQ(result.err, "");
    EXPECT_EQ(run({"--", run_time, "-p", "x"}).code, 0);
}

TEST(run, finds_the_program_on_path) {
    const finished result = run({"llama-cli", "-h"}, {{"PATH", fake_host("run_time")}});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_TRUE(has(result.out, "[-h]"));
}

TEST(run, exit_codes_and_signals_pass) {
    EXPECT_EQ(run({run_time}, {{"FAKE_EXIT", "42"}}).code, 42);
    EXPECT_EQ(run({run_time}, {{"FAKE_SIGNAL", std::to_string(SIGTERM)}}).signal, SIGTERM);
    EXPECT_EQ(run({linked_in}, {{"FAKE_SIGNAL", std::to_string(SIGKILL)}}).signal, SIGKILL);
}

TEST(run, says_what_cannot_be_started) {
    const temporary_folder folder;
    finished result = run({"no-such-program"});
    EXPECT_EQ(result.code, 127);
    EXPECT_EQ(result.err, "alloy run: no-such-program: not found on PATH\n");
    EXPECT_EQ(run({(folder.path / "absent").string()}).code, 127);
    const std::string text = folder.write("text", "hello");
    fs::permissions(text, fs::perms::owner_read);
    result = run({text});
    EXPECT_EQ(result.code, 126);
    EXPECT_EQ(result.err, "alloy run: " + text + ": not executable, expected a program\n");
    EXPECT_EQ(run({folder.path.string()}).code, 126);
    EXPECT_EQ(run({}).code, 2);
    EXPECT_EQ(run_alloy({"run", "--nonsense", run_time}).code, 2);
    EXPECT_EQ(run_alloy({"run", "--plugin", "/nowhere.so", run_time}).code, 125);
}

TEST(run, asks_for_the_device_only_where_it_is_needed) {
    const auto arguments = [](const finished & result) {
        return result.out.substr(result.out.find('\n', result.out.find("PATH=")) + 1);
    };
    EXPECT_EQ(arguments(run({run_time, "-m", "x"})), "[-m]\n[x]\n");
    EXPECT_EQ(arguments(run({linked_in, "-m", "x"})), "[-dev]\n[ALLOY0]\n[-m]\n[x]\n");
    EXPECT_EQ(arguments(run({linked_in, "-dev", "none"})), "[-dev]\n[none]\n");
    EXPECT_EQ(arguments(run({linked_in, "--device", "CUDA0"})), "[--device]\n[CUDA0]\n");
    EXPECT_EQ(arguments(run({linked_in, "-m", "x"}, {{"LLAMA_ARG_DEVICE", "none"}})), "[-m]\n[x]\n");
    EXPECT_EQ(arguments(run({fake_host("linked_in") + "/llama-quantize", "x"})), "[x]\n"); // has no such option
    const std::string all_in_one = fake_host("linked_in") + "/llama";
    EXPECT_EQ(arguments(run({all_in_one, "serve", "-m", "x"})), "[serve]\n[-dev]\n[ALLOY0]\n[-m]\n[x]\n");
    EXPECT_EQ(arguments(run({all_in_one, "version"})), "[version]\n");
    EXPECT_EQ(arguments(run({all_in_one})), "");
}

TEST(run, a_refused_plugin_leaves_the_host_stock) {
    finished result = run({linked_in, "x"}, {{"FAKE_PLUGIN_REFUSES", "1"}});
    EXPECT_EQ(result.code, 0);
    EXPECT_TRUE(has(result.out, "\n[x]\n") && !has(result.out, "-dev")) << result.out;
    EXPECT_TRUE(has(result.err, "runs as stock: host has ggml 0.0.1-fake")) << result.err;
    result = run({linked_in, "x"}, {{"GGML_ALLOY", "off"}});
    EXPECT_FALSE(has(result.out, "-dev")) << result.out;
    EXPECT_EQ(result.err, "");
    result = run({fake_host("static") + "/llama-cli"});
    EXPECT_EQ(result.code, 0);
    EXPECT_TRUE(has(result.err, "linked statically")) << result.err;
}

TEST(run, names_a_variable_that_it_replaces) {
    const finished result = run({run_time}, {{"GGML_BACKEND_PATH", "/other.so"}});
    EXPECT_TRUE(has(result.err, "GGML_BACKEND_PATH was '/other.so'")) << result.err;
    EXPECT_TRUE(has(result.out, "GGML_BACKEND_PATH=" + fake_plugin()));
}

TEST(run, print_starts_nothing) {
    const finished result = run({"--print", linked_in, "-p", "it's two"}, {{"FAKE_EXIT", "42"}});
    EXPECT_EQ(result.code, 0);
    EXPECT_EQ(result.out, "GGML_BACKEND_PATH=" + fake_plugin() + " " + linked_in + " -dev ALLOY0 -p 'it'\\''s two'\n");
    // What is printed is what a shell would start.
    EXPECT_TRUE(has(run_command({"/bin/sh", "-c", result.out}).out, "[-p]\n[it's two]\n"));
}

} // namespace
} // namespace alloy::test
