// Trains a small network with ggml's optimizer on texts, one after the other, and measures what each does to the ones
// before: it predicts the next byte from the last few. Everything that has to do with forgetscope is in eval_feed.hpp and
// in lines with "feed".
#include <ggml-cpu.h>
#include <ggml-opt.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "eval_feed.hpp"

namespace {

constexpr std::int64_t CONTEXT = 8, BYTES = 256, INPUT = CONTEXT * BYTES, HIDDEN = 64, BATCH = 64;

template <class T, void (*free)(T*)>
struct Free {
    void operator()(T* t) const { free(t); }
};
using Context = std::unique_ptr<ggml_context, Free<ggml_context, ggml_free>>;

struct Task {
    std::string name;
    std::vector<unsigned char> text;

    Task(std::string called, const std::string& path) : name(std::move(called)) {
        std::ifstream file(path, std::ios::binary);
        text.assign(std::istreambuf_iterator<char>(file), {});
        if (text.size() < 100 * CONTEXT) throw std::runtime_error(path + ": cannot be read, or is too short");
    }
    // The last tenth is for evaluation.
    std::size_t trained() const { return text.size() / 10 * 9; }
};

float uniform(std::uint64_t& state) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(state >> 40) / static_cast<float>(1 << 24) - 0.5f;
}

class Network {
public:
    Network() {
        backend_ = ggml_backend_cpu_init();
        ggml_backend_cpu_set_n_threads(backend_, 2);
        scheduler_ = ggml_backend_sched_new(&backend_, nullptr, 1, GGML_DEFAULT_GRAPH_SIZE, false, true);
        parameters_.reset(ggml_init({16 * ggml_tensor_overhead(), nullptr, true}));
        compute_.reset(ggml_init({GGML_DEFAULT_GRAPH_SIZE * ggml_tensor_overhead() +
                                      3 * ggml_graph_overhead_custom(GGML_DEFAULT_GRAPH_SIZE, true), nullptr, true}));
        ggml_context* p = parameters_.get();
        const auto parameter = [p](ggml_tensor* tensor, const char* name) {
            ggml_set_name(tensor, name);
            ggml_set_param(tensor);
            return tensor;
        };
        inputs_ = ggml_new_tensor_2d(p, GGML_TYPE_F32, INPUT, BATCH);
        ggml_set_input(inputs_);
        weights_ = {parameter(ggml_new_tensor_2d(p, GGML_TYPE_F32, INPUT, HIDDEN), "hidden.weight"),
                    parameter(ggml_new_tensor_1d(p, GGML_TYPE_F32, HIDDEN), "hidden.bias"),
                    parameter(ggml_new_tensor_2d(p, GGML_TYPE_F32, HIDDEN, BYTES), "output.weight"),
                    parameter(ggml_new_tensor_1d(p, GGML_TYPE_F32, BYTES), "output.bias")};
        buffer_ = ggml_backend_alloc_ctx_tensors(p, backend_);
        std::uint64_t seed = 1;
        for (ggml_tensor* tensor : weights_) {
            std::vector<float> values(static_cast<std::size_t>(ggml_nelements(tensor)));
            for (float& value : values) value = tensor->ne[1] > 1 ? 0.2f * uniform(seed) : 0.0f;
            ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
        }
        ggml_context* c = compute_.get();
        ggml_tensor* hidden = ggml_relu(c, ggml_add(c, ggml_mul_mat(c, weights_[0], inputs_), weights_[1]));
        ggml_tensor* logits = ggml_add(c, ggml_mul_mat(c, weights_[2], hidden), weights_[3]);
        ggml_opt_params options = ggml_opt_default_params(scheduler_, GGML_OPT_LOSS_TYPE_CROSS_ENTROPY);
        options.ctx_compute = c, options.inputs = inputs_, options.outputs = logits;
        options.optimizer = GGML_OPT_OPTIMIZER_TYPE_SGD;
        options.get_opt_pars = rate_of, options.get_opt_pars_ud = this;
        optimizer_ = ggml_opt_init(options);
        result_ = ggml_opt_result_init();
    }
    ~Network() {
        ggml_opt_result_free(result_);
        ggml_opt_free(optimizer_);
        ggml_backend_buffer_free(buffer_);
        ggml_backend_sched_free(scheduler_);
        ggml_backend_free(backend_);
    }
    Network(const Network&) = delete;
    Network& operator=(const Network&) = delete;

    ggml_backend_sched_t scheduler() const { return scheduler_; }

