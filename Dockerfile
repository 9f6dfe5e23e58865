# syntax=docker/dockerfile:1

# The build is reproducible as far as its inputs are: Cargo.lock, no paths of the build machine, and
# timestamps of SOURCE_DATE_EPOCH (`docker buildx build --build-arg SOURCE_DATE_EPOCH=… --output
# type=image,rewrite-timestamp=true`). The base images are named by tag, which their publishers move, and
# Debian's packages are those of the day. To pin the images, name their digests:
# `--build-arg RUST=rust@sha256:… --build-arg DEBIAN=debian@sha256:…`.
ARG RUST=rust:1.95.0-slim-bookworm
ARG DEBIAN=debian:12.12-slim

FROM ${RUST} AS build
ARG SOURCE_DATE_EPOCH=0
WORKDIR /src
# The crates of SQLite, libjpeg-turbo, libwebp, ring and mimalloc compile their C sources. cmake builds
# libjpeg-turbo; nasm assembles its inner loops and those of the AV1 codecs.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends cmake gcc libc6-dev make nasm \
 && rm -rf /var/lib/apt/lists/*
COPY . .
ENV CARGO_INCREMENTAL=0 \
    RUSTFLAGS="--remap-path-prefix=/src=safelight --remap-path-prefix=/usr/local/cargo=cargo" \
    CFLAGS="-ffile-prefix-map=/src=safelight -ffile-prefix-map=/usr/local/cargo=cargo -DMI_DEFAULT_ARENA_MAX_OBJECT_SIZE=1024"
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package safelight --bin safelight \
 && install -D target/release/safelight /out/safelight

FROM ${DEBIAN}
# The object store's client trusts the system's certificates.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/cache/debconf /var/cache/ldconfig \
 && install -d -o 65532 -g 65532 -m 700 /var/lib/safelight
COPY --from=build --chmod=755 /out/safelight /usr/local/bin/safelight
COPY --chmod=755 deploy/probe.sh /usr/local/bin/probe
USER 65532:65532
# The only directory that is written to; the rest of the file system may be read-only.
VOLUME /var/lib/safelight
ENV SAFELIGHT_LISTEN=0.0.0.0:8080 \
    SAFELIGHT_DATA_DIR=/var/lib/safelight
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s CMD ["probe", "/livez"]
ENTRYPOINT ["safelight"]
CMD ["serve"]
