#!/usr/bin/env bash
# The whole system on this machine by Compose, healthy when it returns. Usage: deploy/compose.sh up|down|logs
set -eu
cd "$(dirname "$0")/.."

if ! why=$(docker version 2>&1 >/dev/null); then
  echo "error: no Docker Engine answers (${why##*$'\n'}); without one, deploy/local.sh up (make up-local) starts the cloud service alone"
  exit 1
fi
if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
elif command -v docker-compose >/dev/null; then
  compose=(docker-compose)
else
  echo "error: neither 'docker compose' nor 'docker-compose' is installed"
  exit 1
fi
project=${COMPOSE_PROJECT_NAME:-$(sed -n 's/^COMPOSE_PROJECT_NAME=//p' .env)}
containers() { docker ps --all --filter "label=com.docker.compose.project=$project" "$@"; }

case "${1:-}" in
  up)
    # The container's user is another than this one; sticky: nobody removes what is not theirs.
    mkdir -p out
    chmod 1777 out
    REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)
    export REVISION
    "${compose[@]}" up --detach --build
    for _ in $(seq 120); do
      [ -n "$(containers --quiet --filter health=starting)" ] || break
      sleep 1
    done
    containers --format 'table {{.Names}}\t{{.Status}}\t{{.Ports}}'
    [ -z "$(containers --quiet --filter health=unhealthy --filter health=starting)" ] || {
      echo "error: not everything got healthy; make logs says more"
      exit 1
    }
    ;;
  down) "${compose[@]}" down ;;
  logs) "${compose[@]}" logs --follow --tail 100 ;;
  *) echo "usage: deploy/compose.sh up|down|logs"; exit 2 ;;
esac
