#!/bin/sh
# shut-out.sh GATEWAY ACL NEW_CRL CRL CA BROKER_PID [MOSQUITTO_PUB_OPTIONS...]
#
# Shuts a stolen or retired box out of the broker, in the order that leaves no moment in which it is heard:
#  1. the access list denies it everything, which acts on the connection that it has;
#  2. the list of revoked certificates names it, so that it cannot come again;
#  3. its connection is thrown out, by a client of the same client ID (`admin gateway retire` prints it) with an operator's
#     certificate: -h HOST -p PORT --cafile … --cert … --key … -i CLIENT_ID. Without these options restart the broker instead.
# Before it: `kinara-cloud-api … admin gateway retire`, which has the bridge refuse it and empty its configuration.
set -eu
[ $# -ge 6 ] || { echo "usage: shut-out.sh GATEWAY ACL NEW_CRL CRL CA BROKER_PID [MOSQUITTO_PUB_OPTIONS...]" >&2; exit 2; }
gateway=$1 acl=$2 new=$3 installed=$4 ca=$5 broker=$6
shift 6

if ! grep -qx "user $gateway" "$acl"; then
  cp -p "$acl" "$acl.new"
  printf '\nuser %s\ntopic deny #\n' "$gateway" >> "$acl.new"
  mv "$acl.new" "$acl"
  kill -HUP "$broker"
fi
"$(dirname "$0")/install-crl.sh" "$new" "$installed" "$ca" "$broker"
if [ $# -gt 0 ]; then
  # The list is read before anybody connects anew.
  sleep 1
  mosquitto_pub -V 5 "$@" -t "kinara/v1/gw/$gateway/shut-out" -n
fi
