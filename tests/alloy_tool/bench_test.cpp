// alloy bench on a llama-bench whose speeds are known.
#include "command.h"

#include <csignal>
#include <fstream>
#include <sstream>
#include <thread>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace alloy::test {
namespace {

namespace fs = std::filesystem;
using json = nlohmann::ordered_json;

class bench : public ::testing::Test {
protected:
    temporary_folder folder; // also the system's temporary folder, so that what is left behind is seen
    std::string model = folder.write("model.gguf", "GGUF....");
    fs::path state = folder.path / "state", scratch = folder.path / "scratch";
    std::string rounds = "3", host = "bench_run_time";
    environment set;

    void SetUp() override {
        fs::create_directory(state);
        fs::create_directory(scratch);
        set = {{"TMPDIR", scratch},
               {"FAKE_BENCH_STATE", state},
               // the first of each is the warm-up
               {"FAKE_BENCH_STOCK_ON", "999 100 104 96"},
               {"FAKE_BENCH_STOCK_OFF", "999 80 81 82"},
               {"FAKE_BENCH_ALLOY", "1 200 260 192"}};
    }
    std::vector<std::string> words(std::vector<std::string> more) const {
        std::vector<std::string> all = {"bench",    "-m",          model,      "--host", fake_host(host),
                                        "--plugin", fake_plugin(), "--rounds", rounds};
        all.insert(all.end(), more.begin(), more.end());
        return all;
    }
    finished run(std::vector<std::string> more = {}) const { return run_alloy(words(std::move(more)), set); }
    bool left_nothing() const { return fs::is_empty(scratch); }
};

TEST_F(bench, medians_ratios_and_the_better_side_of_stock) {
    const finished result = run({"--json", "-d", "0,4096"});
    ASSERT_EQ(result.code, 0) << result.err;
    const json report = json::parse(result.out);
    ASSERT_EQ(report["tests"].size(), 4u);
    EXPECT_EQ(report["rounds"], 3);
    EXPECT_EQ(report["complete"], true);
    EXPECT_EQ(report["model"]["file"], "model.gguf");
    EXPECT_EQ(report["host"]["ggml"], "0.0.1-fake");
    EXPECT_EQ(report["counters"]["kernel_steps"], 30);
    const json & first = report["tests"][0]["result"];
    EXPECT_EQ(report["tests"][0]["name"], "pp512");
    EXPECT_EQ(report["tests"][3]["name"], "tg64 @ d4096");
    EXPECT_EQ(first["stock"], "stock -fa on");
    EXPECT_DOUBLE_EQ(first["stock_median"], 100);
    EXPECT_DOUBLE_EQ(first["alloy_median"], 200);
    EXPECT_DOUBLE_EQ(first["ratio"], 2); // of 2, 2.5 and 2
    EXPECT_DOUBLE_EQ(first["ratio_low"], 2);
    EXPECT_DOUBLE_EQ(first["ratio_high"], 2.5);
    EXPECT_EQ(first["verdict"], "faster");
    EXPECT_NEAR(first["stock_memory"].get<double>() - first["alloy_memory"].get<double>(), 20 << 20, 3 << 20);
    EXPECT_EQ(report["tests"][0]["samples"]["stock -fa off"]["tokens_per_second"], (std::vector<double>{80, 81, 82}));
    EXPECT_TRUE(has(result.err, "round 4/4, ") && has(result.err, "ETA ")) << result.err;
    EXPECT_TRUE(left_nothing());
}

TEST_F(bench, table_csv_and_page_say_the_same) {
    const std::string page = folder.path / "page.html", saved = folder.path / "saved.json";
    const finished table = run({"--html", page, "--save", saved});
    EXPECT_EQ(table.code, 0) << table.err;
    EXPECT_TRUE(has(table.out, "2.00") && has(table.out, "2.00 .. 2.50") && has(table.out, "faster")) << table.out;
    const finished csv = run_alloy({"bench", "--from", saved, "--csv"});
    EXPECT_EQ(csv.code, 0) << csv.err;
    EXPECT_TRUE(has(csv.out, "\ntg64,0,64,0,alloy,2,26,")) << csv.out;
    EXPECT_EQ(run_alloy({"bench", "--from", saved}).out, table.out);
    const finished again = run_alloy({"bench", "--from", saved, "--json", "--html", folder.path / "again.html"});
    EXPECT_EQ(again.out, contents(saved));
    EXPECT_EQ(contents(folder.path / "again.html"), contents(page));
    EXPECT_TRUE(has(contents(page), "data-series=\"alloy\""));
    EXPECT_FALSE(has(contents(page), "http://") && !has(contents(page), "www.w3.org"));
}

TEST_F(bench, a_crash_keeps_finished_rounds) {
    set["FAKE_BENCH_FAIL"] = "ALLOY 2";
    finished result = run({"--json"});
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(
        has(result.err, "alloy: llama-bench ended with signal 11 (Segmentation fault): something went wrong with model.gguf\n"))
        << result.err;
    const json report = json::parse(result.out);
    EXPECT_EQ(report["rounds"], 1);
    EXPECT_EQ(report["complete"], false);
    EXPECT_TRUE(has(report["notes"][0], "ended early: alloy"));
    fs::remove_all(state);
    fs::create_directory(state);
    set["FAKE_BENCH_FAIL"] = "ALLOY 0";
    result = run();
    EXPECT_EQ(result.code, 1);
    EXPECT_EQ(result.out, "");
    EXPECT_TRUE(left_nothing());
}

TEST_F(bench, a_way_of_stock_that_cannot_run_is_left_out) {
    set["FAKE_BENCH_FAIL"] = "STOCK_ON 0";
    const finished result = run({"--json"});
    EXPECT_EQ(result.code, 0) << result.err;
    const json report = json::parse(result.out);
    EXPECT_EQ(report["sides"], (std::vector<std::string>{"stock -fa off", "alloy"}));
    EXPECT_DOUBLE_EQ(report["tests"][0]["result"]["stock_median"], 81);
    EXPECT_TRUE(has(report["notes"][0], "stock -fa on: llama-bench ended with signal 11"));
}

TEST_F(bench, says_nothing_when_the_plugin_did_not_run) {
    set["FAKE_BENCH_IDLE"] = "1";
    finished result = run({"--json"});
    EXPECT_EQ(result.code, 1);
    EXPECT_EQ(result.out, "");
    EXPECT_TRUE(has(result.err, "loaded but computed nothing")) << result.err;
    set["FAKE_BENCH_IDLE"] = "unloaded";
    result = run({"--json"});
    EXPECT_EQ(result.out, "");
    EXPECT_TRUE(has(result.err, "was not loaded")) << result.err;
}

TEST_F(bench, a_row_without_speed_is_no_result) {
    set["FAKE_BENCH_ROW"] = "short";
    const finished result = run({"--json"});
    EXPECT_EQ(result.code, 1);
    EXPECT_EQ(result.out, "");
    EXPECT_TRUE(has(result.err, "a row without a number 'avg_ts'")) << result.err;
}

TEST_F(bench, a_host_with_its_backends_linked_in) {
    host = "bench_linked_in";
    EXPECT_EQ(run().code, 0); // -dev ALLOY0 is added to the side with the plugin
    const finished result = run({"-dev", "ALLOY0"});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(run({"-dev", "none"}).code, 1); // the plugin is not asked for
}

TEST_F(bench, an_option_that_the_host_refuses) {
    const finished result = run({"--nonsense"});
    EXPECT_EQ(result.code, 2);
    EXPECT_EQ(result.out, "");
    EXPECT_TRUE(has(result.err, "alloy bench: llama-bench: error: invalid parameter for argument: --nonsense\n")) << result.err;
    EXPECT_FALSE(has(result.err, "stock -fa off")) << result.err; // no second try
}

TEST_F(bench, a_test_twice_is_two) {
    const finished result = run({"--json", "-p", "512,512"});
    EXPECT_EQ(result.code, 0) << result.err;
    const json report = json::parse(result.out);
    ASSERT_EQ(report["tests"].size(), 3u);
    EXPECT_EQ(report["tests"][1]["name"], "pp512 (2)");
    EXPECT_DOUBLE_EQ(report["tests"][1]["result"]["alloy_median"], 100);
}

TEST_F(bench, an_interrupt_keeps_finished_rounds) {
    set["FAKE_BENCH_SLEEP"] = "0.2";
    const std::string saved = folder.path / "saved.json";
    rounds = "500";
    const int child = start_alloy(words({"--save", saved}), set);
    const auto alloy_starts = [&] { return contents(state / "ALLOY").size(); };
    for (int i = 0; i < 2000 && alloy_starts() < 4; i++) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    kill(child, SIGINT);
    EXPECT_EQ(ended_with(child), 130);
    const json report = json::parse(contents(saved));
    EXPECT_GE(report["rounds"], 2);
    EXPECT_EQ(report["tests"][0]["samples"]["alloy"]["tokens_per_second"].size(), report["rounds"]);
    EXPECT_TRUE(has(report["notes"][0], "stopped by the user after"));
    EXPECT_TRUE(left_nothing());
}

TEST_F(bench, wrong_use_is_one_line) {
    const auto complains = [&](std::vector<std::string> arguments, const std::string & about, const environment & more = {}) {
        environment all = set;
        all.insert(more.begin(), more.end());
        arguments.insert(arguments.begin(), "bench");
        const finished result = run_alloy(arguments, all);
        EXPECT_EQ(result.code, 2) << result.err;
        EXPECT_EQ(result.out, "");
        EXPECT_TRUE(has(result.err, about)) << result.err;
        EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
        EXPECT_TRUE(left_nothing());
    };
    complains({"-m", model}, "llama-bench: not found on PATH", {{"PATH", scratch}});
    complains({"-m", model, "--host", scratch}, "llama-bench: not found in " + scratch.string());
    complains({"-m", "/nowhere.gguf"}, "/nowhere.gguf: no such file");
    complains({"-m", folder.write("text", "hello, world")}, "expected a GGUF file");
    complains({"-m", scratch}, "a folder, expected a GGUF file");
    complains({}, "no model, expected -m FILE");
    complains({"-m", model, "-o", "csv"}, "expected --json, --csv or --html");
    complains({"-m", model, "--rounds", "0"}, "--rounds");
    complains({"-m", model, "-fa", "on,off"}, "-fa on,off: expected one value");
    complains({"-m", model, "--json", "--csv"}, "--json excludes --csv");
    complains({"-m", model, "--host", fake_host("bench_run_time"), "--html", "/nowhere/page.html"}, "/nowhere/page.html");
    complains({"--from", folder.write("bad.json", "{")}, "bad.json: no JSON");
    complains({"--from", folder.write("other.json", "{}")}, "other.json");
}

} // namespace
} // namespace alloy::test
