// One pool of worker threads for the whole process, leased for one run at a time.
//
// Workers spin for a bounded time between runs and then park. A process that forks gets a new pool in the child. When the pool is
// already leased (two contexts computing at once) the second caller runs alone: slower, never wrong, never waiting.
#pragma once
#include <cstdint>

namespace alloy {

// Called by every participating thread, with its index in [0, num_threads).
using pool_function = void (*)(void * user, int thread, int num_threads);

// Runs `function` on min(wanted, limit) threads including the caller and returns when all are done. limit 0: the usable CPUs.
void run_on_pool(int wanted, pool_function function, void * user, int limit = 0);

// For code inside a run: all `num_threads` participants wait for one another. Sense-reversing, yields after a bounded spin.
void pool_barrier(int num_threads);

// Worker threads alive now; tests look.
int pool_workers();

} // namespace alloy
