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
  # A range is of GET alone (RFC 9110, 14.2).
  if (req.method != "GET") {
    unset req.http.Range;
  }
  # Internal: never taken from a client.
  unset req.http.X-Varnish-Cache;
  unset req.http.X-Version;
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
  # applies. And a purge names the path without a query. All that is left of that is the version of a
  # rendition, which tells apart the copies of one path (`Vary`, see vcl_backend_response).
  if (req.url ~ "^/images/[^/?]+/[^/?]+\?(.*&)?v=[0-9a-f]{16}(&|$)") {
    set req.http.X-Version = regsub(req.url, "^.*[?&]v=([0-9a-f]{16})(&.*)?$", "\1");
  }
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
  # A public image is open to the pages of all origins, and its answer is the same for all.
  unset req.http.Origin;

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
  if (std.healthy(req.backend_hint)) {
    # Stale objects are for the time without nodes: see vcl_backend_response.
    set req.grace = 10s;
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
    # By the path alone, and each retry goes to another node.
    set bereq.backend =
      nodes.backend(by=KEY, key=nodes.key(regsub(bereq.url, "\?.*$", "")), alt=bereq.retries);
  }
  # Each retry begins with the URL that the last one was sent with.
  if (bereq.http.X-Version && bereq.url !~ "\?") {
    set bereq.url = bereq.url + "?v=" + bereq.http.X-Version;
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
  # The id of the first client's request means nothing to the others.
  unset beresp.http.X-Request-ID;
  if (!beresp.http.Vary) {
    set beresp.http.Vary = "X-Version";
  } elsif (beresp.http.Vary !~ "X-Version") {
    set beresp.http.Vary = beresp.http.Vary + ", X-Version";
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
  set beresp.status = 503;
  set beresp.http.Content-Type = "application/problem+json";
  set beresp.http.Cache-Control = "no-store";
  set beresp.http.Retry-After = "2";
  set beresp.http.X-Varnish-Cache = "ours";
  # Only what needs no escapes in JSON.
  set beresp.http.X-Instance = regsuball(regsub(bereq.url, "\?.*$", ""), "[^-A-Za-z0-9._~/%!$&'()*+,;=:@]", "");
  synthetic({"{"type":"urn:safelight:problem:not_ready","title":"This node cannot serve now","status":503"}
    + {","detail":"No delivery node answers.","instance":""} + beresp.http.X-Instance
    + {"","code":"not_ready","retryable":true}"});
  unset beresp.http.X-Instance;
  return (deliver);
}

# Answers that Varnish makes without a node: of a purge, and of what went wrong in this file.
sub vcl_synth {
  set resp.http.X-Content-Type-Options = "nosniff";
  set resp.http.Referrer-Policy = "no-referrer";
  set resp.http.Content-Security-Policy = "default-src 'none'; frame-ancestors 'none'; sandbox";
  if (resp.status < 400) {
    return (deliver);
  }
  set resp.http.Content-Type = "application/problem+json";
  set resp.http.Cache-Control = "no-store";
  set req.http.X-Title = "The server failed";
  set req.http.X-Code = "internal";
  if (resp.status == 405) {
    set req.http.X-Title = "The path does not take this method";
    set req.http.X-Code = "method_not_allowed";
  } elsif (resp.status == 503) {
    set resp.http.Retry-After = "2";
    set req.http.X-Title = "This node cannot serve now";
    set req.http.X-Code = "not_ready";
  } elsif (resp.status < 500) {
    set req.http.X-Title = "The request cannot be understood";
    set req.http.X-Code = "invalid_request";
  }
  set req.http.X-Retryable = "false";
  if (resp.status >= 500) {
    set req.http.X-Retryable = "true";
  }
  set req.http.X-Instance = regsuball(regsub(req.url, "\?.*$", ""), "[^-A-Za-z0-9._~/%!$&'()*+,;=:@]", "");
  unset resp.http.X-Varnish;
  synthetic({"{"type":"urn:safelight:problem:"} + req.http.X-Code + {"","title":""} + req.http.X-Title
    + {"","status":"} + resp.status + {","detail":"Varnish rejected the request.","instance":""}
    + req.http.X-Instance + {"","code":""} + req.http.X-Code + {"","retryable":"}
    + req.http.X-Retryable + {"}"});
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
  # Of no concern to caches behind this one, which have the whole URL.
  set resp.http.Vary = regsub(resp.http.Vary, "(, )?X-Version$", "");
  if (resp.http.Vary == "") {
    unset resp.http.Vary;
  }
  # Of a range that a stored object does not have: not for caches, and of no representation.
  if (resp.status == 416) {
    set resp.http.Cache-Control = "no-store";
    unset resp.http.Content-Type;
    unset resp.http.Content-Disposition;
    unset resp.http.ETag;
    unset resp.http.Last-Modified;
    unset resp.http.Repr-Digest;
  }
  # An error of Varnish itself gets what one of a node has.
  if (!resp.http.X-Content-Type-Options) {
    set resp.http.X-Content-Type-Options = "nosniff";
    set resp.http.Referrer-Policy = "no-referrer";
    set resp.http.Content-Security-Policy = "default-src 'none'; frame-ancestors 'none'; sandbox";
  }
  if (!resp.http.Cache-Control) {
    set resp.http.Cache-Control = "no-store";
  }
}
