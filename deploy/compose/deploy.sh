#!/bin/sh
# deploy.sh FILE: starts the idle one of blue and green, has it take over, and removes the other one.
#
#   IMAGE=app:v2 LABEL=v2 ./deploy.sh host.yaml
#
# Ends with 0 when the next version serves and the old one is gone, and with 1 when what served before serves on. With
# anything else the last line says what is known: then nothing that may serve was removed. COMPOSE is "docker compose" or
# "docker-compose" (whichever is there, in this order), TIMEOUT how long the next version may take to be ready (60s).
set -eu
file=${1:?usage: deploy.sh FILE}
# Two at once would remove each other's containers. What this starts holds the lock too, so a handover that goes on
# after this script was killed keeps the next one out.
exec 9<"$file"
flock --nonblock 9 || { echo "deploy.sh: another deploy of $file is under way" >&2 && exit 1; }

if [ -z "${COMPOSE:-}" ]; then
	COMPOSE='docker compose'
	$COMPOSE version >/dev/null 2>&1 || COMPOSE=docker-compose
fi
# Without the input of this script, which may be the rest of what a shell has to do (ssh HOST sh <script).
compose() { $COMPOSE --file "$file" "$@" </dev/null; }
ctl() { compose run --rm -T ctl "$@"; }
# is and serves ask that container's own process. A no may come of an engine that is slow or in trouble, so it is never
# enough to remove a container.
is() { compose exec -T "$1" /handoffctl check --state "$2" >/dev/null 2>&1; }
serves() { is "$1" ready; }
unknown() {
	echo "deploy.sh: $1; \"run --rm ctl status\" shows who serves" >&2
	exit "${2:-4}"
}
giveup() {
	serves "$old" || unknown "$next $1, and $old does not say that it serves; both are left as they are"
	compose logs --tail 20 "$next" || :
	compose rm --stop --force "$next" || :
	echo "deploy.sh: $next $1; $old serves on" >&2
	exit 1
}

# Without its network nobody would reach what is started, and it would have to be started anew.
if compose --profile deploy config --services | grep --quiet --line-regexp holder; then
	compose up --detach --no-recreate holder
fi
old='' next=blue
if serves blue; then
	old=blue next=green
elif serves green; then
	old=green next=blue
else
	code=0
	ctl status || code=$?
	[ "$code" -eq 3 ] || # nobody is at the socket
		unknown "neither blue nor green says that it serves, and handoffctl status ended with $code; nothing was changed"
fi
compose rm --stop --force "$next" # what an earlier try has left
if [ -z "$old" ]; then # the first one has nobody to wait for
	compose up --detach --no-deps "$next"
	ctl wait --for=serving --timeout "${TIMEOUT:-60s}" || unknown "$next does not serve yet"
	exit
fi

compose up --detach --no-deps "$next" || giveup "did not start"
# If the old one dies meanwhile, the next one serves at once; a standby may be the old one then, started again.
ctl wait --for=standby --timeout "${TIMEOUT:-60s}" || serves "$next" || giveup "did not become ready"
if ! serves "$next"; then
	code=0
	ctl handover || code=$? # returns when it can't be undone any more
	case $code in
	0 | 1) serves "$next" || giveup "did not take over" ;; # 1 is also what COMPOSE ends with if it fails itself
	*) unknown "handoffctl ended with $code" "$code" ;;
	esac
fi
# It drains already, so that SIGTERM cuts nothing, and keeps the engine from starting it again.
compose rm --stop --force "$old" || unknown "$next serves, but $old was not removed"
