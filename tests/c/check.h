/* What the programs of this directory share: checks, tensors over arrays, and the records of a ring by name.
 *
 * A program shows one thing that the library does, the way a trainer's author would write it, and exits with 0 if every
 * check held. */

#ifndef FGS_TESTS_CHECK_H
#define FGS_TESTS_CHECK_H

#include <forgetscope.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- checks ---- */

static int failed_checks;

/* Goes on after a failure, so that one run shows all of them. */
#define CHECK(condition) check_that((condition), #condition, __FILE__, __LINE__)
/* Equal up to the rounding of single precision. */
#define CHECK_NEAR(found, expected) check_near((found), (expected), 2e-6, #found, __FILE__, __LINE__)
/* Equal up to `tolerance`, for values that are small differences of larger ones. */
#define CHECK_WITHIN(found, expected, tolerance)                                                                       \
    check_that(fabs((found) - (expected)) <= (tolerance), #found " is " #expected, __FILE__, __LINE__)
/* A call that has to succeed: what follows it would make no sense otherwise. */
#define OK(call) check_ok((call), #call, __FILE__, __LINE__)
/* A call that has to be refused with this status, and with a sentence that contains `word`. */
#define REFUSED(call, status, word) check_refused((call), (status), (word), #call, __FILE__, __LINE__)
/* What main returns. */
#define RESULT() (failed_checks ? EXIT_FAILURE : EXIT_SUCCESS)

static inline int check_that(int condition, const char *what, const char *file, int line)
{
    if (!condition) {
        fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
        failed_checks++;
    }
    return condition;
}

static inline int check_near(double found, double expected, double tolerance, const char *what, const char *file, int line)
{
    int is_near = fabs(found - expected) <= tolerance * fabs(expected) + 1e-12;
    if (!is_near) {
        fprintf(stderr, "%s:%d: %s is %.17g, expected %.17g\n", file, line, what, found, expected);
        failed_checks++;
    }
    return is_near;
}

static inline void check_ok(fgs_status status, const char *call, const char *file, int line)
{
    if (status != FGS_OK) {
        fprintf(stderr, "%s:%d: %s: %s: %s\n", file, line, call, fgs_status_name(status), fgs_last_error());
        exit(EXIT_FAILURE);
    }
}

static inline void check_refused(fgs_status found, fgs_status expected, const char *word, const char *call,
                                 const char *file, int line)
{
    if (found != expected || strstr(fgs_last_error(), word) == NULL) {
        fprintf(stderr, "%s:%d: %s gave %s, \"%s\"; expected %s and a sentence with \"%s\"\n", file, line, call,
                fgs_status_name(found), fgs_last_error(), fgs_status_name(expected), word);
        failed_checks++;
    }
}

/* ---- tensors ---- */

/* A dense tensor: `fgs_dltensor t = F32(array, rows, cols);` */
#define F32(data, ...) DENSE(data, 2, 32, __VA_ARGS__)
#define DENSE(data, code, bits, ...)                                                                                   \
    dense((data), (code), (bits), (int64_t[]){__VA_ARGS__}, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))

static inline fgs_dltensor dense(void *data, uint8_t code, uint8_t bits, int64_t *shape, size_t dimensions)
{
    fgs_dltensor tensor;
    memset(&tensor, 0, sizeof tensor);
    tensor.data = data;
    tensor.device.device_type = 1;
    tensor.ndim = (int32_t)dimensions;
    tensor.dtype.code = code;
    tensor.dtype.bits = bits;
    tensor.dtype.lanes = 1;
    tensor.shape = shape;
    return tensor;
}

/* Reproducible values in [-1, 1), never zero. */
static inline float noise(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return ((float)(*state >> 9) + 0.5f) / (float)(1 << 22) - 1.0f;
}

static inline void fill(float *values, size_t count, uint32_t seed)
{
    for (size_t i = 0; i < count; i++)
        values[i] = noise(&seed);
}

static inline double dot(const float *x, const float *y, size_t count)
{
    double sum = 0.0;
    for (size_t i = 0; i < count; i++)
        sum += (double)x[i] * (double)y[i];
    return sum;
}

/* ---- scopes ---- */

/* A scope that samples every step: tests want all of them. */
static inline fgs_scope *open_scope(void)
{
    fgs_options options = FGS_OPTIONS_INIT;
    options.every = 1;
    options.threads = 2;
    fgs_scope *scope = NULL;
    OK(fgs_open(&options, &scope));
    return scope;
}

/* Registers a tensor about which nothing is special. */
static inline uint32_t register_plain(fgs_scope *scope, const char *name, uint64_t numel)
{
    fgs_tensor tensor = FGS_TENSOR_INIT;
    tensor.name = name;
    tensor.numel = numel;
    uint32_t id = UINT32_MAX;
    OK(fgs_register(scope, &tensor, &id));
    return id;
}

