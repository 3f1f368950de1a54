/* Steps as they come in real runs: skipped, repeated, given up, with other buffers each time, with tensors that are
 * registered while training goes on. */

#include "check.h"

enum { SIZE = 4 };

static float gradient[SIZE] = {1.0f, 1.0f, 1.0f, 1.0f}, parameters[SIZE];

static void move(float by)
{
    for (int i = 0; i < SIZE; i++)
        parameters[i] += by;
}

static void train_step(fgs_scope *scope, uint64_t step, int32_t applied)
{
    OK(fgs_step_begin(scope, step));
    OK(fgs_gradients_ready(scope, 1.0, 0, NULL));
    if (applied)
        move(0.5f);
    OK(fgs_step_end(scope, applied, NULL));
    OK(fgs_flush(scope));
}

int main(void)
{
    fgs_scope *scope = open_scope();
    uint32_t id = register_plain(scope, "weight", SIZE);
    fgs_dltensor data = F32(gradient, SIZE), values = F32(parameters, SIZE);
    OK(fgs_bind(scope, id, FGS_GRAD, &data));
    OK(fgs_bind(scope, id, FGS_PARAM, &values));
    OK(fgs_task_begin(scope, "task"));

    train_step(scope, 10, 1);
    train_step(scope, 11, 0); /* overflow: the update was skipped */
    train_step(scope, 12, 1);
    train_step(scope, 10, 1); /* back to a checkpoint */
    train_step(scope, 50, 1); /* and far ahead */

    /* Begun and not ended: given up when the next one begins. */
    OK(fgs_step_begin(scope, 51));
    OK(fgs_gradients_ready(scope, 1.0, 0, NULL));
    train_step(scope, 52, 1);

    /* A step that ends without gradients measures nothing. */
    OK(fgs_step_begin(scope, 53));
    OK(fgs_step_end(scope, 1, NULL));

    /* Gradients before the reduction over ranks are marked. */
    OK(fgs_step_begin(scope, 54));
    OK(fgs_gradients_ready(scope, 1.0, FGS_GRADIENTS_UNREDUCED, NULL));
    OK(fgs_step_end(scope, 1, NULL));

    /* Other buffers in each step. */
    float buffers[2][SIZE] = {{2.0f, 0.0f, 0.0f, 0.0f}, {3.0f, 0.0f, 0.0f, 0.0f}};
    for (int k = 0; k < 4; k++) {
        fgs_dltensor next = F32(buffers[k % 2], SIZE);
        OK(fgs_bind(scope, id, FGS_GRAD, &next));
        train_step(scope, 60 + (uint64_t)k, 1);
    }
    OK(fgs_bind(scope, id, FGS_GRAD, &data));

    /* A tensor that appears inside of a step is not part of that step, but of the next. */
    float late_gradient[2] = {5.0f, 0.0f};
    OK(fgs_step_begin(scope, 70));
    uint32_t late = register_plain(scope, "late", 2);
    fgs_dltensor late_data = F32(late_gradient, 2);
    OK(fgs_bind(scope, late, FGS_GRAD, &late_data));
    OK(fgs_gradients_ready(scope, 1.0, 0, NULL));
    OK(fgs_bind(scope, register_plain(scope, "later", 2), FGS_GRAD, &late_data));
    OK(fgs_step_end(scope, 1, NULL));
    OK(fgs_flush(scope));
    train_step(scope, 71, 1);

    /* Parameters that are cut in another way in mid-step: that step has no update to show, and nothing is misread. */
    OK(fgs_step_begin(scope, 80));
    OK(fgs_gradients_ready(scope, 1.0, 0, NULL));
    fgs_shard half = FGS_SHARD_INIT;
    half.offset = SIZE / 2;
    fgs_dltensor upper = F32(parameters + SIZE / 2, SIZE / 2);
    OK(fgs_bind_shard(scope, id, FGS_PARAM, &upper, &half));
    move(0.5f);
    OK(fgs_step_end(scope, 1, NULL));
    OK(fgs_flush(scope));
    train_step(scope, 81, 1);

    /* What is unbound is not measured. */
    OK(fgs_bind(scope, id, FGS_GRAD, NULL));
    train_step(scope, 90, 1);
    OK(fgs_task_end(scope));

    ring all = ring_of(scope);
    CHECK_NEAR(value(&all, of_model(&all, "update", 10 + 2), "updates"), SIZE * 0.25);
    CHECK(has_flag(&all, of_model(&all, "step", 11), "skipped") && count_of(&all, "update", 11) == 0);
    CHECK(value(&all, of_model(&all, "step", 11), "applied") == 0.0);
    CHECK(count_of(&all, "step", 10) == 2 && count_of(&all, "step", 50) == 1);
    int reruns = 0;
    for (size_t i = 0; i < all.count; i++)
        reruns += is_kind(&all, &all.records[i], "step") && has_flag(&all, &all.records[i], "rerun");
    CHECK(reruns == 1);

    CHECK(count_of(&all, "step", 51) == 0 && count_of(&all, "step", 52) == 1);
    const fgs_record *fault = NULL;
    for (size_t i = 0; i < all.count; i++)
        if (is_kind(&all, &all.records[i], "fault") && all.records[i].step == 51)
            fault = &all.records[i];
    CHECK(fault != NULL && strstr(name_of(&all, FGS_NAME_FAULT, (uint32_t)fault->values[0]), "not ended") != NULL);
    CHECK(count_of(&all, "step", 53) == 0);
    CHECK(has_flag(&all, of_model(&all, "gradient", 54), "unreduced"));

    for (int k = 0; k < 4; k++)
        CHECK(value(&all, of_tensor(&all, "gradient", 60 + (uint64_t)k, id), "peak") == 2.0 + k % 2);

    CHECK(seek(&all, "gradient", 70, LEVEL_TENSOR, late, NONE) == NULL);
    CHECK(has_flag(&all, of_model(&all, "step", 70), "partial"));
    CHECK(value(&all, of_model(&all, "step", 70), "elements") == SIZE);
    CHECK(value(&all, of_tensor(&all, "gradient", 71, late), "peak") == 5.0);
    CHECK(!has_flag(&all, of_model(&all, "step", 71), "partial"));
    CHECK(value(&all, of_model(&all, "step", 71), "elements") == SIZE + 4);

    const fgs_record *update = seek(&all, "update", 80, LEVEL_TENSOR, id, NONE);
    CHECK(update == NULL || !(value(&all, update, "updates") > 0.0));
    CHECK_NEAR(value(&all, of_tensor(&all, "update", 81, id), "updates"), SIZE / 2 * 0.25);
    CHECK(seek(&all, "gradient", 90, LEVEL_TENSOR, id, NONE) == NULL);
    CHECK(seek(&all, "update", 90, LEVEL_TENSOR, id, NONE) != NULL);

    ring_free(&all);
    OK(fgs_close(scope));
    return RESULT();
}
