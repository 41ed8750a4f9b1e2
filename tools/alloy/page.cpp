#include "page.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

using json = nlohmann::ordered_json;

// Colours that differ in lightness too (Okabe and Ito), alloy's last in every list of sides: the strongest.
constexpr const char * style = R"(
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5c6570; --rule: #d5dae0; --back: #ffffff; --c0: #0072b2; --c1: #56b4e9; --c2: #d55e00; --c3: #009e73; --c4: #cc79a7; --c5: #8a6d00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4af; --rule: #38404a; --back: #14181d; --c0: #5aa9e6; --c1: #9bd3f5; --c2: #ff8c42; --c3: #3ecf9f; --c4: #e3a4c6; --c5: #d8b940; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 1060px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { display: block; max-width: max-content; overflow-x: auto; border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.8em 0; }
th, td { text-align: left; padding: 0.25em 0.9em 0.25em 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td, h1 { overflow-wrap: anywhere; }
@media (max-width: 700px) { td, th { overflow-wrap: normal; font-size: 0.85em; } }
.notes { border-left: 4px solid var(--c2); padding-left: 1em; } .soft { color: var(--soft); }
.charts { display: flex; flex-wrap: wrap; gap: 1em; align-items: flex-start; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; } svg .title { font-weight: 600; font-size: 13px; }
svg .axis { stroke: var(--rule); } svg .mark { stroke: var(--soft); stroke-dasharray: 4 3; } svg .soft { fill: var(--soft); }
svg .line { fill: none; stroke-width: 2; } svg .dot { opacity: 0.45; } svg .whisker { stroke: var(--ink); stroke-width: 1.5; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); } .s3 { stroke: var(--c3); } .s4 { stroke: var(--c4); } .s5 { stroke: var(--c5); }
.f0 { fill: var(--c0); } .f1 { fill: var(--c1); } .f2 { fill: var(--c2); } .f3 { fill: var(--c3); } .f4 { fill: var(--c4); } .f5 { fill: var(--c5); }
details { margin: 1em 0; } summary { cursor: pointer; }
)";
constexpr int num_colours = 6;

struct frame {
    double left = 62, top = 34, width = 420, height = 210;
};

// 1, 2 or 5 times a power of ten, so that about `parts` steps reach `most`.
double step_to(double most, int parts) {
    const double rough = most / parts, power = std::pow(10, std::floor(std::log10(rough)));
    for (const double factor : {1.0, 2.0, 5.0}) {
        if (rough <= factor * power * 1.0001) return factor * power;
    }
    return 10 * power;
}

std::string short_number(double value) {
    if (value == 0) return "0";
    if (std::abs(value) >= 1e5 || std::abs(value) < 1e-3) return fmt::format("{:.3g}", value);
    return fmt::format("{:g}", std::round(value * 1e4) / 1e4);
}

std::string text_at(double x, double y, const std::string & text, const char * anchor, const char * classes = "") {
    return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" class=\"{}\">{}</text>\n", x, y, anchor, classes,
                       escape(text));
}

std::string line_from(double x1, double y1, double x2, double y2, const char * classes) {
    return fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"{}\"/>\n", x1, y1, x2, y2, classes);
}

std::string as_line(const json & value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

struct scale {
    double from = 0, to = 1, first = 0, last = 1; // values, pixels
    double operator()(double value) const {
        return to == from ? (first + last) / 2 : first + (value - from) / (to - from) * (last - first);
    }
};

std::string y_axis(const frame & f, const scale & y, double step) {
    std::string svg;
    for (double value = 0; value <= y.to * 1.0001; value += step) {
        svg += line_from(f.left, y(value), f.left + f.width, y(value), "axis");
        svg += text_at(f.left - 8, y(value) + 4, short_number(value), "end", "soft");
    }
    return svg;
}

std::string dot(const chart_series & series, const chart_point & point, double x, double y, size_t colour, double radius,
                const char * classes) {
    return fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\" class=\"f{} {}\" data-series=\"{}\" data-x=\"{}\" "
                       "data-value=\"{}\"><title>{} at {}: {}</title></circle>\n",
                       x, y, radius, colour, classes, escape(series.name), point.x, point.y, escape(series.name),
                       short_number(point.x), short_number(point.y));
}

std::string drawn_series(const chart_series & series, const scale & x, const scale & y, size_t colour) {
    std::string svg, path;
    for (const chart_point & p : series.samples) svg += dot(series, p, x(p.x), y(p.y), colour, 3, "dot");
    for (const chart_point & p : series.line) path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : " L", x(p.x), y(p.y));
    svg += fmt::format("<path d=\"{}\" class=\"line s{}\"/>\n", path, colour);
    for (const chart_point & p : series.line) svg += dot(series, p, x(p.x), y(p.y), colour, 4, "middle");
    return svg;
}

} // namespace

std::string escape(const std::string & text) {
    std::string safe;
    for (const char c : text) {
        switch (c) {
        case '&': safe += "&amp;"; break;
        case '<': safe += "&lt;"; break;
        case '>': safe += "&gt;"; break;
        case '"': safe += "&quot;"; break;
        default: safe += static_cast<unsigned char>(c) < 32 && c != '\n' && c != '\t' ? ' ' : c;
        }
    }
    return safe;
}

std::string whole_page(const std::string & title, const std::string & body) {
    return fmt::format("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                       "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
                       "<meta name=\"viewport\" "
                       "content=\"width=device-width\">\n<title>{0}</title>\n<style>{1}</style>\n</head>\n<body>\n<h1>{0}</"
                       "h1>\n{2}</body>\n</html>\n",
                       escape(title), style, body);
}

