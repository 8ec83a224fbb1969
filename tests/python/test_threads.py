# SPDX-License-Identifier: Apache-2.0
"""Threads and forks: who waits does not stop the others, a session closes under nobody, a child touches nothing."""
import errno
import os
import threading
import time

import spillway
import support
from support import KIB, pattern


class Threads(support.Case):
    def waits(self):
        """Every call that can wait, of each kind."""
        tensor = self.space.tensor("t", 64 * KIB)
        buffer = bytearray(64 * KIB)
        views = tensor.acquire(write=True)
        yield "put", lambda: tensor.put(0, buffer)
        yield "get", lambda: tensor.get(0, buffer)
        yield "acquire", tensor.acquire
        yield "release", views.release
        yield "ping", self.space.ping
        yield "admin", lambda: self.session.admin({"get": "status"})

    def test_who_waits_has_no_gil(self):
        for name, call in self.waits():
            with self.subTest(name):
                self.daemon.stand_still(0.15)
                done = threading.Event()
                results = []
                thread = threading.Thread(target=lambda c=call, d=done: (results.append(c()), d.set()))
                thread.start()
                turns = 0
                while not done.wait(0.001):
                    turns += 1
                thread.join()
                self.daemon.go_on()
                self.assertGreater(turns, 10)
                if results[0] is not None and name == "acquire":
                    results[0].release()

    def test_at_the_same_time(self):
        errors = []

        def work(seed):
            try:
                for i in range(100):
                    key, block = b"%d %d" % (seed, i), pattern(4096, seed * 1000 + i)
                    self.space.put([key], [block]).check()
                    with self.space.acquire([key]) as views:
                        if views[0].data != block:
                            errors.append(key)
            except BaseException as error:
                errors.append(error)
                raise

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [])

    def test_close_waits(self):
        self.daemon.stand_still(0.2)
        ended = []

        def ping():
            self.space.ping()
            ended.append("ping")

        thread = threading.Thread(target=ping)
        thread.start()
        while self.session._calls == 0:
            time.sleep(0.001)
        self.session.close()
        ended.append("close")
        thread.join()
        self.daemon.go_on()
        self.assertEqual(sorted(ended), ["close", "ping"])
        with self.assertRaises(spillway.SpillwayError) as caught:
            self.space.ping()
        self.assertEqual(caught.exception.errno, errno.ENOTCONN)

    def test_closed_by_several(self):
        tensor = self.space.tensor("t", 4096)
        refused = []

        def work():
            try:
                while True:
                    tensor.acquire().release()
            except (spillway.SpillwayError, ValueError) as error:
                refused.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        closers = [threading.Thread(target=self.session.close) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        for thread in closers:
            thread.start()
        for thread in threads + closers:
            thread.join(30)
        self.assertEqual(len(refused), 4)

    def test_released_by_several(self):
        for _ in range(50):
            views = self.space.tensor("t", 4096).acquire(write=True)
            threads = [threading.Thread(target=views.release) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertTrue(views[0].released)


class Forks(support.Case):
    def in_child(self, function):
        """Runs it in a child of this process; returns the child's exit status."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                function()
                status = 0
            except BaseException as error:
                os.write(2, f"child: {error!r}\n".encode())
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def test_child(self):
        tensor = self.space.tensor("t", 64 * KIB)
        tensor.put(0, pattern(64 * KIB))
        views = tensor.acquire()
        unseen = tensor.acquire()
        data = views[0].data

        def child():
            for call in (self.space.ping, self.session.pool("default").space, tensor.acquire, tensor.sync,
                         views.release, lambda: views[0].data, lambda: unseen[0].data,
                         lambda: self.space.put(["k"], [b"v"]), self.space.queue):
                with self.assertRaises((spillway.SpillwayError, TypeError)) as caught:
                    call()
                if isinstance(caught.exception, OSError):
                    self.assertEqual(caught.exception.errno, errno.ECHILD)
            with self.assertRaises(ValueError):
                data[0]
            self.session.close()
            with self.daemon.connect() as session:
                got = bytearray(64 * KIB)
                session.pool().space(["test", self.id()]).tensor("t", 64 * KIB).get(0, got)
                assert got == pattern(64 * KIB)

        self.assertEqual(self.in_child(child), 0)
        self.assertEqual(data, pattern(64 * KIB))
        self.space.ping()
        views.release()
        unseen.release()

    def test_fork_while_others_call(self):
        stop = threading.Event()

        def work():
            while not stop.is_set():
                self.space.ping()

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                self.assertEqual(self.in_child(self.session.close), 0)
        finally:
            stop.set()
            for thread in threads:
                thread.join()


if __name__ == "__main__":
    support.main()
