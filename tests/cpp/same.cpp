// forgetscope.hpp is the C functions and nothing else: one training, measured by both side by side, gives the same records
// to the last bit. Also what becomes of handles, of exceptions, and of wrong use.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <forgetscope.hpp>
#include <string>
#include <vector>

namespace fgs = forgetscope;

namespace {

int failed = 0;
void complain(int line, const char* condition) {
    std::fprintf(stderr, "same.cpp:%d: does not hold: %s (latest sentence: %s)\n", line, condition, fgs_last_error());
    ++failed;
}
#define CHECK(condition)                                                                                                \
    do {                                                                                                                \
        if (!(condition)) complain(__LINE__, #condition);                                                               \
    } while (0)

constexpr std::uint32_t ROWS = 6, COLS = 6, HEADS = 2, EXPERTS = 3;

// A model of two tensors, and a "trainer" that gives it the same gradients every time.
struct Model {
    std::vector<float> query = noise(ROWS * COLS, 1), output = noise(ROWS * COLS, 2);
    std::vector<float> query_gradient = noise(ROWS * COLS, 3), output_gradient = noise(ROWS * COLS, 4);

    static std::vector<float> noise(std::size_t count, std::uint32_t seed) {
        std::vector<float> values(count);
        for (float& value : values) {
            seed = seed * 1664525u + 1013904223u;
            value = static_cast<float>(seed >> 9) / static_cast<float>(1 << 22) - 1.0f;
        }
        return values;
    }
    void backward(std::uint32_t seed) {
        query_gradient = noise(ROWS * COLS, seed), output_gradient = noise(ROWS * COLS, seed + 1);
    }
    void update() {
        for (std::size_t i = 0; i < query.size(); ++i)
            query[i] -= 0.1f * query_gradient[i], output[i] -= 0.1f * output_gradient[i];
    }
    double loss() const {
        double sum = 0;
        for (std::size_t i = 0; i < query.size(); ++i) sum += 0.5 * double(query[i]) * query[i] * double(1 + i % 3);
        return sum;
    }
    void loss_gradient() {
        for (std::size_t i = 0; i < query.size(); ++i)
            query_gradient[i] = query[i] * static_cast<float>(1 + i % 3), output_gradient[i] = 0;
    }
};

std::string train_in_c() {
    Model model;
    fgs_options options = FGS_OPTIONS_INIT;
    options.run = "same", options.every = 1, options.threads = 2;
    fgs_scope* scope = nullptr;
    fgs_open(&options, &scope);
    std::int64_t shape[] = {ROWS, COLS};
    const auto dense = [&shape](std::vector<float>& data) {
        return fgs_dltensor{data.data(), {1, 0}, 2, {2, 32, 1}, shape, nullptr, 0};
    };
    std::uint32_t query = 0, output = 0;
    fgs_tensor tensor = FGS_TENSOR_INIT;
    tensor.name = "query", tensor.role = FGS_ROLE_QUERY, tensor.numel = ROWS * COLS, tensor.rows = ROWS, tensor.cols = COLS;
    tensor.layer = 3, tensor.head_count = HEADS;
    fgs_register(scope, &tensor, &query);
    tensor.name = "output", tensor.role = FGS_ROLE_OUTPUT;
    fgs_register(scope, &tensor, &output);
    const auto bind = [&] {
        fgs_dltensor data = dense(model.query_gradient);
        fgs_bind(scope, query, FGS_GRAD, &data);
        data = dense(model.query), fgs_bind(scope, query, FGS_PARAM, &data);
        data = dense(model.output_gradient), fgs_bind(scope, output, FGS_GRAD, &data);
        data = dense(model.output), fgs_bind(scope, output, FGS_PARAM, &data);
    };
    bind();
    for (std::uint32_t t = 0; t < 2; ++t) {
        const char* name = t == 0 ? "first" : "second";
        fgs_task_begin(scope, name);
        for (std::uint32_t step = 0; step < 3; ++step) {
            model.backward(100 * t + step);
            bind();
            fgs_step_begin(scope, 10 * t + step);
            if (step == 2) {
                const fgs_dltensor data = dense(model.query_gradient);
                fgs_gradient_feed(scope, query, &data, nullptr, 0.5, nullptr);
            }
            fgs_gradients_ready(scope, 0.5, 0, nullptr);
            model.update();
            fgs_step_end(scope, step != 1, nullptr);
            fgs_flush(scope);
        }
        fgs_record_loss(scope, name, model.loss());
        fgs_record_eval(scope, name, "accuracy", 0.5, 1);
        for (std::uint32_t batch = 0; batch < 4; ++batch) {
            model.backward(1000 + batch);
            bind();
            fgs_reference_add(scope, name, 16, 1.0, nullptr);
        }
        fgs_probe probe = FGS_PROBE_INIT;
        probe.task = "first";
        fgs_probe_begin(scope, &probe);
        fgs_probe_batch(scope, 2, 4, nullptr, 0);
        std::vector<float> hidden = Model::noise(8 * 6, 77 + t), logits = Model::noise(8 * EXPERTS, 78 + t),
                           keys = Model::noise(2 * 4 * HEADS * 3, 79 + t);
        std::int64_t hidden_shape[] = {8, 6}, logits_shape[] = {8, EXPERTS}, key_shape[] = {2, 4, HEADS, 3};
        const fgs_dltensor h = {hidden.data(), {1, 0}, 2, {2, 32, 1}, hidden_shape, nullptr, 0};
        const fgs_dltensor l = {logits.data(), {1, 0}, 2, {2, 32, 1}, logits_shape, nullptr, 0};
        const fgs_dltensor k = {keys.data(), {1, 0}, 4, {2, 32, 1}, key_shape, nullptr, 0};
        fgs_attention attention = FGS_ATTENTION_INIT;
        attention.query = &k, attention.key = &k, attention.mask = FGS_MASK_CAUSAL;
        fgs_probe_hidden(scope, 3, &h, nullptr);
        fgs_probe_attention(scope, 3, &attention, nullptr);
        fgs_probe_head_output(scope, 3, HEADS, 0, &k, nullptr, nullptr);
        fgs_probe_router(scope, 3, &l, 2, nullptr);
        fgs_probe_end(scope);
        fgs_probe_begin(scope, &probe);
        fgs_probe_abandon(scope);
        fgs_curvature curvature = FGS_CURVATURE_INIT;
        curvature.task = "first", curvature.lanczos_steps = 8, curvature.trace_vectors = 2;
        fgs_curvature_begin(scope, &curvature);
        for (;;) {
            fgs_curvature_request request = FGS_CURVATURE_REQUEST_INIT;
            if (fgs_curvature_next(scope, &request) != FGS_OK || request.want == FGS_CURVATURE_DONE) break;
            model.loss_gradient();
            fgs_curvature_submit(scope, model.loss(), 1.0, nullptr);
        }
        fgs_curvature_end(scope);
        fgs_snapshot(scope, "first", nullptr);
        fgs_task_end(scope);
    }
    fgs_flush(scope);
    const char* path = nullptr;
    fgs_ring_path(scope, &path);
    const std::string copy = path;
    fgs_close(scope);
    return copy;
}

std::string train_in_cpp() {
    Model model;
    fgs::Scope scope = std::move(fgs::Scope::open({.run = "same", .every = 1, .threads = 2}).value);
    const auto query = scope.add(
        {.name = "query", .role = FGS_ROLE_QUERY, .rows = ROWS, .cols = COLS, .layer = 3, .heads = HEADS}).value;
    const auto output = scope.add(
        {.name = "output", .role = FGS_ROLE_OUTPUT, .rows = ROWS, .cols = COLS, .layer = 3, .heads = HEADS}).value;
    const std::initializer_list<std::int64_t> shape = {ROWS, COLS};
    CHECK(scope.bind(query, FGS_PARAM, fgs::View(model.query, shape)));
    CHECK(scope.bind(output, FGS_PARAM, fgs::View(model.output, shape)));
    bool is_bound = false;
    // New vectors in every step: bound once, then said to lie elsewhere.
    const auto bind = [&] {
        if (!std::exchange(is_bound, true)) {
            CHECK(scope.bind(query, FGS_GRAD, fgs::View(model.query_gradient, shape)));
            CHECK(scope.bind(output, FGS_GRAD, fgs::View(model.output_gradient, shape)));
        }
        const std::array<std::uint32_t, 2> ids{query, output};
        const std::array<void*, 2> addresses{model.query_gradient.data(), model.output_gradient.data()};
        CHECK(scope.rebind(FGS_GRAD, ids, addresses));
    };
    bind();
    for (std::uint32_t t = 0; t < 2; ++t) {
        const std::string name = t == 0 ? "first" : "second";
        fgs::Task task = scope.task(name);
        CHECK(task.status());
        for (std::uint32_t i = 0; i < 3; ++i) {
            model.backward(100 * t + i);
            bind();
            fgs::Step step = scope.step(10 * t + i);
            CHECK(step.is_sampled());
            if (i == 2) CHECK(step.feed(query, fgs::View(model.query_gradient, shape), 0.5));
            CHECK(step.gradients_ready(0.5));
            model.update();
            CHECK(step.end(i != 1));
            CHECK(scope.flush());
        }
        CHECK(scope.record_loss(name, model.loss()));
        CHECK(scope.record_eval(name, "accuracy", 0.5, true));
        for (std::uint32_t batch = 0; batch < 4; ++batch) {
            model.backward(1000 + batch);
            bind();
            CHECK(scope.reference_add(name, 16));
        }
        {
            fgs::Probe probe = scope.probe("first");
            CHECK(probe.status() && probe.batch(2, 4));
            const std::vector<float> hidden = Model::noise(8 * 6, 77 + t), logits = Model::noise(8 * EXPERTS, 78 + t),
                                     keys = Model::noise(2 * 4 * HEADS * 3, 79 + t);
            const fgs::View key(keys, {2, 4, HEADS, 3});
            CHECK(probe.hidden(3, fgs::View(hidden, {8, 6})));
            CHECK(probe.attention(3, {.query = key, .key = key, .mask = FGS_MASK_CAUSAL}));
            CHECK(probe.head_output(3, HEADS, key));
            CHECK(probe.router(3, fgs::View(logits, {8, EXPERTS}), 2));
            CHECK(probe.end());
            fgs::Probe left = scope.probe("first");
            CHECK(left.status() && left.abandon() && !left.end());
        }
        fgs_curvature curvature = FGS_CURVATURE_INIT;
        curvature.lanczos_steps = 8, curvature.trace_vectors = 2;
        CHECK(scope.curvature(curvature, "first", [&](bool) {
            model.loss_gradient();
            return model.loss();
        }));
        CHECK(scope.snapshot("first"));
    }
    CHECK(scope.flush());
    return std::string(scope.ring_path());
}

// Everything but times, as text.
std::vector<std::string> records(const std::string& path) {
    fgs::Reader reader = std::move(fgs::Reader::open(path).value);
    std::vector<std::string> lines;
    while (const auto record = reader.next()) {
        std::string line(reader.kind(*record));
        const std::uint64_t ids[] = {record->step, record->level, record->flags, record->task, record->reference,
                                     record->tensor, record->slice};
        for (const std::uint64_t id : ids) line += " " + std::to_string(id);
        for (std::uint32_t i = 0; i < 10; ++i) {
            const std::string_view name = reader.name(FGS_NAME_VALUE, static_cast<std::uint32_t>(record->kind) << 8 | i);
            if (name == "cost_seconds" || name == "elapsed_seconds") continue;
            char text[20];
            std::snprintf(text, sizeof text, " %016llx",
                          static_cast<unsigned long long>(std::bit_cast<std::uint64_t>(record->values[i])));
            line += text;
        }
        lines.push_back(line);
    }
    CHECK(reader.lost() == 0);
    // Probes are evaluated beside everything else: when their records come is not decided by the trainer.
    std::sort(lines.begin(), lines.end());
    return lines;
}

void check_same() {
    const auto in_c = records(train_in_c()), in_cpp = records(train_in_cpp());
    CHECK(in_c.size() > 200);
    CHECK(in_c.size() == in_cpp.size());
    std::size_t different = 0;
    for (std::size_t i = 0; i < std::min(in_c.size(), in_cpp.size()); ++i)
        if (in_c[i] != in_cpp[i] && ++different <= 3)
            std::fprintf(stderr, "C:   %s\nC++: %s\n", in_c[i].c_str(), in_cpp[i].c_str());
    CHECK(different == 0);
}

void check_handles() {
    fgs::Scope empty;
    CHECK(!empty && empty.ring_path().empty());
    CHECK(empty.flush().code() == FGS_ERROR_NULL);
    CHECK(empty.close());

    fgs::Scope scope = std::move(fgs::Scope::open().value), moved = std::move(scope);
    CHECK(!scope && moved);
    scope = std::move(moved);
    CHECK(scope && !moved);
    {
        fgs::Task task = scope.task("a");
        CHECK(task.status());
        CHECK(scope.task("b").status().code() == FGS_ERROR_PHASE);
        fgs::Task owner = std::move(task);
        CHECK(owner.status());
    }
    CHECK(scope.task("b").status());  // the first ended with its block, once
    const fgs::Status closed = scope.close();
    CHECK(closed && !scope);
    CHECK(scope.step(1).status().code() == FGS_ERROR_NULL);

    const auto missing = fgs::Reader::open("/nonexistent/ring");
    CHECK(missing.status.code() == FGS_ERROR_NOT_FOUND && std::string(missing.status.name()) == "FGS_ERROR_NOT_FOUND");
}

void check_views() {
    fgs::Scope scope = std::move(fgs::Scope::open().value);
    const auto id = scope.add({.name = "matrix", .rows = 4, .cols = 3}).value;
    std::vector<double> data(12);
    CHECK(scope.bind(id, FGS_GRAD, fgs::View(data, {4, 3})));
    CHECK(scope.bind(id, FGS_GRAD, fgs::View(data.data(), fgs::float64, {4, 3}, {1, 4})));
    CHECK(scope.bind(id, FGS_GRAD, fgs::View(std::span(data).first(6)), fgs::Shard{.offset = 3}));
    CHECK(scope.unbind(id, FGS_GRAD));
    // A shape that the memory does not have is never read beyond the memory.
    CHECK(scope.bind(id, FGS_GRAD, fgs::View(std::span(data).first(5), {4, 3})).code() == FGS_ERROR_INVALID);
    const fgs::Status many = scope.bind(id, FGS_GRAD, fgs::View(data.data(), fgs::float64, {1, 1, 1, 1, 1, 1, 1, 4, 3}));
    CHECK(many.code() == FGS_ERROR_INVALID);
    CHECK(scope.bind(id, FGS_GRAD, fgs::View(data.data(), fgs::float64, {4, 3}, {1})).code() == FGS_ERROR_INVALID);
}

#if FORGETSCOPE_EXCEPTIONS
void check_exceptions() {
    try {
        (void)fgs::Scope::open({.ring_path = "/nonexistent/ring"}).or_throw();
        CHECK(false);
    } catch (const fgs::Error& error) {
        CHECK(error.code() == FGS_ERROR_RING && std::string(error.what()).find("/nonexistent/ring") != std::string::npos);
    }

    // A trainer's exception leaves everything as it has to be: the step is given up, the parameters are put back.
    Model model;
    fgs::Scope scope = fgs::Scope::open({.every = 1}).or_throw();
    const auto id = scope.add({.name = "query", .rows = ROWS, .cols = COLS}).or_throw();
    scope.bind(id, FGS_GRAD, fgs::View(model.query_gradient)).or_throw();
    scope.bind(id, FGS_PARAM, fgs::View(model.query)).or_throw();
    const std::vector<float> before = model.query;
    int calls = 0;
    bool is_moved = false;
    try {
        auto task = scope.task("a");
        scope.curvature(FGS_CURVATURE_INIT, "a", [&](bool) -> double {
            is_moved = is_moved || model.query != before;
            model.loss_gradient();
            if (++calls == 3) throw std::runtime_error("out of memory");
            return model.loss();
        });
        CHECK(false);
    } catch (const std::runtime_error& error) {
        CHECK(std::string(error.what()) == "out of memory");
    }
    CHECK(is_moved && model.query == before);
    try {
        auto step = scope.step(1);
        CHECK(step.status());
        throw std::runtime_error("lost");
    } catch (const std::runtime_error&) {
    }
    CHECK(scope.step(2).status());
}
#endif

}  // namespace

int main() {
    check_same();
    check_handles();
    check_views();
#if FORGETSCOPE_EXCEPTIONS
    check_exceptions();
#endif
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
