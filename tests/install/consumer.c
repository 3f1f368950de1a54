/* What a trainer in C does, built against an installed library: one step is measured and read back from the ring. */
#include <forgetscope.h>
#include <stdio.h>

static int failed(const char *call)
{
    fprintf(stderr, "%s: %s\n", call, fgs_last_error());
    return 1;
}

int main(void)
{
    float gradient[4] = {3.0f, 0.0f, 0.0f, 4.0f};
    int64_t shape[1] = {4};
    fgs_dltensor data = {gradient, {1, 0}, 1, {2, 32, 1}, shape, NULL, 0};
    fgs_tensor tensor = FGS_TENSOR_INIT;
    tensor.name = "weight";
    tensor.numel = 4;
    fgs_scope *scope = NULL;
    uint32_t id = 0;
    if (fgs_version() != FGS_VERSION)
        return fprintf(stderr, "header %d, library %u\n", FGS_VERSION, fgs_version()), 1;
    if (fgs_open(NULL, &scope) || fgs_register(scope, &tensor, &id) || fgs_bind(scope, id, FGS_GRAD, &data))
        return failed("set-up");
    if (fgs_step_begin(scope, 0) || fgs_gradients_ready(scope, 1.0, 0, NULL) || fgs_step_end(scope, 1, NULL) ||
        fgs_flush(scope))
        return failed("step");

    const char *path = NULL, *kind = NULL;
    fgs_reader *reader = NULL;
    fgs_record record;
    double norm = 0.0;
    if (fgs_ring_path(scope, &path) || fgs_reader_open(path, &reader))
        return failed("reader");
    while (fgs_reader_next(reader, &record, NULL) == FGS_OK)
        if (record.level == 1 && fgs_reader_name(reader, FGS_NAME_KIND, record.kind, &kind) == FGS_OK &&
            kind[0] == 'g')
            norm = record.values[0];
    fgs_reader_close(reader);
    fgs_close(scope);
    printf("norm %g\n", norm);
    return norm == 5.0 ? 0 : 1;
}
