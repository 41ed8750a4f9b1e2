// alloy doctor on no host, on fake hosts of every kind and temper, and on the real one where ALLOY_HOST_BIN names its folder.
#include "command.h"
#include "host_probe.h"

#include <chrono>
#include <cstdlib>
#include <filesystem>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace alloy::test {
namespace {

namespace fs = std::filesystem;

finished doctor(const std::string & host, const environment & set = {}) {
    return run_alloy({"doctor", "--plugin", fake_plugin(), host}, set);
}

// The one verdict line of a report.
std::string verdict_of(const finished & result) {
    const size_t begin = result.out.find("verdict"), end = result.out.find('\n', begin);
    return begin == std::string::npos ? "no verdict: " + result.out : result.out.substr(begin, end - begin);
}

TEST(doctor, nothing_to_examine) {
    const temporary_folder empty;
    finished result = doctor(empty.path);
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(result.out, "no llama.cpp program or libllama.so in this folder")) << result.out;
    result = doctor((empty.path / "absent").string());
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(result.out, "no such file or folder")) << result.out;
    result = run_alloy({"doctor"}, {{"PATH", empty.path}});
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(result.out, "no llama.cpp program on PATH")) << result.out;
}

TEST(doctor, files_that_are_no_host) {
    const temporary_folder folder;
    const finished result = run_alloy({"doctor", folder.write("llama-cli", "#!/bin/sh\n"), "/bin/sh"});
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(result.out, "no ELF file")) << result.out;
    EXPECT_TRUE(has(result.out, "no llama.cpp program, expected one that needs libggml.so")) << result.out;
}

TEST(doctor, wrong_command_lines) {
    EXPECT_EQ(run_alloy({"doctor", "--nonsense"}).code, 2);
    EXPECT_EQ(run_alloy({"nonsense"}).code, 2);
    EXPECT_EQ(run_alloy({}).code, 2);
    EXPECT_EQ(run_alloy({"help"}).code, 0);
    EXPECT_EQ(run_alloy({"help", "doctor"}).code, 0);
    EXPECT_TRUE(has(run_alloy({"--version"}).out, "alloy "));
}

TEST(doctor, host_with_run_time_backends) {
    const finished result = doctor(fake_host("run_time"));
    EXPECT_EQ(result.code, 0) << result.out;
    EXPECT_TRUE(has(result.out, "0.0.1-fake, backends loaded at run time")) << result.out;
    EXPECT_TRUE(has(result.out, "version 9.9.9")) << result.out;
    EXPECT_TRUE(has(result.out, "CPU (CPU), ALLOY0 (IGPU)")) << result.out;
    EXPECT_TRUE(has(verdict_of(result), "used: ")) << result.out;
}

TEST(doctor, host_with_linked_in_cpu) {
    const finished result = doctor(fake_host("linked_in") + "/llama-cli");
    EXPECT_EQ(result.code, 0) << result.out;
    EXPECT_TRUE(has(result.out, "CPU backend linked in")) << result.out;
    EXPECT_TRUE(has(verdict_of(result), "used with -dev ALLOY0")) << result.out;
}

TEST(doctor, static_host) {
    const finished result = doctor(fake_host("static"));
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(verdict_of(result), "unsupported host: the program is linked statically")) << result.out;
}

TEST(doctor, finds_hosts_on_path_and_judges_the_first) {
    const std::string both = fake_host("run_time") + ":" + fake_host("static");
    EXPECT_EQ(run_alloy({"doctor", "--plugin", fake_plugin()}, {{"PATH", both}}).code, 0);
    EXPECT_EQ(doctor("llama-cli", {{"PATH", both}}).code, 0);
    const std::string other_way = fake_host("static") + ":" + fake_host("run_time");
    EXPECT_EQ(run_alloy({"doctor", "--plugin", fake_plugin()}, {{"PATH", other_way}}).code, 1);
}

TEST(doctor, one_bad_host_among_those_named) {
    EXPECT_EQ(run_alloy({"doctor", "--plugin", fake_plugin(), fake_host("run_time"), fake_host("linked_in")}).code, 0);
    EXPECT_EQ(run_alloy({"doctor", "--plugin", fake_plugin(), fake_host("run_time"), fake_host("static")}).code, 1);
}

TEST(doctor, libraries_beside_a_symbolic_link_are_not_looked_for) {
    const temporary_folder folder;
    fs::create_symlink(fake_host("run_time") + "/llama-cli", folder.path / "llama-cli");
    EXPECT_EQ(doctor(folder.path).code, 0); // $ORIGIN is where the link leads
}

TEST(doctor, host_whose_library_is_gone) {
    const temporary_folder folder;
    fs::copy_file(fake_host("run_time") + "/llama-cli", folder.path / "llama-cli");
    const finished result = doctor(folder.path);
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(result.out, "library not found: libggml")) << result.out;
}

TEST(doctor, other_devices) {
    EXPECT_TRUE(has(verdict_of(doctor(fake_host("run_time"), {{"FAKE_HOST", "gpu"}})), "GPU 'CUDA0'"));
    finished result = doctor(fake_host("run_time"), {{"FAKE_HOST", "igpu"}});
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(verdict_of(result), "integrated GPU 'Vulkan0'")) << result.out;
    EXPECT_TRUE(has(verdict_of(result), "-dev ALLOY0")) << result.out;
    EXPECT_EQ(doctor(fake_host("run_time"), {{"FAKE_HOST", "gpu"}, {"LLAMA_ARG_DEVICE", "ALLOY0"}}).code, 0);
    result = doctor(fake_host("run_time"), {{"LLAMA_ARG_DEVICE", "none"}});
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(verdict_of(result), "LLAMA_ARG_DEVICE=none")) << result.out;
}

