/* Element types, strided views, and values that are not finite. */

#include "check.h"

enum { FLOAT = 2, BFLOAT = 4, SIZE = 6 };

/* The same six numbers, which every type represents exactly: 1, −2, 0.5, 0.25, −4, 3. */
static double f64[SIZE] = {1.0, -2.0, 0.5, 0.25, -4.0, 3.0};
static float f32[SIZE] = {1.0f, -2.0f, 0.5f, 0.25f, -4.0f, 3.0f};
static uint16_t f16[SIZE] = {0x3c00, 0xc000, 0x3800, 0x3400, 0xc400, 0x4200};
static uint16_t bf16[SIZE] = {0x3f80, 0xc000, 0x3f00, 0x3e80, 0xc080, 0x4040};

static const double SQUARES = 1.0 + 4.0 + 0.25 + 0.0625 + 16.0 + 9.0;

static uint64_t step;

/* Binds a tensor as gradient and checks what is measured of it. */
static void check_gradient(fgs_scope *scope, uint32_t id, const fgs_dltensor *tensor, double squares, double peak)
{
    OK(fgs_bind(scope, id, FGS_GRAD, tensor));
    measure_step(scope, ++step);
    ring all = ring_of(scope);
    const fgs_record *record = of_tensor(&all, "gradient", step, id);
    CHECK_NEAR(value(&all, record, "squares"), squares);
    CHECK(value(&all, record, "peak") == peak);
    CHECK(value(&all, record, "non_finite") == 0.0 && !has_flag(&all, record, "non_finite"));
    ring_free(&all);
    OK(fgs_bind(scope, id, FGS_GRAD, NULL));
}

static void check_types(fgs_scope *scope, uint32_t id)
{
    fgs_dltensor tensors[] = {DENSE(f64, FLOAT, 64, SIZE), DENSE(f32, FLOAT, 32, SIZE), DENSE(f16, FLOAT, 16, SIZE),
                              DENSE(bf16, BFLOAT, 16, SIZE)};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        check_gradient(scope, id, &tensors[i], SQUARES, 4.0);
        /* Pinned host memory is host memory. */
        tensors[i].device.device_type = 3;
        check_gradient(scope, id, &tensors[i], SQUARES, 4.0);
    }
}

/* A buffer full of NaN in which only the view's own elements are numbers: whatever else is read shows. */
static void check_view(fgs_scope *scope, uint32_t id, int dimensions, int64_t *shape, int64_t *strides, uint64_t skip)
{
    float buffer[64];
    for (size_t i = 0; i < 64; i++)
        buffer[i] = NAN;
    int next = 0;
    int64_t at[3] = {0, 0, 0}, *s = strides;
    for (at[0] = 0; at[0] < shape[0]; at[0]++)
        for (at[1] = 0; at[1] < (dimensions > 1 ? shape[1] : 1); at[1]++)
            for (at[2] = 0; at[2] < (dimensions > 2 ? shape[2] : 1); at[2]++) {
                int64_t offset = at[0] * s[0] + (dimensions > 1 ? at[1] * s[1] : 0) + (dimensions > 2 ? at[2] * s[2] : 0);
                buffer[skip + (uint64_t)offset] = f32[next++];
            }
    fgs_dltensor view = F32(buffer, 0);
    view.ndim = dimensions;
    view.shape = shape;
    view.strides = strides;
    view.byte_offset = skip * sizeof(float);
    check_gradient(scope, id, &view, SQUARES, 4.0);
}

static void check_views(fgs_scope *scope, uint32_t id)
{
    check_view(scope, id, 1, (int64_t[]){6}, (int64_t[]){1}, 3);             /* an offset in bytes */
    check_view(scope, id, 1, (int64_t[]){6}, (int64_t[]){5}, 0);             /* every fifth element */
    check_view(scope, id, 2, (int64_t[]){2, 3}, (int64_t[]){9, 1}, 1);       /* rows with padding */
    check_view(scope, id, 2, (int64_t[]){2, 3}, (int64_t[]){1, 2}, 0);       /* transposed */
    check_view(scope, id, 2, (int64_t[]){3, 2}, (int64_t[]){2, 12}, 0);      /* both with gaps */
    check_view(scope, id, 3, (int64_t[]){1, 3, 2}, (int64_t[]){99, 7, 1}, 0); /* a dimension of one may have any stride */
    check_view(scope, id, 3, (int64_t[]){3, 2, 1}, (int64_t[]){8, 4, 77}, 0); /* 3 × 2 elements, 4 apart: one dimension */
}

/* NaN and infinities are counted, count as zero, and are reported as a fault. */
static void check_non_finite(fgs_scope *scope, uint32_t id)
{
    float gradient[SIZE] = {1.0f, NAN, 2.0f, INFINITY, -INFINITY, 2.0f};
    fgs_dltensor tensor = F32(gradient, SIZE);
    OK(fgs_bind(scope, id, FGS_GRAD, &tensor));
    measure_step(scope, ++step);
    ring all = ring_of(scope);
    const fgs_record *record = of_tensor(&all, "gradient", step, id);
    CHECK(value(&all, record, "squares") == 9.0 && value(&all, record, "peak") == 2.0);
    CHECK(value(&all, record, "non_finite") == 3.0 && has_flag(&all, record, "non_finite"));
    CHECK(value(&all, of_model(&all, "step", step), "non_finite") == 3.0);
    const fgs_record *fault = of_model(&all, "fault", step);
    const char *name = name_of(&all, FGS_NAME_FAULT, (uint32_t)value(&all, fault, "code"));
    CHECK(strstr(name, "NaN") != NULL);
    ring_free(&all);
    OK(fgs_bind(scope, id, FGS_GRAD, NULL));
}

/* bf16 parameters hide small updates; the fp32 master copy is measured instead where it is bound. */
static void check_master(fgs_scope *scope, uint32_t id)
{
    uint16_t model[SIZE];
    float master[SIZE], gradient[SIZE] = {0};
    for (int i = 0; i < SIZE; i++) {
        model[i] = 0x3f80;
        master[i] = 1.0f;
    }
    fgs_dltensor parameters = DENSE(model, BFLOAT, 16, SIZE), copy = F32(master, SIZE), zero = F32(gradient, SIZE);
    OK(fgs_bind(scope, id, FGS_PARAM, &parameters));
    OK(fgs_bind(scope, id, FGS_MASTER, &copy));
    OK(fgs_bind(scope, id, FGS_GRAD, &zero));
    OK(fgs_step_begin(scope, ++step));
    OK(fgs_gradients_ready(scope, 1.0, 0, NULL));
    for (int i = 0; i < SIZE; i++)
        master[i] += 0x1p-12f; /* rounds to nothing in bf16 */
    OK(fgs_step_end(scope, 1, NULL));
    ring all = ring_of(scope);
    CHECK(value(&all, of_tensor(&all, "update", step, id), "updates") == SIZE * 0x1p-24);
    ring_free(&all);
}

int main(void)
{
    fgs_scope *scope = open_scope();
    uint32_t id = register_plain(scope, "weight", SIZE);
    check_types(scope, id);
    check_views(scope, id);
    check_non_finite(scope, id);
    check_master(scope, id);
    OK(fgs_close(scope));
    return RESULT();
}
