"""A student process: reads batches through a service, and says what it saw.

python -m tests.support.student ETCD SERVICE BATCHES: one line per batch that was right, in order;
"done" with the process's statistics at the end.
"""

import json
import sys
import time

import numpy as np

from edl.distill import DistillReader


def main():
    etcd, service, count = sys.argv[1:]

    def batches():
        for number in range(int(count)):
            yield (np.full((4, 2), number, "f4"),)

    with DistillReader(
        ["img"], ["prob"], source=batches, teachers=f"etcd://{etcd}/{service}"
    ) as reader:
        for number, (img, prob) in enumerate(reader):
            assert (img == number).all(), f"batch {number} is out of order"
            assert (prob[:, 0] == 2 * number).all(), f"batch {number} has another's labels"
            print(number, flush=True)
            time.sleep(0.005)
        print("done", json.dumps(reader.stats()["batches"]), flush=True)


main()
