// The refusal of hosts that we do not know, as seen by programs that load the real shared library.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

struct result {
    int status;
    std::string text; // stdout and stderr
};

result run(const std::string & program, const std::string & arguments, const std::string & environment = "") {
    const std::string command = environment + " '" + program + "' '" ALLOY_PLUGIN "' " + arguments + " 2>&1";
    FILE * pipe = popen(command.c_str(), "r");
    result r{0, {}};
    std::array<char, 512> chunk;
    while (std::fgets(chunk.data(), chunk.size(), pipe) != nullptr) r.text += chunk.data();
    r.status = pclose(pipe);
    return r;
}

int lines_with(const std::string & text, const std::string & what) {
    int n = 0;
    for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += what.size()) n++;
    return n;
}

void expect_refusal(const result & r, std::initializer_list<const char *> mentions) {
    EXPECT_EQ(r.status, 0) << r.text; // the host went on
    EXPECT_NE(r.text.find("score 0 registry none"), std::string::npos) << r.text;
    EXPECT_EQ(lines_with(r.text, "ggml-alloy:"), 1) << r.text; // one line, not more
    for (const char * mention : mentions) EXPECT_NE(r.text.find(mention), std::string::npos) << mention << " in: " << r.text;
}

} // namespace

TEST(Handshake, AcceptsTheTestedHostAndAlwaysAnswersTheSame) {
    const result r = run(FAKE_HOST, "calls=3");
    EXPECT_EQ(lines_with(r.text, "score 1 registry ALLOY same 1"), 3) << r.text;
    EXPECT_EQ(lines_with(r.text, "devices 1 name ALLOY0 type 2"), 3) << r.text;
    EXPECT_EQ(lines_with(r.text, "ggml-alloy:"), 0) << r.text;
}

TEST(Handshake, RefusesAnOlderHostNamingBothVersions) { expect_refusal(run(FAKE_HOST, "version=0.21.0"), {"0.21.0", "0.26.0"}); }
TEST(Handshake, RefusesANewerHostNamingBothVersions) { expect_refusal(run(FAKE_HOST, "version=1.2.3"), {"1.2.3", "0.26.0"}); }
TEST(Handshake, RefusesAnotherBackendApi) { expect_refusal(run(FAKE_HOST, "api=4"), {"0.26.0", "API 4", "3"}); }
TEST(Handshake, RefusesAHostWithoutAnOperation) { expect_refusal(run(FAKE_HOST, "renamed=FLASH_ATTN_EXT"), {"FLASH_ATTN_EXT"}); }
TEST(Handshake, RefusesAnotherTensorSize) { expect_refusal(run(FAKE_HOST, "overhead=400"), {"368", "336"}); }
TEST(Handshake, RefusesAHostWithoutASymbol) { expect_refusal(run(FAKE_HOST_WITHOUT_SYMBOL, ""), {"ggml_backend_dev_by_type"}); }

TEST(Handshake, WrongKnobNamesKnobValueAndRange) {
    expect_refusal(run(FAKE_HOST, "", "GGML_ALLOY_KERNELS=perhaps"), {"GGML_ALLOY_KERNELS", "perhaps", "on|off"});
    expect_refusal(run(FAKE_HOST, "", "GGML_ALLOY_MEMORY=12x"), {"GGML_ALLOY_MEMORY", "12x", "0-"});
    expect_refusal(run(FAKE_HOST, "", "GGML_ALLOY_ISA=avx9"), {"GGML_ALLOY_ISA", "avx9", "avx2"});
}

TEST(Handshake, OffIsSilent) {
    const result r = run(FAKE_HOST, "", "GGML_ALLOY=off");
    EXPECT_NE(r.text.find("score 0 registry none"), std::string::npos) << r.text;
    EXPECT_EQ(lines_with(r.text, "ggml-alloy:"), 0) << r.text;
}

TEST(Handshake, IsaOfAnotherArchitectureIsRefused) {
#if defined(__x86_64__)
    expect_refusal(run(FAKE_HOST, "", "GGML_ALLOY_ISA=neon"), {"GGML_ALLOY_ISA", "neon", "avx2"});
#else
    expect_refusal(run(FAKE_HOST, "", "GGML_ALLOY_ISA=avx2"), {"GGML_ALLOY_ISA", "avx2", "neon"});
#endif
}

#if defined(__x86_64__) && !defined(ALLOY_SANITIZED) // emulating a sanitizer's shadow memory takes for ever
TEST(Handshake, CpuWithoutAvx2IsRefused) {
    if (std::system("command -v qemu-x86_64 >/dev/null 2>&1") != 0) GTEST_SKIP() << "no qemu-x86_64 to pretend to be an old CPU";
    expect_refusal(run(FAKE_HOST, "", "qemu-x86_64 -cpu Nehalem"), {"AVX2", "NEON"});
}
#endif

TEST(Exports, ExactlyTwoSymbols) {
    FILE * pipe = popen("nm -D --defined-only '" ALLOY_PLUGIN "' | awk '{print $3}' | sort | tr '\\n' ' '", "r");
    char line[512] = {};
    ASSERT_NE(std::fgets(line, sizeof(line), pipe), nullptr);
    pclose(pipe);
    EXPECT_STREQ(line, "ggml_backend_init ggml_backend_score ");
}

TEST(Exports, NoLinkTimeDependencyOnGgml) {
    FILE * pipe = popen("(readelf -d '" ALLOY_PLUGIN "' | grep NEEDED; echo end)", "r");
    char line[512];
    bool ended = false;
    while (std::fgets(line, sizeof(line), pipe) != nullptr) {
        EXPECT_EQ(std::string(line).find("ggml"), std::string::npos) << line;
        ended = ended || std::string(line) == "end\n";
    }
    pclose(pipe);
    EXPECT_TRUE(ended);
}
