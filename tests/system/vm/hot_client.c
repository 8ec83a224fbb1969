/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For vm/systemd.sh: a client under load until SIGTERM (tests/system/support/hotload.h), while somebody else ends the daemon.
 * Writes a line to standard output whenever each of its threads has got through something more. Exit status 0: no call
 * failed, no byte was wrong, and nothing was missing.
 *
 *   hot_client SOCKET     of a pool named `default`, with a device
 */
#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tests/system/support/hotload.h"

#define LINES_MS 20

static volatile sig_atomic_t stop;
/* It waits for longer than a watchdog does. */
static struct daemon d = {.disk_bytes = 1, .timeout_ms = 60000};

static void on_term(int signal_number)
{
    (void)signal_number;
    stop = 1;
}

START_TEST(run)
{
    static struct hotload load;

    hotload_start(&load, &d, 1);
    for (unsigned n = 1; !stop && !hotload_error(&load); n++) {
        ck_assert_msg(hotload_progress(&load), "it stands still");
        printf("round %u\n", n);
        nanosleep(&(struct timespec){.tv_nsec = LINES_MS * 1000000}, NULL);
    }
    uint64_t n = hotload_stop(&load);

    ck_assert_msg(!hotload_error(&load), "%s", hotload_error(&load));
    printf("%llu calls, none failed\n", (unsigned long long)n);
}
END_TEST

int main(int argc, char **argv)
{
    Suite *s = suite_create("hot_client");
    TCase *tc = tcase_create("all");

    if (argc != 2) {
        fprintf(stderr, "usage: hot_client SOCKET\n");
        return EXIT_FAILURE;
    }
    snprintf(d.socket, sizeof(d.socket), "%s", argv[1]);
    setvbuf(stdout, NULL, _IOLBF, 0);
    setenv("CK_FORK", "no", 1); /* SIGTERM is for the process that runs it */
    signal(SIGTERM, on_term);
    tcase_set_timeout(tc, 0);
    tcase_add_test(tc, run);
    suite_add_tcase(s, tc);
    return suite_main(s);
}
