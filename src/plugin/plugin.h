// What the host sees: one registry with one device, one buffer type, and the tables behind them.
#pragma once
#include "host/abi_v3.h"

#include <string>

namespace alloy::plugin {

inline constexpr const char * registry_name = "ALLOY";
inline constexpr const char * device_name = "ALLOY0";

// Checks that this process can use us, touching no struct of the host before all is known. Returns false when it cannot; then one
// line has been logged, unless the user switched us off. Runs once a process.
bool handshake(const void * caller);

host::registry * the_registry();
host::device * the_device();
host::buffer_type * the_buffer_type();
host::backend * make_backend(); // null when the host has no CPU backend
void * proc_address(const char * name);

} // namespace alloy::plugin
