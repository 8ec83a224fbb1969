/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `spillctl iostat`: the daemon's counters, and with an interval their rates. The first line is since the daemon's
 * start, as iostat(1) has it. One session for all of it.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "client/ctl/ctl.h"
#include "include/base/units.h"

int ctl_iostat(const struct ctl *ctl, int argc, char **argv)
{
    (void)ctl; (void)argc; (void)argv;
    return CTL_FAILED;
}
