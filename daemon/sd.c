/* SPDX-License-Identifier: Apache-2.0 */
/* Owns what there is of libsystemd: descriptors that are passed or kept, readiness, watchdog. Failures mean that nobody
 * listens. */
#include "daemon/sd.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <systemd/sd-daemon.h>

int sd_descriptors(int *ret_first, char ***ret_names)
{
    *ret_first = SD_LISTEN_FDS_START;
    return sd_listen_fds_with_names(1, ret_names);
}

bool sd_is_listening(int fd)
{
    return sd_is_socket_unix(fd, 0, 1, NULL, 0) > 0;
}

bool sd_has_store(void)
{
    return getenv("NOTIFY_SOCKET") != NULL;
}

uint32_t sd_store_max(void)
{
    const char *text = getenv("FDSTORE"); /* systemd 254 and later */

    return text ? (uint32_t)MIN(strtoul(text, NULL, 10), (unsigned long)UINT32_MAX) : 0;
}

/* The manager polls what it keeps, unless it is told not to: a memfd has no hang-up. */
int sd_store(const char *name, int fd)
{
    char text[128];

    snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", name);
    int r = sd_pid_notify_with_fds(0, 0, text, &fd, 1);

    return r > 0 ? 0 : r < 0 ? r : -ENOENT;
}

void sd_unstore(const char *name)
{
    (void)sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", name);
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
