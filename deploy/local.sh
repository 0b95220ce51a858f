#!/usr/bin/env bash
# Runs the bundled cloud service in the background on this machine. Usage: deploy/local.sh up|down
set -eu
cd "$(dirname "$0")/.."
state=out/local
service=.venv/bin/cloud-service
# After a crash or a reboot the number may be another process's.
command_line() { tr '\0' ' ' <"/proc/$1/cmdline" || ps -o args= -p "$1"; }
running() { [ -f "$state/pid" ] && command_line "$(cat "$state/pid")" 2>/dev/null | grep -qF "$service serve"; }

case "${1:-}" in
  up)
    if running; then echo "already running: $(head -n 1 "$state/stdout")"; exit 0; fi
    mkdir -p "$state"
    setsid "$service" serve >"$state/stdout" 2>"$state/log" </dev/null &
    pid=$!
    echo "$pid" >"$state/pid"
    for _ in $(seq 240); do
      grep -q '^cloud-service serving' "$state/stdout" && { cat "$state/stdout"; echo "log: $state/log, stop it with: make down-local"; exit 0; }
      kill -0 "$pid" 2>/dev/null || { grep '^error:' "$state/log" || tail -n 3 "$state/log"; rm -f "$state/pid"; exit 1; }
      sleep 0.5
    done
    echo "error: the service did not get ready within two minutes; see $state/log"
    exit 1
    ;;
  down)
    running || { echo "not running"; rm -f "$state/pid"; exit 0; }
    kill "$(cat "$state/pid")"
    for _ in $(seq 80); do running || break; sleep 0.5; done
    running && { echo "error: process $(cat "$state/pid") does not end; end it with kill -9"; exit 1; }
    rm -f "$state/pid"
    echo "stopped"
    ;;
  *) echo "usage: deploy/local.sh up|down"; exit 2 ;;
esac
