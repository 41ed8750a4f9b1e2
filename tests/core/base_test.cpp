// base/: threads, options, instruction sets, operating system, counters.
#include "base/counters.h"
#include "base/isa.h"
#include "base/options.h"
#include "base/os.h"
#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

using namespace alloy;

namespace {

struct tally {
    std::atomic<int> calls{0};
    std::atomic<uint64_t> seen{0}; // bit per thread index
    std::atomic<int> num_threads{0};
};

void tally_thread(void * user, int thread, int num_threads) {
    auto & t = *static_cast<tally *>(user);
    t.calls++;
    t.seen |= uint64_t{1} << thread;
    t.num_threads = num_threads;
}

} // namespace

TEST(ThreadPool, EveryThreadIsCalledOnceInEveryRun) {
    // More workers than take part in most runs: who is left out must not slip into the next one.
    for (int run = 0; run < 300; run++) {
        const int wanted = run % 4 == 0 ? 5 : 1 + run % 4;
        tally t;
        run_on_pool(wanted, tally_thread, &t, 8);
        ASSERT_EQ(t.calls, wanted);
        ASSERT_EQ(t.seen, (uint64_t{1} << wanted) - 1);
    }
    EXPECT_EQ(pool_workers(), 4);
}

TEST(ThreadPool, NeverMoreThreadsThanCpus) {
    tally t;
    run_on_pool(10000, tally_thread, &t);
    EXPECT_EQ(t.num_threads, os::usable_cpus());
    run_on_pool(-3, tally_thread, &t);
    EXPECT_EQ(t.num_threads, 1);
}

TEST(ThreadPool, BarrierHoldsEveryoneBack) {
    struct shared {
        std::atomic<int> arrived{0};
        std::atomic<bool> early{false};
    } s;
    run_on_pool(os::usable_cpus(), [](void * user, int, int num_threads) {
        auto & s = *static_cast<shared *>(user);
        for (int round = 1; round <= 1000; round++) {
            s.arrived++;
            pool_barrier(num_threads);
            if (s.arrived < round * num_threads) s.early = true;
            pool_barrier(num_threads);
        }
    }, &s);
    EXPECT_FALSE(s.early);
}

TEST(ThreadPool, WorksAfterParkingAndWhenLeasedByAnother) {
    tally t;
    run_on_pool(2, tally_thread, &t);
    std::this_thread::sleep_for(std::chrono::milliseconds(50)); // long enough to park
    run_on_pool(2, tally_thread, &t);
    std::vector<std::thread> contexts; // two contexts at once: one of them runs alone
    std::atomic<int> total{0};
    for (int c = 0; c < 3; c++) {
        contexts.emplace_back([&] {
            for (int i = 0; i < 500; i++) {
                tally mine;
                run_on_pool(2, tally_thread, &mine);
                total += mine.calls == mine.num_threads;
            }
        });
    }
    for (auto & c : contexts) c.join();
    EXPECT_EQ(total, 1500);
}

TEST(ThreadPool, IsMadeAnewInAForkedChild) {
#ifdef ALLOY_EMULATED
    GTEST_SKIP() << "qemu 7.2 itself ends when a forked child starts threads (qemu_plugin_vcpu_init_hook)";
#endif
    tally t;
    run_on_pool(2, tally_thread, &t);
    const pid_t child = fork();
    if (child == 0) {
        tally mine;
        run_on_pool(2, tally_thread, &mine);
        _exit(mine.calls == mine.num_threads ? 0 : 1);
    }
    int status = 1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Options, ComplaintNamesKnobValueAndRange) {
    std::string complaint;
    for (const char * bad : {"-1", "1 ", "0x10", "99999999999999999999", "2000000000000"}) {
        setenv("GGML_ALLOY_MEMORY", bad, 1);
        ASSERT_FALSE(read_options(complaint)) << bad;
        EXPECT_NE(complaint.find("GGML_ALLOY_MEMORY"), std::string::npos);
        EXPECT_NE(complaint.find(bad), std::string::npos);
        EXPECT_NE(complaint.find("0-1073741824"), std::string::npos);
    }
    setenv("GGML_ALLOY_MEMORY", "4096", 1);
    setenv("GGML_ALLOY_PLAN", "", 1); // empty: not set
    ASSERT_TRUE(read_options(complaint)) << complaint;
    EXPECT_EQ(number_of(option::memory), 4096u);
    unsetenv("GGML_ALLOY_MEMORY");
    ASSERT_TRUE(read_options(complaint));
    EXPECT_EQ(number_of(option::memory), 0u);
    EXPECT_TRUE(is_on(option::kernels));
}

