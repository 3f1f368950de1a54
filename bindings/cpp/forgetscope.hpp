// forgetscope for C++20: what forgetscope.h offers, with handles that close themselves, std::span for memory and designated
// initialisers for descriptions. Header only; every call is the C call of the same name and costs the same.
// SPDX-License-Identifier: MIT OR Apache-2.0
//
//     using namespace forgetscope;
//     Scope scope = Scope::open({.run = "legal"}).or_throw();   // or .value: what failed refuses all calls, training goes on
//     auto id = scope.add({.name = "h.0.attn.qkv", .role = FGS_ROLE_QKV, .rows = 2304, .cols = 768, .layer = 0, .heads = 12});
//     scope.bind(id.value, FGS_GRAD, View(gradient));           // gradient: std::span<float>, any memory of the trainer's
//     scope.bind(id.value, FGS_PARAM, View(weights));
//     auto task = scope.task("legal");                          // ends with the block
//     for (...) {
//         auto step = scope.step(number);
//         step.gradients_ready(clip);                           // gradients final, clip still to be applied
//         optimizer.step();
//         step.end();
//     }
//
// Exceptions. Nothing throws but `or_throw()`, which does not exist where exceptions are turned off (-fno-exceptions, or
//             FORGETSCOPE_EXCEPTIONS defined as 0). Calls return a Status that may be ignored: what failed did nothing.
// Ownership.  Scope and Reader own their handle, and can be moved but not copied. Task, Step and Probe belong to a Scope that
//             must outlive them and stay where it is. Memory behind a View stays the trainer's; a View is read when the
//             header of the C function says so, and the View itself may go as soon as the call is over.
// Threads.    As in forgetscope.h: one scope may be used from any thread, a Reader from one at a time.
#pragma once

#include <forgetscope.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <ranges>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#ifndef FORGETSCOPE_EXCEPTIONS
#ifdef __cpp_exceptions
#define FORGETSCOPE_EXCEPTIONS 1
#else
#define FORGETSCOPE_EXCEPTIONS 0
#endif
#endif
#if FORGETSCOPE_EXCEPTIONS
#include <stdexcept>
#endif

namespace forgetscope {

// ---- outcomes ----

#if FORGETSCOPE_EXCEPTIONS
class Error : public std::runtime_error {
public:
    Error(fgs_status code, const char* sentence) : std::runtime_error(sentence), code_(code) {}
    fgs_status code() const noexcept { return code_; }

private:
    fgs_status code_;
};
#endif

// What a call came to. Converts to true unless it failed.
class Status {
public:
    Status(fgs_status code = FGS_OK) noexcept : code_(code) {}
    fgs_status code() const noexcept { return code_; }
    bool ok() const noexcept { return code_ >= FGS_OK; }
    explicit operator bool() const noexcept { return ok(); }
    // "FGS_ERROR_PHASE"
    const char* name() const noexcept { return fgs_status_name(code_); }
    // Why the latest failed call of this thread failed: to be asked for before the next one.
    const char* message() const noexcept { return ok() ? "" : fgs_last_error(); }
#if FORGETSCOPE_EXCEPTIONS
    // Right after the call: the exception takes its sentence from it.
    void or_throw() const {
        if (!ok()) throw Error(code_, message());
    }
#endif

private:
    fgs_status code_;
};

// A value and how it was come by. After a failure the value is the empty one of its type.
template <class T>
struct Result {
    T value;
    Status status;

    explicit operator bool() const noexcept { return status.ok(); }
#if FORGETSCOPE_EXCEPTIONS
    T or_throw() && {
        status.or_throw();
        return std::move(value);
    }
    const T& or_throw() const& {
        status.or_throw();
        return value;
    }
#endif
};

// ---- memory ----

struct DType {
    std::uint8_t code, bits;
};
inline constexpr DType float64{2, 64}, float32{2, 32}, float16{2, 16}, bfloat16{4, 16}, float8_e4m3fn{10, 8}, float8_e5m2{12, 8};

// The type of a C++ type. To be specialised for types of 16 and 8 bits, such as __nv_bfloat16.
template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
    static constexpr DType value = float32;
};
template <>
struct dtype_of<double> {
    static constexpr DType value = float64;
};

