# syntax=docker/dockerfile:1

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
# SQLite, libjpeg-turbo, libwebp, ring and jemalloc are built from sources in their crates; cmake
# for libjpeg-turbo, nasm for its inner loops and those of the AV1 codecs.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends cmake gcc libc6-dev make nasm \
 && rm -rf /var/lib/apt/lists/*
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package safelight --bin safelight \
 && install -D target/release/safelight /out/safelight

FROM debian:bookworm-slim
# The object store's client trusts the system's certificates.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -o 65532 -g 65532 /var/lib/safelight
COPY --from=build /out/safelight /usr/local/bin/safelight
COPY deploy/probe.sh /usr/local/bin/probe
USER 65532:65532
# The only place that is written to; the rest of the file system may be read-only.
VOLUME /var/lib/safelight
ENV SAFELIGHT_LISTEN=0.0.0.0:8080 \
    SAFELIGHT_DATA_DIR=/var/lib/safelight
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s CMD ["probe", "/livez"]
ENTRYPOINT ["safelight"]
CMD ["serve"]
