#include "probes.h"

#include <algorithm>
#include <random>
#include <set>
#include <stdexcept>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

using json = nlohmann::ordered_json;

constexpr size_t block_tokens = 64;
constexpr int shown_again = 16, scored = 16;
constexpr int question_room = 96; // tokens kept free at the end for question and answer
constexpr int exact_tail = 256;   // no fact in the last tokens: a sealing cache keeps those exact
constexpr int facts_a_document = 3;
constexpr int filler_before_prompt = 384;
constexpr size_t enough_words = 100;

constexpr const char * names[] = {"Arthur", "Beatrice", "Conrad", "Deborah", "Edmund", "Felicity", "Gregory", "Harriet"};
constexpr const char * prompts[] = {
    "The most important thing to know about the sea is",
    "To make good bread, first",
    "Once upon a time, in a village between two mountains,",
    "The difference between a list and a table is that",
    "A letter to a friend who has moved to another country:\n\nDear friend,",
    "Three reasons why bridges are built of steel:\n\n1.",
    "def largest(numbers):\n    \"\"\"Returns the largest of a list of numbers.\"\"\"\n",
    "In the morning the old man took his boat and",
};

struct fact {
    const char * kind;
    token_list told, asks, answers;
};

void append(token_list & to, const token_list & more) { to.insert(to.end(), more.begin(), more.end()); }

size_t draw(std::mt19937 & random, size_t below) { return random() % below; }

fact pass_key(llama_server & server, std::mt19937 & random) {
    const std::string name = names[draw(random, std::size(names))];
    std::string digits;
    for (int i = 0; i < 5; i++) digits += static_cast<char>('0' + draw(random, 10));
    return {"pass key",
            server.tokenize(
                fmt::format("\n\nThe pass key of {0} is {1}. Remember it: the pass key of {0} is {1}.\n\n", name, digits)),
            server.tokenize(fmt::format("\n\nThe pass key of {} is", name)), server.tokenize(" " + digits)};
}

// Random words; in a text that has no such words, random tokens of it.
token_list random_block(llama_server & server, const token_list & filler, const std::vector<std::string> & words,
                        std::mt19937 & random) {
    token_list tokens;
    if (words.size() >= enough_words) {
        std::string text;
        for (size_t i = 0; i < 2 * block_tokens; i++) text += words[draw(random, words.size())] + " ";
        tokens = server.tokenize(text);
    }
    while (tokens.size() < block_tokens) tokens.push_back(filler[draw(random, filler.size())]);
    tokens.resize(block_tokens);
    return tokens;
}

fact block(llama_server & server, const token_list & filler, const std::vector<std::string> & words, std::mt19937 & random) {
    const token_list tokens = random_block(server, filler, words, random);
    const token_list newline = server.tokenize("\n\n");
    fact f{"block", newline, newline, {tokens.begin() + shown_again, tokens.begin() + shown_again + scored}};
    append(f.told, tokens);
    append(f.told, newline);
    append(f.asks, {tokens.begin(), tokens.begin() + shown_again});
    return f;
}

std::vector<int> answered(llama_server & server, token_list prompt, const fact & f) {
    std::vector<int> right;
    append(prompt, f.asks);
    for (const int expected : f.answers) {
        const token_list got = server.complete(prompt, 1);
        right.push_back(!got.empty() && got[0] == expected);
        prompt.push_back(expected);
    }
    return right;
}

} // namespace

json recall(llama_server & server, const token_list & filler, const std::vector<std::string> & words, int length, int documents) {
    json results = json::array();
    for (int number = 0; number < documents; number++) {
        std::mt19937 random(static_cast<unsigned>(1000 * length + number));
        std::vector<fact> facts = {pass_key(server, random), block(server, filler, words, random),
                                   block(server, filler, words, random)};
        std::rotate(facts.begin(), facts.begin() + number % facts_a_document, facts.end()); // each kind comes to each depth
        size_t told = 0;
        for (const fact & f : facts) told += f.told.size();
        if (told + question_room + exact_tail + 10 * facts_a_document > static_cast<size_t>(length))
            throw std::runtime_error(fmt::format("a document of {} tokens has no room for {} tokens of facts", length, told));
        const size_t room = static_cast<size_t>(length - question_room) - told;
        const size_t start = draw(random, filler.size() - room), stretch = (room - exact_tail) / facts_a_document;
        token_list prompt = server.tokenize("", true);
        std::vector<double> depths;
        size_t at = 0;
        for (size_t i = 0; i < facts.size(); i++) {
            const size_t point = i * stretch + draw(random, stretch);
            append(prompt, {filler.begin() + static_cast<std::ptrdiff_t>(start + at),
                            filler.begin() + static_cast<std::ptrdiff_t>(start + point)});
            append(prompt, facts[i].told);
            depths.push_back(static_cast<double>(point) / static_cast<double>(room));
            at = point;
        }
        append(prompt, {filler.begin() + static_cast<std::ptrdiff_t>(start + at),
                        filler.begin() + static_cast<std::ptrdiff_t>(start + room)});
        for (size_t i = 0; i < facts.size(); i++)
            results.push_back({{"kind", facts[i].kind},
                               {"length", length},
                               {"depth", depths[i]},
                               {"right", answered(server, prompt, facts[i])}});
    }
    return results;
}

json greedy_texts(llama_server & server, const token_list & filler) {
    json texts = json::array();
    size_t start = 0;
    for (const char * prompt : prompts) {
        token_list tokens = server.tokenize("", true);
        const size_t before = std::min<size_t>(filler_before_prompt, filler.size());
        if (start + before > filler.size()) start = 0;
        append(tokens, {filler.begin() + static_cast<std::ptrdiff_t>(start),
                        filler.begin() + static_cast<std::ptrdiff_t>(start + before)});
        append(tokens, server.tokenize(std::string("\n\n") + prompt));
        texts.push_back(server.complete(tokens, greedy_tokens));
        start += before;
    }
    return texts;
}

std::vector<std::string> words_of(const std::string & text) {
    std::set<std::string> words;
    std::string word;
    bool is_plain = true;
    for (const char c : text + " ") {
        const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (is_letter) {
            word += c;
            is_plain = is_plain && c >= 'a';
            continue;
        }
        if (is_plain && word.size() >= 4 && word.size() <= 9) words.insert(word);
        word.clear();
        is_plain = true;
    }
    return {words.begin(), words.end()};
}

} // namespace alloy::tool
