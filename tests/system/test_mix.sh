#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Four clients on one pool and two on another, everything at once: no wrong byte, and afterwards the books balance.
# A minute of it; SPILLWAY_LONG=1: ten.
set -euo pipefail

seconds=60
[[ -z ${SPILLWAY_LONG:-} ]] || seconds=600

exec "${SPILLWAY_BIN:?}/spillbench" mix --seconds "$seconds" --seed "${SPILLWAY_SEED:-1}"
