/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether a device may be overwritten without asking: is anything on it?
 */
#pragma once

#include "io/device.h"

/* 0: nothing is. -EEXIST: a Spillway device, or somebody else's data; or an errno of reading. ret_why tells which. */
must_check int device_look(const struct device *device, char *ret_why, size_t why_bytes);
