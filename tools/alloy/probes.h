// Questions that show damage to an old KV cache, asked of a running llama-server.
#pragma once
#include "server.h"

#include <functional>

#include <nlohmann/json.hpp>

namespace alloy::tool {

// Documents of so many tokens out of `filler`, which has at least as many, each with one pass key (five digits) and two blocks of
// random words at depths spread over it. Asked afterwards: the key, and how a block goes on whose beginning is shown again.
// Answers are teacher-forced, so that one wrong token does not spoil the rest. Returns [{kind, length, depth, right: [0 or 1 a
// token]}]; the same documents whoever is asked.
nlohmann::ordered_json recall(llama_server & server, const token_list & filler, const std::vector<std::string> & words,
                              int length, int documents);

// 64 tokens after each built-in prompt, itself behind 384 tokens of filler, so that a compressed cache is at work. [tokens of
// each].
nlohmann::ordered_json greedy_texts(llama_server & server, const token_list & filler);
constexpr int greedy_tokens = 64;

std::vector<std::string> words_of(const std::string & text); // lower-case words of 4 to 9 letters, sorted, each once

} // namespace alloy::tool
