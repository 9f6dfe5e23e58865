-- Tracing: every attempt of a job, whoever makes it, belongs to the trace of its upload.

-- W3C traceparent of the span that made the job; null where tracing is off.
alter table jobs add column traceparent text;
