#!/bin/bash
# It lives on without the channel: nothing but a kill ends it.
channel=${HANDOVER_CHANNEL%%:*}
exec {channel}>&-
exec sleep 1000
