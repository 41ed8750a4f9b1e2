#include "server.h"

#include "loopback_http.h"

#include <chrono>
#include <stdexcept>
#include <thread>

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
                           const side & as)
    : port_(free_loopback_port()) {
    // One slot, and nothing that keeps copies of the cache on the side.
    std::vector<std::string> command = {program,  "-m", model,    "-np",       "1",      "--cache-ram",        "0",
                                        "-ctxcp", "0",  "--host", "127.0.0.1", "--port", std::to_string(port_)};
    command.insert(command.end(), arguments.begin(), arguments.end());
    child_ = std::make_unique<living_child>(command, as);
    while (child_->is_alive() && !was_interrupted()) {
        if (ask_loopback(port_, "/health").status == 200) return;
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    throw std::runtime_error(fmt::format("{}: llama-server did not come up: {}", as.name, last_line(child_->log())));
}

llama_server::~llama_server() = default;

nlohmann::json llama_server::ask(const std::string & path, const nlohmann::json & body) {
    const http_answer answer = ask_loopback(port_, path, body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    if (was_interrupted()) throw std::runtime_error("stopped");
    if (answer.status == 0)
        throw std::runtime_error(fmt::format("llama-server: no answer to {}: {}", path, last_line(child_->log())));
    nlohmann::json found = nlohmann::json::parse(answer.body, nullptr, false);
    if (answer.status != 200 || found.is_discarded())
        throw std::runtime_error(fmt::format("llama-server: {} answered {}: {:.200}", path, answer.status, answer.body));
    return found;
}

token_list llama_server::tokenize(const std::string & text, bool with_special) {
    return ask("/tokenize", {{"content", text}, {"add_special", with_special}}).at("tokens").get<token_list>();
}

token_list llama_server::complete(const token_list & prompt, int count) {
    return ask("/completion", {{"prompt", prompt},
                               {"n_predict", count},
                               {"temperature", 0},
                               {"cache_prompt", true},
                               {"return_tokens", true},
                               {"id_slot", 0}})
        .at("tokens")
        .get<token_list>();
}

} // namespace alloy::tool
