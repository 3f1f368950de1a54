// What a run tells: progress on stderr, exact losses in a file, and the table of
// what was learnt and forgotten.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "model.hpp"

namespace trainer {

// One line that rewrites itself on a terminal; elsewhere a line every ten seconds.
// Time left is judged by passes over a batch, forward 1 and backward 2, so that it
// includes evaluations and reference gradients still to come.
class Progress {
 public:
  explicit Progress(double total_passes) : total_passes_(total_passes) {}

  void passed(double passes) { passes_ += passes; }

  // A training step lies between these two; only time in steps counts for tokens/s.
  void begin_step() { step_began_ = seconds(); }
  void end_step(const std::string& task, int step, int steps, double loss, int tokens) {
    const double now = seconds();
    tokens_ += tokens;
    step_seconds_ += now - step_began_;
    if (step < steps && now - shown_ < (terminal_ ? 0.1 : 10.0)) return;
    shown_ = now;
    clear();
    std::fprintf(stderr, "%s step %d/%d  loss %.4f  %.0f tokens/s  ETA %s%s", task.c_str(), step,
                 steps, loss, tokens_per_second(),
                 clock(now / passes_ * (total_passes_ - passes_)).c_str(),
                 terminal_ ? "" : "\n");
    dangling_ = terminal_;
  }

  double tokens_per_second() const { return tokens_ / std::max(step_seconds_, 1e-9); }

  void note(const std::string& line) {
    clear();
    std::fprintf(stderr, "%s\n", line.c_str());
  }

  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  void clear() {
    if (dangling_) std::fputs("\r\x1b[K", stderr);
    dangling_ = false;
  }
  static std::string clock(double seconds) {
    const int whole = static_cast<int>(seconds + 0.5);
    char text[32];
    std::snprintf(text, sizeof text, "%d:%02d", whole / 60, whole % 60);
    return text;
  }

  const bool terminal_ = isatty(STDERR_FILENO);
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  const double total_passes_;
  double passes_ = 0, tokens_ = 0, step_seconds_ = 0, step_began_ = 0, shown_ = 0;
  bool dangling_ = false;  // a progress line without its newline is on the screen
};

// Losses as text with %a, which is exact: two runs are the same if and only if
// these files are. An empty path writes nothing.
class LossFile {
 public:
  explicit LossFile(const std::string& path) : path_(path), file_(nullptr, std::fclose) {
    if (path.empty()) return;
    file_.reset(std::fopen(path.c_str(), "w"));
    if (!file_) throw std::runtime_error("The file '" + path + "' cannot be written.");
  }

  void train(const std::string& task, int step, double loss, double norm) {
    if (file_) std::fprintf(file_.get(), "train %s %d %a %a\n", task.c_str(), step, loss, norm);
  }
  void evaluation(const std::string& task, long total_steps, const Score& score) {
    if (file_)
      std::fprintf(file_.get(), "eval %s %ld %a %a\n", task.c_str(), total_steps, score.loss,
                   score.accuracy);
  }
  void reference(const std::string& task, int index, double loss, double norm) {
    if (file_)
      std::fprintf(file_.get(), "reference %s %d %a %a\n", task.c_str(), index, loss, norm);
  }

  // A full disk shows at the end at the latest.
  void close() {
    if (!file_) return;
    const bool failed = std::ferror(file_.get()) != 0;
    if (std::fclose(file_.release()) != 0 || failed)
      throw std::runtime_error("The file '" + path_ + "' could not be written in full.");
  }

 private:
  std::string path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

// Held-out loss of every task, before training and after each task.
class ForgettingTable {
 public:
  explicit ForgettingTable(std::vector<std::string> tasks) : tasks_(std::move(tasks)) {}

  void add_row(const std::string& when, const std::vector<Score>& scores) {
    rows_.push_back({when, scores});
  }

  void print() const {
    std::printf("\nHeld-out loss, nats/byte\n");
    line("", [&](std::size_t t) { return tasks_[t]; });
    for (const Row& row : rows_)
      line(row.when, [&](std::size_t t) { return number("%.4f", row.scores[t].loss); });
    // How far each task's loss has risen from the best it ever was.
    line("forgetting", [&](std::size_t t) {
      double best = rows_.front().scores[t].loss;
      for (const Row& row : rows_) best = std::min(best, row.scores[t].loss);
      return number("%+.4f", rows_.back().scores[t].loss - best);
    });
  }

 private:
  struct Row {
    std::string when;
    std::vector<Score> scores;
  };

  static std::string number(const char* format, double value) {
    char text[32];
    std::snprintf(text, sizeof text, format, value);
    return text;
  }
  template <class Cell>
  void line(const std::string& head, const Cell& cell) const {
    std::size_t width = 16;
    for (const Row& row : rows_) width = std::max(width, row.when.size());
    std::printf("%-*s", static_cast<int>(width), head.c_str());
    for (std::size_t t = 0; t < tasks_.size(); ++t)
      std::printf("  %*s", static_cast<int>(std::max<std::size_t>(10, tasks_[t].size())),
                  cell(t).c_str());
    std::printf("\n");
  }

  std::vector<std::string> tasks_;
  std::vector<Row> rows_;
};

}  // namespace trainer
