// What llama-perplexity says at its end.
#pragma once
#include <cstdint>
#include <string>

namespace alloy::tool {

struct measured {
    double value = 0, error = 0; // error: one standard error; 0: not told
};

struct divergence {
    measured ppl, ratio; // of this run; over the base file's
    measured kld;        // mean
    double kld_99 = 0, kld_max = 0;
    measured same_top; // percent
};

// Returns false and one line that names what is missing.
bool parse_perplexity(const std::string & text, double & ppl, std::string & complaint);
bool parse_divergence(const std::string & text, divergence & found, std::string & complaint);

// Bytes of a base file: for every scored position (the second half of each chunk) 16 bits a token of the vocabulary.
uint64_t base_file_bytes(uint64_t vocabulary, uint64_t context, uint64_t chunks);

} // namespace alloy::tool
