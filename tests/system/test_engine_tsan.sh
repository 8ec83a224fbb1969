#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The daemon's threads under load, for ThreadSanitizer above all: a report ends the daemon, and so the run.
set -euo pipefail

"${SPILLWAY_BIN:?}/spillbench" demo --requests 300
exec "$SPILLWAY_BIN/spillbench" mix --seconds 15 --seed 2
