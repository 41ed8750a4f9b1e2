#include "host/symbols.h"

#include "base/os.h"

namespace alloy::host {
namespace {

symbol_table table{};

} // namespace

const symbol_table & api() { return table; }

bool resolve_symbols(const void * caller, std::string & missing) {
    const std::string caller_path = os::module_of(caller);
    void * const modules[] = {
        os::loaded_module(caller_path),
        os::loaded_module_by_name("libggml.so"),
        os::loaded_module_by_name("libggml-base.so"),
        os::main_program(),
    };
    auto find = [&](const char * name) -> void * {
        for (void * module : modules) {
            if (void * address = module ? os::symbol(module, name) : nullptr) return address;
        }
        return nullptr;
    };

    symbol_table found{};
#define ALLOY_SYMBOL(result, name, parameters)                                   \
    if (!(found.name = reinterpret_cast<result(*) parameters>(find(#name)))) {   \
        missing = #name;                                                         \
        return false;                                                            \
    }
#include "host/symbols.inc"
#undef ALLOY_SYMBOL
    table = found;
    return true;
}

} // namespace alloy::host
