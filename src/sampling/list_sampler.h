// The chains that the host samples with in its graphs (-bs): stages over a list of candidates, which starts as a row of raw logits. Unlike
// `sampler`, stages come in the order of the graph, and what the graph hands out is written: the token drawn, and for each place of the
// list probability, logit and token. Nothing is written that nobody asked for.
#pragma once
#include "kernels/select/rank.h"

#include <cstdint>
#include <span>
#include <vector>

namespace alloy::sampling {

enum class stage_kind : uint8_t {
    biases,              // logits[token] += bias; of several for one token the last counts
    penalties,           // factors and subtractions for tokens that have been there
    top_k,               // the highest k, sorted
    top_p,               // all sorted; -inf behind the first that reaches the share p of the mass
    min_p,               // -inf where logit < highest + ln p
    temperature,         // logits *= factor
    dynamic_temperature, // logits /= base + span * (entropy * entropy_factor) ^ exponent
    first,               // the highest alone (temperature 0)
};

struct stage {
    stage_kind kind;
    int64_t k = 0;
    float p = 1;                                               // of min_p: ln p
    float factor = 1;
    float entropy_factor = 1, exponent = 1, span = 0, base = 1;
    std::span<const float> values = {};                        // biases
    std::span<const int32_t> tokens = {}, counts = {};         // of biases and penalties; counts below 1 are passed over
    float repeat_above = 1, repeat_below = 1;                  // factors of logits above 0, and of others
    float frequency = 0, presence = 0;
};

// How a chain ends.
enum class ending : uint8_t {
    list,   // other samplers go on
    draw,   // the first place whose running sum of probabilities exceeds the uniform; the last that has any if none does
    argmax, // the place of the highest
};

// Null: nobody reads it. Lists have as many places as top-k or `first` left, or the row. None may overlap the row.
struct list_results {
    int32_t * sampled;
    float * probabilities;
    float * logits;
    int32_t * candidates;
};

// Which chains run here: edits first; top-k before other filters; after min-p on a row that nothing sorted no top-p.
bool runs_as_list(std::span<const stage> stages);
// How many places the list has in the end, of a row of n.
int64_t places_after(std::span<const stage> stages, int64_t n);

// The memory of one thread; it grows to the longest row and stays.
class list_sampler {
  public:
    // `uniform` only for `draw`. NaN counts as -inf. A row without a finite highest logit has NaN probabilities, as in the host, and the last
    // place is drawn.
    void run(const float * logits, int64_t n, std::span<const stage> stages, ending end, float uniform, const list_results & out);

  private:
    // `m` values that are left of a list of n, in its order. Those of a sorted list are its beginning.
    struct list {
        const float * values;
        const int32_t * places; // null: the first m
        const int32_t * ids;    // tokens by place; null: places are tokens
        int64_t n, m;
        float highest;
        bool sorted;
    };

    void edit(list & l, const stage & s);
    void measure(list & l, bool with_lanes = false);
    void top_k(list & l, int64_t k);
    void top_p(list & l, float p, int32_t * candidates);
    template <class Fill> int64_t nucleus(const list & l, float share, float p, Fill fill);
    void min_p(list & l, float log_p);
    void scale(list & l, const stage & s, float * direct);
    void first(list & l);
    double weigh(const list & l, float * exps);
    float dynamic_temperature(const list & l, const stage & s);
    void write_list(const list & l, const list_results & out) const;
    void draw(const list & l, float uniform, const list_results & out);
    int64_t place_of_uniform(const float * weights, int64_t m, double share, float uniform) const;

    select_memory memory_, range_;
    std::vector<float> edited_, scaled_, list_values_, weights_;
    std::vector<int32_t> list_ids_, sorted_ids_;
    std::vector<double> sums_;
};

} // namespace alloy::sampling
