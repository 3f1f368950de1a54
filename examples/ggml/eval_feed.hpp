// forgetscope for ggml's optimizer, through the eval callback of its scheduler.
//
// ggml-opt computes forward pass, backward pass and update as one graph: there is no moment at which the caller holds all
// gradients. The scheduler's callback is shown every node, before it is computed (ask) and, if it wants that, after. So the
// gradients are handed over one at a time as they come, and the step is complete before the first parameter is updated.
//
// Which node is a gradient is seen only when the update that uses it comes, at the end of the graph: the first training
// graph is watched and not measured. Where a node stands in the graph decides, so graphs may be built anew for each batch.
//
// Cost: a comparison per node of a step that is not sampled. In a sampled step ggml stops after each gradient, which on a
// GPU is a synchronisation, and the gradients are read once.
#pragma once

#include <forgetscope.h>
#include <ggml-backend.h>
#include <ggml.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

class EvalFeed {
public:
    // What a parameter is in the model, by its name: fills in role, layer, heads.
    using Describe = std::function<void(const std::string& name, fgs_tensor& tensor)>;

    EvalFeed(ggml_backend_sched_t scheduler, Describe describe) : describe_(std::move(describe)) {
        if (fgs_open(nullptr, &scope_) != FGS_OK)
            std::fprintf(stderr, "training goes on without forgetscope: %s\n", fgs_last_error());
        ggml_backend_sched_set_eval_callback(scheduler, callback, this);
    }
    EvalFeed(const EvalFeed&) = delete;
    EvalFeed& operator=(const EvalFeed&) = delete;
    ~EvalFeed() { fgs_close(scope_); }

    fgs_scope* scope() const { return scope_; }

    // Around ggml_opt_eval of a graph that updates. Other graphs (evaluation) need nothing.
    void step_begin(std::uint64_t number) {
        std::int32_t sampled = 0;
        say(fgs_step_begin(scope_, number));
        fgs_step_sampled(scope_, &sampled);
        mode_ = parameters_.empty() ? Mode::learn : sampled ? Mode::measure : Mode::rest;
        node_ = fed_ = 0;
    }
    void step_end() {
        say(fgs_step_end(scope_, 1, nullptr));
        mode_ = Mode::rest;
    }

    // The same around a graph with `task`'s data whose gradients are wanted but not the update: at a learning rate that
    // changes nothing. `examples`: terms that the batch's loss is a mean over.
    void reference_begin(const char* task) {
        mode_ = parameters_.empty() ? Mode::rest : Mode::refer;
        node_ = fed_ = 0;
        task_ = task;
    }
    void reference_end(std::uint64_t examples) {
        if (mode_ == Mode::refer) say(fgs_reference_add(scope_, task_, examples, 1.0, nullptr));
        mode_ = Mode::rest;
    }

private:
    enum class Mode { rest, learn, measure, refer };

    struct Parameter {
        std::uint32_t id;
        std::size_t gradient;  // place of its gradient's node in the graph
    };

    static bool callback(ggml_tensor* node, bool ask, void* self) { return static_cast<EvalFeed*>(self)->see(node, ask); }

    // When asked: whether to be shown the node after it is computed. When shown: whether to go on, which is always.
    bool see(ggml_tensor* node, bool ask) {
        if (mode_ == Mode::rest) return !ask;
        if (!ask) {
            show(node);
            return true;
        }
        const std::size_t place = node_++;
        if (mode_ == Mode::learn) {
            seen_.push_back(node);
            if (is_update(node)) learn(node);
            return false;
        }
        return fed_ < parameters_.size() && parameters_[fed_].gradient == place;
    }

    static bool is_update(const ggml_tensor* node) {
        return node->op == GGML_OP_OPT_STEP_ADAMW || node->op == GGML_OP_OPT_STEP_SGD;
    }

