#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The layer check can fail: each thing that it promises to find is planted in a small tree, one at a time."""
import pathlib
import tempfile
import unittest

import layers

CONF = pathlib.Path(__file__).with_name("layers.conf").read_text(encoding="utf-8")

# A tree that keeps to the real rules.
CLEAN = {
    "include/spillway/abi.h": "#include <stdint.h>\n",
    "include/spillway/spillway.h": '#include "abi.h"\n',
    "include/base/base.h": "#include <stddef.h>\n",
    "io/backend.h": '#include "include/base/base.h"\n',
    "io/uring.c": '#include <liburing.h>\n#include "io/backend.h"\n',
    "tiering/tiering.h": '#include "io/backend.h"\n',
    "tiering/tiering.c": '#include "tiering/tiering.h"\n',
    "daemon/sd.h": "",
    "daemon/sd.c": '#include <systemd/sd-daemon.h>\n#include "daemon/sd.h"\n',
    "daemon/main.c": '#include "daemon/sd.h"\n#include "io/backend.h"\n',
    "client/lib/map.c": '#include <sys/mman.h>\n#include "include/spillway/abi.h"\n',
    "tests/unit/test_sd.c": '#include "daemon/sd.h"\n#include <sys/mman.h>\n',
}


class LayersTest(unittest.TestCase):
    def complaints(self, changes, conf=CONF, **options):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, text in {**CLEAN, **changes}.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            return layers.check(root, layers.Rules(conf), **options)

    def assert_finds(self, changes, *fragments):
        found = self.complaints(changes)
        self.assertEqual(len(found), 1, found)
        for fragment in fragments:
            self.assertIn(fragment, found[0])

    def test_clean_tree_passes(self):
        self.assertEqual(self.complaints({}), [])

    def test_upward_include(self):
        self.assert_finds({"io/uring.c": '\n\n#include "tiering/tiering.h"\n'}, "io/uring.c:3", "may not include")

    def test_first_matching_rule_wins(self):
        self.assert_finds({"daemon/request.c": '#include "io/backend.h"\n'}, "daemon/request.c:1", "may not include")

    def test_tools_keep_out_of_the_library(self):
        changes = {"client/lib/map.h": "", "client/ctl/main.c": '#include "client/lib/map.h"\n'}
        self.assert_finds(changes, "client/ctl/main.c:1", "may not include")

    def test_own_header_is_always_allowed(self):
        conf = CONF.replace("allow daemon/* ", "allow daemon/x.c : include/*\nallow daemon/* ")
        self.assertEqual(self.complaints({"daemon/x.h": "", "daemon/x.c": '#include "daemon/x.h"\n'}, conf), [])

    def test_owned_system_headers(self):
        for header in ("liburing.h", "numa.h", "sys/mman.h", "systemd/sd-event.h", "cuda.h"):
            with self.subTest(header):
                self.assert_finds({"io/disk.c": f"#  include <{header}>\n"}, "io/disk.c:1", "alone")

    def test_cycle(self):
        changes = {"daemon/sd.h": '#include "daemon/a.h"\n', "daemon/a.h": '#include "daemon/sd.h"\n'}
        self.assert_finds(changes, "cycle", "daemon/a.h → daemon/sd.h")

    def test_header_that_includes_itself(self):
        self.assert_finds({"daemon/sd.h": '#include "daemon/sd.h"\n'}, "cycle")

    def test_uncovered_file(self):
        self.assert_finds({"misc/x.c": ""}, "misc/x.c", "no rule covers it")

    def test_unused_header(self):
        changes = {"io/lonely.h": ""}
        self.assert_finds(changes, "io/lonely.h", "nobody includes it")
        self.assertEqual(self.complaints(changes, allow_unused=True), [])

    def test_path_must_be_from_the_root(self):
        self.assert_finds({"io/uring.c": '#include "backend.h"\n'}, "io/uring.c:1", "no path from the root")
        self.assert_finds({"io/uring.c": "#include <io/backend.h>\n"}, "io/uring.c:1", "use quotes")

    def test_installed_headers_name_siblings(self):
        changes = {"include/spillway/spillway.h": '#include "include/spillway/abi.h"\n'}
        self.assert_finds(changes, "include/spillway/spillway.h:1", "siblings alone")
        changes = {"include/spillway/spillway.h": '#include "../base/base.h"\n'}
        self.assert_finds(changes, "include/spillway/spillway.h:1", "siblings alone")

    def test_include_by_macro(self):
        self.assert_finds({"io/uring.c": "#include HEADER\n"}, "io/uring.c:1", "macro")

    def test_comments_are_no_includes(self):
        text = '/*\n#include "daemon/sd.h"\n*/\n// #include "daemon/sd.h"\nconst char *s = "/*";\n'
        self.assertEqual(self.complaints({"io/uring.c": text}), [])
        self.assert_finds({"io/uring.c": text + '#include "daemon/sd.h"\n'}, "io/uring.c:6")

    def test_bad_conf_is_refused(self):
        for conf in ("permit a : b", "allow a b", "only a :", "installed"):
            with self.subTest(conf), self.assertRaises(layers.ConfError):
                layers.Rules(conf)


if __name__ == "__main__":
    unittest.main()
