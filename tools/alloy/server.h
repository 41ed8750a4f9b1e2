// A llama-server of our own on a loopback port, and the few questions that are asked of it. What goes wrong is a
// std::runtime_error with one line.
#pragma once
#include "child.h"

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace alloy::tool {

using token_list = std::vector<int>;

class llama_server {
public:
    // Waits until the model is loaded. It is given up, then and at every question, when it ends or works on nothing for
    // `patience` seconds; one that works may take as long as it likes.
    llama_server(const std::string & program, const std::string & model, const std::vector<std::string> & arguments,
                 const side & as, double patience);
    ~llama_server();
    token_list tokenize(const std::string & text, bool with_special = false);
    token_list complete(const token_list & prompt, int count); // greedy; what was computed before is used again
    std::unique_ptr<counter_block> counters() { return child_->counters(); }

private:
    std::unique_ptr<living_child> child_;
    double patience_;
    int port_ = 0;
    bool comes_up(const std::string & name);
    bool is_worth_it();
    std::string complaint() const;
    token_list tokens_of(const std::string & path, const nlohmann::json & body);
};

} // namespace alloy::tool
