"""What may happen to teachers and to the network before them, at random."""

import signal
import threading
import time

from edl.discovery.embedded import free_port
from tests.support.processes import python_teacher, python_teachers
from tests.support.proxy import Proxy


class Teachers:
    """Teachers that are stopped, continued and replaced by others at the same port."""

    def __init__(self, generator, count, *arguments, predictor="Sums"):
        self._random = generator
        self._predictor = predictor
        self._arguments = arguments
        self.teachers = python_teachers(count, predictor, *arguments, delay=0.002)

    def start(self, delay, port=None):
        port = port or free_port()
        teacher = python_teacher(self._predictor, *self._arguments, port=port, delay=delay)
        self.teachers.append(teacher)

    @property
    def living(self):
        return [teacher for teacher in self.teachers if teacher.process.poll() is None]

    def happen(self):
        """One thing, at random; its name."""
        action = self._random.choice(self.actions())
        action(self._random.choice(self.living or [None]))
        return action.__name__

    def actions(self):
        return [self.stop, self.cont, self.replace] if len(self.living) > 1 else [self.cont]

    def stop(self, teacher):
        teacher.kill(signal.SIGSTOP)

    def cont(self, _):
        for teacher in self.living:
            teacher.kill(signal.SIGCONT)

    def replace(self, teacher):
        port = teacher.port
        teacher.close()
        self.teachers.remove(teacher)
        self.start(0.002, port)

    def calm(self):
        self.cont(None)

    def close(self):
        for teacher in self.teachers:
            teacher.close()


class Zoo(Teachers):
    """Teachers that also die, leave and come."""

    def actions(self):
        actions = [*super().actions(), self.add, self.add_slow]
        return [*actions, self.kill, self.drain] if len(self.living) > 1 else actions

    def kill(self, teacher):
        teacher.kill(signal.SIGKILL)

    def drain(self, teacher):
        teacher.kill(signal.SIGTERM)

    def add(self, _):
        if len(self.living) < 5:
            self.start(self._random.choice([0.0, 0.002, 0.01]))

    def add_slow(self, _):
        if len(self.living) < 5:
            self.start(0.2)


class Proxies:
    """A proxy before each teacher, whose behaviour changes, for all connections or for one."""

    def __init__(self, generator, teachers):
        self._random = generator
        self._proxies = [Proxy(teacher.endpoint) for teacher in teachers]

    @property
    def endpoints(self):
        return [proxy.endpoint for proxy in self._proxies]

    def happen(self):
        """One thing, at random; its name."""
        proxy = self._random.choice(self._proxies)
        kind, amount = self._random.choice(
            [
                *[("pass", 0)] * 4,
                ("stall", 0),
                ("stall-up", 0),
                ("stall-down", 0),
                ("throttle", self._random.choice([2000, 20000])),
                ("delay", self._random.uniform(0.0, 0.3)),
                ("cut", 0),
                ("cut", self._random.randrange(1, 40000)),
                ("refuse", 0),
            ]
        )
        if kind == "refuse" or self._random.random() < 0.5:
            proxy.every(kind, amount)
        else:
            proxy.one(self._random.randrange(100), kind, amount)
        return kind

    def calm(self):
        for proxy in self._proxies:
            proxy.every("pass")

    def close(self):
        for proxy in self._proxies:
            proxy.close()


class Chaos:
    """Lets something happen to its victims several times a second, for so many seconds; then all
    is calm, and it is ``over``.
    """

    def __init__(self, seconds, generator, *victims):
        self._seconds = seconds
        self._random = generator
        self._victims = victims
        self._between = threading.Lock()
        self._failed = None
        self._thread = threading.Thread(target=self._run)
        self.over = threading.Event()
        self.events = {}

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self._thread.join()
        assert self._failed is None, self._failed

    def workers(self, loader):
        """Begin an iteration of a DataLoader: while its workers are forked, which inherit every
        pipe there is, nobody else starts a process.
        """
        with self._between:
            return iter(loader)

    def _run(self):
        try:
            until = time.monotonic() + self._seconds
            while time.monotonic() < until and not self.over.is_set():
                time.sleep(self._random.uniform(0.02, 0.5) / len(self._victims))
                with self._between:
                    event = self._random.choice(self._victims).happen()
                self.events[event] = self.events.get(event, 0) + 1
        except BaseException as error:
            self._failed = error
        finally:
            self.over.set()
            for victim in self._victims:
                victim.calm()
