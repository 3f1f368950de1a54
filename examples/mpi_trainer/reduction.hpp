// One step's communication: gradients in, updated parameters out.
//
// Gradients are divided by the number of ranks before they are summed, so the sum is their mean.
#pragma once

#include <mpi.h>

#include <memory>
#include <vector>

#include "../trainer/adamw.hpp"
#include "buckets.hpp"
#include "options.hpp"

namespace mpi_trainer {

class Reduction {
 public:
  Reduction(const Options& options, trainer::Model<float>& model) : options_(options) {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks_);
    buckets_ = make_buckets(model.parameters(), static_cast<std::size_t>(options.bucket_bytes), ranks_);
    if (is_sharded()) {
      for (Bucket& bucket : buckets_)
        for (const Parameter<float>& piece : pieces(bucket, rank_)) own_.push_back(piece);
    } else {
      own_ = model.parameters();
    }
    optimizer_ = std::make_unique<trainer::AdamW<float>>(own_, options.adamw);
    requests_.resize(buckets_.size(), MPI_REQUEST_NULL);
    spread();
  }

  int rank() const { return rank_; }
  int ranks() const { return ranks_; }
  bool is_sharded() const { return options_.collective == Collective::reduce_scatter; }
  const std::vector<Bucket>& buckets() const { return buckets_; }

  // Fills every bucket from the model's gradients, and reduces it.
  void reduce() {
    const float share = 1.0f / static_cast<float>(ranks_);
    for (std::size_t b = 0; b < buckets_.size(); ++b) {
      Bucket& bucket = buckets_[b];
      bucket.gradients_from_model(share);
      float* all = bucket.gradients.data();
      const int size = static_cast<int>(bucket.size);
      switch (options_.collective) {
        case Collective::allreduce:
          MPI_Allreduce(MPI_IN_PLACE, all, size, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
          break;
        case Collective::iallreduce:
          MPI_Iallreduce(MPI_IN_PLACE, all, size, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD, &requests_[b]);
          break;
        case Collective::reduce_scatter:
          MPI_Reduce_scatter(all, bucket.shard.data(), bucket.counts.data(), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
          break;
      }
    }
    if (options_.collective == Collective::iallreduce) wait();
  }

  // One update of what this rank updates, after which all ranks have all parameters.
  void update() {
    if (!is_sharded())
      for (const Bucket& bucket : buckets_) bucket.gradients_to_model();
    optimizer_->step(own_, 1.0);
    if (!is_sharded()) return;
    for (Bucket& bucket : buckets_) {
      MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, bucket.values.data(), bucket.counts.data(),
                     bucket.offsets.data(), MPI_FLOAT, MPI_COMM_WORLD);
      bucket.values_to_model();
    }
  }

  // The mean over all ranks.
  double mean(double value) const {
    MPI_Allreduce(MPI_IN_PLACE, &value, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    return value / ranks_;
  }

 private:
  // All ranks begin with the weights of rank 0.
  void spread() {
    for (Bucket& bucket : buckets_) {
      bucket.values_from_model();
      MPI_Bcast(bucket.values.data(), static_cast<int>(bucket.size), MPI_FLOAT, 0, MPI_COMM_WORLD);
      bucket.values_to_model();
    }
  }

  void wait() {
    const int count = static_cast<int>(requests_.size());
    int index = 0, done = 0;
    std::vector<int> indices(requests_.size());
    switch (options_.waiting) {
      case Waiting::all:
        MPI_Waitall(count, requests_.data(), MPI_STATUSES_IGNORE);
        break;
      case Waiting::each:
        for (MPI_Request& request : requests_) MPI_Wait(&request, MPI_STATUS_IGNORE);
        break;
      case Waiting::any:
        while (index != MPI_UNDEFINED) MPI_Waitany(count, requests_.data(), &index, MPI_STATUS_IGNORE);
        break;
      case Waiting::some:
        while (done != MPI_UNDEFINED) MPI_Waitsome(count, requests_.data(), &done, indices.data(), MPI_STATUSES_IGNORE);
        break;
      case Waiting::test:
        // Each of the functions that do not wait, in turn, until one finds that everything is there.
        for (int all = 0; !all;) {
          int flag = 0;
          for (MPI_Request& request : requests_)
            if (request != MPI_REQUEST_NULL) MPI_Test(&request, &flag, MPI_STATUS_IGNORE);
          MPI_Testany(count, requests_.data(), &index, &flag, MPI_STATUS_IGNORE);
          MPI_Testsome(count, requests_.data(), &done, indices.data(), MPI_STATUSES_IGNORE);
          MPI_Testall(count, requests_.data(), &all, MPI_STATUSES_IGNORE);
        }
        break;
    }
  }

  const Options& options_;
  int rank_ = 0, ranks_ = 1;
  std::vector<Bucket> buckets_;
  std::vector<MPI_Request> requests_;
  std::vector<Parameter<float>> own_;  // what this rank updates
  std::unique_ptr<trainer::AdamW<float>> optimizer_;
};

}  // namespace mpi_trainer
