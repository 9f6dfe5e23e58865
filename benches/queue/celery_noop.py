"""Celery with tasks that do nothing: enqueues tasks, starts one worker, prints tasks per second.

Usage: celery_noop.py COUNT, with BROKER_URL and, to keep results, RESULT_URL in the environment. Each child
writes one byte per finished task to its own file, which costs almost nothing.
"""

import os
import pathlib
import subprocess
import sys
import time

from celery import Celery

app = Celery("noop", broker=os.environ["BROKER_URL"], backend=os.environ.get("RESULT_URL"))
app.conf.update(
    task_acks_late=True,
    task_ignore_result="RESULT_URL" not in os.environ,
    worker_prefetch_multiplier=64,
    broker_connection_retry_on_startup=True,
)
DONE = pathlib.Path(__file__).parent / "done"


@app.task(name="noop")
def noop():
    global mark
    try:
        mark
    except NameError:
        mark = os.open(DONE / str(os.getpid()), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(mark, b".")


def done():
    return sum(file.stat().st_size for file in DONE.iterdir())


def main(count):
    DONE.mkdir()
    with app.producer_or_acquire() as producer:
        for _ in range(count):
            noop.apply_async(producer=producer)
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "noop", "worker", "-c", "2", "-l", "error",
         "--without-gossip", "--without-mingle", "--without-heartbeat"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        while done() < count // 20:
            time.sleep(0.02)
        started, before = time.monotonic(), done()
        while done() < count:
            time.sleep(0.02)
        print((count - before) / (time.monotonic() - started))
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]))
