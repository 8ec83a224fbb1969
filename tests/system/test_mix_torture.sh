#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The mixed load for hours: ten minutes of it for each of several seeds.
set -euo pipefail

for seed in ${SPILLWAY_SEEDS:-1 2 3 4 5 6}; do
    "${SPILLWAY_BIN:?}/spillbench" mix --seconds 600 --seed "$seed"
done
