# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml has no words for: the extension is made by build_ffi.py."""
from setuptools import setup

setup(cffi_modules=["build_ffi.py:for_setuptools"])
