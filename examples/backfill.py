#!/usr/bin/env python3
"""Begin a backfill over HTTP, watch it, and count its report. Python's standard library alone.

    examples/backfill.py '{"kind": "verify", "rate": 50}'
    examples/backfill.py '{"kind": "import", "source": "/mnt/photos"}' report.ndjson

SAFELIGHT_URL and SAFELIGHT_KEY say where the server is, as for the safelight command.
"""

import collections
import json
import os
import sys
import time
import urllib.error
import urllib.request

URL = os.environ.get("SAFELIGHT_URL", "http://127.0.0.1:8080").rstrip("/")
KEY = os.environ.get("SAFELIGHT_KEY")


def call(method, path, document=None):
    """The open answer to a call; raises HTTPError with the problem's code, detail and hint."""
    request = urllib.request.Request(URL + path, method=method)
    if KEY:
        request.add_header("Authorization", f"Bearer {KEY}")
    if document is not None:
        request.data = json.dumps(document).encode()
        request.add_header("Content-Type", "application/json")
    try:
        return urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        problem = json.load(error)
        error.msg = " ".join(filter(None, (problem.get(k) for k in ("code", "detail", "hint"))))
        raise


def patiently(method, path, document=None):
    """A call's document, asked for again while the server is away or busy."""
    while True:
        try:
            with call(method, path, document) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise
            time.sleep(int(error.headers.get("Retry-After", "1")))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(1)


def main():
    wanted = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {"kind": "renditions"}
    with call("POST", "/v1/backfills", wanted) as answer:
        task = json.load(answer)
    print("backfill", task["id"], file=sys.stderr)
    while task["finished_at"] is None:
        time.sleep(1)
        task = patiently("GET", f"/v1/tasks/{task['id']}")
        print(json.dumps(task["backfill"]["images"]), file=sys.stderr)

    outcomes = collections.Counter()
    kept = open(sys.argv[2], "wb") if len(sys.argv) > 2 else None
    with call("GET", task["backfill"]["report"]) as report:
        for line in report:
            item = json.loads(line)
            outcomes[item["outcome"], item["reason"] or "-"] += 1
            if kept:
                kept.write(line)
    for (outcome, reason), count in sorted(outcomes.items()):
        print(f"{count:8}  {outcome}  {reason}")
    return 0 if task["status"] == "succeeded" else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except urllib.error.HTTPError as error:
        sys.exit(f"error: {error.msg}")
    except urllib.error.URLError as error:
        sys.exit(f"error: cannot reach {URL}: {error.reason}")
