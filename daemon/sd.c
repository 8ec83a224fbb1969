/* SPDX-License-Identifier: Apache-2.0 */
/* Owns what there is of libsystemd: socket activation, readiness, watchdog. Failures mean that nobody listens. */
#include "daemon/sd.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <systemd/sd-daemon.h>

int sd_socket(void)
{
    int n = sd_listen_fds(1);

    if (n <= 0)
        return -1;
    if (n > 1 || sd_is_socket_unix(SD_LISTEN_FDS_START, 0, 1, NULL, 0) <= 0)
        return -EINVAL;
    return SD_LISTEN_FDS_START;
}

void sd_ready(void)
{
    (void)sd_notify(0, "READY=1");
}

void sd_status(const char *fmt, ...)
{
    char text[256];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    (void)sd_notifyf(0, "STATUS=%s", text);
}

void sd_reloading(uint64_t now_ns)
{
    (void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)(now_ns / 1000));
}

void sd_stopping(void)
{
    (void)sd_notify(0, "STOPPING=1");
}

void sd_alive(void)
{
    (void)sd_notify(0, "WATCHDOG=1");
}

uint64_t sd_watchdog_ns(void)
{
    uint64_t us = 0;

    return sd_watchdog_enabled(0, &us) > 0 ? us * 1000 : 0;
}
