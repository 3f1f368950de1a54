// Figures of the bench: medians of repeated runs with their range, printed as they come and written as JSON.
#pragma once

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

// Repeated measurements of one thing.
struct Samples {
    std::vector<double> values;

    double median() const { return at(0.5); }
    // Of the measurements, not of the median: a tenth are below, a tenth above.
    double low() const { return at(0.1); }
    double high() const { return at(0.9); }

    // What becomes of each measurement under a function, such as a bandwidth of a time.
    template <typename F> Samples map(F function) const {
        Samples mapped;
        for (double value : values) mapped.values.push_back(function(value));
        return mapped;
    }

private:
    double at(double share) const {
        std::vector<double> sorted = values;
        std::sort(sorted.begin(), sorted.end());
        return sorted.at(static_cast<std::size_t>(share * static_cast<double>(sorted.size() - 1) + 0.5));
    }
};

class Report {
public:
    void add(const std::string& name, const Samples& samples, const char* unit) {
        std::printf("%-64s %12.4g %-6s (%.4g to %.4g, n = %zu)\n", name.c_str(), samples.median(), unit, samples.low(),
                    samples.high(), samples.values.size());
        std::fflush(stdout);
        char line[512];
        std::snprintf(line, sizeof line,
                      "{\"name\": \"%s\", \"value\": %.6g, \"low\": %.6g, \"high\": %.6g, \"runs\": %zu, \"unit\": \"%s\"}",
                      name.c_str(), samples.median(), samples.low(), samples.high(), samples.values.size(), unit);
        lines_.push_back(line);
    }

    // Said aloud, and no figure.
    void skip(const std::string& name, const std::string& why) {
        std::printf("%-64s skipped: %s\n", name.c_str(), why.c_str());
        lines_.push_back("{\"name\": \"" + name + "\", \"skipped\": \"" + why + "\"}");
    }

    void write(const std::string& path, const std::string& device, int driver, bool quick) const {
        std::ofstream file(path);
        file << "{\"device\": \"" << device << "\", \"driver\": " << driver << ", \"quick\": " << (quick ? "true" : "false")
             << ", \"figures\": [\n";
        for (std::size_t i = 0; i < lines_.size(); i++) file << (i ? ",\n  " : "  ") << lines_[i];
        file << "\n]}\n";
        if (!file.flush()) throw std::runtime_error("cannot write " + path);
    }

private:
    std::vector<std::string> lines_;
};
