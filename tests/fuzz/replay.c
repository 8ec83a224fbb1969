/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main() of a fuzzer where libFuzzer is not: runs the files that are named, and those in the folders that are, each as one
 * input. `--times N` runs each so many times.
 */
#include <dirent.h>
#include <errno.h>
#include <sys/stat.h>

#include "tests/fuzz/fuzz.h"

#define INPUT_BYTES_MAX MIB

/* A target that needs nothing to be set up has none. */
__attribute__((weak)) int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return 0;
}

static const char *now_running = "";
static uint64_t n_run, n_times = 1;

void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void on_death(void)
{
    fprintf(stderr, "input: %s\n", now_running);
}

static int run_file(const char *path)
{
    static uint8_t bytes[INPUT_BYTES_MAX];
    FILE *in = fopen(path, "re");

    if (!in) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 1;
    }
    size_t n = fread(bytes, 1, sizeof(bytes), in);

    fclose(in);
    uint8_t *exact = malloc(n ? n : 1); /* so that ASan sees a read past its end */

    if (!exact)
        abort();
    memcpy(exact, bytes, n);
    now_running = path;
    for (uint64_t i = 0; i < n_times; i++)
        LLVMFuzzerTestOneInput(exact, n);
    n_run++;
    now_running = "";
    free(exact);
    return 0;
}

static int run_path(const char *path)
{
    struct dirent **names = NULL;
    struct stat st;
    int failed = 0;

    if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode))
        return run_file(path);
    int n = scandir(path, &names, NULL, alphasort);

    for (int i = 0; i < n; i++) {
        char file[4096];

        snprintf(file, sizeof(file), "%s/%s", path, names[i]->d_name);
        if (names[i]->d_name[0] != '.')
            failed |= run_file(file);
        free(names[i]);
    }
    free(names);
    return failed;
}

int main(int argc, char **argv)
{
    int failed = 0, first = 1;

    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(on_death);
    if (LLVMFuzzerInitialize(&argc, &argv) != 0)
        return 1;
    if (argc > 2 && strcmp(argv[1], "--times") == 0) {
        n_times = strtoull(argv[2], NULL, 0);
        first = 3;
    }
    LLVMFuzzerTestOneInput((const uint8_t *)"", 0);
    for (int i = first; i < argc; i++)
        failed |= run_path(argv[i]);
    printf("%llu inputs\n", (unsigned long long)n_run);
    return failed;
}
