// One backend object of the host: its plans, its private CPU backend, its thread count.
#pragma once
#include "graph/plan.h"
#include "host/cpu.h"

#include <atomic>
#include <list>
#include <memory>

namespace alloy::graph {

class session {
  public:
    // Null when the host has no CPU backend to delegate to.
    static std::unique_ptr<session> make();

    void set_num_threads(int n) { num_threads_ = n > 0 ? n : 1; }
    void set_abort_callback(host::abort_callback callback, void * user);

    // Runs a graph; a host::status. Called by one thread at a time.
    int compute(const host::graph & graph);

  private:
    session() = default;
    static bool stop(void * user);
    plan & plan_for(const host::graph & graph);
    void forget(const plan & p);
    int run(plan & p, const host::graph & graph);
    bool prologue(const plan & p) const;
    int run_in_host_threads(plan & p, const host::graph & graph);
    int run_on_own_threads(const plan & p);

    std::unique_ptr<host::cpu_backend> cpu_;
    int num_threads_ = 1;
    host::abort_callback abort_ = nullptr;
    void * abort_user_ = nullptr;
    std::atomic<bool> failed_{false}; // a step of this run did
    std::list<plan> plans_; // latest first
    plan once_;             // of a graph without uid
};

} // namespace alloy::graph
