# SPDX-License-Identifier: Apache-2.0
"""The project's version, as CMakeLists.txt has it; on its own, so that it can be read without the extension."""

VERSION = "0.1.0"
