#!/bin/sh
echo "no such database" >&2
exit 3
