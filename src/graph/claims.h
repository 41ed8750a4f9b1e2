// What the device answers when the host asks whether it takes an operation.
#pragma once
#include "host/abi_v3.h"

namespace alloy::graph {

// May be called with half-built tensors: sources without buffer, no data, empty candidate buffers. Never looks at data.
bool claims(const host::tensor * node);

} // namespace alloy::graph
