// What every family test does with its list: one test instance a row, skipped where the CPU lacks the instructions, and checks
// of the list and the selector themselves.
#pragma once
#include "support/listed.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <string>

namespace alloy::test {

template <class Row> class kernel_test : public testing::TestWithParam<Row> {
  protected:
    void SetUp() override {
        const isa token = this->GetParam().token;
        if (!isa_has(isa_of_cpu(), token)) GTEST_SKIP() << "this CPU has no " << isa_name(token);
    }
};

template <class Row> std::string row_name(const testing::TestParamInfo<Row> & info) { return info.param.name; }

// A run in which all rows are skipped is no test.
template <class Row, size_t n> void expect_runnable_row(const Row (&list)[n]) {
    size_t runnable = 0;
    for (const Row & row : list) runnable += isa_has(isa_of_cpu(), row.token);
    EXPECT_GT(runnable, 0u);
}

// find(op, allowed) takes any set of ISAs, so this test can pretend to be every CPU: it must give the first row allowed.
template <class Row, size_t n, class Find> void expect_selector(const Row (&list)[n], Find find) {
    constexpr isa_set sets = isa_bit(isa::count);
    for (const Row & asked : list) {
        for (isa_set allowed = 0; allowed < sets; allowed++) {
            const Row * first = nullptr;
            for (const Row & row : list) {
                if (!first && row.op == asked.op && isa_has(allowed, row.token)) first = &row;
            }
            ASSERT_EQ(first ? first->run : nullptr, find(asked.op, allowed)) << asked.name << " with " << isa_list(allowed);
        }
    }
}

} // namespace alloy::test
