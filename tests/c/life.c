/* The life of a scope and of a reader: open, register, bind, a few steps, read the ring, close. */

#include "check.h"

int main(void)
{
    CHECK(fgs_version() == FGS_VERSION);
    CHECK(strcmp(fgs_last_error(), "") == 0);
    CHECK(strcmp(fgs_status_name(FGS_ERROR_PHASE), "FGS_ERROR_PHASE") == 0);
    CHECK(strcmp(fgs_status_name(12345), "unknown status") == 0);

    /* Options that are not set keep their defaults; the ring's file must not exist yet. */
    fgs_options options = FGS_OPTIONS_INIT;
    options.run = "life";
    options.every = 2;
    options.ring_slots = 1024;
    fgs_scope *scope = NULL;
    OK(fgs_open(&options, &scope));

    /* The path is the scope's: it is copied to be used after fgs_close. */
    const char *path = NULL;
    OK(fgs_ring_path(scope, &path));
    char ring_path[4096];
    snprintf(ring_path, sizeof ring_path, "%s", path);

    float gradient[4] = {3.0f, 0.0f, 0.0f, 4.0f};
    fgs_tensor description = FGS_TENSOR_INIT;
    description.name = "weight";
    description.role = FGS_ROLE_MLP_IN;
    description.layer = 7;
    description.numel = 4;
    uint32_t id = UINT32_MAX;
    OK(fgs_register(scope, &description, &id));
    CHECK(id == 0);
    fgs_dltensor tensor = F32(gradient, 2, 2);
    OK(fgs_bind(scope, id, FGS_GRAD, &tensor));

    OK(fgs_task_begin(scope, "only"));
    for (uint64_t step = 0; step < 4; step++)
        measure_step(scope, step);
    OK(fgs_task_end(scope));

    /* A reader sees what was published, while the scope is open and after it. */
    ring now = ring_of(scope);
    CHECK(now.end == FGS_EMPTY);
    CHECK(now.lost == 0);
    CHECK(strcmp(name_of(&now, FGS_NAME_TENSOR, id), "weight") == 0);
    CHECK(strcmp(name_of(&now, FGS_NAME_TASK, 0), "only") == 0);
    CHECK(strcmp(name_of(&now, FGS_NAME_ROLE, FGS_ROLE_MLP_IN), "mlp_in") == 0);
    CHECK(strcmp(name_of(&now, FGS_NAME_LEVEL, LEVEL_LAYER), "layer") == 0);
    const fgs_record *record = of_tensor(&now, "gradient", 2, id);
    CHECK_NEAR(value(&now, record, "norm"), 5.0);
    CHECK_NEAR(value(&now, record, "squares"), 25.0);
    CHECK_NEAR(value(&now, record, "peak"), 4.0);
    CHECK(value(&now, record, "elements") == 4.0);
    CHECK(isnan(record->values[9]));
    CHECK(record->task == 0 && record->reference == UINT16_MAX && record->rank == 0);
    CHECK(find(&now, "gradient", 2, LEVEL_LAYER, NONE, 7)->values[0] == record->values[0]);
    CHECK(find(&now, "gradient", 2, LEVEL_ROLE, NONE, FGS_ROLE_MLP_IN)->values[0] == record->values[0]);
    CHECK(of_model(&now, "gradient", 2)->values[0] == record->values[0]);
    /* Every second step is sampled. */
    CHECK(count_of(&now, "step", 0) == 1 && count_of(&now, "step", 2) == 1);
    CHECK(count_of(&now, "step", 1) == 0 && count_of(&now, "step", 3) == 0);
    size_t published = now.count;
    ring_free(&now);

    OK(fgs_close(scope));
    fgs_reader *reader = NULL;
    OK(fgs_reader_open(ring_path, &reader));
    fgs_record each;
    size_t count = 0;
    while (fgs_reader_next(reader, &each, NULL) == FGS_OK)
        count++;
    CHECK(count == published);
    CHECK(fgs_reader_next(reader, &each, NULL) == FGS_CLOSED);
    OK(fgs_reader_close(reader));

    /* Closing nothing is fine. */
    OK(fgs_close(NULL));
    OK(fgs_reader_close(NULL));
    return RESULT();
}