// Where memory lies. Device memory is never touched by this header.
struct Place {
    std::int32_t type = 1, id = 0;
};
inline constexpr Place host{};
constexpr Place cuda(std::int32_t ordinal) noexcept { return {2, ordinal}; }

// Memory whose elements outlive the expression that names it.
template <class Range>
concept Elements = std::ranges::contiguous_range<Range> && std::ranges::sized_range<Range> &&
                   std::ranges::borrowed_range<Range> && requires { dtype_of<std::ranges::range_value_t<Range>>::value; };

// A tensor in memory of the trainer's: shape and strides are kept here, elements are not.
class View {
public:
    static constexpr std::size_t max_dims = 8;

    // All of the memory in a row: a std::span, or a vector or array that is not a temporary.
    template <Elements Range>
    explicit View(Range&& data, Place place = host) noexcept
        : View(std::ranges::data(data), dtype_of<std::ranges::range_value_t<Range>>::value,
               {static_cast<std::int64_t>(std::ranges::size(data))}, {}, place) {}

    // The memory in another shape, row-major. A shape of another size reads nothing: the call that gets it refuses it.
    template <Elements Range>
    View(Range&& data, std::initializer_list<std::int64_t> shape, Place place = host) noexcept : View(data, place) {
        std::int64_t count = 1;
        for (std::int64_t length : shape) count *= length;
        if (shape.size() <= max_dims && count == shape_[0]) set(shape_, shape);
        else dims_ = -1;
    }

    // Anything: `strides` in elements, empty for row-major. At most eight dimensions; more are refused by the call.
    View(const void* data, DType type, std::initializer_list<std::int64_t> shape,
         std::initializer_list<std::int64_t> strides = {}, Place place = host) noexcept
        : data_(const_cast<void*>(data)), type_(type), place_(place) {
        const bool fits = shape.size() <= max_dims && (strides.size() == 0 || strides.size() == shape.size());
        if (fits) set(shape_, shape);
        else dims_ = -1;
        is_strided_ = fits && strides.size() > 0;
        std::size_t i = 0;
        if (is_strided_)
            for (std::int64_t stride : strides) strides_[i++] = stride;
    }

    // The same for C; points into this view.
    fgs_dltensor c() const noexcept {
        fgs_dltensor tensor{};
        tensor.data = data_;
        tensor.device.device_type = decltype(tensor.device.device_type)(place_.type);
        tensor.device.device_id = place_.id;
        tensor.ndim = dims_;
        tensor.dtype.code = type_.code;
        tensor.dtype.bits = type_.bits;
        tensor.dtype.lanes = 1;
        tensor.shape = const_cast<std::int64_t*>(shape_.data());
        tensor.strides = is_strided_ ? const_cast<std::int64_t*>(strides_.data()) : nullptr;
        return tensor;
    }

private:
    void set(std::array<std::int64_t, max_dims>& to, std::initializer_list<std::int64_t> values) noexcept {
        dims_ = 0;
        for (std::int64_t value : values) to[static_cast<std::size_t>(dims_++)] = value;
    }

    void* data_;
    DType type_;
    Place place_;
    std::int32_t dims_ = 0;
    bool is_strided_ = false;
    std::array<std::int64_t, max_dims> shape_{}, strides_{};
};

// ---- descriptions ----

// What is not set keeps its default, or what FGS_CONFIG and FGS_* variables say: see fgs_options.
struct Options {
    std::string run{}, ring_path{}, include{}, exclude{};
    std::optional<std::uint64_t> ring_slots{}, every{}, start_step{}, end_step{}, budget_bytes{};
    std::optional<double> reference_budget{};
    std::optional<std::uint32_t> threads{}, rank{}, world_size{}, sketch_head{}, sketch_matrix{}, window{};

