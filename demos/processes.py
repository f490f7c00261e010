"""The processes of a demo: programs beside it, and teachers."""

import os
import signal
import subprocess
import sys
import time


class Processes:
    """Programs in ``folder`` and teachers; those that are left at the end are ended, also when the
    demo is told to stop. What they log is in files in ``work``.
    """

    def __init__(self, folder, work):
        self.folder, self.work, self.started, self.signum = folder, work, [], 0
        self.events = []
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self.stop)

    def stop(self, signum, _):
        """Once a process that is about to be started is among those that will be ended."""
        self.signum = signum

    def run(self, *commands, at_once=1, running=()):
        """Run programs of this demo with their arguments to the end, so many at a time, and those
        that are running.
        """
        running = list(running)
        for program, *arguments in commands:
            running = self.wait(at_once - 1, running)
            running.append(self.start_program(program, *arguments))
        self.wait(0, running)

    def once(self, condition, action):
        """Do something as soon as something is true, while others are waited for."""
        self.events.append((condition, action))

    def start_program(self, program, *arguments):
        """One program of this demo."""
        return self.start(self.folder / program, *arguments)

    def start_teacher(self, *arguments):
        """One ``edl teacher``."""
        command = ("-m", "edl.cli.main", "teacher", *arguments, "--cpu-threads", 1, "--ttl", 5)
        return self.start(*command, stdout=subprocess.DEVNULL)

    def start(self, *arguments, **options):
        """Start Python with a core for itself."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOG_minloglevel": "2"}
        command = [sys.executable, "-W", "ignore", *map(str, arguments)]
        with (self.work / f"{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(  # a Ctrl-C is for this process alone
                command, env=environment, stderr=log, start_new_session=True, **options
            )
        self.started.append(process)
        return process

    def kill(self, process):
        """As a machine that loses its power would."""
        process.kill()
        process.wait()
        process.returncode = 0  # it has not failed

    def wait(self, at_most, running, until=lambda: False):
        """Wait until at most so many are left, or something is true; those that are left. The first
        one that fails ends the demo, and so does a teacher.
        """
        while True:
            if self.signum:
                raise SystemExit(128 + self.signum)
            for number, process in enumerate(self.started):
                if process.poll():
                    words = (self.work / f"{number}.log").read_text(errors="replace")[-2000:]
                    raise SystemExit(f"{words}\n{' '.join(process.args[3:])} has failed")
            running = [process for process in running if process.returncode is None]
            if len(running) <= at_most or until():
                return running
            self.look()
            time.sleep(0.05)

    def look(self):
        """Do what is due."""
        for event in list(self.events):
            condition, action = event
            if condition():
                self.events.remove(event)
                action()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.started:
            process.terminate()
        for process in self.started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
