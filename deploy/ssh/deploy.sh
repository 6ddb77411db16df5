#!/bin/sh
# deploy.sh VERSION HOST...: the next version, on one host after the other, by ssh and nothing else.
#
# It ends with 0 when all hosts serve VERSION and nothing of the old one is left, and otherwise at the first host that
# does not, with the exit code of handoffctl there: "handoffctl upgrade --help" lists them. Run it again with the same
# DEPLOY_ID after it was interrupted: hosts that are done are found done, and no version is started twice. A new deploy
# needs another id, also one that goes back to an older version.
version=${1:?usage: deploy.sh VERSION HOST...}
shift
DEPLOY_ID=${DEPLOY_ID:-$version-$(date -u +%Y%m%dT%H%M%SZ)}
echo "deploy $DEPLOY_ID"
for host; do
	echo "$host"
	# The connection may break: what was asked for goes on, without the check.
	ssh "$host" sh -s "$version" "$DEPLOY_ID" <<'EOS' || exit
set -eu
export HANDOFF_SOCKET=/run/web/control.sock
exec handoffctl upgrade --request-id "$2" --wait=drained --timeout 3m --log /var/log/web.log \
	--check 'curl -fsS -o /dev/null http://127.0.0.1:8080/' \
	-- "/opt/web/$1/server" --http 127.0.0.1:8080 --label "$1"
EOS
done
