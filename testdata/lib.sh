# What the scripts share. Sourced, not run.

# need COMMAND PACKAGE installs a Debian package unless its command is there.
need() {
	command -v "$1" >/dev/null && return
	[ -n "${apt_updated:-}" ] || { apt-get update -qq; apt_updated=1; }
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

# need_servers installs what is moved under load.
need_servers() {
	need redis-server redis-server
	need redis-benchmark redis-tools
	need nginx nginx-light
	need javac default-jdk-headless
	need node nodejs
	need python3 python3
	ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || need no-such-command postgresql
}
