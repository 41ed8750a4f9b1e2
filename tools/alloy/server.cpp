#include "server.h"

#include "loopback_http.h"

#include <chrono>
#include <stdexcept>
#include <thread>

#include <unistd.h>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

std::string last_line(const std::string & log) {
    const size_t end = log.find_last_not_of("\n ");
    if (end == std::string::npos) return "it said nothing";
    const size_t begin = log.rfind('\n', end);
    return log.substr(begin == std::string::npos ? 0 : begin + 1, end - (begin == std::string::npos ? 0 : begin + 1) + 1);
}

} // namespace

llama_server::llama_server(const std::string & program, const std::string & model, const std::vector<std::string> & arguments,
                           const side & as, double patience)
    : patience_(patience) {
    // A port that was free may be somebody else's a moment later.
    constexpr int most_ports = 3;
    for (int number = 1; number <= most_ports; number++) {
        port_ = free_loopback_port();
        const std::string name = fmt::format("alloy-{}-{}", getpid(), port_);
        // One slot, and nothing that keeps copies of the cache on the side.
        std::vector<std::string> command = {program,  "-m", model,    "-np",       "1",      "--cache-ram",         "0",
                                            "-ctxcp", "0",  "--host", "127.0.0.1", "--port", std::to_string(port_), "-a",
                                            name};
        command.insert(command.end(), arguments.begin(), arguments.end());
        child_ = std::make_unique<living_child>(command, as);
        if (comes_up(name)) return;
        const bool is_port_taken = child_->log().find("couldn't bind") != std::string::npos;
        if (was_interrupted() || !is_port_taken || number == most_ports)
            throw std::runtime_error("llama-server did not come up: " + complaint());
    }
}

llama_server::~llama_server() = default;

// `name` tells ours from another server that took the port before it.
bool llama_server::comes_up(const std::string & name) {
    child_->begin_waiting();
    for (int turn = 0; is_worth_it() && !was_interrupted(); turn++) {
        const auto still = [this] { return is_worth_it(); };
        if (ask_loopback(port_, "/health", {}, still).status == 200 &&
            ask_loopback(port_, "/v1/models", {}, still).body.find(name) != std::string::npos)
            return true;
        std::this_thread::sleep_for(std::chrono::milliseconds(turn < 40 ? 50 : 250));
    }
    return false;
}

bool llama_server::is_worth_it() { return child_->is_alive() && child_->idle_seconds() < patience_; }

std::string llama_server::complaint() const {
    const std::string how = child_->ending().empty() ? fmt::format("it did nothing for {:g} seconds", patience_)
                                                     : "it ended with " + child_->ending();
    return fmt::format("{}: {}", how, last_line(child_->log()));
}

token_list llama_server::tokens_of(const std::string & path, const nlohmann::json & body) {
    child_->begin_waiting();
    const http_answer answer = ask_loopback(port_, path, body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace),
                                            [this] { return is_worth_it(); });
    if (was_interrupted()) throw std::runtime_error("stopped");
    if (answer.status == 0) {
        const bool is_stuck = !is_worth_it();
        // An ended process is not always to be seen at once.
        for (int turn = 0; turn < 20 && child_->is_alive(); turn++) std::this_thread::sleep_for(std::chrono::milliseconds(50));
        throw std::runtime_error(is_stuck || !child_->is_alive()
                                     ? fmt::format("llama-server: no answer to {}: {}", path, complaint())
                                     : fmt::format("llama-server: no whole answer to {}", path));
    }
    try {
        if (answer.status == 200) return nlohmann::json::parse(answer.body).at("tokens").get<token_list>();
    } catch (const nlohmann::json::exception &) {
    }
    throw std::runtime_error(fmt::format("llama-server: {} answered {} without 'tokens': {:.200}", path, answer.status,
                                         answer.body.substr(0, answer.body.find('\n'))));
}

token_list llama_server::tokenize(const std::string & text, bool with_special) {
    return tokens_of("/tokenize", {{"content", text}, {"add_special", with_special}});
}

token_list llama_server::complete(const token_list & prompt, int count) {
    return tokens_of("/completion", {{"prompt", prompt},
                                     {"n_predict", count},
                                     {"temperature", 0},
                                     {"cache_prompt", true},
                                     {"return_tokens", true},
                                     {"id_slot", 0}});
}

} // namespace alloy::tool