    // Points into these options.
    fgs_options c() const noexcept {
        const auto text = [](const std::string& s) { return s.empty() ? nullptr : s.c_str(); };
        fgs_options o = FGS_OPTIONS_INIT;
        o.run = text(run), o.ring_path = text(ring_path), o.include = text(include), o.exclude = text(exclude);
        o.ring_slots = ring_slots.value_or(o.ring_slots), o.every = every.value_or(o.every);
        o.start_step = start_step.value_or(o.start_step), o.end_step = end_step.value_or(o.end_step);
        o.budget_bytes = budget_bytes.value_or(o.budget_bytes);
        o.reference_budget = reference_budget.value_or(o.reference_budget);
        o.threads = threads.value_or(o.threads), o.rank = rank.value_or(o.rank);
        o.world_size = world_size.value_or(o.world_size), o.sketch_head = sketch_head.value_or(o.sketch_head);
        o.sketch_matrix = sketch_matrix.value_or(o.sketch_matrix), o.window = window.value_or(o.window);
        return o;
    }
};

// A tensor of the model as it is without sharding: see fgs_tensor. `numel` 0: rows · cols.
struct Tensor {
    std::string name{};
    fgs_role role = FGS_ROLE_OTHER;
    std::uint64_t numel = 0, rows = 0, cols = 0;
    std::int32_t layer = -1, expert = -1;
    std::uint32_t group = 0;
    fgs_head_layout head_layout = FGS_HEADS_AUTO;
    std::optional<std::uint32_t> head_axis{};
    std::uint32_t heads = 0, kv_heads = 0, head_offset = 0, kv_head_offset = 0;
    std::uint32_t flags = 0, replica = 0;
    std::optional<std::uint32_t> tied_to{};
    std::uint32_t layer_count = 1;

    // Points into this description.
    fgs_tensor c() const noexcept {
        fgs_tensor t = FGS_TENSOR_INIT;
        t.name = name.c_str(), t.numel = numel == 0 ? rows * cols : numel, t.rows = rows, t.cols = cols;
        t.role = role, t.layer = layer, t.expert = expert, t.group = group;
        t.head_layout = head_layout, t.head_axis = head_axis.value_or(t.head_axis);
        t.head_count = heads, t.kv_head_count = kv_heads;
        t.head_offset = head_offset, t.kv_head_offset = kv_head_offset;
        t.flags = flags | (tied_to ? static_cast<std::uint32_t>(FGS_TENSOR_TIED) : 0u), t.replica = replica;
        t.tied_to = tied_to.value_or(t.tied_to), t.layer_count = layer_count;
        return t;
    }
};

// Which elements of the unsharded tensor local data is: see fgs_shard.
struct Shard {
    std::uint64_t offset = 0, run_length = 0, run_step = 0, run_count = 0;

    fgs_shard c() const noexcept {
        fgs_shard s = FGS_SHARD_INIT;
        s.offset = offset, s.run_length = run_length, s.run_step = run_step, s.run_count = run_count;
        return s;
    }
};

// Attention of a layer, either its probabilities or queries and keys: see fgs_attention.
struct Attention {
    std::optional<View> probabilities{}, query{}, key{}, log_sum_exp{};
    double scale = 0.0, softcap = 0.0;
    fgs_mask mask = FGS_MASK_NONE;
    std::uint32_t window = 0, first_head = 0;
};

// ---- what belongs to a scope ----

namespace detail {

// Views and strings as C takes them, for the length of a call.
struct Optional {
    explicit Optional(const std::optional<View>& view) noexcept : tensor(view ? view->c() : fgs_dltensor{}), is_set(view) {}
    const fgs_dltensor* c() const noexcept { return is_set ? &tensor : nullptr; }
    fgs_dltensor tensor;
    bool is_set;
};
struct OptionalShard {
    explicit OptionalShard(const std::optional<Shard>& shard) noexcept : value(shard.value_or(Shard{}).c()), is_set(shard) {}
    const fgs_shard* c() const noexcept { return is_set ? &value : nullptr; }
    fgs_shard value;
    bool is_set;
};

}  // namespace detail

// A task being trained; ends with the block unless end() was called. Its ending takes a snapshot of bound parameters.
class [[nodiscard]] Task {
public:
    Task(fgs_scope* scope, const char* name) noexcept : scope_(scope), status_(fgs_task_begin(scope, name)) {
        if (!status_) scope_ = nullptr;
    }
    Task(Task&& other) noexcept : scope_(std::exchange(other.scope_, nullptr)), status_(other.status_) {}
    Task& operator=(Task&&) = delete;
    ~Task() { end(); }

