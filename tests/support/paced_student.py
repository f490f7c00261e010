"""A student process of a set pace.

python -m tests.support.paced_student ETCD SERVICE: standard input has rows per second, one number a
line, that it consumes at most from then on, and 0 at the end. For each but the first it says how
many seconds it has waited so far and how many batches have come, all of them right.
"""

import json
import sys
import threading
import time

import numpy as np

from edl.distill import DistillReader

ROWS = 8


def main():
    etcd, service = sys.argv[1:]
    pace = float(sys.stdin.readline())
    finished = threading.Event()

    def follow():
        nonlocal pace
        while not finished.is_set():
            asked = float(sys.stdin.readline())
            say()
            if asked:
                pace = asked
            else:
                finished.set()

    def say():
        print(json.dumps({"batches": seen, "waited": reader.stats()["student_waited"]}), flush=True)

    def batches():
        number = 0
        while not finished.is_set():
            yield (np.full((ROWS, 2), number, "f4"),)
            number += 1

    seen = 0
    teachers = f"etcd://{etcd}/{service}"
    with DistillReader(["img"], ["prob"], source=batches, teachers=teachers) as reader:
        threading.Thread(target=follow, daemon=True).start()
        for number, (img, prob) in enumerate(reader):
            assert number == seen
            assert (img == number).all(), f"batch {number} is out of order"
            assert (prob[:, 0] == 2 * number).all(), f"batch {number} has another's labels"
            seen += 1
            time.sleep(ROWS / pace)  # its step


main()
