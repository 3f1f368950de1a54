/* The FGS_..._INIT macros list values by position; here they are named. What is not set differs from what is zero. */

#include "check.h"

int main(void)
{
    const fgs_options options = FGS_OPTIONS_INIT;
    CHECK(options.size == sizeof options);
    CHECK(options.magic == FGS_MAGIC);
    CHECK(options.run == NULL);
    CHECK(options.ring_path == NULL);
    CHECK(options.include == NULL);
    CHECK(options.exclude == NULL);
    CHECK(options.ring_slots == FGS_UNSET_U64);
    CHECK(options.every == FGS_UNSET_U64);
    CHECK(options.start_step == FGS_UNSET_U64);
    CHECK(options.end_step == FGS_UNSET_U64);
    CHECK(options.budget_bytes == FGS_UNSET_U64);
    CHECK(options.reference_budget < 0.0);
    CHECK(options.threads == FGS_UNSET_U32);
    CHECK(options.rank == FGS_UNSET_U32);
    CHECK(options.world_size == FGS_UNSET_U32);
    CHECK(options.sketch_head == FGS_UNSET_U32);
    CHECK(options.sketch_matrix == FGS_UNSET_U32);
    CHECK(options.window == FGS_UNSET_U32);

    const fgs_tensor tensor = FGS_TENSOR_INIT;
    CHECK(tensor.size == sizeof tensor);
    CHECK(tensor.magic == FGS_MAGIC);
    CHECK(tensor.name == NULL);
    CHECK(tensor.numel == 0);
    CHECK(tensor.rows == 0);
    CHECK(tensor.cols == 0);
    CHECK(tensor.role == FGS_ROLE_OTHER);
    CHECK(tensor.layer == -1);
    CHECK(tensor.expert == -1);
    CHECK(tensor.group == 0);
    CHECK(tensor.head_layout == FGS_HEADS_AUTO);
    CHECK(tensor.head_axis == FGS_UNSET_U32);
    CHECK(tensor.head_count == 0);
    CHECK(tensor.kv_head_count == 0);
    CHECK(tensor.head_offset == 0);
    CHECK(tensor.kv_head_offset == 0);
    CHECK(tensor.flags == 0);
    CHECK(tensor.replica == 0);
    CHECK(tensor.tied_to == FGS_UNSET_U32);
    CHECK(tensor.layer_count == 1);

    const fgs_shard shard = FGS_SHARD_INIT;
    CHECK(shard.size == sizeof shard);
    CHECK(shard.magic == FGS_MAGIC);
    CHECK(shard.offset == 0);
    CHECK(shard.run_length == 0);
    CHECK(shard.run_step == 0);
    CHECK(shard.run_count == 0);

    const fgs_probe probe = FGS_PROBE_INIT;
    CHECK(probe.size == sizeof probe);
    CHECK(probe.magic == FGS_MAGIC);
    CHECK(probe.task == NULL);
    CHECK(probe.continued_updates == FGS_UNSET_U64);
    CHECK(probe.flags == 0);
    CHECK(probe.run == 0);

    const fgs_attention attention = FGS_ATTENTION_INIT;
    CHECK(attention.size == sizeof attention);
    CHECK(attention.magic == FGS_MAGIC);
    CHECK(attention.probabilities == NULL);
    CHECK(attention.query == NULL);
    CHECK(attention.key == NULL);
    CHECK(attention.log_sum_exp == NULL);
    CHECK(attention.scale == 0.0);
    CHECK(attention.softcap == 0.0);
    CHECK(attention.mask == FGS_MASK_NONE);
    CHECK(attention.window == 0);
    CHECK(attention.first_head == 0);
    CHECK(attention.reserved == 0);
    const fgs_curvature curvature = FGS_CURVATURE_INIT;
    CHECK(curvature.size == sizeof curvature);
    CHECK(curvature.magic == FGS_MAGIC);
    CHECK(curvature.task == NULL);
    CHECK(curvature.lanczos_steps == 32);
    CHECK(curvature.trace_vectors == 8);
    CHECK(curvature.density_vectors == 1);
    CHECK(curvature.eigenvectors == 3);
    CHECK(curvature.path_points == 0);
    CHECK(curvature.block_vectors == 4);
    CHECK(curvature.blocks == NULL);
    CHECK(curvature.block_count == 0);
    CHECK(curvature.relative_step == 1e-3);
    CHECK(curvature.seed == 0);

    const fgs_curvature_request curvature_request = FGS_CURVATURE_REQUEST_INIT;
    CHECK(curvature_request.size == sizeof curvature_request);
    CHECK(curvature_request.magic == FGS_MAGIC);
    CHECK(curvature_request.want == FGS_CURVATURE_DONE);
    CHECK(curvature_request.index == 0);
    CHECK(curvature_request.total == 0);
    return RESULT();
}
