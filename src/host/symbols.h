// The running host's functions. One table, filled once by the handshake, read by everybody.
#pragma once
#include "host/abi_v3.h"
#include <string>

namespace alloy::host {

struct symbol_table {
#define ALLOY_SYMBOL(result, name, parameters) result(*name) parameters;
#include "host/symbols.inc"
#undef ALLOY_SYMBOL
};

const symbol_table & api();

// Resolves the whole table from the module that holds `caller` and from what that module depends on; so each of several llama.cpp
// copies in one process gets its own functions. Falls back to any loaded libggml-base. Returns false and the first missing name.
bool resolve_symbols(const void * caller, std::string & missing);

} // namespace alloy::host
