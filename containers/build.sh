#!/bin/sh
# Build both images with the first builder that works here; without one, say so and do nothing.
set -eu
cd "$(dirname "$0")/.."

builder=
for name in docker podman buildah; do
  if command -v "$name" > /dev/null && "$name" info > /dev/null 2>&1; then
    builder=$name
    break
  fi
done
if [ -z "$builder" ]; then
  echo "No builder works here (docker, podman and buildah were tried); nothing is built."
  exit 0
fi
for image in server site; do
  "$builder" build -f "containers/$image.Dockerfile" -t "fedprompt-$image" .
done