    // Whether it began.
    Status status() const noexcept { return status_; }
    Status end() noexcept { return scope_ ? Status(fgs_task_end(std::exchange(scope_, nullptr))) : Status(); }

private:
    fgs_scope* scope_;
    Status status_;
};

// An optimizer step. One that is not ended, since an exception left its block, is given up and counted by the next.
class [[nodiscard]] Step {
public:
    Step(fgs_scope* scope, std::uint64_t number) noexcept : scope_(scope), status_(fgs_step_begin(scope, number)) {}

    // Whether it began.
    Status status() const noexcept { return status_; }
    // Something is measured in this step. What is done for forgetscope alone may be left out otherwise.
    bool is_sampled() const noexcept {
        std::int32_t sampled = 0;
        fgs_step_sampled(scope_, &sampled);
        return sampled != 0;
    }
    Status feed(std::uint32_t id, const View& gradient, double scale = 1.0, void* stream = nullptr,
                const std::optional<Shard>& shard = {}) noexcept {
        const fgs_dltensor tensor = gradient.c();
        return fgs_gradient_feed(scope_, id, &tensor, detail::OptionalShard(shard).c(), scale, stream);
    }
    Status gradients_ready(double scale = 1.0, void* stream = nullptr, std::uint32_t flags = 0) noexcept {
        return fgs_gradients_ready(scope_, scale, flags, stream);
    }
    Status end(bool applied = true, void* stream = nullptr) noexcept { return fgs_step_end(scope_, applied, stream); }

private:
    fgs_scope* scope_;
    Status status_;
};

// A pass over a task's probe. One that is not ended, since an exception left its block, is given up by whatever begins next: a
// step, a task or a pass; abandon() does so at once.
class [[nodiscard]] Probe {
public:
    Probe(fgs_scope* scope, const fgs_probe& probe) noexcept : scope_(scope), status_(fgs_probe_begin(scope, &probe)) {}

    // Whether it began.
    Status status() const noexcept { return status_; }
    Status batch(std::uint64_t sequences, std::uint64_t length, std::span<const std::int32_t> labels = {}) noexcept {
        return fgs_probe_batch(scope_, sequences, length, labels.data(), labels.size());
    }
    Status hidden(std::uint32_t layer, const View& states, void* stream = nullptr) noexcept {
        const fgs_dltensor tensor = states.c();
        return fgs_probe_hidden(scope_, layer, &tensor, stream);
    }
    Status attention(std::uint32_t layer, const Attention& attention, void* stream = nullptr) noexcept {
        const detail::Optional probabilities(attention.probabilities), query(attention.query), key(attention.key),
            log_sum_exp(attention.log_sum_exp);
        fgs_attention a = FGS_ATTENTION_INIT;
        a.probabilities = probabilities.c(), a.query = query.c(), a.key = key.c(), a.log_sum_exp = log_sum_exp.c();
        a.scale = attention.scale, a.softcap = attention.softcap, a.mask = attention.mask;
        a.window = attention.window, a.first_head = attention.first_head;
        return fgs_probe_attention(scope_, layer, &a, stream);
    }
    Status head_output(std::uint32_t layer, std::uint32_t heads, const View& outputs,
                       const std::optional<View>& projection = {}, void* stream = nullptr,
                       std::uint32_t first_head = 0) noexcept {
        const fgs_dltensor tensor = outputs.c();
        return fgs_probe_head_output(scope_, layer, heads, first_head, &tensor, detail::Optional(projection).c(), stream);
    }
    Status router(std::uint32_t layer, const View& logits, std::uint32_t top_k, void* stream = nullptr) noexcept {
        const fgs_dltensor tensor = logits.c();
        return fgs_probe_router(scope_, layer, &tensor, top_k, stream);
    }
    Status end() noexcept { return fgs_probe_end(scope_); }
    Status abandon() noexcept { return fgs_probe_abandon(scope_); }

private:
    fgs_scope* scope_;
    Status status_;
};