/* One step in which nothing is updated. A trainer does not wait for the ring; here no sampled step may be left out. */
static inline void measure_step(fgs_scope *scope, uint64_t step)
{
    OK(fgs_step_begin(scope, step));
    OK(fgs_gradients_ready(scope, 1.0, 0, NULL));
    OK(fgs_step_end(scope, 1, NULL));
    OK(fgs_flush(scope));
}

/* ---- rings ---- */

enum { LEVEL_HEAD, LEVEL_TENSOR, LEVEL_ROLE, LEVEL_LAYER, LEVEL_MODEL, LEVEL_ATTENTION_HEAD };

#define NONE UINT32_MAX

/* All records that were published so far. */
typedef struct {
    fgs_reader *reader;
    fgs_record *records;
    size_t count;
    uint64_t lost;
    fgs_status end;
} ring;

static inline ring ring_of(fgs_scope *scope)
{
    ring all = {NULL, NULL, 0, 0, FGS_EMPTY};
    const char *path = NULL;
    OK(fgs_flush(scope));
    OK(fgs_ring_path(scope, &path));
    OK(fgs_reader_open(path, &all.reader));
    size_t room = 0;
    for (;;) {
        if (all.count == room) {
            room = room ? 2 * room : 256;
            all.records = (fgs_record *)realloc(all.records, room * sizeof *all.records);
        }
        uint64_t lost = 0;
        all.end = fgs_reader_next(all.reader, &all.records[all.count], &lost);
        all.lost += lost;
        if (all.end != FGS_OK)
            return all;
        all.count++;
    }
}

static inline void ring_free(ring *all)
{
    OK(fgs_reader_close(all->reader));
    free(all->records);
    memset(all, 0, sizeof *all);
}

static inline const char *name_of(const ring *all, fgs_name what, uint32_t id)
{
    const char *name = NULL;
    return fgs_reader_name(all->reader, what, id, &name) == FGS_OK ? name : "";
}

static inline int is_kind(const ring *all, const fgs_record *record, const char *kind)
{
    return strcmp(name_of(all, FGS_NAME_KIND, record->kind), kind) == 0;
}

/* The value called `name`. */
static inline double value(const ring *all, const fgs_record *record, const char *name)
{
    for (uint32_t i = 0; i < 10; i++)
        if (strcmp(name_of(all, FGS_NAME_VALUE, (uint32_t)record->kind << 8 | i), name) == 0)
            return record->values[i];
    fprintf(stderr, "records of kind %s have no value %s\n", name_of(all, FGS_NAME_KIND, record->kind), name);
    exit(EXIT_FAILURE);
}

static inline int has_flag(const ring *all, const fgs_record *record, const char *name)
{
    for (uint32_t bit = 1; bit != 0; bit <<= 1)
        if ((record->flags & bit) != 0 && strcmp(name_of(all, FGS_NAME_FLAG, bit), name) == 0)
            return 1;
    return 0;
}

/* Records of a kind in a step. */
static inline size_t count_of(const ring *all, const char *kind, uint64_t step)
{
    size_t count = 0;
    for (size_t i = 0; i < all->count; i++)
        count += all->records[i].step == step && is_kind(all, &all->records[i], kind);
    return count;
}

/* The one record of a kind about something in a step; NULL if there is none. More than one is a failure. */
static inline const fgs_record *seek(const ring *all, const char *kind, uint64_t step, uint8_t level, uint32_t tensor,
                                     uint32_t slice)
{
    const fgs_record *found = NULL;
    for (size_t i = 0; i < all->count; i++) {
        const fgs_record *record = &all->records[i];
        if (record->step == step && record->level == level && record->tensor == tensor && record->slice == slice &&
            is_kind(all, record, kind)) {
            CHECK(found == NULL);
            found = record;
        }
    }
    return found;
}

/* The same where there has to be one. */
static inline const fgs_record *find(const ring *all, const char *kind, uint64_t step, uint8_t level, uint32_t tensor,
                                     uint32_t slice)
{
    const fgs_record *found = seek(all, kind, step, level, tensor, slice);
    if (found == NULL) {
        fprintf(stderr, "no record of kind %s in step %llu at level %d of tensor %u, slice %#x\n", kind,
                (unsigned long long)step, level, tensor, slice);
        exit(EXIT_FAILURE);
    }
    return found;
}

static inline const fgs_record *of_model(const ring *all, const char *kind, uint64_t step)
{
    return find(all, kind, step, LEVEL_MODEL, NONE, NONE);
}

static inline const fgs_record *of_tensor(const ring *all, const char *kind, uint64_t step, uint32_t tensor)
{
    return find(all, kind, step, LEVEL_TENSOR, tensor, NONE);
}

static inline const fgs_record *of_head(const ring *all, const char *kind, uint64_t step, uint32_t tensor, uint32_t role,
                                        uint32_t head)
{
    return find(all, kind, step, LEVEL_HEAD, tensor, role << 16 | head);
}

#endif