    // The loss of a batch drawn from bytes [from, to); with a rate the network is trained on it.
    enum class Pass { forward, update };
    double run(Pass pass, const Task& task, std::size_t from, std::size_t to, std::uint64_t seed, float rate) {
        rate_ = rate;
        ggml_opt_alloc(optimizer_, pass == Pass::update);
        std::vector<float> in(static_cast<std::size_t>(INPUT * BATCH)), out(static_cast<std::size_t>(BYTES * BATCH));
        for (std::int64_t b = 0; b < BATCH; ++b) {
            uniform(seed);
            const std::size_t at = from + (seed >> 20) % (to - from - CONTEXT);
            for (std::int64_t i = 0; i < CONTEXT; ++i)
                in[static_cast<std::size_t>(b * INPUT + i * BYTES + task.text[at + static_cast<std::size_t>(i)])] = 1;
            out[static_cast<std::size_t>(b * BYTES + task.text[at + CONTEXT])] = 1;
        }
        ggml_backend_tensor_set(inputs_, in.data(), 0, ggml_nbytes(inputs_));
        ggml_tensor* labels = ggml_opt_labels(optimizer_);
        ggml_backend_tensor_set(labels, out.data(), 0, ggml_nbytes(labels));
        ggml_opt_result_reset(result_);
        ggml_opt_eval(optimizer_, result_);
        double loss = 0;
        ggml_opt_result_loss(result_, &loss, nullptr);
        return loss;
    }

private:
    static ggml_opt_optimizer_params rate_of(void* self) {
        ggml_opt_optimizer_params params = ggml_opt_get_default_optimizer_params(nullptr);
        params.sgd.alpha = static_cast<Network*>(self)->rate_, params.sgd.wd = 0;
        return params;
    }

    ggml_backend_t backend_;
    ggml_backend_sched_t scheduler_;
    Context parameters_, compute_;
    ggml_backend_buffer_t buffer_;
    ggml_tensor* inputs_;
    std::vector<ggml_tensor*> weights_;
    ggml_opt_context_t optimizer_;
    ggml_opt_result_t result_;
    float rate_ = 0;
};

void describe(const std::string& name, fgs_tensor& tensor) {
    const bool is_bias = name.find("bias") != std::string::npos, is_output = name.find("output") == 0;
    tensor.role = is_bias ? FGS_ROLE_BIAS : is_output ? FGS_ROLE_LM_HEAD : FGS_ROLE_MLP_IN;
    tensor.layer = is_output ? -1 : 0;
}

void train(const std::vector<Task>& tasks, int steps, const char* losses) {
    constexpr float RATE = 0.5f, NOTHING = 1e-30f;  // ggml wants a rate above zero; this one changes no bit
    constexpr int REFERENCE_BATCHES = 32, EVALUATION_BATCHES = 16;
    Network network;
    EvalFeed feed(network.scheduler(), describe);
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(losses ? std::fopen(losses, "w") : nullptr, std::fclose);
    if (losses && !file) throw std::runtime_error(std::string(losses) + ": cannot be written");
    std::uint64_t number = 0;
    for (const Task& task : tasks) {
        fgs_task_begin(feed.scope(), task.name.c_str());
        for (int step = 0; step < steps; ++step, ++number) {
            feed.step_begin(number);
            const double loss = network.run(Network::Pass::update, task, 0, task.trained(), 1000 + number, RATE);
            feed.step_end();
            if (file) std::fprintf(file.get(), "%s %d %a\n", task.name.c_str(), step, loss);
        }
        std::printf("after %-12s", task.name.c_str());
        for (const Task& other : tasks) {
            double loss = 0;
            for (int i = 0; i < EVALUATION_BATCHES; ++i)
                loss += network.run(Network::Pass::forward, other, other.trained(), other.text.size(),
                                    static_cast<std::uint64_t>(i), NOTHING) / EVALUATION_BATCHES;
            std::printf("  %s %.4f", other.name.c_str(), loss);
            fgs_record_loss(feed.scope(), other.name.c_str(), loss);
        }
        std::printf("\n");
        for (int i = 0; i < REFERENCE_BATCHES; ++i) {
            feed.reference_begin(task.name.c_str());
            network.run(Network::Pass::update, task, 0, task.trained(), 500 + static_cast<std::uint64_t>(i), NOTHING);
            feed.reference_end(BATCH);
        }
        fgs_task_end(feed.scope());
    }
}

}  // namespace

int main(int argc, char** argv) {
    try {
        std::vector<Task> tasks;
        int steps = 300;
        const char* losses = nullptr;
        for (int i = 1; i + 1 < argc; i += 2) {
            const std::string flag = argv[i], value = argv[i + 1];
            if (flag == "--steps") steps = std::atoi(value.c_str());
            else if (flag == "--losses") losses = argv[i + 1];
            else if (flag == "--task" && value.find('=') != std::string::npos)
                tasks.emplace_back(value.substr(0, value.find('=')), value.substr(value.find('=') + 1));
            else throw std::runtime_error("there is no flag '" + flag + "' with the value '" + value + "'");
        }
        if (tasks.empty() || steps < 1 || argc % 2 == 0)
            throw std::runtime_error("usage: ggml_feed --task NAME=FILE [--task NAME=FILE ...] [--steps N] [--losses FILE]");
        train(tasks, steps, losses);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "ggml_feed: %s\n", error.what());
        return 1;
    }
}
