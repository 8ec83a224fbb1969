/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shows the driver the one device that this process is for, before it looks: then it makes nothing ready on the others, and
 * finds a MIG instance, of which it would show no other than the first. It looks once in a process, at cuInit(), so another
 * name can be tried by another program alone.
 *
 * A UUID does not say whether it is a GPU's or an instance's. GPU- is tried first; if the driver shows nothing then, we begin
 * anew as MIG-. START stays in the socket until helper_run() takes it, so the next program finds it too.
 *
 * What the daemon's environment hides stays hidden: a list that is there already is cut to the entry that means our device,
 * and stays as it is if no UUID of it does.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io/gpu/helper.h"

#define VARIABLE "CUDA_VISIBLE_DEVICES"
#define PREFIX_BYTES 4 /* GPU-, MIG- */

/* The daemon's first message, which stays where it is. */
static bool start_peek(int socket_fd, struct gpu_msg *ret_msg)
{
    ssize_t n = recv(socket_fd, ret_msg, sizeof(*ret_msg), MSG_PEEK | MSG_TRUNC);

    return n == sizeof(*ret_msg) && ret_msg->type == GPU_MSG_START && ret_msg->version == GPU_WIRE_VERSION;
}

/* An entry of a list may be a name's first letters. */
static bool entry_means(const char *entry, size_t len, const char *name)
{
    return len > PREFIX_BYTES && len <= strlen(name) && strncasecmp(entry, name, len) == 0;
}

/* The first entry that means one of them decides. */
static void narrow(const char *list, const char *gpu, const char *mig)
{
    const char *found = NULL;

    for (const char *entry = list; !found; entry++) {
        size_t len = strcspn(entry, ",");

        if (entry_means(entry, len, gpu))
            found = gpu;
        else if (entry_means(entry, len, mig))
            found = mig;
        entry += len;
        if (*entry == '\0')
            break;
    }
    if (found)
        (void)setenv(VARIABLE, found, 1);
}

/* The driver looked, and there was nothing. Every other failure is START's to tell. */
static bool shows_nothing(void)
{
    const struct cuda_driver *cu;
    int n = 0;

    if (cuda_driver_load(&cu) < 0)
        return false;
    int r = cu->Init(0);
    if (r == NV_SUCCESS)
        r = cu->DeviceGetCount(&n);
    return r == NV_ERROR_NO_DEVICE || (r == NV_SUCCESS && n == 0);
}

void helper_show_device(int socket_fd)
{
    char gpu[CUDA_UUID_TEXT_BYTES], mig[CUDA_UUID_TEXT_BYTES];
    const char *list = getenv(VARIABLE);
    struct cuda_uuid uuid;
    struct gpu_msg msg;

    if (!start_peek(socket_fd, &msg))
        return;
    memcpy(uuid.bytes, msg.uuid, sizeof(uuid.bytes));
    (void)cuda_uuid_print(&uuid, gpu);
    memcpy(mig, gpu, sizeof(mig));
    memcpy(mig, "MIG-", PREFIX_BYTES);
    if (list) {
        narrow(list, gpu, mig);
        return;
    }
    if (setenv(VARIABLE, gpu, 1) < 0 || !shows_nothing() || setenv(VARIABLE, mig, 1) < 0)
        return;
    (void)fcntl(socket_fd, F_SETFD, 0);
    (void)execl("/proc/self/exe", "spillway-gpu", (char *)NULL);
    (void)fcntl(socket_fd, F_SETFD, FD_CLOEXEC); /* and START will say that there is no such device */
}
