// Pages that stand alone: HTML with its style inside and charts as plain SVG. No script, no network.
#pragma once
#include "statistics.h"

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace alloy::tool {

std::string escape(const std::string & text); // for HTML text and attributes
std::string whole_page(const std::string & title, const std::string & body);
std::string html_table(const std::vector<std::string> & head,
                       const std::vector<std::vector<std::string>> & rows); // cells are plain text
std::string facts_table(const nlohmann::ordered_json & facts);              // name, value; objects one level deep
std::string notes_list(const std::vector<std::string> & notes);

// Every mark carries its data (data-series, data-x, data-value) and tells them when pointed at. Vertical axes begin at 0.
struct chart_point {
    double x = 0, y = 0;
};
struct chart_series {
    std::string name;
    std::vector<chart_point> line;    // joined
    std::vector<chart_point> samples; // dots
};
std::string line_chart(const std::string & title, const std::string & x_name, const std::string & y_name,
                       const std::vector<chart_series> & series);

struct chart_bar {
    std::string name;
    double value = 0;
    interval range; // NaN: none drawn
};
// Lying bars; `mark` draws a line through all of them (1 for ratios). NaN: none.
std::string bar_chart(const std::string & title, const std::string & x_name, const std::vector<chart_bar> & bars, double mark);

} // namespace alloy::tool
