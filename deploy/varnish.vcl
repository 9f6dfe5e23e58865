# A caching, collapsing proxy in front of delivery nodes (Varnish 7): one fetch for however many ask
# at once, any range from one copy, and what is cached goes on being served while every node is away.
# The tests use this file with other addresses in the `.host` and `.port` lines. deploy/README.md says
# how to use it, and how to drain a node.

vcl 4.1;

import directors;
import std;

# A node that drains, or that misses its database or its store, says so on /readyz.
probe ready {
  .url = "/readyz";
  .interval = 500ms;
  .timeout = 2s;
  .window = 3;
  .threshold = 2;
  .initial = 1;
}

# The first byte may take delivery_wait_ms, and some more.
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

# Who may remove: the workers, by purge_urls. Narrow this to their addresses where clients come from
# private networks too.
acl purgers {
  "localhost";
  "10.0.0.0"/8;
  "172.16.0.0"/12;
  "192.168.0.0"/16;
  "fc00::"/7;
}

sub vcl_init {
  # Each address has its own node, so that the nodes' memory holds different things; a node that is
  # away or broke the connection is stood in for by the next on the ring.
  new nodes = directors.shard();
  nodes.add_backend(api_1);
  nodes.add_backend(api_2);
  nodes.reconfigure();
}

sub vcl_recv {
  # Ours alone, never a client's.
  unset req.http.X-Varnish-Cache;
  # What is asked for past the cache.
  set req.backend_hint = nodes.backend(by=URL);

  if (req.method == "PURGE") {
    if (client.ip !~ purgers) {
      return (synth(405, "Method Not Allowed"));
    }
    # All variants: they hang on one address.
    return (purge);
  }
  if ((req.method != "GET" && req.method != "HEAD") || req.url !~ "^/images/") {
    return (pass);
  }
  # A signed URL is its holder's, and good for nothing without its query.
  if (req.url ~ "[?&]signature=") {
    return (pass);
  }
  # One client's patience must not hold up those who wait with it: the nodes' own counts. And a
  # purge names the bare address.
  set req.url = regsub(req.url, "\?.*$", "");
  unset req.http.Prefer;
  # Safelight gives out one spelling of an address, and a purge reaches no other.
  if (req.url !~ "^/images/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(/[a-z0-9_-]{1,32})?$") {
    return (pass);
  }
  # Varnish serves one range from its copy, but can neither cut out several nor pass on an answer that
  # has them: who asks for several gets the whole, which a server may always give (RFC 9110, 14.2).
  if (req.http.Range ~ ",") {
    unset req.http.Range;
  }
  # What is asked for with credentials is its asker's. And of conditions Varnish knows only those of a
  # client that has a copy.
  if (req.http.Authorization || req.http.If-Match || req.http.If-Unmodified-Since) {
    return (pass);
  }
  unset req.http.Cookie;

  # Browsers' many lists come down to three, so that `Vary: Accept` keeps three copies at most.
  # A format with q=0 is one that the client does not want.
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

# By the address alone: a purge comes under another Host than the clients use.
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
    # Each further try goes to another node.
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
    # Not final, or an error. Those who wait for it all get their own answer now, rather than one
    # after the other; a second later requests are collapsed again.
    set beresp.uncacheable = true;
    set beresp.ttl = 1s;
    set beresp.grace = 0s;
    return (deliver);
  }
  # For when no node is ready.
  set beresp.grace = 1d;
  if (std.integer(beresp.http.Content-Length, 1048576) < 1048576) {
    # Kept until it is complete: if it breaks off, it is fetched again and nobody notices.
    set beresp.do_stream = false;
  }
  return (deliver);
}

# No answer, or one that broke off.
sub vcl_backend_error {
  if ((bereq.method == "GET" || bereq.method == "HEAD") && bereq.retries < 3) {
    return (retry);
  }
  # As the nodes themselves say that they cannot serve. RFC 9211 wants no member of ours in it.
  set beresp.http.Content-Type = "application/problem+json";
  set beresp.http.Cache-Control = "no-store";
  set beresp.http.Retry-After = "2";
  set beresp.http.X-Varnish-Cache = "ours";
  synthetic({"{"type":"urn:safelight:problem:not_ready","title":"This node cannot serve now","status":"} + beresp.status
    + {","detail":"No delivery node answers.","code":"not_ready","retryable":true}"});
  return (deliver);
}

sub vcl_deliver {
  # Whatever the client has, it is good (RFC 9110, 13.1.2). Varnish compares tags only.
  if (req.http.If-None-Match == "*" && resp.http.ETag) {
    set req.http.If-None-Match = resp.http.ETag;
  }
  # RFC 9211: the nodes' members stay as they were when it was stored, ours comes last.
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
