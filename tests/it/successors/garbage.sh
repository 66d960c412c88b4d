#!/bin/bash
# Bash, since other shells cannot write to a descriptor above 9.
printf garbage >&"${HANDOVER_CHANNEL%%:*}"
exec sleep 1000
