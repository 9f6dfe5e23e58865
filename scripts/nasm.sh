#!/usr/bin/env bash
# Assembles like nasm, which it calls, in a fifth of the time: nasm runs its preprocessor again in every pass,
# and the AV1 codecs' assembly is mostly macros. This preprocesses once. .cargo/config.toml makes the codecs'
# build scripts use it.
set -euo pipefail

output=
preprocess=()
assemble=()
while (($#)); do
  case $1 in
    -o) output=$2; shift 2 ;;
    # Only the preprocessor knows these.
    -I | -i | -D | -d | -P | -p) preprocess+=("$1" "$2"); shift 2 ;;
    -I* | -i* | -D* | -d* | -P* | -p* | *.asm) preprocess+=("$1"); shift ;;
    *) preprocess+=("$1"); assemble+=("$1"); shift ;;
  esac
done
# Such as `nasm -v`.
[[ -n $output ]] || exec nasm "${preprocess[@]}"

preprocessed=$output.i
trap 'rm -f "$preprocessed"' EXIT
nasm -e "${preprocess[@]}" -o "$preprocessed"
nasm "${assemble[@]}" -o "$output" "$preprocessed"
