#!/usr/bin/env python3
"""Start a backfill over HTTP, follow it, and count its report. Uses only Python's standard library.

    examples/backfill.py '{"kind": "verify", "rate": 50}'
    examples/backfill.py '{"kind": "import", "source": "/mnt/photos"}' report.ndjson

SAFELIGHT_URL and SAFELIGHT_KEY name the server and the key, as for the safelight command.
"""

import collections
import http.client
import json
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
import uuid

URL = os.environ.get("SAFELIGHT_URL", "http://127.0.0.1:8080").rstrip("/")
KEY = os.environ.get("SAFELIGHT_KEY")
UNREACHABLE = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


def new_id():
    """Return a UUIDv7. The client chooses the id, so a repeated request starts no second backfill."""
    value = int(time.time() * 1000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    return str(uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62))


def call(method, path, document=None):
    """Return the open response; raise HTTPError with the problem's code, detail and hint."""
    request = urllib.request.Request(URL + path, method=method)
    if KEY:
        request.add_header("Authorization", f"Bearer {KEY}")
    if document is not None:
        request.data = json.dumps(document).encode()
        request.add_header("Content-Type", "application/json")
    try:
        return urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        try:
            problem = json.load(error)
            parts = (problem.get(key) for key in ("code", "detail", "hint"))
            error.msg = " ".join(filter(None, parts)) or error.msg
        except (ValueError, AttributeError):
            pass  # Not a problem document: for example a load balancer's page.
        raise


def with_retries(act):
    """Return the result of `act`; repeat it while the server is unavailable or busy."""
    while True:
        try:
            return act()
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise
            wait = error.headers.get("Retry-After", "")
            time.sleep(int(wait) if wait.isdigit() else 1)
        except UNREACHABLE:
            time.sleep(1)


def document(method, path, body=None):
    """Return the JSON document of a call."""

    def act():
        with call(method, path, body) as answer:
            return json.load(answer)

    return with_retries(act)


def report(path):
    """Yield the lines of a report; if it breaks off, continue after the last line."""
    last = None
    is_complete = False

    def next_lines():
        nonlocal last, is_complete
        lines = []
        try:
            with call("GET", path + (f"?after={last}" if last else "")) as answer:
                for line in answer:
                    if not line.endswith(b"\n"):
                        raise ConnectionError("the report broke off")
                    last = json.loads(line)["id"]
                    lines.append(line)
                    if len(lines) == 10_000:
                        return lines
                is_complete = True
        except UNREACHABLE:
            if not lines:
                raise
        return lines

    while not is_complete:
        yield from with_retries(next_lines)


def main(parameters, file=None):
    # Fail immediately if the address is wrong; wait for a server that becomes unavailable later.
    call("GET", "/livez").close()
    output = open(file, "wb") if file else None
    task = document("POST", "/v1/backfills", {"id": new_id(), **parameters})
    print("backfill", task["id"], file=sys.stderr)
    while task["finished_at"] is None:
        time.sleep(1)
        task = document("GET", f"/v1/tasks/{task['id']}")
        print(json.dumps(task["backfill"]["images"]), file=sys.stderr)

    outcomes = collections.Counter()
    for line in report(task["backfill"]["report"]):
        item = json.loads(line)
        outcomes[item["outcome"], item["reason"] or "-"] += 1
        if output:
            output.write(line)
    if output:
        output.close()
    for (outcome, reason), count in sorted(outcomes.items()):
        print(f"{count:8}  {outcome}  {reason}")
    return 0 if task["status"] == "succeeded" else 1


if __name__ == "__main__":
    if len(sys.argv) > 3 or sys.argv[1:2] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    try:
        parameters = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {"kind": "renditions"}
        if not isinstance(parameters, dict):
            raise ValueError("expected a JSON object")
    except ValueError as error:
        sys.exit(f"usage: {sys.argv[0]} '{{\"kind\": …}}' [REPORT.ndjson]: {error}")
    try:
        sys.exit(main(parameters, *sys.argv[2:]))
    except urllib.error.HTTPError as error:
        sys.exit(f"error: {error.code} {error.msg}")
    except (OSError, ValueError, http.client.HTTPException) as error:
        sys.exit(f"error: {error}; is SAFELIGHT_URL ({URL}) right?")
    except KeyboardInterrupt:
        sys.exit("the backfill continues on the server")
