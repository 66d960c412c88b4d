#!/bin/bash
channel=${HANDOVER_CHANNEL%%:*}
printf '{"type":"hello","version_min":1,"version_max":1,"crate_version":"0.1.0","generation":0,"pid":%s}' $$ >&"$channel"
printf '{"type":"started"}' >&"$channel"
exec sleep 1000
