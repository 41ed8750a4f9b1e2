#include "host/ops.h"

#include "host/symbols.h"

#include <array>
#include <cstring>

namespace alloy::host {
namespace {

constexpr const char * names[] = {
#define ALLOY_OP(name, host_name) host_name,
#include "host/ops.inc"
#undef ALLOY_OP
};
constexpr int num_ops = sizeof(names) / sizeof(names[0]);

std::array<op, 256> from_host{};
std::array<int, num_ops> to_host{};

} // namespace

bool resolve_ops(std::string & missing) {
    from_host.fill(op::other);
    to_host.fill(-1);
    // ggml_op_name() is an unchecked array read, so only after the version is known and no further than that version goes.
    for (int number = 0; number < op_count; number++) {
        const char * name = api().ggml_op_name(number);
        for (int i = 0; name != nullptr && i < num_ops; i++) {
            if (std::strcmp(name, names[i]) == 0) {
                from_host[number] = static_cast<op>(i);
                to_host[i] = number;
            }
        }
    }
    for (int i = 0; i < num_ops; i++) {
        if (to_host[i] < 0) {
            missing = names[i];
            return false;
        }
    }
    return true;
}

op op_of(const tensor * t) { return t->op >= 0 && t->op < static_cast<int>(from_host.size()) ? from_host[t->op] : op::other; }

int op_number(op which) { return to_host[static_cast<int>(which)]; }

} // namespace alloy::host
