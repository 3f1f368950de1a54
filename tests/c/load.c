/* A program that loads the library at run time, late, into a process with a BLAS of its own. Loading starts no thread;
 * neither side gets the other's functions; closing leaves no thread behind; unloading leaves the process usable. */

#include "check.h"
#include <dirent.h>
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

/* The program's BLAS and LAPACK. Calling any of it from the library would be a capture, and ends the program. */
#define FOREIGN(name)                                                                                                  \
    void name(void);                                                                                                   \
    void name(void)                                                                                                    \
    {                                                                                                                  \
        fprintf(stderr, "the library called the program's " #name "\n");                                              \
        abort();                                                                                                       \
    }
FOREIGN(dgemm_)
FOREIGN(dgemv_)
FOREIGN(ddot_)
FOREIGN(dsyrk_)
FOREIGN(dscal_)
FOREIGN(dpotrf_)
FOREIGN(dgesv_)
FOREIGN(dsyev_)
FOREIGN(dsyevd_)
FOREIGN(dsytrd_)
FOREIGN(dgesdd_)
FOREIGN(ilaenv_)
FOREIGN(xerbla_)
FOREIGN(cblas_dgemm)
FOREIGN(cblas_ddot)
FOREIGN(LAPACKE_dsyev_work)
FOREIGN(openblas_get_num_threads)
FOREIGN(gotoblas_init)

static int threads(void)
{
    DIR *tasks = opendir("/proc/self/task");
    int count = 0;
    while (readdir(tasks) != NULL)
        count++;
    closedir(tasks);
    return count - 2;
}

static void *library;

/* A pointer to a function of the library, of the type that the header declares. ISO C has no cast for this. */
#define FUNCTION(name)                                                                                                 \
    __typeof__(&name) dl_##name;                                                                                       \
    *(void **)&dl_##name = dlsym(library, #name);                                                                      \
    CHECK(dl_##name != NULL)

/* Two earlier tasks and a third one: what is projected onto the span of the others takes linear algebra. */
static void measure(void)
{
    FUNCTION(fgs_open);
    FUNCTION(fgs_close);
    FUNCTION(fgs_register);
    FUNCTION(fgs_bind);
    FUNCTION(fgs_reference_add);
    FUNCTION(fgs_step_begin);
    FUNCTION(fgs_gradients_ready);
    FUNCTION(fgs_step_end);
    FUNCTION(fgs_flush);
    FUNCTION(fgs_ring_path);
    FUNCTION(fgs_reader_open);
    FUNCTION(fgs_reader_next);
    FUNCTION(fgs_reader_close);

    enum { PROJECTION = 5, SPAN_SHARE = 2 };
    fgs_options options = FGS_OPTIONS_INIT;
    options.every = 1;
    fgs_scope *scope = NULL;
    CHECK(dl_fgs_open(&options, &scope) == FGS_OK);
    CHECK(threads() > 1);
    fgs_tensor tensor = FGS_TENSOR_INIT;
    tensor.name = "weight";
    tensor.numel = 4;
    uint32_t id;
    CHECK(dl_fgs_register(scope, &tensor, &id) == FGS_OK);
    float gradient[4] = {1.0f, 0.0f, 0.0f, 0.0f};
    fgs_dltensor data = F32(gradient, 4);
    CHECK(dl_fgs_bind(scope, id, FGS_GRAD, &data) == FGS_OK);
    CHECK(dl_fgs_reference_add(scope, "first", 1, 1.0, NULL) == FGS_OK);
    gradient[1] = 1.0f;
    CHECK(dl_fgs_reference_add(scope, "second", 1, 1.0, NULL) == FGS_OK);
    /* (3, 0, 4, 0) has 9/25 of its square in the span of (1, 0, 0, 0) and (1, 1, 0, 0). */
    gradient[0] = 3.0f;
    gradient[1] = 0.0f;
    gradient[2] = 4.0f;
    CHECK(dl_fgs_step_begin(scope, 0) == FGS_OK && dl_fgs_gradients_ready(scope, 1.0, 0, NULL) == FGS_OK);
    CHECK(dl_fgs_step_end(scope, 1, NULL) == FGS_OK && dl_fgs_flush(scope) == FGS_OK);

    const char *path = NULL;
    fgs_reader *reader = NULL;
    fgs_record record;
    int projections = 0;
    CHECK(dl_fgs_ring_path(scope, &path) == FGS_OK && dl_fgs_reader_open(path, &reader) == FGS_OK);
    while (dl_fgs_reader_next(reader, &record, NULL) == FGS_OK) {
        if (record.kind != PROJECTION)
            continue;
        CHECK_NEAR(record.values[SPAN_SHARE], 9.0 / 25.0);
        projections++;
    }
    CHECK(projections > 0);
    CHECK(dl_fgs_reader_close(reader) == FGS_OK && dl_fgs_close(scope) == FGS_OK);
}

static void *visible(const char *name)
{
    return dlsym(RTLD_DEFAULT, name);
}

/* All threads but this one are gone. The kernel takes a moment to strike out a thread that was waited for. */
static int is_alone(void)
{
    for (int i = 0; i < 1000 && threads() > 1; i++)
        usleep(1000);
    return threads() == 1;
}

int main(void)
{
    CHECK(threads() == 1);
    void *own = visible("dgemm_");
    for (int round = 0; round < 5; round++) {
        /* RTLD_GLOBAL: all that the library exports could be found by anyone. */
        library = dlopen("libforgetscope.so.0", RTLD_NOW | RTLD_GLOBAL);
        if (library == NULL) {
            fprintf(stderr, "%s\n", dlerror());
            return EXIT_FAILURE;
        }
        CHECK(threads() == 1);
        CHECK(visible("fgs_open") != NULL);
        CHECK(own != NULL && visible("dgemm_") == own);
        CHECK(visible("sgemm_") == NULL && visible("cblas_sgemm") == NULL && visible("dsyevr_") == NULL);
        CHECK(visible("_gfortran_stop_string") == NULL && visible("rust_eh_personality") == NULL);

        measure();
        /* At once: a thread that still ran would have no code any more. */
        CHECK(dlclose(library) == 0);
        CHECK(is_alone());

        /* Nor is anything called at a fork that is not there any more. */
        pid_t child = fork();
        if (child == 0)
            _exit(EXIT_SUCCESS);
        int status = -1;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    return RESULT();
}