// ---- scope ----

// An open instrument; closes itself. An empty one refuses every call with FGS_ERROR_NULL.
class Scope {
public:
    Scope() = default;
    Scope(Scope&& other) noexcept : scope_(std::exchange(other.scope_, nullptr)) {}
    Scope& operator=(Scope&& other) noexcept {
        if (this != &other) close(), scope_ = std::exchange(other.scope_, nullptr);
        return *this;
    }
    ~Scope() { close(); }

    static Result<Scope> open(const Options& options = {}) {
        const fgs_options o = options.c();
        Scope scope;
        const Status status = fgs_open(&o, &scope.scope_);
        return {std::move(scope), status};
    }
    Status close() noexcept { return fgs_close(std::exchange(scope_, nullptr)); }
    Status flush() noexcept { return fgs_flush(scope_); }
    // For functions of C that have no counterpart here.
    fgs_scope* get() const noexcept { return scope_; }
    explicit operator bool() const noexcept { return scope_ != nullptr; }
    // Valid until close(); empty if the instrument is disabled.
    std::string_view ring_path() const noexcept {
        const char* path = "";
        return fgs_ring_path(scope_, &path) == FGS_OK ? path : "";
    }

    // Adds a tensor to the catalog; its id is used in all other calls.
    Result<std::uint32_t> add(const Tensor& tensor) noexcept {
        const fgs_tensor t = tensor.c();
        std::uint32_t id = UINT32_MAX;
        const Status status = fgs_register(scope_, &t, &id);
        return {id, status};
    }
    Status bind(std::uint32_t id, fgs_data what, const View& data, const std::optional<Shard>& shard = {}) noexcept {
        const fgs_dltensor tensor = data.c();
        return fgs_bind_shard(scope_, id, what, &tensor, detail::OptionalShard(shard).c());
    }
    Status unbind(std::uint32_t id, fgs_data what) noexcept { return fgs_bind(scope_, id, what, nullptr); }
    // The shorter of the two spans counts.
    Status rebind(fgs_data what, std::span<const std::uint32_t> ids, std::span<void* const> addresses) noexcept {
        return fgs_rebind(scope_, what, ids.data(), addresses.data(), ids.size() < addresses.size() ? ids.size() : addresses.size());
    }

    Task task(const std::string& name) noexcept { return {scope_, name.c_str()}; }
    Step step(std::uint64_t number) noexcept { return {scope_, number}; }
    Status set_every(std::uint64_t every) noexcept { return fgs_set_every(scope_, every); }
    Status snapshot(const std::optional<std::string>& task = {}, void* stream = nullptr) noexcept {
        return fgs_snapshot(scope_, task ? task->c_str() : nullptr, stream);
    }
    Status reference_add(const std::string& task, std::uint64_t examples, double scale = 1.0, void* stream = nullptr) noexcept {
        return fgs_reference_add(scope_, task.c_str(), examples, scale, stream);
    }
    Status reference_feed(const std::string& task, std::uint32_t id, const View& gradient, double scale = 1.0,
                          void* stream = nullptr, const std::optional<Shard>& shard = {}) noexcept {
        const fgs_dltensor tensor = gradient.c();
        return fgs_reference_feed(scope_, task.c_str(), id, &tensor, detail::OptionalShard(shard).c(), scale, stream);
    }
    Status record_loss(const std::string& task, double value) noexcept { return fgs_record_loss(scope_, task.c_str(), value); }
    Status record_eval(const std::string& task, const std::string& metric, double value, bool higher_is_better) noexcept {
        return fgs_record_eval(scope_, task.c_str(), metric.c_str(), value, higher_is_better);
    }

    Probe probe(const std::string& task, std::uint32_t flags = 0) noexcept {
        fgs_probe probe = FGS_PROBE_INIT;
        probe.task = task.c_str(), probe.flags = flags;
        return {scope_, probe};
    }
    // After so many updates on the task itself, outside steps: what change is usual. `run`: which of several such runs.
    Probe continued_probe(const std::string& task, std::uint64_t updates, std::uint32_t run) noexcept {
        fgs_probe probe = FGS_PROBE_INIT;
        probe.task = task.c_str(), probe.continued_updates = updates, probe.run = run;
        return {scope_, probe};
    }
    Status head_effect(const std::string& task, std::uint32_t layer, std::uint32_t head, double loss, double loss_restored,
                       double error) noexcept {
        return fgs_head_effect(scope_, task.c_str(), layer, head, loss, loss_restored, error);
    }

