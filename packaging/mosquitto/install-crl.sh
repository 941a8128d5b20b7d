#!/bin/sh
# install-crl.sh NEW INSTALLED CA BROKER_PID
#
# Puts a new list of revoked certificates in the broker's place for it, in one step, and has it read. Mosquitto checks none of this
# itself: with a list that it cannot read everybody is let in again, the revoked ones too, with a line in its log; an older list is
# accepted; and once a list is past its end nobody can connect any more. So nothing unchecked is ever put there. Make a new list
# every day, with an end 30 days ahead, and have somebody called when the installed one ends within 7.
set -eu
[ $# -eq 4 ] || { echo "usage: install-crl.sh NEW INSTALLED CA BROKER_PID" >&2; exit 2; }
new=$1 installed=$2 ca=$3 broker=$4

refuse() { echo "install-crl.sh: $new $1; nothing was changed" >&2; exit 1; }
number() { openssl crl -in "$1" -noout -crlnumber | sed 's/.*=//; s/^0x//'; }

openssl crl -in "$new" -noout -verify -CAfile "$ca" 2>&1 | grep -q 'verify OK' || refuse "is not signed by $ca"
ends=$(date -d "$(openssl crl -in "$new" -noout -nextupdate | cut -d= -f2)" +%s)
[ "$ends" -gt $(($(date +%s) + 86400)) ] || refuse "ends within a day"
# One that is broken has no number: whatever is new is newer.
before=$(number "$installed" 2>/dev/null || true)
after=$(number "$new")
[ $((0x$after)) -gt $((0x${before:-0})) ] || refuse "is not newer than what is installed"
cp "$new" "$installed.new"
chmod 0644 "$installed.new"
mv "$installed.new" "$installed"
kill -HUP "$broker"
