/* Runs `body` of a library that calls NCCL. With PLUGIN the library is loaded as Python loads PyTorch: by dlopen with
 * RTLD_LOCAL, so that NCCL is in no global scope. Else the program is linked with it. */
#include <dlfcn.h>
#include <stdio.h>

int body(void);

int main(int argc, char **argv) {
    (void)argc;
    int (*run)(void) = NULL;
#ifdef PLUGIN
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    *(void **)&run = dlsym(library, "body");
#else
    (void)argv;
    run = body;
#endif
    return run ? run() : 1;
}
