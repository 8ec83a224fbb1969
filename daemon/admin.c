/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/admin.h"

#include <errno.h>

#include "daemon/session.h"

void admin_begin(struct session *session, const char *text, size_t size)
{
    (void)text;
    (void)size;
    session_reply_error(session, -ENOSYS, 0, "not yet");
}
