// How cells are to be kept: GGML_ALLOY_KV.
#pragma once
#include "formats/kv_codec.h"

#include <cstddef>
#include <cstdint>

namespace alloy::kv {

struct policy {
    bool lossy = false; // else rows stay as declared
    // The most recent cells of a sequence stay rows: together with the sinks they are worth about a bit of everything else.
    int64_t window = 128;
    kv_codec keys = kv_codec::i8, values = kv_codec::i8;
    const char * loss = ""; // as measured, for the user; null: it was not measured for this
    double keep = 1;        // < 1: so large a share of sealed cells stays, those that are attended most
    double share = 0;       // > 0: each head gets bits of its own around these, to so large a share of the bytes of f16
};

// What GGML_ALLOY_KV asks for.
policy wanted_policy();

// One line a process: what a lossy policy saves, and what it costs.
void announce(const policy & p);

// Bytes of a sealed page over those of its cells in f16, for heads of d elements.
double share_of_f16(const policy & p, int64_t d);

// What `cells` cells of `elements` each take when all are in use, of row_bytes each as declared.
size_t expected_bytes(const policy & p, int64_t elements, int64_t cells, size_t row_bytes);

} // namespace alloy::kv