std::string html_table(const std::vector<std::string> & head, const std::vector<std::vector<std::string>> & rows) {
    std::string html = "<table>\n<tr>";
    for (const std::string & cell : head) html += "<th>" + escape(cell) + "</th>";
    html += "</tr>\n";
    for (const auto & row : rows) {
        html += "<tr>";
        for (const std::string & cell : row) html += "<td>" + escape(cell) + "</td>";
        html += "</tr>\n";
    }
    return html + "</table>\n";
}

std::string facts_table(const json & facts) {
    std::vector<std::vector<std::string>> rows;
    for (const auto & [name, value] : facts.items()) {
        std::string text;
        if (value.is_object()) {
            for (const auto & [part, of_part] : value.items())
                text += fmt::format("{}{}: {}", text.empty() ? "" : " · ", part, as_line(of_part));
        } else if (value.is_array()) {
            for (const json & word : value) text += (text.empty() ? "" : " ") + as_line(word);
        } else {
            text = as_line(value);
        }
        if (!text.empty()) rows.push_back({name, text});
    }
    return html_table({"", ""}, rows);
}

std::string notes_list(const std::vector<std::string> & notes) {
    if (notes.empty()) return {};
    std::string html = "<ul class=\"notes\">\n";
    for (const std::string & note : notes) html += "<li>" + escape(note) + "</li>\n";
    return html + "</ul>\n";
}

std::string line_chart(const std::string & title, const std::string & x_name, const std::string & y_name,
                       const std::vector<chart_series> & series) {
    const frame f;
    double most = 0;
    std::vector<double> places;
    for (const chart_series & one : series) {
        for (const auto * points : {&one.line, &one.samples}) {
            for (const chart_point & p : *points) {
                most = std::max(most, p.y);
                places.push_back(p.x);
            }
        }
    }
    if (most <= 0 || places.empty()) return {};
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    const double step = step_to(most, 5);
    const scale y{0, step * std::ceil(most / step * 0.9999), f.top + f.height, f.top};
    const scale x{places.front(), places.back(), f.left + 18, f.left + f.width - 18};
    const double legend = f.top + f.height + 56, bottom = legend + 18 * static_cast<double>(series.size());
    std::string svg = fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 500 {0:.0f}\" width=\"500\" "
                                  "height=\"{0:.0f}\" role=\"img\" aria-label=\"{1}\">\n",
                                  bottom, escape(title));
    svg += text_at(f.left, 16, title + ", " + y_name, "start", "title") + y_axis(f, y, step);
    double last = -1e9;
    for (const double place : places) {
        if (x(place) - last < 34) continue; // no room for its number
        svg += text_at(x(place), f.top + f.height + 18, short_number(place), "middle", "soft");
        last = x(place);
    }
    svg += text_at(f.left + f.width / 2, f.top + f.height + 36, x_name, "middle", "soft");
    for (size_t i = 0; i < series.size(); i++) {
        svg += drawn_series(series[i], x, y, i % num_colours);
        const double at = legend + 18 * static_cast<double>(i);
        svg += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"12\" height=\"12\" class=\"f{}\"/>\n", f.left, at - 10,
                           i % num_colours);
        svg += text_at(f.left + 18, at, series[i].name, "start");
    }
    return svg + "</svg>\n";
}

std::string bar_chart(const std::string & title, const std::string & x_name, const std::vector<chart_bar> & bars, double mark) {
    constexpr double left = 190, width = 290, top = 34, row = 24;
    double most = std::isfinite(mark) ? mark : 0;
    for (const chart_bar & bar : bars) most = std::max(most, bar.value);
    const double room = 3 * most; // a wild range is cut off instead of flattening every bar
    for (const chart_bar & bar : bars) most = std::max(most, std::isfinite(bar.range.high) ? std::min(bar.range.high, room) : 0);
    if (most <= 0) return {};
    const double step = step_to(most, 5);
    const scale x{0, step * std::ceil(most / step * 0.9999), left, left + width};
    const double bottom = top + row * static_cast<double>(bars.size());
    std::string svg = fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 500 {0:.0f}\" width=\"500\" "
                                  "height=\"{0:.0f}\" role=\"img\" aria-label=\"{1}\">\n",
                                  bottom + 44, escape(title));
    svg += text_at(8, 16, title, "start", "title");
    for (double value = 0; value <= x.to * 1.0001; value += step) {
        svg += line_from(x(value), top - 4, x(value), bottom, "axis");
        svg += text_at(x(value), bottom + 16, short_number(value), "middle", "soft");
    }
    for (size_t i = 0; i < bars.size(); i++) {
        const chart_bar & bar = bars[i];
        const double y = top + row * static_cast<double>(i), middle = y + row / 2 - 2;
        const bool has_range = std::isfinite(bar.range.low) && std::isfinite(bar.range.high);
        const std::string told =
            fmt::format("{}: {}{}", bar.name, short_number(bar.value),
                        has_range ? fmt::format(" [{} .. {}]", short_number(bar.range.low), short_number(bar.range.high)) : "");
        svg += text_at(left - 8, middle + 4, bar.name, "end");
        svg += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" class=\"bar f{}\" "
                           "data-series=\"{}\" data-value=\"{}\"><title>{}</title></rect>\n",
                           left, y + 3, std::max(0.0, x(bar.value) - left), row - 10, i % num_colours, escape(bar.name),
                           bar.value, escape(told));
        if (has_range)
            svg += line_from(x(std::min(bar.range.low, x.to)), middle, x(std::min(bar.range.high, x.to)), middle, "whisker");
    }
    if (std::isfinite(mark)) svg += line_from(x(mark), top - 6, x(mark), bottom, "mark");
    return svg + text_at(left + width / 2, bottom + 34, x_name, "middle", "soft") + "</svg>\n";
}

} // namespace alloy::tool
