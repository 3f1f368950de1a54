// The emulation's own test: kernels whose results are known, and kernels with a bug that has to be reported.
//
//     self_test             runs the first kind
//     self_test NAME        runs one of kernels/faults.cu, which has to end this process
//     self_test race        prints whether a kernel that lacks a barrier gave the right result
//     self_test speed       prints how long a wait takes

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "crash.h"
#include "grid.h"

using emulation::Kernel;

namespace {

void expect(bool holds, const char* what, int line) {
    if (holds) return;
    fprintf(stderr, "self_test.cpp:%d: %s\n", line, what);
    exit(1);
}
#define EXPECT(condition) expect(condition, #condition, __LINE__)

template <typename Params>
void launch(const char* name, unsigned blocks, emulation::Dim3 threads, size_t shared, const Params& params) {
    const Kernel* kernel = Kernel::find(name);
    if (kernel == nullptr) {
        fprintf(stderr, "no kernel %s\n", name);
        exit(2);
    }
    EXPECT(kernel->param_bytes == sizeof params);
    emulation::run(*kernel, {blocks, 1, 1}, threads, shared, &params);
}

struct SumParams {
    const float* values;
    unsigned long long count;
    double* sum;
    unsigned* blocks_done;
};

void sums() {
    std::vector<float> values(100003);
    double expected = 0;
    for (size_t i = 0; i < values.size(); i++) {
        values[i] = 1.0f / static_cast<float>(i + 1);
        expected += static_cast<double>(values[i]);
    }
    for (unsigned threads : {32u, 64u, 256u}) {
        double sum = 0;
        unsigned done = 0;
        launch("test_sum", 13, {threads, 1, 1}, threads / 32 * sizeof(double),
               SumParams{values.data(), values.size(), &sum, &done});
        // 1e5 additions, each with a relative error of at most 2^-53.
        EXPECT(std::abs(sum - expected) <= expected * 1e5 * 0x1p-53);
        EXPECT(done == 13);
    }
}

void warps() {
    struct {
        unsigned* out;
    } params;
    std::vector<unsigned> out(128 * 16);
    params.out = out.data();
    launch("test_warp", 1, {64, 2, 1}, 0, params);
    for (unsigned thread = 0; thread < 128; thread++) {
        const unsigned lane = thread % 32, first = thread - lane, eighth = lane & ~7u;
        const unsigned* got = &out[thread * 16];
        unsigned highest = 0, lowest = ~0u;
        for (unsigned other = first; other < first + 32; other++) {
            highest = (other ^ 21) > highest ? other ^ 21 : highest;
            lowest = (other ^ 21) < lowest ? other ^ 21 : lowest;
        }
        EXPECT(got[0] == first + 5);
        EXPECT(got[1] == (lane >= 3 ? thread - 3 : thread));
        EXPECT(got[2] == (lane + 3 < 32 ? thread + 3 : thread));
        EXPECT(got[3] == (thread ^ 7));
        EXPECT(got[4] == first + eighth + 1);
        EXPECT(got[5] == (lane - eighth + 3 < 8 ? thread + 3 : thread));
        EXPECT(got[6] == 0x49249249u);
        EXPECT(got[7] == 31 * 32 / 2);
        EXPECT(got[8] == highest);
        EXPECT(got[9] == lowest);
        EXPECT(got[10] == 1);
        EXPECT(got[11] == first + 2);
        EXPECT(got[12] == (thread ^ 1));
        EXPECT(got[13] == (lane < 16 ? 16u : 32u));
        EXPECT(got[14] == (lane ^ 16));
        float last;
        memcpy(&last, got + 15, sizeof last);
        EXPECT(last == static_cast<float>(first + 31));
    }
}

void rings() {
    struct {
        unsigned* out;
        unsigned rounds;
    } params;
    std::vector<unsigned> out(3 * 1000);
    params = {out.data(), 17};
    launch("test_ring", 3, {1000, 1, 1}, 0, params);
    for (unsigned i = 0; i < out.size(); i++) EXPECT(out[i] == (i % 1000 + 1000 - 17) % 1000);
}

void histograms() {
    struct {
        const void* values;
        unsigned count;
        unsigned* histogram;
    } params;
    alignas(16) static unsigned values[4 * 999];
    std::vector<unsigned> histogram(256), expected(256);
    for (unsigned i = 0; i < 4 * 999; i++) {
        values[i] = i * 2654435761u >> 7;
        expected[values[i] & 255] += 2;
    }
    params = {values, 999, histogram.data()};
    launch("test_histogram", 2, {128, 1, 1}, 256 * sizeof(unsigned), params);
    EXPECT(histogram == expected);
}

void rounding() {
    struct {
        float x, y, z;
        float* out;
    } params;
    float out[5];
    const float x = 1 + 0x1p-12f, y = x;
    params = {x, y, -1 - 0x1p-11f, out};
    launch("test_rounding", 1, {1, 1, 1}, 0, params);
    EXPECT(out[0] == 0);          // the product's 2^-24 is rounded away before the sum
    EXPECT(out[1] == 0x1p-24f);   // fmaf keeps it
    EXPECT(out[2] == 1);
    unsigned permuted;
    memcpy(&permuted, out + 4, sizeof permuted);
    EXPECT(permuted == 0xff776611u);  // the sign of 80, then bytes 7, 6 and 1
    EXPECT(out[3] == 0x1.8p-148f);  // 3 * 2^-149; half of the least denormal rounds to 0
}

struct FaultParams {
    unsigned* out;
    unsigned n;
};

void race() {
    std::vector<unsigned> out(64);
    launch("race_without_barrier", 1, {64, 1, 1}, 64 * sizeof(unsigned), FaultParams{out.data(), 64});
    bool right = true;
    for (unsigned i = 0; i < 64; i++) right &= out[i] == (i == 0 ? 0 : i - 1);
    puts(right ? "right" : "wrong");
}

void speed() {
    std::vector<unsigned> out(1024 * 16);
    struct {
        unsigned* out;
        unsigned rounds;
    } params{out.data(), 100};
    const auto begin = std::chrono::steady_clock::now();
    launch("test_ring", 16, {1024, 1, 1}, 0, params);
    const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - begin;
    printf("%.1f ns a barrier and thread\n", time.count() / (16 * 1024 * 200.0));

    std::vector<float> values(1 << 20, 1.0f);
    double sum = 0;
    unsigned done = 0;
    const auto second = std::chrono::steady_clock::now();
    launch("test_sum", 16, {256, 1, 1}, 64, SumParams{values.data(), values.size(), &sum, &done});
    const std::chrono::duration<double, std::milli> reduction = std::chrono::steady_clock::now() - second;
    printf("%.2f ms for the sum of 2^20 floats\n", reduction.count());
}

}  // namespace

int main(int count, char** arguments) {
    emulation::report_crashes();
    emulation::give_signal_stack();
    if (count == 2 && strcmp(arguments[1], "race") == 0) {
        race();
    } else if (count == 2 && strcmp(arguments[1], "speed") == 0) {
        speed();
    } else if (count == 2) {
        std::vector<unsigned> out(64 * 16);
        const unsigned threads = strcmp(arguments[1], "fault_lane_absent") == 0 ? 48 : 64;
        launch(arguments[1], 1, {threads, 1, 1}, 64 * sizeof(unsigned), FaultParams{out.data(), 64});
        puts("not reported");
    } else {
        sums();
        warps();
        rings();
        histograms();
        rounding();
        puts("ok");
    }
    return 0;
}
