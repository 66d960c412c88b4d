#!/bin/bash
printf '{"type":"hello","version_min":7,"version_max":9,"crate_version":"9.0.0","generation":0,"pid":%s}' $$ \
    >&"${HANDOVER_CHANNEL%%:*}"
exec sleep 1000
