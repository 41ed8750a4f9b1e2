// The questions that alloy quality asks a llama-server, with one whose answers are known.
#include "quality_scene.h"

#include <csignal>
#include <thread>

namespace alloy::test {
namespace {

// Words without order and without end.
std::string some_prose() {
    std::string prose;
    for (unsigned i = 1; prose.size() < 30000; i++) {
        for (unsigned left = i * 2654435761u >> 7, n = 0; n < 4 + i % 5; n++, left /= 7)
            prose += static_cast<char>('a' + (left + n * i) % 26);
        prose += i % 11 == 0 ? ".\n" : " ";
    }
    return prose;
}

class probes : public quality_scene {
protected:
    fs::path starts = folder.path / "starts"; // of servers

    void SetUp() override {
        quality_scene::SetUp();
        folder.write("prose", some_prose());
        set["FAKE_SERVER_LOG"] = starts;
    }
    std::vector<std::string> few(std::vector<std::string> more = {}) const {
        std::vector<std::string> all = {"--preset", "compact", "--length", "1024", "--documents", "2", "--patience", "1"};
        all.insert(all.end(), more.begin(), more.end());
        return all;
    }
    // No server outlives the command.
    bool servers_are_gone() const {
        std::istringstream lines(contents(starts));
        int process = 0;
        for (std::string side; lines >> process >> side;) {
            if (kill(process, 0) == 0) return false;
        }
        return true;
    }
    // The distributions stay, and the same command goes on behind them.
    void fails(const char * how, const std::string & about) {
        set["FAKE_SERVER"] = how;
        finished result = run(few({"--json"}));
        EXPECT_EQ(result.code, 1);
        EXPECT_TRUE(has(result.err, about)) << result.err;
        EXPECT_LT(result.seconds, 20);
        json report = json::parse(result.out);
        EXPECT_EQ(report["complete"], false);
        EXPECT_EQ(report["modes"][0]["gates"].size(), 5u);
        EXPECT_FALSE(report["modes"][0].contains("recall"));
        EXPECT_TRUE(servers_are_gone());
        EXPECT_TRUE(fs::is_empty(scratch));
        set.erase("FAKE_SERVER");
        fs::remove(log);
        result = run(few({"--json"}));
        EXPECT_EQ(result.code, 0) << result.err;
        EXPECT_EQ(json::parse(result.out)["complete"], true);
        EXPECT_FALSE(fs::exists(log)); // no distribution was measured again
        EXPECT_TRUE(left_nothing());
    }
};

TEST_F(probes, right_answers_lost_ones_and_texts) {
    const finished result = run(few({"--preset", "exact", "--json"}));
    ASSERT_EQ(result.code, 0) << result.err;
    const json report = json::parse(result.out);
    EXPECT_EQ(report["stock_recall"].size(), 6u); // two documents, three facts each
    EXPECT_EQ(report["stock_recall_summary"]["pass key"]["whole"], 2);
    EXPECT_EQ(report["stock_recall_summary"]["pass key"]["of_tokens"], 12); // a space and five digits, bytes here
    EXPECT_EQ(report["stock_recall_summary"]["block"]["tokens"], 64);
    for (const json & fact : report["stock_recall"]) EXPECT_TRUE(fact["depth"] > 0.0 && fact["depth"] < 0.8) << fact.dump();
    const json & compact = report["modes"][0];
    EXPECT_EQ(compact["name"], "compact");
    EXPECT_LT(compact["recall_summary"]["block"]["whole"], 4);
    EXPECT_EQ(compact["recall_summary"]["block"]["lost"], 64 - compact["recall_summary"]["block"]["tokens"].get<int>());
    EXPECT_EQ(compact["recall_summary"]["block"]["won"], 0);
    EXPECT_EQ(report["modes"][1]["recall_summary"]["pass key"]["lost"], 0);
    ASSERT_EQ(compact["same_tokens"].size(), 8u);
    for (const json & equal : compact["same_tokens"]) EXPECT_EQ(equal, 10);
    for (const json & equal : report["modes"][1]["same_tokens"]) EXPECT_EQ(equal, 64);
    EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\0'), 0);
    EXPECT_TRUE(servers_are_gone());
    EXPECT_TRUE(left_nothing());
}

TEST_F(probes, a_server_that_dies) {
    fails("dies", "stock: llama-server did not come up: it ended with exit code 3: error: no such architecture");
}
TEST_F(probes, a_server_that_never_has_its_model) {
    fails("loads", "llama-server did not come up: it did nothing for 1 seconds");
}
TEST_F(probes, a_server_that_takes_no_connection) { fails("deaf", "llama-server did not come up: it did nothing for 1 seconds"); }
TEST_F(probes, a_server_that_crashes) { fails("crashes", "no answer to /completion: it ended with signal 11"); }
TEST_F(probes, a_server_that_is_stuck) { fails("silent", "no answer to /completion: it did nothing for 1 seconds"); }
TEST_F(probes, an_answer_that_is_no_json) { fails("nonsense", "/tokenize answered 200 without 'tokens': <html>;"); }
TEST_F(probes, an_answer_without_tokens) { fails("tokenless", "/tokenize answered 200 without 'tokens'"); }
TEST_F(probes, an_answer_that_is_cut_off) { fails("cut", "no whole answer to /completion"); }

TEST_F(probes, work_may_take_longer_than_patience) {
    set["FAKE_SERVER_WORK"] = "0.01";
    set["FAKE_SERVER_LOG"] = starts;
    const finished result = run({"--preset", "exact", "--length", "768", "--documents", "1", "--patience", "0.3"});
    EXPECT_EQ(result.code, 0) << result.err;
}

TEST_F(probes, a_port_that_somebody_took) {
    set["FAKE_SERVER_BUSY"] = "2";
    finished result = run(few());
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(contents(starts).substr(contents(starts).size() - 8), "compact\n");
    set["FAKE_SERVER_BUSY"] = "999";
    result = run(few());
    EXPECT_EQ(result.code, 1);
    EXPECT_TRUE(has(result.err, "did not come up: it ended with exit code 1: exiting")) << result.err;
}

TEST_F(probes, an_interrupt_keeps_finished_parts) {
    set["FAKE_SERVER"] = "silent";
    const std::string saved = folder.path / "saved.json";
    const int child = start_alloy(words({"--preset", "compact", "--save", saved}), set);
    for (int i = 0; i < 2000 && !has(contents(starts), "stock"); i++) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    kill(child, SIGINT);
    EXPECT_EQ(ended_with(child), 130);
    const json report = json::parse(contents(saved));
    EXPECT_EQ(report["complete"], false);
    EXPECT_EQ(report["modes"].size(), 2u);
    EXPECT_TRUE(servers_are_gone());
    EXPECT_TRUE(fs::is_empty(scratch));
}

TEST_F(probes, short_texts_and_texts_without_words) {
    folder.write("prose", std::string(6000, '#'));
    finished result = run({"--preset", "exact", "--length", "1024", "--length", "2048", "--documents", "1", "--json"});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(json::parse(result.out)["stock_recall"].size(), 6u);
    folder.write("prose", std::string(1500, '#'));
    result = run({"--preset", "exact", "--context", "512", "--length", "1024", "--length", "2048", "--documents", "1", "--json"});
    EXPECT_EQ(result.code, 0) << result.err;
    const json report = json::parse(result.out);
    EXPECT_EQ(report["stock_recall"].size(), 3u);
    EXPECT_EQ(report["notes"][0], "no probe of 2048 tokens: the text has fewer");
}

TEST_F(probes, a_host_with_its_backends_linked_in) {
    host = "bench_linked_in";
    const finished result = run(few());
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_TRUE(has(contents(starts), " compact\n")) << contents(starts);
}

} // namespace
} // namespace alloy::test