    // A curvature run: see fgs_curvature_begin. `evaluate(bool wants_gradient)` returns the loss of the task's probe batch at
    // the parameters as they are now, and has put its gradient, times 1/scale, where it is bound if it is wanted. However it
    // ends, by an exception too, the parameters are as they were.
    template <class Evaluate>
    Status curvature(fgs_curvature options, const std::string& task, Evaluate&& evaluate, double scale = 1.0,
                     void* stream = nullptr) {
        struct Run {
            fgs_scope* scope;
            Status end() noexcept { return fgs_curvature_end(std::exchange(scope, nullptr)); }
            ~Run() { if (scope) end(); }
        };
        options.task = task.c_str();
        if (const Status begun = fgs_curvature_begin(scope_, &options); !begun) return begun;
        Run run{scope_};
        for (;;) {
            fgs_curvature_request request = FGS_CURVATURE_REQUEST_INIT;
            if (const Status next = fgs_curvature_next(scope_, &request); !next) return next;
            if (request.want == FGS_CURVATURE_DONE) return run.end();
            const double loss = evaluate(request.want == FGS_CURVATURE_GRADIENT);
            if (const Status submitted = fgs_curvature_submit(scope_, loss, scale, stream); !submitted) return submitted;
        }
    }

private:
    fgs_scope* scope_ = nullptr;
};

// ---- reader ----

// Reads a ring, of this process or another; closes itself.
class Reader {
public:
    Reader() = default;
    Reader(Reader&& other) noexcept
        : reader_(std::exchange(other.reader_, nullptr)), lost_(other.lost_), is_closed_(other.is_closed_) {}
    Reader& operator=(Reader&& other) noexcept {
        if (this != &other) {
            fgs_reader_close(std::exchange(reader_, std::exchange(other.reader_, nullptr)));
            lost_ = other.lost_, is_closed_ = other.is_closed_;
        }
        return *this;
    }
    ~Reader() { fgs_reader_close(reader_); }

    static Result<Reader> open(const std::string& path) {
        Reader reader;
        const Status status = fgs_reader_open(path.c_str(), &reader.reader_);
        return {std::move(reader), status};
    }
    // The next record; nothing if there is none at present. Never waits.
    std::optional<fgs_record> next() noexcept {
        fgs_record record;
        std::uint64_t lost = 0;
        const fgs_status status = fgs_reader_next(reader_, &record, &lost);
        lost_ += lost;
        is_closed_ = status != FGS_OK && status != FGS_EMPTY;
        return status == FGS_OK ? std::optional(record) : std::nullopt;
    }
    // The writer has ended and everything was read, or the ring cannot be read any more.
    bool is_closed() const noexcept { return is_closed_; }
    // Records that were overwritten before they could be read, so far.
    std::uint64_t lost() const noexcept { return lost_; }
    // Of a task, tensor, kind, …; empty if the ring does not have it. Valid as long as the reader.
    std::string_view name(fgs_name what, std::uint32_t id) const noexcept {
        const char* name = "";
        return fgs_reader_name(reader_, what, id, &name) == FGS_OK ? name : "";
    }
    std::string_view kind(const fgs_record& record) const noexcept { return name(FGS_NAME_KIND, record.kind); }
    // The value of this name in a record; nothing if its kind has none.
    std::optional<double> value(const fgs_record& record, std::string_view called) const noexcept {
        for (std::uint32_t i = 0; i < std::size(record.values); ++i)
            if (name(FGS_NAME_VALUE, static_cast<std::uint32_t>(record.kind) << 8 | i) == called) return record.values[i];
        return std::nullopt;
    }

private:
    fgs_reader* reader_ = nullptr;
    std::uint64_t lost_ = 0;
    bool is_closed_ = false;
};

}  // namespace forgetscope