    // An update in the first graph: of which parameter, by which earlier node.
    void learn(const ggml_tensor* update) {
        ggml_tensor* parameter = update->src[0];
        fgs_tensor tensor = FGS_TENSOR_INIT;
        const std::string name = ggml_get_name(parameter);
        tensor.name = name.c_str(), tensor.numel = static_cast<std::uint64_t>(ggml_nelements(parameter));
        tensor.cols = static_cast<std::uint64_t>(parameter->ne[0]), tensor.rows = tensor.numel / tensor.cols;
        describe_(name, tensor);
        Parameter found{0, 0};
        while (found.gradient < seen_.size() && seen_[found.gradient] != update->src[1]) ++found.gradient;
        if (found.gradient == seen_.size()) {
            std::fprintf(stderr, "forgetscope: '%s' is updated by a tensor that this graph does not compute\n", name.c_str());
            return;
        }
        const Described values(parameter);
        if (!say(fgs_register(scope_, &tensor, &found.id)) || !say(fgs_bind(scope_, found.id, FGS_PARAM, &values.tensor)))
            return;
        // In the order in which their gradients are computed.
        auto at = parameters_.begin();
        while (at != parameters_.end() && at->gradient < found.gradient) ++at;
        parameters_.insert(at, found);
    }

    void show(ggml_tensor* node) {
        const Described gradient(node);
        const std::uint32_t id = parameters_[fed_].id;
        if (mode_ == Mode::measure) say(fgs_gradient_feed(scope_, id, &gradient.tensor, nullptr, 1.0, nullptr));
        if (mode_ == Mode::refer) say(fgs_reference_feed(scope_, task_, id, &gradient.tensor, nullptr, 1.0, nullptr));
        // Nothing is updated before all gradients are there.
        if (++fed_ == parameters_.size() && mode_ == Mode::measure) say(fgs_gradients_ready(scope_, 1.0, 0, nullptr));
    }

    // A tensor as DLPack describes it: ggml's first dimension is the innermost.
    struct Described {
        explicit Described(const ggml_tensor* t) {
            const auto size = static_cast<std::int64_t>(ggml_type_size(t->type));
            for (int i = 0; i < GGML_MAX_DIMS; ++i) {
                shape[GGML_MAX_DIMS - 1 - i] = t->ne[i];
                strides[GGML_MAX_DIMS - 1 - i] = static_cast<std::int64_t>(t->nb[i]) / size;
            }
            tensor.data = t->data, tensor.ndim = GGML_MAX_DIMS, tensor.shape = shape, tensor.strides = strides;
            tensor.dtype.lanes = 1, tensor.dtype.bits = t->type == GGML_TYPE_F32 ? 32 : 16;
            tensor.dtype.code = t->type == GGML_TYPE_BF16 ? 4 : 2;  // others are quantized: gradients are not
            const ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
            tensor.device.device_type = 1;
            // Device memory is called CUDA0, CUDA1, …
            const char* name = ggml_backend_buft_name(ggml_backend_buffer_get_type(buffer));
            if (!ggml_backend_buffer_is_host(buffer) && std::strncmp(name, "CUDA", 4) == 0)
                tensor.device.device_type = 2, tensor.device.device_id = std::atoi(name + 4);
        }
        std::int64_t shape[GGML_MAX_DIMS], strides[GGML_MAX_DIMS];
        fgs_dltensor tensor{};
    };

    // What is refused is said once: training goes on.
    bool say(fgs_status status) {
        if (status < 0 && scope_ && !said_) std::fprintf(stderr, "forgetscope: %s\n", fgs_last_error());
        said_ = said_ || status < 0;
        return status >= 0;
    }

    Describe describe_;
    fgs_scope* scope_ = nullptr;
    Mode mode_ = Mode::rest;
    std::vector<const ggml_tensor*> seen_;  // nodes of the first training graph
    std::vector<Parameter> parameters_;
    std::size_t node_ = 0, fed_ = 0;
    const char* task_ = nullptr;
    bool said_ = false;
};
