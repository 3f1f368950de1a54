// Trains a small network on a GPU on several texts in sequence, measured by forgetscope: eager, or by a captured graph.
//
//     cuda_step --task prose=README.md --task code=src/lib.rs [--graph] [--memory host] [--steps N] [--wait]
//               [--ring FILE] [--losses FILE]
//
// Prints each task's held-out loss as it goes. --losses writes every training loss as a hexadecimal float, to compare runs
// bit by bit. --memory host copies everything to the host and measures it there. --wait waits after every step until it is
// evaluated: these steps are so short that training, which never waits, would leave evaluation behind and steps out.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "instrument.hpp"
#include "model.hpp"
#include "task.hpp"

namespace {

struct Options {
    std::vector<std::pair<std::string, std::string>> tasks;  // name, path
    std::size_t steps = 60;
    Place place = Place::device;
    bool graph = false, wait = false;
    std::string ring, losses;

    static Options parse(int count, char** arguments) {
        Options options;
        for (int i = 1; i < count; i++) {
            const std::string name = arguments[i];
            if (name == "--graph" || name == "--wait") {
                (name == "--graph" ? options.graph : options.wait) = true;
                continue;
            }
            if (i + 1 == count) throw std::runtime_error(name + " needs a value");
            const std::string value = arguments[++i];
            if (name == "--task") {
                const std::size_t at = value.find('=');
                if (at == std::string::npos) throw std::runtime_error("--task is NAME=PATH");
                options.tasks.emplace_back(value.substr(0, at), value.substr(at + 1));
            } else if (name == "--steps") {
                options.steps = std::stoul(value);
            } else if (name == "--memory" && (value == "host" || value == "device")) {
                options.place = value == "host" ? Place::host : Place::device;
            } else if (name == "--ring") {
                options.ring = value;
            } else if (name == "--losses") {
                options.losses = value;
            } else {
                throw std::runtime_error("cannot use " + name + " " + value);
            }
        }
        if (options.tasks.empty() || options.steps == 0) throw std::runtime_error("no task, or no steps: see main.cpp");
        if (options.graph && options.place == Place::host) throw std::runtime_error("a graph cannot wait for the host");
        return options;
    }
};

constexpr std::size_t reference_batches = 16, evaluation_batches = 8, evaluate_every = 20;

class Trainer {
public:
    explicit Trainer(const Options& options)
        : options_(options), device_(0), model_(stream_, 1, 0.05f),
          instrument_(stream_, model_, options.place, options.ring) {
        std::printf("%s, %u parameters\n", device_.name().c_str(), PARAMETERS);
        for (const auto& [name, path] : options.tasks) {
            tasks_.push_back(std::make_unique<Task>(stream_, name, path, tasks_.size(),
                                                    Task::Counts{options.steps, reference_batches, evaluation_batches}));
        }
    }

    void run() {
        for (const auto& task : tasks_) {
            instrument_.task_begin(*task);
            train(*task);
            add_reference(*task);
            probe(*task);  // of the weights that the snapshot keeps
            instrument_.task_end();
        }
        instrument_.flush();
        write_losses();
    }

private:
    void train(const Task& task) {
        // What a step is compared with is fixed when it is captured, so each task has its own graph.
        std::optional<cuda::Graph> graph;
        if (options_.graph) graph.emplace(stream_.capture([&] { step(task, number_); }));
        for (std::size_t i = 0; i < options_.steps; i++, number_++) {
            if (i % evaluate_every == 0) evaluate();
            if (graph) graph->launch();
            else step(task, number_);
            if (options_.wait) {
                stream_.wait();
                instrument_.flush();
            }
        }
        evaluate();
        stream_.wait();  // before the graph is destroyed
    }

    // One optimizer step; when it is captured, `number` is that of the first replay.
    void step(const Task& task, std::uint64_t number) {
        instrument_.step_begin(number);
        model_.forward(task.training());
        model_.backward(task.training());
        instrument_.gradients_ready();
        model_.update(task.training());
        instrument_.step_end();
    }

    void add_reference(const Task& task) {
        task.reference().restart();
        for (std::size_t batch = 0; batch < reference_batches; batch++) {
            model_.forward(task.reference());
            model_.backward(task.reference());
            instrument_.reference_add(task);
        }
    }

    // Held-out losses of all tasks, each on the same batches every time.
    void evaluate() {
        std::printf("step %4llu", static_cast<unsigned long long>(number_));
        for (const auto& task : tasks_) {
            task->evaluation().restart();
            for (std::size_t batch = 0; batch < evaluation_batches; batch++) model_.forward(task->evaluation());
            double sum = 0;
            for (float loss : task->evaluation().losses()) sum += loss;
            instrument_.record_loss(*task, sum / evaluation_batches);
            std::printf("  %s %.4f", task->name().c_str(), sum / evaluation_batches);
        }
        std::printf("\n");
    }

    // The hidden layer over the same batches at the end of every task, for this task and those before it.
    void probe(const Task& current) {
        for (const auto& task : tasks_) {
            task->evaluation().restart();
            instrument_.probe_begin(*task);
            for (std::size_t batch = 0; batch < evaluation_batches; batch++) {
                model_.forward(task->evaluation());
                instrument_.probe_hidden();
            }
            instrument_.probe_end();
            if (task.get() == &current) break;
        }
    }

    void write_losses() const {
        if (options_.losses.empty()) return;
        std::ofstream file(options_.losses);
        file << std::hexfloat;
        for (const auto& task : tasks_) {
            for (float loss : task->training().losses()) file << loss << '\n';
        }
        if (!file.flush()) throw std::runtime_error("cannot write " + options_.losses);
    }

    const Options options_;
    cuda::Device device_;
    cuda::Stream stream_;
    Model model_;
    Instrument instrument_;
    std::vector<std::unique_ptr<Task>> tasks_;
    std::uint64_t number_ = 0;
};

}  // namespace

int main(int count, char** arguments) {
    try {
        Trainer(Options::parse(count, arguments)).run();
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "cuda_step: %s\n", error.what());
        return 1;
    }
}
