"""A student process: reads batches through a service until its standard input is closed.

python -m tests.support.student ETCD SERVICE: the number of each batch that was right, one a line;
at the end "done" and how many batches its source has yielded.
"""

import sys
import threading
import time

import numpy as np

from edl.distill import DistillReader


def main():
    etcd, service = sys.argv[1:]
    finished = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), finished.set()), daemon=True).start()
    yielded = 0

    def batches():
        nonlocal yielded
        while not finished.is_set():
            yielded += 1
            yield (np.full((4, 2), yielded - 1, "f4"),)

    with DistillReader(
        ["img"], ["prob"], source=batches, teachers=f"etcd://{etcd}/{service}"
    ) as reader:
        for number, (img, prob) in enumerate(reader):
            assert (img == number).all(), f"batch {number} is out of order"
            assert (prob[:, 0] == 2 * number).all(), f"batch {number} has another's labels"
            print(number, flush=True)
            time.sleep(0.005)
    print("done", yielded, flush=True)


main()
