/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns what there is of libsystemd: descriptors that are passed or kept, readiness, watchdog. Failures mean that nobody
 * listens.
 *
 * What goes to the store does not go through the library: that makes a socket each time, which engines may not
 * (io/sandbox.h), and a chunk would not be kept because there is no descriptor left.
 */
#include "daemon/sd.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "include/base/socket.h"

static struct {
    int fd;
    struct sockaddr_un addr;
    socklen_t addr_bytes;
} store = {.fd = -1};

int sd_descriptors(int *ret_first, char ***ret_names)
{
    *ret_first = SD_LISTEN_FDS_START;
    return sd_listen_fds_with_names(1, ret_names);
}

bool sd_is_listening(int fd)
{
    return sd_is_socket_unix(fd, 0, 1, NULL, 0) > 0;
}

bool sd_store_open(void)
{
    const char *path = getenv("NOTIFY_SOCKET");
    size_t len = path ? strlen(path) : 0;

    if (len < 2 || len > sizeof(store.addr.sun_path) - 1 || (path[0] != '/' && path[0] != '@'))
        return false;
    if (store.fd < 0)
        store.fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    store.addr = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(store.addr.sun_path, path, len);
    if (path[0] == '@')
        store.addr.sun_path[0] = '\0';
    store.addr_bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + (path[0] == '/'));
    return true;
}

void sd_store_close(void)
{
    if (store.fd >= 0)
        close(store.fd);
    store.fd = -1;
}

uint32_t sd_store_max(void)
{
    const char *text = getenv("FDSTORE"); /* systemd 254 and later */

    return text ? (uint32_t)MIN(strtoul(text, NULL, 10), (unsigned long)UINT32_MAX) : 0;
}

static int store_send(const char *text, const int *fd)
{
    struct iovec iov = {.iov_base = (char *)(uintptr_t)text, .iov_len = strlen(text)};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {.bytes = {0}};
    struct msghdr header = {.msg_name = &store.addr, .msg_namelen = store.addr_bytes, .msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n;

    if (fd) {
        header.msg_control = control.bytes;
        header.msg_controllen = sizeof(control.bytes);
        socket_add_fds(&header, fd, 1);
    }
    do
        n = sendmsg(store.fd, &header, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

/* The manager polls what it keeps, unless it is told not to: a memfd has no hang-up. */
int sd_store(const char *name, int fd)
{
    char text[128];

    snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", name);
    return store_send(text, &fd);
}

void sd_unstore(const char *name)
{
    char text[128];

    snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s", name);
    (void)store_send(text, NULL);
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
