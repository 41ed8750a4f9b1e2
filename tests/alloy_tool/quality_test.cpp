// alloy quality on a llama-perplexity whose figures are known.
#include "gguf_info.h"
#include "perplexity_output.h"
#include "quality_report.h"
#include "quality_scene.h"

#include <algorithm>

namespace alloy::test {
namespace {

// Distributions only.
class quality : public quality_scene {
protected:
    finished run(std::vector<std::string> more = {}) const {
        more.emplace_back("--no-probes");
        return quality_scene::run(more);
    }
};

TEST_F(quality, figures_gates_and_nothing_left) {
    const finished result = run({"--json", "--preset", "exact", "--preset", "compact"});
    EXPECT_EQ(result.code, 0) << result.err;
    const json report = json::parse(result.out);
    EXPECT_DOUBLE_EQ(report["base_ppl"], 20);
    EXPECT_DOUBLE_EQ(report["floor"]["kld"], 0.0001);
    const json & exact = report["modes"][0];
    EXPECT_DOUBLE_EQ(exact["divergence"]["kld_99"], 0.008);
    EXPECT_DOUBLE_EQ(exact["divergence"]["kld_max"], 0.5);
    EXPECT_DOUBLE_EQ(exact["divergence"]["same_top_error"], 0.1);
    EXPECT_NEAR(exact["change"]["ppl"], 0.1, 1e-9);        // 20.02 over 20, not over the base file's 20.01
    EXPECT_NEAR(exact["change"]["ppl_error"], 0.04, 1e-9); // 0.05 without the 0.03 that stock has against itself
    ASSERT_EQ(exact["gates"].size(), 4u);
    EXPECT_NEAR(exact["gates"][0]["value"], 0.0003, 1e-9);
    EXPECT_EQ(exact["gates"][0]["result"], "pass");
    EXPECT_EQ(exact["gates"][3]["result"], "unsure"); // 0.1 % for 0.05 %, but the error is 0.04 %
    const json & compact = report["modes"][1];
    ASSERT_EQ(compact["gates"].size(), 5u);
    EXPECT_TRUE(has(compact["gates"][1]["what"], "at most 0.1 of stock-q4_0's"));
    EXPECT_NEAR(compact["gates"][1]["limit"], 0.001, 1e-9); // a tenth of what is over the floor
    EXPECT_EQ(compact["gates"][1]["result"], "pass");
    EXPECT_EQ(compact["counters"]["kv_sealed_pages"], 7);
    EXPECT_EQ(report["modes"][2]["name"], "stock-q4_0");
    EXPECT_TRUE(report["modes"][2]["gates"].empty());
    EXPECT_EQ(report["host"]["ggml"], "0.0.1-fake");
    EXPECT_EQ(report["host"]["llama.cpp"], "7 (abc)");
    EXPECT_EQ(contents(log), "base\nfloor\nexact\ncompact\nstock-q4_0\n");
    EXPECT_TRUE(has(result.err, "stock-q4_0 will be measured too, for the gates")) << result.err;
    EXPECT_TRUE(has(result.err, "of disk for stock's logits in ")) << result.err;
    EXPECT_TRUE(left_nothing());
}

TEST_F(quality, a_gate_that_is_not_kept_is_an_exit_code) {
    set["FAKE_PPL_KLD"] = "0.02";
    const finished result = run({"--preset", "exact"});
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(result.out, "fail: mean KLD over floor, at most 0.0005 (0.0199)")) << result.out;
}

TEST_F(quality, compact_must_beat_stock_by_ten) {
    set["FAKE_PPL_STOCK_KLD"] = "0.0021";
    finished result = run({"--preset", "compact"});
    EXPECT_EQ(result.code, 1) << result.out;
    EXPECT_TRUE(has(result.out, "fail: mean KLD over floor, at most 0.1 of stock-q4_0's 0.0002 (0.0003)")) << result.out;
    EXPECT_TRUE(has(result.out, "reference")) << result.out;
    // Measured once when it was asked for itself, and not at all on request.
    fs::remove(log);
    EXPECT_EQ(run({"--preset", "compact", "--preset", "stock-q4_0"}).code, 1);
    EXPECT_EQ(contents(log), "base\nfloor\ncompact\nstock-q4_0\n");
    fs::remove(log);
    result = run({"--preset", "compact", "--no-references"});
    EXPECT_EQ(result.code, 0) << result.out;
    EXPECT_TRUE(has(result.out, "note: gates do not compare with stock-q4_0")) << result.out;
    EXPECT_EQ(contents(log), "base\nfloor\ncompact\n");
}

TEST_F(quality, gates_of_modes) {
    EXPECT_EQ(tool::gate_of("compact").kld, 0.006);
    EXPECT_EQ(tool::gate_of("0.30").kld, tool::gate_of("tiny").kld);
    EXPECT_EQ(tool::gate_of("tiny", true).same_top, 90); // cells are left out
    EXPECT_EQ(tool::gate_of("exact", true).same_top, 99.5);
    EXPECT_TRUE(std::isnan(tool::gate_of("stock-q8_0").kld));
}

TEST_F(quality, a_host_with_its_backends_linked_in) {
    host = "bench_linked_in";
    const finished result = run({"--json", "--preset", "compact"});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(json::parse(result.out)["modes"][0]["counters"]["graphs"], 3);
    EXPECT_TRUE(left_nothing());
}

TEST_F(quality, goes_on_where_it_ended) {
    set["FAKE_PPL_FAIL"] = "compact";
    finished result = run({"--json", "--preset", "exact", "--preset", "compact"});
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(result.err, "compact: llama-perplexity ended with signal 6")) << result.err;
    const json report = json::parse(result.out);
    EXPECT_EQ(report["complete"], false);
    EXPECT_EQ(report["modes"].size(), 1u);
    EXPECT_FALSE(left_nothing());
    set.erase("FAKE_PPL_FAIL");
    result = run({"--preset", "exact", "--preset", "compact"});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(contents(log), "base\nfloor\nexact\ncompact\ncompact\nstock-q4_0\n");
    EXPECT_TRUE(left_nothing());
}