TEST(Options, EveryIsaTokenIsAKnobValue) {
    for (uint32_t i = 0; i < static_cast<uint32_t>(isa::count); i++) {
        EXPECT_NE(std::string(info_of(option::isa).values).find(isa_name(static_cast<isa>(i))), std::string::npos);
    }
}

TEST(Isa, LimitKeepsWhatTheTokenIncludes) {
    const isa_set everything = ~0u;
    isa_set allowed = 0;
    ASSERT_TRUE(isa_limited_to("avx512", everything, allowed));
    EXPECT_TRUE(isa_has(allowed, isa::avx2));
    EXPECT_TRUE(isa_has(allowed, isa::avx512));
    EXPECT_FALSE(isa_has(allowed, isa::avx512_vnni));
    EXPECT_FALSE(isa_has(allowed, isa::neon));
    EXPECT_FALSE(isa_limited_to("sse9", everything, allowed));
    EXPECT_EQ(isa_list(isa_bit(isa::avx2) | isa_bit(isa::avx512)), "avx2 avx512");
}

TEST(Os, MemoryIsReservedCommittedAndDropped) {
    auto * p = static_cast<char *>(os::allocate(1 << 20));
    ASSERT_NE(p, nullptr);
    p[5] = 1;
    p[100000] = 2;
    EXPECT_TRUE(os::drop_pages(p + 4096, 1 << 18));
    EXPECT_EQ(p[5], 1);
    EXPECT_EQ(p[100000], 0);
    os::release(p, 1 << 20);
    EXPECT_EQ(os::allocate(SIZE_MAX / 4), nullptr);
}

TEST(Os, FileMappingIsFoundAgainByAddress) {
    EXPECT_EQ(os::map_same_file(reinterpret_cast<const void *>(&os::page_bytes), 1).base != nullptr, true); // code is a file mapping
    const std::vector<char> heap(1 << 20, 'x');
    EXPECT_EQ(os::map_same_file(heap.data(), heap.size()).base, nullptr);
}

TEST(Os, MachineFiguresArePlausible) {
    EXPECT_GE(os::usable_cpus(), 1);
    EXPECT_LE(os::available_memory(), os::total_memory());
    EXPECT_GT(os::available_memory(), size_t{1} << 24);
    EXPECT_EQ(os::program_name(), "base_test");
}

TEST(Counters, ArePublishedWithTheirProcess) {
    char folder[] = "/tmp/alloy-counters-XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    setenv("XDG_RUNTIME_DIR", folder, 1);
    count(counter::graphs, 3);
    publish_counters("9.9.9", "avx2");
    count(counter::graphs, 2);
    uncount(counter::graphs, 1);
    std::ifstream file(os::runtime_directory() + "/" + std::to_string(getpid()) + ".counters", std::ios::binary);
    counter_block block;
    ASSERT_TRUE(file.read(reinterpret_cast<char *>(&block), sizeof(block)));
    EXPECT_EQ(std::memcmp(block.magic, "alloyctr", 8), 0);
    EXPECT_EQ(block.process, getpid());
    EXPECT_STREQ(block.host, "9.9.9");
    EXPECT_EQ(block.values[static_cast<int>(counter::graphs)].load(), 4u);
}
