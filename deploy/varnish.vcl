# A caching proxy in front of delivery nodes (Varnish 7). It collapses concurrent requests into one
# fetch, serves any range from one copy, and continues to serve cached images while no node is
# available. The tests use this file with other addresses in the `.host` and `.port` lines.
# deploy/README.md describes how to use it and how to drain a node.

vcl 4.1;

import directors;
import std;

# On /readyz a node reports that it drains, or that its database or its store is unavailable.
probe ready {
  .url = "/readyz";
  .interval = 500ms;
  .timeout = 2s;
  .window = 3;
  .threshold = 2;
  .initial = 1;
}

# The first byte may take delivery_wait_ms and somewhat more.
backend api_1 {
  .host = "api-1";
  .port = "8080";
  .probe = ready;
  .connect_timeout = 1s;
  .first_byte_timeout = 20s;
  .between_bytes_timeout = 20s;
}

backend api_2 {
  .host = "api-2";
  .port = "8080";
  .probe = ready;
  .connect_timeout = 1s;
  .first_byte_timeout = 20s;
  .between_bytes_timeout = 20s;
}

# Who may purge: the workers (purge_urls). Narrow this to their addresses if clients also come from
# private networks.
acl purgers {
  "localhost";
  "10.0.0.0"/8;
  "172.16.0.0"/12;
  "192.168.0.0"/16;
  "fc00::"/7;
}

sub vcl_init {
  # Each path has its own node, so that the nodes' memory holds different images. If a node is
  # unavailable or broke the connection, the next one on the ring takes over.
  new nodes = directors.shard();
  nodes.add_backend(api_1);
  nodes.add_backend(api_2);
  nodes.reconfigure();
}

sub vcl_recv {
  # Internal: never taken from a client.
  unset req.http.X-Varnish-Cache;
  # For requests that bypass the cache.
  set req.backend_hint = nodes.backend(by=URL);

  if (req.method == "PURGE") {
    if (client.ip !~ purgers) {
      return (synth(405, "Method Not Allowed"));
    }
    # All variants: they share one path.
    return (purge);
  }
  if ((req.method != "GET" && req.method != "HEAD") || req.url !~ "^/images/") {
    return (pass);
  }
  # A signed URL belongs to its holder and is worthless without its query.
  if (req.url ~ "[?&]signature=") {
    return (pass);
  }
  # A collapsed request must not wait as long as one of its clients asks for, so the nodes' default
  # applies. And a purge names the path without a query.
  set req.url = regsub(req.url, "\?.*$", "");
  unset req.http.Prefer;
  # Safelight uses one spelling of each path, and a purge reaches no other.
  if (req.url !~ "^/images/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(/[a-z0-9_-]{1,32})?$") {
    return (pass);
  }
  # Varnish can serve one range from its copy, but neither several ranges nor an answer that contains
  # them. A request for several gets the whole object, which is always allowed (RFC 9110, 14.2).
  if (req.http.Range ~ ",") {
    unset req.http.Range;
  }
  # The answer to a request with credentials is for its sender alone. And Varnish knows only the
  # conditions of a client that has a copy.
  if (req.http.Authorization || req.http.If-Match || req.http.If-Unmodified-Since) {
    return (pass);
  }
  unset req.http.Cookie;

  # Reduce the many values of Accept to three, so that `Vary: Accept` keeps at most three copies.
  # q=0 means that the client does not want a format.
  if (req.http.Accept ~ "(?i)image/avif(?!\s*;\s*q=0(\.0*)?\s*(,|$))"
      && req.http.Accept ~ "(?i)image/webp(?!\s*;\s*q=0(\.0*)?\s*(,|$))") {
    set req.http.Accept = "image/avif,image/webp,*/*;q=0.5";
  } elsif (req.http.Accept ~ "(?i)image/webp(?!\s*;\s*q=0(\.0*)?\s*(,|$))") {
    set req.http.Accept = "image/webp,*/*;q=0.5";
  } else {
    unset req.http.Accept;
  }
  return (hash);
}

# By the path alone: a purge comes with another Host than the clients use.
sub vcl_hash {
  hash_data(req.url);
  return (lookup);
}

sub vcl_purge {
  return (synth(200, "Purged"));
}

sub vcl_hit {
  set req.http.X-Varnish-Cache = "hit";
}

sub vcl_miss {
  set req.http.X-Varnish-Cache = "fwd=miss";
}

sub vcl_pass {
  set req.http.X-Varnish-Cache = "fwd=bypass";
}

sub vcl_backend_fetch {
  unset bereq.http.X-Varnish-Cache;
  if (bereq.method == "GET" || bereq.method == "HEAD") {
    # Each retry goes to another node.
    set bereq.backend = nodes.backend(by=URL, alt=bereq.retries);
  }
  if (bereq.uncacheable && bereq.url !~ "^/images/") {
    # As long as a client may wait for a task (Prefer: wait=60).
    set bereq.first_byte_timeout = 75s;
    set bereq.between_bytes_timeout = 75s;
  }
}

sub vcl_backend_response {
  if (bereq.uncacheable) {
    return (deliver);
  }
  if (beresp.http.Cache-Control !~ "(?i)max-age" || beresp.http.Cache-Control ~ "(?i)no-store|private") {
    # Not final, or an error. All waiting requests now get their own answer, instead of one after the
    # other. A second later requests are collapsed again.
    set beresp.uncacheable = true;
    set beresp.ttl = 1s;
    set beresp.grace = 0s;
    return (deliver);
  }
  # Serve stale objects while no node is ready.
  set beresp.grace = 1d;
  if (std.integer(beresp.http.Content-Length, 1048576) < 1048576) {
    # Do not send it before it is complete: if the fetch breaks off, it is repeated unnoticed.
    set beresp.do_stream = false;
  }
  return (deliver);
}

# No answer, or an incomplete one.
sub vcl_backend_error {
  if ((bereq.method == "GET" || bereq.method == "HEAD") && bereq.retries < 3) {
    return (retry);
  }
  # The same problem document as from a node that cannot serve. An error that Varnish generates gets
  # no member in Cache-Status (RFC 9211).
  set beresp.http.Content-Type = "application/problem+json";
  set beresp.http.Cache-Control = "no-store";
  set beresp.http.Retry-After = "2";
  set beresp.http.X-Varnish-Cache = "ours";
  synthetic({"{"type":"urn:safelight:problem:not_ready","title":"This node cannot serve now","status":"} + beresp.status
    + {","detail":"No delivery node answers.","code":"not_ready","retryable":true}"});
  return (deliver);
}

sub vcl_deliver {
  # `*` matches any stored object (RFC 9110, 13.1.2). Varnish only compares tags.
  if (req.http.If-None-Match == "*" && resp.http.ETag) {
    set req.http.If-None-Match = resp.http.ETag;
  }
  # RFC 9211: the members of the nodes stay as they were when the object was stored; the member of
  # Varnish comes last.
  if (req.url ~ "^/images/" && !resp.http.X-Varnish-Cache) {
    if (req.http.X-Varnish-Cache == "fwd=miss" && !obj.uncacheable) {
      set req.http.X-Varnish-Cache = "fwd=miss; stored";
    }
    std.collect(resp.http.Cache-Status);
    if (resp.http.Cache-Status) {
      set resp.http.Cache-Status = resp.http.Cache-Status + ", varnish; " + req.http.X-Varnish-Cache;
    } else {
      set resp.http.Cache-Status = "varnish; " + req.http.X-Varnish-Cache;
    }
  }
  unset resp.http.X-Varnish-Cache;
  unset resp.http.X-Varnish;
}