TEST(doctor, plugin_refuses_in_its_own_words) {
    const finished result = doctor(fake_host("run_time"), {{"FAKE_PLUGIN_REFUSES", "1"}});
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(verdict_of(result), "refused: host has ggml 0.0.1-fake, this plugin (9.9.9)")) << result.out;
}

TEST(doctor, plugin_that_is_none) {
    const temporary_folder folder;
    for (const std::string & file :
         {folder.write("text.so", "hello"), std::string("/nowhere/libggml-alloy.so"), std::string("/bin/sh")}) {
        const finished result = run_alloy({"doctor", "--plugin", file, fake_host("run_time")});
        EXPECT_EQ(result.code, 1) << file;
        EXPECT_TRUE(has(verdict_of(result), "libggml-alloy.so") || has(verdict_of(result), "no ELF file")) << result.out;
    }
}

TEST(doctor, host_that_crashes_or_ends) {
    finished result = doctor(fake_host("run_time"), {{"FAKE_HOST", "crash"}});
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(verdict_of(result), "host does not load: the host crashed while loading: signal 9")) << result.out;
    EXPECT_TRUE(has(result.out, "said     fake host 0.0.1-fake loads its backends")) << result.out;
    result = doctor(fake_host("run_time"), {{"FAKE_HOST", "exit"}});
    EXPECT_TRUE(has(verdict_of(result), "exit code 3")) << result.out;
}

TEST(doctor, host_that_hangs) {
    tool::llama_host target;
    std::string complaint;
    ASSERT_TRUE(tool::inspect_host(fake_host("run_time") + "/llama-cli", target, complaint)) << complaint;
    setenv("FAKE_HOST", "hang", 1);
    const auto start = std::chrono::steady_clock::now();
    const tool::probe_result result = tool::probe_host(target, fake_plugin(), 300);
    unsetenv("FAKE_HOST");
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3));
    EXPECT_EQ(result.failure, "the host did not finish loading within 0.3 s");
    EXPECT_EQ(result.version, "0.0.1-fake"); // known before it hung
}

TEST(doctor, knobs_decide) {
    finished result = doctor(fake_host("run_time"), {{"GGML_ALLOY", "off"}});
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(verdict_of(result), "switched off: GGML_ALLOY=off")) << result.out;
    result = doctor(fake_host("run_time"), {{"GGML_ALLOY_ISA", "foo"}, {"GGML_ALLOY_PLAN", "7"}});
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(verdict_of(result), "GGML_ALLOY_ISA: got 'foo', expected one of best|")) << result.out;
    EXPECT_TRUE(has(result.out, "! GGML_ALLOY_ISA")) << result.out;
    EXPECT_TRUE(has(result.out, "! GGML_ALLOY_PLAN")) << result.out; // each wrong one is named, not only the first
    result = doctor(fake_host("run_time"), {{"GGML_ALLOY_MEMORY", "4096"}});
    EXPECT_EQ(result.code, 0);
    EXPECT_TRUE(has(result.out, "* GGML_ALLOY_MEMORY")) << result.out;
}

TEST(doctor, json) {
    const finished result =
        run_alloy({"doctor", "--json", "--plugin", fake_plugin(), fake_host("linked_in")}, {{"GGML_ALLOY_PLAN", "\xff"}});
    EXPECT_EQ(result.code, 1);
    const auto report = nlohmann::json::parse(result.out);
    EXPECT_FALSE(report["good"]);
    EXPECT_EQ(report["hosts"][0]["ggml_version"], "0.0.1-fake");
    EXPECT_EQ(report["hosts"][0]["link_style"], "linked-in");
    EXPECT_EQ(report["hosts"][0]["devices"][1]["name"], "ALLOY0");
    EXPECT_EQ(report["hosts"][0]["verdict"], "not used, wrong knob");
    EXPECT_GT(report["machine"]["total_memory"], 0);
}

// --- the real plugin, beside alloy ---

bool has_real_plugin() { return fs::exists(fs::path(ALLOY_BINARY).parent_path() / "libggml-alloy.so"); }

TEST(doctor, real_plugin_refuses_the_fake_host) {
    if (!has_real_plugin()) GTEST_SKIP() << "no libggml-alloy.so beside alloy";
    const finished result = run_alloy({"doctor", fake_host("run_time")});
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(verdict_of(result), "refused: ")) << result.out;
    EXPECT_TRUE(has(verdict_of(result), "the host goes on without us")) << result.out;
}

TEST(doctor, real_host) {
    const char * folder = std::getenv("ALLOY_HOST_BIN");
    if (folder == nullptr || *folder == 0) GTEST_SKIP() << "ALLOY_HOST_BIN names no folder";
    if (!has_real_plugin()) GTEST_SKIP() << "no libggml-alloy.so beside alloy";
    finished result = run_alloy({"doctor", folder});
    EXPECT_EQ(result.code, 0) << result.out;
    EXPECT_LT(result.seconds, 2);
    EXPECT_TRUE(has(result.out, "ALLOY0 (IGPU)")) << result.out;
    result = run_alloy({"doctor", folder}, {{"GGML_ALLOY", "off"}});
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(verdict_of(result), "GGML_ALLOY=off")) << result.out;
    result = run_alloy({"doctor", folder}, {{"GGML_ALLOY_ISA", "foo"}});
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(verdict_of(result), "GGML_ALLOY_ISA: got 'foo'")) << result.out;
}

} // namespace
} // namespace alloy::test
