"""``edl launch``, to which etcd's events come half a second late."""

import sys
import time

from edl.cli import launch
from edl.discovery import _etcd3  # noqa: F401  (so that etcd3 can be imported)

# isort: split
from etcd3 import Etcd3Client

watch = Etcd3Client.add_watch_prefix_callback


def watch_late(self, prefix, callback, **options):
    def later(event):
        time.sleep(0.5)
        callback(event)

    return watch(self, prefix, later, **options)


Etcd3Client.add_watch_prefix_callback = watch_late
launch.command(sys.argv[1:])
