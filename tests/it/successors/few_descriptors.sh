#!/bin/sh
ulimit -n 64
exec "$TESTD" "$@"