TEST_F(quality, a_missing_figure_is_named) {
    set["FAKE_PPL_SHORT"] = "1";
    const finished result = run();
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(result.err, "llama-perplexity told no '99.0%   KLD'")) << result.err;
}

TEST_F(quality, a_saved_report_shows_the_same) {
    const std::string saved = folder.path / "saved.json", page = folder.path / "page.html";
    const finished result = run({"--save", saved, "--html", page});
    ASSERT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(run_alloy({"quality", "--from", saved}).out, result.out);
    EXPECT_TRUE(has(contents(page), "data-series=\"compact\""));
    EXPECT_TRUE(has(run_alloy({"quality", "--from", saved, "--csv"}).out, "\nexact,20.02,0.10000,0.04000,0.0004,"));
}

TEST_F(quality, wrong_use_is_one_line_and_leaves_nothing) {
    const auto complains = [&](const std::vector<std::string> & arguments, const std::string & about) {
        std::vector<std::string> all = {"quality", "--state", state};
        all.insert(all.end(), arguments.begin(), arguments.end());
        const finished result = run_alloy(all, set);
        EXPECT_EQ(result.code, 2) << result.err;
        EXPECT_EQ(result.out, "");
        EXPECT_TRUE(has(result.err, about)) << result.err;
        EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
        EXPECT_FALSE(fs::exists(state));
    };
    const std::string host = fake_host("bench_run_time");
    complains({"-m", "/nowhere.gguf", "-f", prose}, "-m: /nowhere.gguf: no such file");
    complains({"-m", folder.write("cut", "GGUF1234"), "-f", prose}, "cut short");
    complains({"-m", model, "-f", "/nowhere"}, "-f: /nowhere: no such file");
    complains({"-m", model, "-f", folder.write("short", "abc")}, "3 bytes, expected at least two contexts");
    complains({"-m", model, "-f", prose, "--host", folder.path}, "llama-perplexity: not found");
    const fs::path half = folder.path / "half";
    fs::create_directory(half);
    fs::create_symlink(host + "/llama-perplexity", half / "llama-perplexity");
    complains({"-m", model, "-f", prose, "--host", half}, "llama-server: not found");
    complains({"-m", model, "-f", prose, "--host", host, "--preset", "nonsense"}, "--preset nonsense");
    complains(
        {"-m", model, "-f", prose, "--host", host, "--plugin", fake_plugin(), "--no-probes", "--context", "128", "--chunks", "1"},
        "63 tokens would be scored, expected at least 100");
    complains({"-m", model}, "expected -m MODEL and -f TEXT");
    // More logits than any disk holds; the text is a hole that takes no room.
    const std::string huge = folder.write("huge", "a");
    fs::resize_file(huge, 1ULL << 40);
    complains({"-m", model, "-f", huge, "--host", host, "--plugin", fake_plugin(), "--no-probes", "--chunks", "1000000",
               "--context", "1048576"},
              "for stock's logits");
}

TEST(gguf, cut_short_anywhere_is_no_crash) {
    const temporary_folder folder;
    const std::string whole = gguf(3);
    tool::gguf_info info;
    std::string complaint;
    for (size_t length = 0; length < whole.size(); length++) {
        info = {};
        EXPECT_FALSE(tool::read_gguf_info(folder.write("cut", whole.substr(0, length)), info, complaint)) << length;
    }
    ASSERT_TRUE(tool::read_gguf_info(folder.write("whole", whole), info, complaint)) << complaint;
    EXPECT_EQ(info.vocabulary, 3u);
    EXPECT_EQ(info.trained_context, 2048u);
}

TEST(base_file, has_the_size_that_the_host_wrote) {
    EXPECT_EQ(tool::base_file_bytes(49152, 128, 3), 18582524u); // SmolLM2, measured
}

} // namespace
} // namespace alloy::test
